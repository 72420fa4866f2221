"""The tracker: what calls write, refuse and return. What ends it from outside is in the tests of host and faults."""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import Stage, records_of, said, scalars, tell, wait_until

import trackhub
from trackhub import NoActiveRunError, RunFinishedError, Tracker
from trackhub.host import host
from trackhub.journal import a_writer_is_alive, writer_is_alive
from trackhub.records import (
    ArtifactLogged,
    ConfusionMatrixLogged,
    FigureLogged,
    HistogramLogged,
    HtmlLogged,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RocCurveLogged,
    RunEnded,
    TableLogged,
    TagsSet,
    TextLogged,
)
from trackhub.rundir import RunDirectory

pytestmark = [
    # TensorBoard's reader, not our code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf"),
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TRACKHUB_BACKENDS", "TRACKHUB_MODE", "TRACKHUB_RUN_ID", "TRACKHUB_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    with trackhub.init(project="p", dir=tmp_path / "hub") as one:
        yield one


@pytest.fixture
def deliveries() -> Iterator[None]:
    yield
    host().stop(10)


def logged(tracker: Tracker) -> list[Any]:
    return [record for record in records_of(RunDirectory(tracker.directory)) if not isinstance(record, RunEnded)]


def only(tracker: Tracker) -> Any:
    (record,) = logged(tracker)
    return record


def ended(tracker: Tracker) -> tuple[str, str | None]:
    (end,) = [record for record in records_of(RunDirectory(tracker.directory)) if isinstance(record, RunEnded)]
    return end.status, end.error


def content(tracker: Tracker, record: Any) -> bytes:
    return (tracker.directory / record.file.path).read_bytes()


# --- metrics


def test_a_record_is_in_the_journal_when_the_call_returns(tracker: Tracker) -> None:
    before = time.time_ns()
    tracker.log_metrics({"loss": 0.5, "acc": 1}, step=3)
    record = only(tracker)
    assert (record.step, record.values) == (3, {"loss": 0.5, "acc": 1.0})
    assert before <= record.time_ns <= time.time_ns()


SCALARS = [
    (1, 1.0),
    (2.5, 2.5),
    (True, 1.0),
    (np.float32(0.5), 0.5),
    (np.float16(0.25), 0.25),
    (np.int64(7), 7.0),
    (np.uint8(200), 200.0),
    (np.bool_(True), 1.0),
    (np.array(3.5), 3.5),
    (np.array([4.5]), 4.5),
    (float("inf"), math.inf),
    (-math.inf, -math.inf),
    (2**70, float(2**70)),
]


@pytest.mark.parametrize(("value", "stored"), SCALARS, ids=lambda value: repr(value))
def test_a_scalar_of_python_or_numpy_is_logged_as_its_value(tracker: Tracker, value: Any, stored: float) -> None:
    tracker.log_metrics({"x": value})
    assert only(tracker).values == {"x": stored}


def test_nan_is_logged_as_nan(tracker: Tracker) -> None:
    tracker.log_metrics({"a": math.nan, "b": np.float32("nan")})
    assert all(map(math.isnan, only(tracker).values.values()))


def test_torch_scalars_are_logged_without_a_warning(tracker: Tracker) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.tensor(1.5, requires_grad=True)
    tracker.log_metrics({"leaf": weight, "loss": weight * 2, "half": torch.tensor(0.25, dtype=torch.bfloat16)})
    tracker.log_metrics({"int": torch.tensor(3), "one": torch.tensor([4.0]), "bool": torch.tensor(True)})
    first, second = logged(tracker)
    assert first.values == {"leaf": 1.5, "loss": 3.0, "half": 0.25}
    assert second.values == {"int": 3.0, "one": 4.0, "bool": 1.0}
    assert weight.requires_grad


@pytest.mark.parametrize("flags", [(), ("-W", "error"), ("-W", "default")])
def test_a_tensor_that_requires_grad_neither_warns_nor_raises(stage: Stage, flags: tuple[str, ...]) -> None:
    pytest.importorskip("torch")
    _, errors = stage.run(
        """
        import torch, trackhub
        with trackhub.init() as tracker:
            for step in range(3):
                tracker.log_metrics({"loss": torch.tensor(1.5, requires_grad=True) * 2})
        """,
        *flags,
    )
    assert errors == ""
    assert [record.values for record in records_of(stage.run_directory())[:-1]] == [{"loss": 3.0}] * 3


@pytest.mark.parametrize("flags", [(), ("-W", "error"), ("-W", "ignore")])
def test_a_complex_number_is_refused_and_does_not_lose_its_imaginary_part(stage: Stage, flags: tuple[str, ...]) -> None:
    out, errors = stage.run(
        """
        import numpy as np, trackhub
        with trackhub.init() as tracker:
            for value in (np.complex64(1 + 2j), np.complex128(1 + 2j), np.array([1 + 2j])):
                for _ in range(2):
                    try:
                        tracker.log_metrics({"x": value})
                    except TypeError as error:
                        print(error)
        """,
        *flags,
    )
    assert errors == ""
    assert out.count("must be one real number") == 6
    assert [type(record) for record in records_of(stage.run_directory())] == [RunEnded]


class _OnlyItem:
    def item(self) -> float:
        return 2.5


def test_anything_with_item_is_a_scalar(tracker: Tracker) -> None:
    tracker.log_metrics({"x": _OnlyItem()})
    assert only(tracker).values == {"x": 2.5}


NO_METRICS = [
    ({"x": "0.5"}, TypeError),
    ({"x": [1.0]}, TypeError),
    ({"x": np.zeros(3)}, (TypeError, ValueError)),
    ({"x": 1j}, TypeError),
    ({"x": object()}, TypeError),
    ({"good": 1.0, "bad": "no"}, TypeError),
    ({"x": 10**400}, ValueError),
    ({"": 1.0}, ValueError),
    ({"line\nbreak": 1.0}, ValueError),
    ({3: 1.0}, TypeError),
    ({"x": {"nested": 1.0}}, TypeError),
    ([("x", 1.0)], TypeError),
    ("x", TypeError),
    (None, TypeError),
]


@pytest.mark.parametrize(("metrics", "error"), NO_METRICS, ids=lambda value: repr(value)[:25])
def test_what_is_no_number_raises_at_the_call_and_leaves_nothing(tracker: Tracker, metrics: Any, error: Any) -> None:
    with pytest.raises(error):
        tracker.log_metrics(metrics, step=1)
    assert logged(tracker) == []
    tracker.log_metrics({"x": 1.0}, step=1)
    assert only(tracker).values == {"x": 1.0}


def test_a_tensor_of_several_values_raises_at_the_call(tracker: Tracker) -> None:
    torch = pytest.importorskip("torch")
    for bad in (torch.zeros(3), torch.zeros(2, requires_grad=True), torch.tensor(1j)):
        with pytest.raises((TypeError, ValueError)):
            tracker.log_metrics({"x": bad})
    assert logged(tracker) == []


@pytest.mark.parametrize("step", ["3", 1.5, math.nan, None.__class__, 2**63, -(2**63) - 1, [1]])
def test_a_step_that_is_no_64_bit_integer_raises_at_the_call(tracker: Tracker, step: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        tracker.log_metrics({"x": 1.0}, step=step)
    assert logged(tracker) == []


@pytest.mark.parametrize("step", [0, -5, 2**31, 2**32, 2**63 - 1, -(2**63), np.int32(7), np.uint64(9)])
def test_any_64_bit_step_is_kept(tracker: Tracker, step: Any) -> None:
    tracker.log_metrics({"x": 1.0}, step=step)
    assert only(tracker).step == int(step)


def test_steps_count_up_by_themselves_from_the_last_one(tracker: Tracker) -> None:
    tracker.log_metrics({"x": 0.0})
    tracker.log_metrics({"y": 0.0})
    tracker.log_metrics({"x": 0.0}, step=10)
    tracker.log_metrics({"x": 0.0})
    assert [record.step for record in logged(tracker)] == [0, 1, 10, 11]


def test_a_step_that_is_refused_does_not_count(tracker: Tracker) -> None:
    tracker.log_metrics({"x": 0.0}, step=4)
    for refused in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="64 bit"):
            tracker.log_metrics({"x": 0.0}, step=refused)
    with pytest.raises(TypeError):
        tracker.log_metrics({"x": "no number"}, step=100)
    tracker.log_metrics({"x": 0.0})
    assert [record.step for record in logged(tracker)] == [4, 5]


def test_a_refused_value_takes_no_step(tracker: Tracker) -> None:
    tracker.log_metrics({"x": 0.0})
    for metrics, timestamp in [({"x": "no number"}, None), (None, None), ({"": 1.0}, None), ({"x": 1.0}, "no time")]:
        with pytest.raises((TypeError, ValueError)):
            tracker.log_metrics(metrics, timestamp=timestamp)  # type: ignore[arg-type]
    tracker.log_metrics({"x": 0.0})
    assert [record.step for record in logged(tracker)] == [0, 1]


def test_a_refused_value_takes_no_step_back_that_others_have_gone_on_from(tracker: Tracker) -> None:
    class LogsWhileItIsLookedAt:
        def __float__(self) -> float:
            tracker.log_metrics({"x": 0.0})
            raise TypeError("no number after all")

    with pytest.raises(TypeError):
        tracker.log_metrics({"x": LogsWhileItIsLookedAt()})
    tracker.log_metrics({"x": 0.0})
    steps = [record.step for record in logged(tracker)]
    assert steps == sorted(set(steps))
    assert len(steps) >= 2


@pytest.mark.parametrize("stamp", [1_700_000_000.25, datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)])
def test_a_timestamp_is_kept(tracker: Tracker, stamp: Any) -> None:
    tracker.log_metrics({"x": 1.0}, timestamp=stamp)
    assert only(tracker).time_ns == 1_700_000_000_250_000_000


