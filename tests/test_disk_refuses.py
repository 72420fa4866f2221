"""A run directory that takes no file: training goes on, and what is lost is counted and told."""

from __future__ import annotations

import pytest
from stage import Stage, records_of

from trackhub.records import MetricsLogged, TextLogged

TRAINING = """
import contextlib, os, pathlib, resource, trackhub

pathlib.Path("model").mkdir()
pathlib.Path("model/weights.bin").write_bytes(bytes(9000))
tracker = trackhub.init()
tracker.log_text("before", "there")
[run] = pathlib.Path(os.environ["TRACKHUB_DIR"]).iterdir()
{broken}
tracker.log_text("note", "gone" * 1000)
tracker.log_text("second note", "gone" * 1000)
tracker.log_html("page", "<p>gone</p>" * 1000)
tracker.log_artifact("model/weights.bin")
tracker.log_artifact("model")
tracker.log_model("model")
tracker.log_metrics({{"loss": 0.5}}, step=0)
{mended}
tracker.log_text("after", "there")
print(*tracker.finish().room, sep="\\n")
"""
NO_DESCRIPTORS = """
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
taken = contextlib.ExitStack()
with contextlib.suppress(OSError):
    while True:
        taken.enter_context(open("/dev/null"))
"""
DISKS = {
    "Too many open files": (NO_DESCRIPTORS, "taken.close(); resource.setrlimit(resource.RLIMIT_NOFILE, limit)"),
    "File too large": (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)",
    ),
    "No such file or directory": ("(run / 'blobs').rename('aside')", "pathlib.Path('aside').rename(run / 'blobs')"),
}


@pytest.mark.parametrize("reason", DISKS)
def test_a_disk_that_fails_stops_no_training_and_what_is_lost_is_counted(stage: Stage, reason: str) -> None:
    broken, mended = DISKS[reason]
    out, errors = stage.run(TRAINING.format(broken=broken, mended=mended))
    begin = f"the run directory could not be written ({reason}); not recorded: "
    assert out.splitlines() == [
        f"{begin}text 2 (note, second note)",
        f"{begin}html 1 (page)",
        f"{begin}artifacts 2 (weights.bin, model)",
        f"{begin}models 1 (model)",
    ]
    assert errors.count("'note' is not recorded") == 1
    assert "'second note' is not recorded" not in errors
    records = records_of(stage.run_directory())
    assert [record.name for record in records if isinstance(record, TextLogged)] == ["before", "after"]
    assert [record.values for record in records if isinstance(record, MetricsLogged)] == [{"loss": 0.5}]


def test_a_source_that_cannot_be_read_is_still_said_where_it_is_logged(stage: Stage) -> None:
    out, _ = stage.run(
        """
        import trackhub
        with trackhub.init() as tracker:
            try:
                tracker.log_artifact("nowhere.bin")
            except FileNotFoundError as error:
                print(error)
        """
    )
    assert out.startswith("there is no file or directory 'nowhere.bin' to log")
