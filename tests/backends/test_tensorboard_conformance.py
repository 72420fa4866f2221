"""TensorBoard passes the conformance suite; read back with TensorBoard's own reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trackhub import OpenedRun
from trackhub.backends.tensorboard import TensorBoardBackend
from trackhub.testing import BackendConformance, Point, Shown

pytest.importorskip("tensorboard")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:google.protobuf")
class TestTensorBoard(BackendConformance):
    kind = TensorBoardBackend
    vendor_modules = ("tensorboard",)
    shows_files = False
    shows_tags = False  # a text for people, not a list that could be read back
    keeps_doubles = False
    tells_killed_from_failed = False

    def options(self, directory: Path) -> Mapping[str, Any]:
        return {"logdir": str(directory / "logs")}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any]:
        (directory / "file").touch()
        return {"logdir": str(directory / "file" / "logs")}

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        sizes = dict.fromkeys(("scalars", "tensors", "images"), 0)
        found = EventAccumulator(str(directory / "logs" / str(opened.remote_id)), size_guidance=sizes).Reload()
        tags = found.Tags()
        parent = Path(str(opened.remote_id)).parent.name or None
        shown = Shown(others={*tags["images"], *tags["tensors"]} - {"params", "tags"}, parent=parent, status="running")
        for name in tags["scalars"]:
            shown.metrics[name] = [
                Point(one.step, one.value, round(one.wall_time * 10**9)) for one in found.Scalars(name)
            ]
        for content in found.summary_metadata.values():
            hparams = HParamsPluginData.FromString(content.plugin_data.content)
            if content.plugin_data.plugin_name != "hparams":
                continue
            for name, value in hparams.session_start_info.hparams.items():
                shown.params[name] = getattr(value, str(value.WhichOneof("kind")))
            if hparams.HasField("session_end_info"):
                status = hparams.session_end_info.status
                shown.status = {1: "finished", 2: "failed"}.get(status, "running")
        return shown
