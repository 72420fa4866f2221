"""A limit on the directory: files before scalars, and nothing of it in silence."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

import pytest
from backends_for_tests import LinesBackend, LinesOptions, MetricsOnlyBackend, UnavailableBackend
from stage import records_of, wait_until

import trackhub
from trackhub import Backend, BackendUnavailable
from trackhub.backends.kfp import KfpBackend, KfpOptions
from trackhub.backends.tensorboard import TensorBoardBackend, TensorBoardOptions
from trackhub.delivery import Delivery
from trackhub.errors import SettingsError
from trackhub.inline import InlineDelivery
from trackhub.journal.frames import FORMAT_VERSION, HEADER
from trackhub.prune import free_blobs, prune, size_on_disk
from trackhub.quota import Quota
from trackhub.records import ArtifactLogged, ImageLogged, MetricsLogged, ParamsLogged, RunEnded, TextLogged
from trackhub.replaying import prepare_copy
from trackhub.report import delivery_report
from trackhub.room_note import room_notes, room_sentences
from trackhub.rundir import RunDirectory

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001"
    "f61738550000000049454e44ae426082"
)


def limited(path: Path, max_bytes: int | str, monkeypatch: pytest.MonkeyPatch, **more: object) -> trackhub.Tracker:
    monkeypatch.setenv("TRACKHUB_MAX_BYTES", str(max_bytes))
    return trackhub.init(dir=path / "hub", mode="offline", run_id="run", **more)  # type: ignore[arg-type]


def kinds(tracker: trackhub.Tracker) -> list[type]:
    return [type(record) for record in records_of(RunDirectory(tracker.directory))]


def test_files_are_refused_and_scalars_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "big").write_bytes(b"x" * 300_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "big").write_bytes(b"x" * 300_000)
    with limited(tmp_path, "600kB", monkeypatch) as tracker:
        tracker.log_artifact(tmp_path / "big", "fits")
        with caplog.at_level(logging.WARNING, "trackhub"):
            tracker.log_artifact(tmp_path / "big", "too much")
            tracker.log_artifact(tmp_path / "folder", "a folder too much")
            tracker.log_model(tmp_path / "folder", "model")
            tracker.log_artifact(tmp_path / "big", "in place", copy=False)
            for step in range(3):
                tracker.log_text("page", "x" * 300_000, step=step)
        tracker.log_image("picture", PNG)
        tracker.log_metrics({"loss": 1.0})
        tracker.log_params({"lr": 0.1})
        with pytest.raises(FileNotFoundError):
            tracker.log_artifact(tmp_path / "none")
    assert kinds(tracker) == [ArtifactLogged, ArtifactLogged, ImageLogged, MetricsLogged, ParamsLogged, RunEnded]
    # Each kind is said once, and the rest is counted.
    assert len(caplog.records) == 3
    assert "'too much' is not recorded" in caplog.text
    report = tracker.finish()
    assert report.complete
    assert report.remarkable
    assert "not recorded: artifacts 2 (too much, a folder too much)" in str(report)
    assert "not recorded: models 1 (model)" in str(report)
    assert "not recorded: text 3 (page)" in str(report)
    assert size_on_disk(tmp_path / "hub") <= 600_000 + 8192


def test_without_a_limit_nothing_is_refused_or_measured(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, mode="offline", run_id="run") as tracker:
        tracker.log_text("page", "x" * 300_000)
        assert tracker._quota is None
    assert kinds(tracker) == [TextLogged, RunEnded]
    assert not tracker.finish().remarkable


def test_scalars_alone_are_recorded_beyond_the_limit_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with limited(tmp_path, 100_000, monkeypatch) as tracker:
        for step in range(20_000):
            tracker.log_metrics({"a": 1.0, "b": 2.0}, step=step)
        assert tracker._quota is not None
        tracker._quota._due = 0.0
        with caplog.at_level(logging.WARNING, "trackhub"):
            tracker._quota.look(RunDirectory(tracker.directory), "0001")
            tracker._quota._due = 0.0
            tracker._quota.look(RunDirectory(tracker.directory), "0001")
    assert len(kinds(tracker)) == 20_001
    assert len(caplog.records) == 1
    assert "more than TRACKHUB_MAX_BYTES (100000)" in caplog.text
    assert "params and metrics are recorded all the same" in str(tracker.finish())


def test_the_limit_is_for_all_runs_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "earlier").mkdir(parents=True)
    (tmp_path / "hub" / "earlier" / "file").write_bytes(b"x" * 500_000)
    with limited(tmp_path, "1MB", monkeypatch) as tracker:
        tracker.log_text("page", "x" * 600_000)
        with tracker.child("trial") as child:
            child.log_text("page", "x" * 600_000)
    assert kinds(tracker) == kinds(child) == [RunEnded]
    for one in (tracker, child):
        assert [note.refused["text"].count for note in room_notes(one.directory)] == [1]


def test_a_limit_that_is_none_is_refused_in_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("much", "0", "-1"):
        with pytest.raises(SettingsError, match="TRACKHUB_MAX_BYTES"):
            limited(tmp_path, wrong, monkeypatch)


def train(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *backends: type[Backend],
    max_bytes: int = 1_500_000,
    run_id: str = "run",
) -> RunDirectory:
    """A run of twelve large texts, each delivered as soon as it is logged."""
    monkeypatch.setenv("TRACKHUB_MAX_BYTES", str(max_bytes))
    with trackhub.init(dir=path / "hub", mode="offline", run_id="run") as tracker:
        run = RunDirectory(tracker.directory)
        options = LinesOptions(path=str(path / "lines.jsonl"))
        deliveries = [Delivery(run, kind.name, lambda kind=kind: kind(options)) for kind in backends]
        for step in range(12):
            tracker.log_text("page", str(step) + "x" * 200_000, step=step)
            tracker.log_metrics({"step": step}, step=step)
            deliver(deliveries)
    deliver(deliveries)
    for delivery in deliveries:
        delivery.release()
    return run


def deliver(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        while delivery.pump() == 0.0:
            pass


def texts_of(run: RunDirectory) -> list[TextLogged]:
    return [record for record in records_of(run) if isinstance(record, TextLogged)]


def test_what_all_backends_have_is_freed_before_anything_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, monkeypatch, LinesBackend)
    texts = texts_of(run)
    assert len(texts) == 12
    assert run.cursor("lines").report.delivered == {"artifacts": 12, "metrics": 12}
    (note,) = room_notes(run.path)
    assert not note.refused
    assert note.freed_files >= 6
    assert note.freed_bytes > note.freed_files * 200_000
    assert "were removed here; all backends have them" in room_sentences(run.path)[0]
    # Those that are left are the last ones.
    left = {path.name for path in run.blobs.iterdir()}
    assert left == {Path(text.file.path).name for text in texts[note.freed_files :]}
    assert size_on_disk(tmp_path / "hub") < 1_500_000 + 8192


@pytest.mark.parametrize("backends", [(), (LinesBackend, UnavailableBackend), (MetricsOnlyBackend,)])
def test_what_is_nowhere_else_is_not_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backends: tuple[type[Backend], ...]
) -> None:
    if UnavailableBackend in backends:
        monkeypatch.setattr(UnavailableBackend, "open", raise_unavailable)
    run = train(tmp_path, monkeypatch, *backends)
    texts = texts_of(run)
    assert 0 < len(texts) < 12
    assert all((run.path / text.file.path).exists() for text in texts)
    assert sum(isinstance(record, MetricsLogged) for record in records_of(run)) == 12
    assert f"not recorded: text {12 - len(texts)} (page)" in str(delivery_report(run, "trackhub sync"))


def raise_unavailable(*_: object) -> None:
    raise BackendUnavailable("the vendor does not answer")


def test_runs_that_have_ended_and_arrived_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(tmp_path, monkeypatch, LinesBackend, max_bytes=10_000_000)
    assert len(list(done.blobs.iterdir())) == 12
    monkeypatch.setenv("TRACKHUB_MAX_BYTES", "2500kB")
    with trackhub.init(dir=tmp_path / "hub", mode="offline") as tracker:
        tracker.log_text("page", "x" * 1_000_000)
    assert len(texts_of(RunDirectory(tracker.directory))) == 1
    assert not list(done.blobs.iterdir())
    assert len(texts_of(done)) == 12
    assert "12 files" in room_sentences(done.path)[0]


def files_of(run: RunDirectory) -> set[Path]:
    return {path for path in run.blobs.rglob("*") if path.is_file()}


def free_now(tracker: trackhub.Tracker, run: RunDirectory) -> None:
    """As the background does when it is time to measure, with a limit that is exceeded."""
    assert tracker._quota is not None
    tracker._quota._due = 0.0
    tracker._quota.max_bytes = 1
    tracker._quota.look(run, "0001")


def test_what_a_pipeline_component_has_yet_to_show_is_not_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP's outputs are filled in this process, and the page is drawn from the pictures again and again."""
    dsl = pytest.importorskip("kfp.dsl", reason="the outputs are KFP's own objects")
    model = dsl.Model(name="model", uri=str(tmp_path / "output" / "model"))
    page = dsl.HTML(name="page", uri=str(tmp_path / "output" / "page"))
    (tmp_path / "output").mkdir()
    (tmp_path / "weights").write_bytes(b"w" * 200_000)
    options = {"model": model, "html": page}
    tracker = limited(tmp_path, 10_000_000, monkeypatch, backends=["kfp"], kfp=options)
    run = RunDirectory(tracker.directory)
    lines = [Delivery(run, "lines", lambda: LinesBackend(LinesOptions(path=str(tmp_path / "lines.jsonl"))))]
    inline = InlineDelivery(run, "kfp", KfpBackend, KfpOptions(**options))
    try:
        tracker.log_image("early", PNG)
        inline.advance(to_the_end=True)
        tracker.log_model(tmp_path / "weights")
        tracker.log_image("late", PNG)
        deliver(lines)
        snapshots = files_of(run)
        # One picture is on the page, the model has not been read yet.
        free_now(tracker, run)
        assert files_of(run) == snapshots
        tracker.finish()
        deliver(lines)
        lines[0].release()
        assert run.cursor("lines").closed
        assert free_blobs(run) == 0
        assert prune([run])[0].kept == "it is being delivered to kfp"
        inline.want()
        inline.advance(to_the_end=True)
        report = run.cursor("kfp").report
        assert (report.rejected, [reason for reason in report.notes if reason == "missing"]) == (0, [])
        assert Path(model.path).read_bytes() == b"w" * 200_000
        shown = Path(page.path).read_text()
        assert "alt='early'" in shown
        assert "alt='late'" in shown
        free_now(tracker, run)
        assert not files_of(run)
    finally:
        inline.stop(1.0)
        tracker.finish()


