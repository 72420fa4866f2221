"""The artifacts of one MLflow run: files and directories put where they are wanted, and nowhere else.

Apart from the backend because MLflow's upload has a single idea of a name, that of the local file, and of failure.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trackhub.backend import Notes
from trackhub.backends.mlflow.names import to_artifact_path
from trackhub.errors import BackendUnavailable, RecordRejected
from trackhub.records import files_below

_BAD_PICTURE_ERRORS = (OSError, KeyError, ValueError, SyntaxError, AssertionError, EOFError, struct.error)
"""What Pillow's readers let out where a picture is slightly broken."""


def path_of_only_file(folder: str, name: str) -> str:
    """The path of the one file of a folder, which must not be called like it.

    MLflow's `HttpArtifactRepository.list_artifacts` takes such a folder for the file, and shows it as empty.
    """
    return f"{folder}/{name}.bin" if name == folder.rpartition("/")[2] else f"{folder}/{name}"


class RunArtifacts:
    """Uploads to one run.

    Args:
        client: An `MlflowClient`.
        run_id: The MLflow run.
        notes: Where renamed artifacts are told.
        translated: Makes the context manager that translates errors, from what is being done.
    """

    def __init__(
        self, client: Any, run_id: str, notes: Notes, translated: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._notes = notes
        self._translated = translated
        self._told: set[str] = set()

    def path_for(self, name: str, within: str = "") -> str:
        """The artifact path of a name, below the path `within`; noted, once, if it is not the name itself."""
        path = to_artifact_path(name)
        if path != name:
            self.tell_renamed(f"{within}{name}", f"{within}{path}")
        return f"{within}{path}"

    def tell_renamed(self, name: str, path: str) -> None:
        """Note, once, that an artifact is not called as its name says."""
        if name not in self._told:
            self._told.add(name)
            self._notes.add("renamed", name[:200], f"the artifact is called {path} in MLflow")

    def put(self, source: Path, target: str) -> None:
        """Upload a file, or all files of a directory, to a path in the run's artifacts."""
        if not source.is_dir():
            self._put_file(source, target)
            return
        for file in files_below(source):
            inside = file.relative_to(source).as_posix()
            self._put_file(file, self.path_for(inside, within=f"{target}/"))

    def put_bytes(self, content: bytes, target: str) -> None:
        """Upload what is in memory."""
        with tempfile.TemporaryDirectory(prefix="trackhub-") as directory:
            local = Path(directory, target.rpartition("/")[2])
            local.write_bytes(content)
            self._put_file(local, target)

    def _put_file(self, source: Path, target: str) -> None:
        try:
            source.open("rb").close()
        except OSError as error:
            raise RecordRejected(f"{source} cannot be read: {error.strerror}") from error
        folder, _, name = target.rpartition("/")
        try:
            with self._translated(f"store {target}"), tempfile.TemporaryDirectory(prefix="trackhub-") as directory:
                local = source
                if source.name != name:
                    # MLflow calls an artifact as its local file is called.
                    local = Path(directory, name)
                    local.symlink_to(source.resolve())
                self._client.log_artifact(self._run_id, str(local), folder or None)
        except BackendUnavailable:
            if self._is_obstructed(target):
                raise RecordRejected(f"{target}: it would be both a file and a directory of the run") from None
            raise

    def _is_obstructed(self, target: str) -> bool:
        """Whether the path leads through a file, or is a directory; for MLflow that is a failure like any other."""
        parts = target.split("/")
        for depth in range(1, len(parts) + 1):
            folder, path = "/".join(parts[: depth - 1]) or None, "/".join(parts[:depth])
            try:
                entries = self._list(folder)
            except BackendUnavailable:
                # A server that fails an upload drops its connection with it, which the next request finds out.
                entries = self._list(folder)
            if any(entry.path == path and entry.is_dir == (depth == len(parts)) for entry in entries):
                return True
        return False

    def _list(self, folder: str | None) -> list[Any]:
        with self._translated("list artifacts"):
            return list(self._client.list_artifacts(self._run_id, folder))


def thumbnail(source: Path) -> bytes | None:
    """A picture at the size of MLflow's image grid.

    None for one that cannot be made smaller, and without Pillow, which mlflow-skinny does not bring.
    """
    if find_spec("PIL") is None:
        return None
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(source) as image:
            image.thumbnail((256, 256))
            image.save(buffer, "WEBP")
    except (*_BAD_PICTURE_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    return buffer.getvalue()
