"""A delivered replay equals live delivery: both are read back with the vendors' own readers, and nothing differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_mlflow_conformance
import test_neptune_conformance
import test_tensorboard_conformance
from mlflow_server import running_server
from neptune_server import neptune_server
from stage import wait_until
from test_verifying import log_everything

from trackhub import OpenedRun
from trackhub.delivery import Delivery
from trackhub.replaying import Copy, prepare_copy
from trackhub.rundir import RunDirectory
from trackhub.settings import full_options
from trackhub.sync import options_for
from trackhub.testing import Shown
from trackhub.verifying import reconcile

pytestmark = pytest.mark.filterwarnings(
    # Of the vendors' packages; none of it is ours to mend.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
    "ignore:You're hitting",
)


@pytest.fixture(params=["mlflow", "tensorboard", "neptune"])
def two_places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A subject at one place, and one at another."""
    if request.param == "mlflow":
        with running_server(tmp_path) as url:
            live, other = test_mlflow_conformance.TestMlflow(), test_mlflow_conformance.TestMlflow()
            live.url, other.url = url, f"sqlite:///{tmp_path}/other/mlflow.db"
            yield live, other
    elif request.param == "tensorboard":
        live, other = test_tensorboard_conformance.TestTensorBoard(), test_tensorboard_conformance.TestTensorBoard()
        yield live, other
    else:
        with neptune_server() as first, neptune_server() as second:
            live, other = test_neptune_conformance.TestNeptune(), test_neptune_conformance.TestNeptune()
            live.server, other.server = first, second
            yield live, other


def test_a_replay_shows_what_live_delivery_shows(two_places: tuple[Any, Any], tmp_path: Path) -> None:
    live, other = two_places
    here, there = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    there.mkdir()
    run = live.rehearse(here)
    log_everything(run)
    run.end("failed")
    run.deliver()
    shown = run.shown()
    name = live.kind.name
    elsewhere = other.kind.resolve(other.kind.Options.model_validate(dict(other.options(there))), there)

    # To another place, under its own id: nothing at all is different.
    copy = prepare_copy(run.run, name, full_options(elsewhere), same_id=True)
    deliver(other, copy)
    copied = read(other, there, copy.runs[0])
    assert comparable(copied) == comparable(shown)
    assert reconcile(copy.runs[0], live.kind(elsewhere))

    # To the same place: another run beside it, with the same in it; the first is as it was.
    beside = prepare_copy(run.run, name, full_options(run.options), again=True)
    deliver(live, beside)
    assert beside.runs[0].cursor(name).remote_id != run.cursor.remote_id
    again = read(live, here, beside.runs[0])
    assert comparable(without_identity(again)) == comparable(without_identity(shown))
    assert comparable(run.shown()) == comparable(shown)
    assert reconcile(run.run, live.kind(run.options))


def deliver(subject: Any, copy: Copy) -> None:
    """As `trackhub replay` does, without the process: a vendor's package takes its time to be imported."""
    (run,) = copy.runs
    name = subject.kind.name
    options = subject.kind.Options.model_validate(options_for(run, name, copy.options))
    delivery = Delivery(run, name, lambda: subject.kind(options))
    try:
        wait_until(lambda: delivery.pump() is None, "the copy to be delivered", 200)
    finally:
        delivery.release()
    assert run.cursor(name).closed


def read(subject: Any, directory: Path, run: RunDirectory) -> Shown:
    cursor = run.cursor(subject.kind.name)
    shown: Shown = subject.read(directory, OpenedRun(cursor.remote_id, cursor.link, cursor.state))
    return shown


def comparable(shown: Shown) -> dict[str, Any]:
    """All of it, with points in an order of their own and NaN equal to itself."""
    plain = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    plain["metrics"] = {
        name: sorted((point.step, repr(point.value), point.time_ns) for point in points)
        for name, points in shown.metrics.items()
    }
    assert plain["metrics"]
    return plain


def without_identity(shown: Shown) -> Shown:
    """Without what has the run's id in it on purpose: MLflow's image grid wants a name of its own for each picture."""
    files = {path: content for path, content in shown.files.items() if not path.startswith("images/")}
    assert len(shown.files) - len(files) in (0, 2)
    return dataclasses.replace(shown, files=files)