def test_what_a_copy_has_yet_to_be_given_is_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = limited(tmp_path, 10_000_000, monkeypatch)
    run = RunDirectory(tracker.directory)
    logdir = tmp_path / "logs"
    with tracker:
        tracker.log_text("page", "x" * 200_000)
        (copy,) = prepare_copy(run, "tensorboard", {"logdir": str(logdir)}).runs
        for one, kind, options in (
            (run, LinesBackend, LinesOptions(path=str(tmp_path / "lines.jsonl"))),
            (copy, TensorBoardBackend, TensorBoardOptions(logdir=str(logdir))),
        ):
            delivery = Delivery(one, kind.name, lambda kind=kind, options=options: kind(options))
            deliver([delivery])
            delivery.release()
            # At first nobody has begun to deliver the copy; then it has the file, but may have to start over.
            free_now(tracker, run)
            assert len(files_of(run)) == 1
    delivery = Delivery(copy, "tensorboard", lambda: TensorBoardBackend(options))
    deliver([delivery])
    delivery.release()
    assert copy.cursor("tensorboard").closed
    free_now(tracker, run)
    assert not files_of(run)


def of_a_newer_trackhub(run: RunDirectory) -> None:
    """Give a run's journal a format that is not known yet."""
    for segment in run.journal.glob("*.journal"):
        magic, _, *rest = HEADER.unpack(segment.read_bytes()[: HEADER.size])
        with segment.open("r+b") as file:
            file.write(HEADER.pack(magic, FORMAT_VERSION + 1, *rest))


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_recorded_or_from_making_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newer = train(tmp_path, monkeypatch, LinesBackend, max_bytes=10_000_000)
    newer.path.rename(newer.path.with_name("newer"))
    newer = RunDirectory(newer.path.with_name("newer"))
    done = train(tmp_path, monkeypatch, LinesBackend, max_bytes=10_000_000)
    of_a_newer_trackhub(newer)
    unknown = tmp_path / "hub" / "unknown"
    unknown.mkdir()
    (unknown / "run.json").write_text("{}")
    monkeypatch.setenv("TRACKHUB_MAX_BYTES", "4500kB")
    with (
        caplog.at_level(logging.WARNING, "trackhub"),
        trackhub.init(dir=tmp_path / "hub", mode="offline", run_id="now") as tracker,
    ):
        tracker.log_text("page", "x" * 1_000_000)
        tracker.log_text("page", "x" * 4_000_000)
        assert tracker._quota is not None
        tracker._quota._due = 0.0
        wait_until(lambda: tracker._quota._due, "the background to measure")
        tracker.log_metrics({"loss": 1.0})
    assert kinds(tracker) == [TextLogged, MetricsLogged, RunEnded]
    assert not list(done.blobs.iterdir())
    assert len(list(newer.blobs.iterdir())) == 12
    told = [record.message for record in caplog.records if "cannot be looked at" in record.message]
    assert [next(name for name in ("newer", "unknown") if f"/{name} " in one) for one in told] == ["unknown", "newer"]
    assert any(thread.name == "trackhub" and thread.is_alive() for thread in threading.enumerate())


def test_a_snapshot_that_cannot_be_removed_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    tracker = limited(tmp_path, 600_000, monkeypatch)
    run = RunDirectory(tracker.directory)
    lines = [Delivery(run, "lines", lambda: LinesBackend(LinesOptions(path=str(tmp_path / "lines.jsonl"))))]
    with tracker, caplog.at_level(logging.WARNING, "trackhub"), monkeypatch.context() as disk:
        disk.setattr("trackhub.quota.remove", refuse)
        for step in range(4):
            tracker.log_text("page", "x" * 200_000, step=step)
            deliver(lines)
    lines[0].release()
    assert 0 < len(texts_of(run)) < 4
    assert len(files_of(run)) == len(texts_of(run))
    assert caplog.text.count("Read-only file system") == 1
    # It is still known which those were.
    free_now(tracker, run)
    assert not files_of(run)


def test_the_directory_is_not_measured_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Path] = []
    monkeypatch.setattr("trackhub.quota.size_on_disk", lambda path: measured.append(path) or 0)
    quota, run = Quota(tmp_path, 10_000_000), RunDirectory(tmp_path / "run")
    for _ in range(1_000):
        assert quota.admits(run, "0001", "text", "x", 10)
        quota.look(run, "0001")
    assert len(measured) == 1