def test_a_time_before_1970_is_kept_or_refused_but_not_changed(tracker: Tracker) -> None:
    tracker.log_metrics({"x": 1.0}, timestamp=-1.5)
    assert only(tracker).time_ns == -1_500_000_000


@pytest.mark.parametrize("stamp", ["now", math.inf, 1e300, object()])
def test_what_is_no_time_raises_at_the_call(tracker: Tracker, stamp: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        tracker.log_metrics({"x": 1.0}, timestamp=stamp)
    assert logged(tracker) == []


def test_threads_log_at_the_same_time_and_nothing_is_lost_or_mixed(tracker: Tracker) -> None:
    def work(number: int) -> None:
        for step in range(1000):
            tracker.log_metrics({f"a{number}": step, f"b{number}": -step}, step=step)
            if step % 100 == 0:
                tracker.set_tags({f"t{number}": str(step)})
                tracker.log_text(f"text{number}", str(step), step=step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = logged(tracker)
    for number in range(6):
        points = [record for record in records if isinstance(record, MetricsLogged) and f"a{number}" in record.values]
        assert [record.step for record in points] == list(range(1000))
        assert all(record.values == {f"a{number}": record.step, f"b{number}": -record.step} for record in points)
        texts = [record for record in records if isinstance(record, TextLogged) and record.name == f"text{number}"]
        assert [content(tracker, record) for record in texts] == [str(step).encode() for step in range(0, 1000, 100)]


def test_steps_that_threads_leave_out_are_all_different(tracker: Tracker) -> None:
    threads = [threading.Thread(target=lambda: [tracker.log_metrics({"x": 0.0}) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.step for record in logged(tracker)) == list(range(2000))


# --- the other kinds


def test_params_flatten_and_keep_their_types(tracker: Tracker) -> None:
    tracker.log_params({"lr": 0.1, "net": {"depth": 3, "act": None}, "seeds": [1, 2], "n": np.int64(4)})
    assert isinstance(only(tracker), ParamsLogged)
    assert only(tracker).params == {"lr": 0.1, "net/depth": 3, "net/act": None, "seeds": [1, 2], "n": 4}


def test_tags_are_texts(tracker: Tracker) -> None:
    tracker.set_tags({"stage": "dev", "fold": 3})
    assert isinstance(only(tracker), TagsSet)
    assert only(tracker).tags == {"stage": "dev", "fold": "3"}


def test_an_artifact_is_what_it_was_at_the_call(tracker: Tracker, tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"before")
    tracker.log_artifact(file)
    file.write_bytes(b"after!")
    record = only(tracker)
    assert isinstance(record, ArtifactLogged)
    assert (record.name, content(tracker, record)) == ("weights.bin", b"before")


def test_a_directory_is_an_artifact_with_all_that_is_in_it(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f.txt").write_text("x", encoding="utf-8")
    tracker.log_artifact(tmp_path / "d", "results/d")
    record = only(tracker)
    assert record.name == "results/d"
    assert record.file.is_directory
    assert (tracker.directory / record.file.path / "e" / "f.txt").read_text(encoding="utf-8") == "x"


def test_an_artifact_that_is_not_copied_is_named_where_it_is(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big.bin").write_bytes(b"big")
    monkeypatch.chdir(tmp_path)
    tracker.log_artifact("big.bin", copy=False)
    assert only(tracker).file.path == str(tmp_path / "big.bin")


def test_a_model_is_kept_with_the_name_to_register(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"model")
    tracker.log_model(tmp_path / "m.joblib", "clf", register_as="digits")
    record = only(tracker)
    assert isinstance(record, ModelLogged)
    assert (record.name, record.register_as, content(tracker, record)) == ("clf", "digits", b"model")


def test_texts_and_pages_are_stored_as_utf8(tracker: Tracker) -> None:
    tracker.log_text("note", "größe")
    tracker.log_html("page", "<b>é</b>", step=2)
    text, page = logged(tracker)
    assert isinstance(text, TextLogged)
    assert isinstance(page, HtmlLogged)
    assert content(tracker, text) == "größe".encode()
    assert (content(tracker, page), page.step) == ("<b>é</b>".encode(), 2)


def test_an_array_is_a_picture(tracker: Tracker) -> None:
    tracker.log_image("noise", np.zeros((4, 6, 3), dtype=np.uint8), step=1)
    record = only(tracker)
    assert isinstance(record, ImageLogged)
    assert (record.width, record.height, record.file.media_type) == (6, 4, "image/png")
    assert content(tracker, record).startswith(b"\x89PNG")


def test_a_torch_tensor_is_a_picture_and_a_histogram(tracker: Tracker) -> None:
    torch = pytest.importorskip("torch")
    tracker.log_image("t", torch.rand(3, 4, 6, requires_grad=True))
    tracker.log_histogram("h", torch.randn(100, requires_grad=True))
    image, histogram = logged(tracker)
    assert (image.width, image.height) == (6, 4)
    assert sum(histogram.counts) == 100


def test_a_matplotlib_figure_is_rendered_at_the_call(tracker: Tracker) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure()
    figure.subplots().plot([1, 2, 3])
    tracker.log_figure("curve", figure)
    record = only(tracker)
    assert isinstance(record, FigureLogged)
    assert record.file.media_type == "image/png"
    assert content(tracker, record).startswith(b"\x89PNG")


def test_a_plotly_figure_is_a_page(tracker: Tracker) -> None:
    objects = pytest.importorskip("plotly.graph_objects")
    tracker.log_figure("curve", objects.Figure(objects.Scatter(y=[1, 2])))
    record = only(tracker)
    assert record.file.media_type == "text/html"
    assert b"plotly" in content(tracker, record).lower()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_is_a_table(tracker: Tracker, library: str) -> None:
    frames = pytest.importorskip(library)
    tracker.log_table("t", frames.DataFrame({"a": [1, 2], "b": ["x", None]}))
    record = only(tracker)
    assert isinstance(record, TableLogged)
    assert (record.columns, record.row_count) == (["a", "b"], 2)
    assert b'"x"' in content(tracker, record)


def test_samples_are_a_histogram(tracker: Tracker) -> None:
    tracker.log_histogram("h", np.array([0.0, 1.0, 1.0, math.nan]), bins=2)
    record = only(tracker)
    assert isinstance(record, HistogramLogged)
    assert (record.counts, record.left_out) == ([1.0, 2.0], 1)


def test_a_confusion_matrix_and_a_roc_curve_are_kept_as_numbers(tracker: Tracker) -> None:
    tracker.log_confusion_matrix("cm", ["a", 1], np.array([[1, 2], [3, 4]]), step=5)
    tracker.log_roc_curve("roc", np.array([0.0, 1.0]), [0.0, 1.0], np.array([np.inf, 0.1]))
    matrix, curve = logged(tracker)
    assert isinstance(matrix, ConfusionMatrixLogged)
    assert isinstance(curve, RocCurveLogged)
    assert (matrix.labels, matrix.matrix, matrix.step) == (["a", "1"], [[1.0, 2.0], [3.0, 4.0]], 5)
    assert curve.thresholds == [math.inf, 0.1]


REFUSED = {
    "params are no mapping": lambda tracker: tracker.log_params([1]),
    "tags are no mapping": lambda tracker: tracker.set_tags("x"),
    "no such file": lambda tracker: tracker.log_artifact("not/there"),
    "a name that leads out": lambda tracker: tracker.log_artifact(__file__, "../x"),
    "no such model": lambda tracker: tracker.log_model("not/there"),
    "a text that is bytes": lambda tracker: tracker.log_text("t", b"x"),
    "a page without a name": lambda tracker: tracker.log_html("", "x"),
    "a picture of one dimension": lambda tracker: tracker.log_image("i", np.zeros(3)),
    "a picture with a bad step": lambda tracker: tracker.log_image("i", np.zeros((2, 2)), step="x"),
    "a figure of no library": lambda tracker: tracker.log_figure("f", object()),
    "a table of nothing": lambda tracker: tracker.log_table("t", 3),
    "rows without columns": lambda tracker: tracker.log_table("t", [[1, 2]]),
    "a histogram of texts": lambda tracker: tracker.log_histogram("h", ["a"]),
    "a matrix that is not square": lambda tracker: tracker.log_confusion_matrix("c", ["a", "b"], [[1, 2]]),
    "a curve of different lengths": lambda tracker: tracker.log_roc_curve("r", [0, 1], [0], [1, 0]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_value_that_cannot_be_logged_raises_at_the_call_and_leaves_nothing(tracker: Tracker, call: Any) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError)):
        call(tracker)
    assert logged(tracker) == []
    assert list((tracker.directory / "blobs").iterdir()) == []


# --- ends


def test_after_finish_every_call_says_that_the_run_has_finished(tmp_path: Path) -> None:
    tracker = trackhub.init(dir=tmp_path)
    tracker.finish()
    valid = [
        lambda: tracker.log_metrics({"x": 1.0}),
        lambda: tracker.log_metrics({"x": "no number either"}),
        lambda: tracker.log_params({"a": 1}),
        lambda: tracker.set_tags({"a": 1}),
        lambda: tracker.log_text("a", "b"),
        lambda: tracker.log_artifact(__file__),
        lambda: tracker.log_histogram("h", [1.0, 2.0]),
        lambda: tracker.child("c"),
    ]
    for call in valid:
        with pytest.raises(RunFinishedError, match=tracker.id):
            call()
    assert logged(tracker) == []


def test_a_call_that_races_with_finish_is_recorded_or_refused(tmp_path: Path) -> None:
    tracker = trackhub.init(dir=tmp_path)
    recorded: list[int] = []
    problems: list[BaseException] = []
    begun = threading.Event()

    def work() -> None:
        try:
            while True:
                tracker.log_metrics({"x": 1.0}, step=len(recorded))
                recorded.append(1)
                begun.set()
        except RunFinishedError:
            pass
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    tracker.finish()
    for thread in threads:
        thread.join(10)
    assert problems == []
    assert len(logged(tracker)) == len(recorded)
    assert not writer_is_alive(tracker.directory / "journal", 1)


def test_a_with_block_that_ends_well_finishes_the_run(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path) as tracker:
        pass
    assert ended(tracker) == ("finished", None)
    assert tracker.finished


class _NoText(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("the text of an exception is its author's code")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("bad batch"), "failed", "ValueError: bad batch"),
        (KeyboardInterrupt(), "killed", "KeyboardInterrupt"),
        (SystemExit(0), "finished", None),
        (SystemExit(), "finished", None),
        (SystemExit(2), "failed", "SystemExit: 2"),
        (SystemExit("no data"), "failed", "SystemExit: no data"),
        (ValueError("bad caf\udce9.txt"), "failed", "ValueError: bad caf\\udce9.txt"),
        (_NoText(), "failed", "_NoText (it cannot be written as text)"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else type(value).__name__,
)
def test_an_exception_ends_the_run_and_goes_on(
    tmp_path: Path, error: BaseException, status: str, text: str | None
) -> None:
    with pytest.raises(type(error)), trackhub.init(dir=tmp_path) as tracker:
        raise error
    assert ended(tracker) == (status, text)


@pytest.mark.parametrize("before", range(1960, 2010, 10))
def test_a_secret_at_the_end_of_what_is_kept_of_an_exception_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    secret = "ends-of-open-sesame-0123456789"
    monkeypatch.setenv("CAVE_TOKEN", secret)
    with pytest.raises(ValueError, match="sesame"), trackhub.init(dir=tmp_path) as tracker:
        raise ValueError("." * (before - len("ValueError: ")) + secret)
    _, error = ended(tracker)
    assert error is not None
    assert "ends" not in error
    assert error == ("ValueError: ".ljust(before, ".") + "(hidden)")[:2000]


def test_finish_takes_the_three_ends_and_no_other(tmp_path: Path) -> None:
    tracker = trackhub.init(dir=tmp_path)
    with pytest.raises(ValueError, match="running"):
        tracker.finish("running")  # type: ignore[arg-type]
    tracker.finish("failed")
    assert ended(tracker) == ("failed", None)


@pytest.mark.parametrize("timeout", ["5", [1], object()])
def test_a_timeout_that_is_no_number_is_refused_before_the_run_ends(tracker: Tracker, timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        tracker.finish(timeout=timeout)
    assert not tracker.finished
    tracker.log_metrics({"x": 1.0})
    tracker.finish(timeout=0)
    assert ended(tracker) == ("finished", None)


def test_finish_twice_ends_the_run_once(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path) as tracker:
        first = tracker.finish("killed")
        assert tracker.finish() == first
    assert ended(tracker) == ("killed", None)
    assert first.complete
    assert "in its directory alone" in str(first)


def test_child_runs_end_with_their_parent(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, project="p") as parent:
        done = parent.child("done", params={"k": 1})
        done.finish("failed")
        left = parent.child("left", tags={"fold": 2})
        grandchild = left.child("below")
        grandchild.log_metrics({"x": 1.0})
    assert [ended(run)[0] for run in (parent, done, left, grandchild)] == ["finished", "failed", "finished", "finished"]
    manifests = [RunDirectory(run.directory).manifest for run in (done, left, grandchild)]
    assert [manifest.parent_id for manifest in manifests] == [parent.id, parent.id, left.id]
    assert {manifest.project for manifest in manifests} == {"p"}
    assert (only(done).params, only(left).tags) == ({"k": 1}, {"fold": "2"})


def test_children_of_a_failed_run_fail(tmp_path: Path) -> None:
    children = []

    def fail() -> None:
        with trackhub.init(dir=tmp_path) as parent:
            children.append(parent.child("c"))
            raise ZeroDivisionError("x")

    with pytest.raises(ZeroDivisionError):
        fail()
    [child] = children
    assert ended(child) == ("failed", "ZeroDivisionError: x")


def test_a_run_id_goes_on_with_the_run(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, run_id="mine", name="first") as first:
        first.log_metrics({"x": 1.0}, step=0)
    with trackhub.init(dir=tmp_path, run_id="mine") as second:
        second.log_metrics({"x": 2.0}, step=1)
    assert second.directory == first.directory
    assert second.name == "first"
    assert [record.values["x"] for record in logged(second)] == [1.0, 2.0]


def test_a_run_held_by_a_living_tracker_is_joined_not_ended(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, run_id="mine") as owner:
        with trackhub.init(dir=tmp_path, run_id="mine") as worker:
            worker.log_metrics({"x": 1.0})
        assert RunDirectory(owner.directory).end()[0] == "running"
        owner.log_metrics({"x": 2.0})
    assert ended(owner) == ("finished", None)
    assert len(logged(owner)) == 2


# --- which run is in force


def test_current_is_the_last_run_started_and_not_finished(tmp_path: Path) -> None:
    with pytest.raises(NoActiveRunError):
        trackhub.current()
    with trackhub.init(dir=tmp_path) as outer:
        assert trackhub.current() is outer
        with trackhub.init(dir=tmp_path) as inner:
            assert trackhub.current() is inner
            child = inner.child("c")
            assert trackhub.current() is child
            child.finish()
            assert trackhub.current() is inner
        assert trackhub.current() is outer
    with pytest.raises(NoActiveRunError):
        trackhub.current()


def test_runs_that_end_in_another_order_leave_the_unfinished_one_in_force(tmp_path: Path) -> None:
    first, second = trackhub.init(dir=tmp_path), trackhub.init(dir=tmp_path)
    first.finish()
    assert trackhub.current() is second
    second.finish()
    with pytest.raises(NoActiveRunError):
        trackhub.current()


def test_threads_see_the_process_run_and_their_own(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def work() -> None:
        seen["before"] = trackhub.current()
        with trackhub.init(dir=tmp_path) as own:
            seen["own"] = trackhub.current() is own
        seen["after"] = trackhub.current()

    with trackhub.init(dir=tmp_path) as tracker:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert trackhub.current() is tracker
    assert seen == {"before": tracker, "own": True, "after": tracker}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "c", "params": {"a/": 1}}, ValueError),
        ({"name": "c", "params": 3}, TypeError),
        ({"name": "c", "tags": {"": "x"}}, ValueError),
        ({"name": "a\udc80"}, ValueError),
        ({"name": None}, TypeError),
        ({"name": 5}, TypeError),
    ],
    ids=ascii,
)
def test_a_child_that_is_refused_is_no_run(tracker: Tracker, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        tracker.child(**arguments)
    assert "concatenate" not in str(raised.value)
    assert trackhub.current() is tracker
    assert [path.name for path in tracker.directory.parent.iterdir()] == [tracker.id]


def test_a_run_whose_first_records_cannot_be_recorded_fails_and_is_not_in_force(tmp_path: Path) -> None:
    too_large = {"x": "a" * (65 << 20)}
    with trackhub.init(dir=tmp_path / "parents") as parent:
        with pytest.raises(ValueError, match="over the limit"):
            parent.child("c", params=too_large)
        assert trackhub.current() is parent
    with pytest.raises(ValueError, match="over the limit"):
        trackhub.init(dir=tmp_path / "alone", tags=too_large)
    with pytest.raises(NoActiveRunError):
        trackhub.current()
    runs = [RunDirectory(path) for path in (*(tmp_path / "parents").iterdir(), *(tmp_path / "alone").iterdir())]
    assert sorted(run.end()[0] for run in runs) == ["failed", "failed", "finished"]
    assert not any(run.is_being_written for run in runs)


def test_a_disabled_run_takes_its_children_out_of_force_when_it_finishes() -> None:
    with trackhub.init(mode="disabled") as parent:
        child = parent.child("c")
        assert trackhub.current() is child
    assert child.finished
    with pytest.raises(NoActiveRunError):
        trackhub.current()


def test_an_init_that_fails_leaves_no_run_in_force(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        trackhub.init(dir=tmp_path / "file")
    with pytest.raises(NoActiveRunError):
        trackhub.current()


# --- modes


def test_a_disabled_run_writes_nothing_and_takes_everything(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path, mode="disabled", backends=["tensorboard"]) as tracker:
        assert trackhub.current() is tracker
        tracker.log_metrics({"x": "not even a number"})
        tracker.log_image("i", object())
        with tracker.child("c") as child:
            child.log_params({"a": 1})
        assert (tracker.links, tracker.finished) == ({}, False)
        assert tracker.flush()
        with pytest.raises(ValueError, match="no backend"):
            tracker.remote_id("tensorboard")
    assert tracker.finish().complete
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_starts_no_process_and_is_not_complete(tmp_path: Path, caplog: Any) -> None:
    with trackhub.init(dir=tmp_path, mode="offline", backends=["tensorboard"]) as tracker:
        tracker.log_metrics({"x": 1.0})
    report = tracker.finish()
    assert not report
    assert report.undelivered == {"tensorboard": 1}
    assert f"trackhub sync {tracker.id} --dir {tmp_path}" in str(report)
    assert host()._processes == {}
    assert not caplog.records  # that is what was asked for


# --- delivered


@pytest.mark.usefixtures("deliveries")
def test_finish_returns_when_everything_has_arrived(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path / "hub", backends=["tensorboard"], params={"lr": 0.1}) as tracker:
        for step in range(500):
            tracker.log_metrics({"loss": step / 4, "nan": math.nan}, step=step)
        assert tracker.remote_id("tensorboard", timeout=30).startswith(tracker.name)
        assert str(tmp_path / "runs") in tracker.links["tensorboard"]
        assert tracker.flush(30)
        found = scalars(RunDirectory(tracker.directory))
        assert found["loss"] == [(step, step / 4) for step in range(500)]
        assert len(found["nan"]) == 500
        with pytest.raises(ValueError, match="has no backend 'mlflow'"):
            tracker.remote_id("mlflow")
    report = tracker.finish()
    assert report
    assert str(report).startswith("tensorboard: complete (")
    assert RunDirectory(tracker.directory).cursor("tensorboard").closed_status == "finished"


@pytest.mark.usefixtures("deliveries")
def test_the_report_of_a_run_has_its_children(tmp_path: Path) -> None:
    with trackhub.init(dir=tmp_path / "hub", backends=["tensorboard"]) as parent:
        children = [parent.child(f"fold{number}") for number in range(3)]
        for child in children:
            child.log_metrics({"x": 1.0}, step=0)
            child.finish()
    report = parent.finish()
    assert report.complete
    assert [child.run_id for child in report.children] == [child.id for child in children]
    for child in children:
        assert scalars(RunDirectory(child.directory)) == {"x": [(0, 1.0)]}
        assert child.finish().complete


DEAD = """
import time, trackhub
from trackhub.rundir import RunDirectory
tracker = trackhub.init(backends=["unavailable", "tensorboard"])
for step in range(100):
    tracker.log_metrics({"x": step}, step=step)
child = tracker.child("kid")
child.log_metrics({"y": 1})
child.finish()
run = RunDirectory(tracker.directory)
while run.cursor("tensorboard").report.points < 100 or not run.cursor("unavailable").report.error:
    time.sleep(0.02)
before = time.monotonic()
report = tracker.finish(timeout=5)
print(round(time.monotonic() - before, 1), bool(report), report.undelivered, tracker.id)
"""


def test_finish_with_a_dead_backend_returns_in_time_and_says_the_command(stage: Stage) -> None:
    out, errors = stage.run(DEAD)
    seconds, complete, rest = out.split(" ", 2)
    parent = next(run for run in stage.runs() if run.manifest.parent_id is None)
    assert 5.0 <= float(seconds) < 15
    assert complete == "False"
    assert rest == f"{{'unavailable': 100}} {parent.manifest.id}"
    assert "unavailable: 100 records are not delivered yet" in errors
    assert "the vendor does not answer" in errors
    assert "child run" in errors
    assert f"trackhub sync {parent.manifest.id} --dir {stage.root}" in errors
    stage.wait_closed("tensorboard", run=parent)


def test_a_finish_that_did_not_wait_long_enough_can_wait_again(stage: Stage) -> None:
    process = stage.start(
        """
        import sys, trackhub
        tracker = trackhub.init(backends=["unavailable"])
        print(bool(tracker.finish(timeout=0)), flush=True)
        sys.stdin.readline()
        print(bool(tracker.finish(timeout=60)), flush=True)
        """
    )
    assert said(process) == "False"
    (stage.path / "unavailable.jsonl").touch()
    tell(process)
    assert said(process) == "True"


def test_remote_id_says_why_there_is_none(stage: Stage) -> None:
    out, _ = stage.run(
        """
        import time, trackhub
        from trackhub.rundir import RunDirectory
        tracker = trackhub.init(backends=["unavailable", "raising"], finish_timeout=0)
        while not RunDirectory(tracker.directory).cursor("unavailable").report.error:
            time.sleep(0.02)
        for backend, timeout in (("unavailable", 0), ("raising", 60)):
            try:
                tracker.remote_id(backend, timeout=timeout)
            except TimeoutError as error:
                print(error)
        """
    )
    first, second = out.splitlines()
    assert "the vendor does not answer" in first
    assert "a bug of the plugin" in second  # and long before the minute is over
    assert "trackhub-test-plugins 1.2.3" in second


@pytest.mark.usefixtures("deliveries")
def test_finish_does_not_wait_for_a_run_directory_that_was_deleted(tmp_path: Path, caplog: Any) -> None:
    import shutil

    caplog.set_level(logging.CRITICAL)
    tracker = trackhub.init(dir=tmp_path / "hub", backends=["tensorboard"])
    # The delivery makes no more files in it for now.
    assert tracker.flush()
    shutil.rmtree(tracker.directory)
    tracker.log_metrics({"x": 1.0})
    before = time.monotonic()
    tracker.finish(timeout=60)
    assert time.monotonic() - before < 30
    wait_until(lambda: not tracker.directory.exists(), "the directory to stay away", 60)


def test_a_tracker_that_nobody_holds_is_ended_with_the_process(stage: Stage) -> None:
    stage.run(
        """
        import gc, threading, trackhub
        def work():
            trackhub.init().log_metrics({"x": 1.0})
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        gc.collect()
        """
    )
    assert stage.run_directory().end()[0] == "finished"


def test_snapshots_are_synced_by_two_threads_at_once_without_harm(tmp_path: Path) -> None:
    from trackhub.blobs import BlobStore

    store = BlobStore(tmp_path, "0001")
    problems: list[BaseException] = []
    stop = threading.Event()

    def sync() -> None:
        try:
            while not stop.is_set():
                store.sync()
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    threads = [threading.Thread(target=sync) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(300):
        store.store(str(number).encode(), ".txt", "text/plain")
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_file_that_cannot_be_synced_holds_up_neither_the_journal_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine, synced = os.fdatasync, set[str]()

    def fdatasync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.name == "blobs":
            raise OSError(errno.EIO, "Input/output error")
        genuine(descriptor)
        synced.add(path.suffix)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with caplog.at_level(logging.WARNING, "trackhub"):
        with trackhub.init(dir=tmp_path, mode="offline") as tracker:
            run = RunDirectory(tracker.directory)
            tracker.log_text("page", "x")
            tracker.log_metrics({"x": 1.0})
            wait_until(lambda: ".journal" in synced, "the journal to be synced", 60.0)
        assert not a_writer_is_alive(run.journal)
    told = [record.message for record in caplog.records]
    assert [("its files cannot be written to disk now" in one, "Input/output error" in one) for one in told] == [
        (True, True),
        (False, True),
    ]
    assert "a power failure may still take some of its files" in told[1]
    # Closed: what was reserved is given back.
    assert [path.stat().st_size < 4096 for path in run.journal.glob("*.journal")] == [True]
    assert [type(record) for record in records_of(run)] == [TextLogged, MetricsLogged, RunEnded]
    assert not any(str(run.manifest.id) in str(key) for key in host()._syncs)


def test_an_end_that_the_disk_does_not_take_lets_go_of_the_journal_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fdatasync(descriptor: int) -> None:
        raise OSError(errno.EIO, Path(f"/proc/self/fd/{descriptor}").readlink().parent.name)

    with caplog.at_level(logging.ERROR, "trackhub"), trackhub.init(dir=tmp_path, mode="offline") as tracker:
        run = RunDirectory(tracker.directory)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        tracker.log_text("page", "x")
    assert not a_writer_is_alive(run.journal)
    files, journal = [record.message for record in caplog.records]
    assert "blobs" in files
    assert "the end of the journal could not be written: [Errno 5] journal" in journal
