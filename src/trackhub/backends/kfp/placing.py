"""Which output shows which file: one each, by name before by type, and never over what the component wrote itself.

Apart from the backend because these rules are the same for every kind of record that ends up as a file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from trackhub.backend import Notes
from trackhub.backends.kfp.contents import PLACES, Contents
from trackhub.backends.kfp.outputs import ROLES, Output, Outputs
from trackhub.errors import RecordRejected
from trackhub.records import ArtifactLogged, ModelLogged, StepValueLogged

NO_OUTPUT = "without an output"
"""The reason by which all that KFP has no place for is counted."""


class Placing:
    """Puts what one run has logged into the files of its outputs.

    Args:
        contents: The run.
        outputs: The outputs.
        notes: Takes what could not be shown.
    """

    def __init__(self, contents: Contents, outputs: Outputs, notes: Notes) -> None:
        self._contents = contents
        self._outputs = outputs
        self._notes = notes

    def copy(
        self, record: ArtifactLogged | ModelLogged | StepValueLogged, *roles: str, named: tuple[str, ...] = ()
    ) -> None:
        """Copy a record's file or directory to the path of an output.

        Args:
            record: The record.
            roles: The roles that may take it.
            named: Further roles, for which the name must match.

        Raises:
            RecordRejected: The file is gone, or several outputs could take it.
            BackendUnavailable: The disk refuses.
        """
        output, matched = self._outputs.take(record.name, *roles, named=named)
        if output is None:
            self.leave_out(record.name, " or ".join(f"Output[{ROLES[role]}]" for role in roles))
            return
        if not output.path:
            self._notes.add(NO_OUTPUT, record.name, f"{output} has no path")
            return
        source, path = self._contents.run.path_of(record.file), Path(output.path)
        if not source.exists():
            raise RecordRejected(f"the file of {record.name!r} is gone: {source}")
        if not self.claim(output, record.name, matched=matched):
            return
        self._contents.touch()
        # The component may well have logged the very file that it wrote to the output.
        is_same = path.is_file() and not record.file.is_directory and path.stat().st_size == record.file.size_bytes
        if PLACES.is_free(path):
            PLACES.copy(source, path)
        elif not is_same and not self._is_free(output, record.name):
            return
        self._contents.described[output.name] = _described(record, source)
        output.metadata.update(self._contents.described[output.name])

    def write(self, output: Output, name: str, content: bytes) -> None:
        """Write content that has been claimed for an output.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        if self._is_free(output, name):
            PLACES.write(Path(output.path), content)

    def write_made(self, role: str, what: str, make: Callable[[], bytes]) -> None:
        """Write what is made of the whole run to the main output of a role, if nothing was logged for that.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        output = self._outputs.main(role)
        if output is None:
            if several := self._outputs.of(role):
                listed = ", ".join(map(str, several))
                self.say_once(what, f"several could take it, and none is called {role!r}: {listed}")
        elif (output.name, "file") not in self._contents.claims and output.path and self._is_free(output, what):
            PLACES.write(Path(output.path), make())

    def claim(self, output: Output, name: str, *, matched: bool, what: str = "file") -> bool:
        """Whether something may be shown in an output, which shows one thing: that of its name, else the last one.

        Args:
            output: The output.
            name: What was logged.
            matched: Whether the names match.
            what: Which part of the output is meant.
        """
        claims, key = self._contents.claims, (output.name, what)
        before, earlier = claims.get(key, (False, name))
        if before and not matched:
            self._notes.add(NO_OUTPUT, name, f"{output} shows {earlier!r}, which has its name")
            return False
        if earlier != name:
            self._notes.add("replaced", earlier, f"{output} holds one, and {name!r} was logged after it")
        claims[key] = matched, name
        return True

    def correct(self) -> None:
        """Take back what metadata say of a file of ours, where the component has written its own after it."""
        for output in self._outputs.all:
            described = self._contents.described.get(output.name)
            path = Path(output.path)
            if described is None or PLACES.is_free(path):
                continue
            if not path.is_file() or path.stat().st_size != described["size_bytes"]:
                for key in self._contents.described.pop(output.name):
                    output.metadata.pop(key, None)

    def take_back(self) -> None:
        """Take out of the outputs all that they were given: not all of it may come again.

        Raises:
            BackendUnavailable: The disk refuses.
        """
        contents = self._contents
        for output in self._outputs.all:
            classified = [what for name, what in contents.claims if name == output.name and what != "file"]
            for key in (*contents.last.get(output.name, ()), *contents.described.get(output.name, ()), *classified):
                output.metadata.pop(key, None)
            if output.path:
                PLACES.remove(Path(output.path))
        for history in contents.histories.values():
            history.remove()

    def leave_out(self, name: str, wanted: str) -> None:
        """Count something for which there is no output."""
        if self._contents.run.parent_remote_id is not None:
            self._notes.add(
                NO_OUTPUT, name, "of a child run, KFP shows params and last metrics, in tables of its parent"
            )
        else:
            self._notes.add(NO_OUTPUT, name, f"the component has no {wanted}")

    def say_once(self, what: str, detail: str) -> None:
        """Count something that is the same for all records."""
        if what not in self._contents.said:
            self._contents.said.add(what)
            self._notes.add(NO_OUTPUT, what, detail)

    def _is_free(self, output: Output, name: str) -> bool:
        path = Path(output.path)
        if PLACES.is_free(path):
            return True
        if f"kept {path}" not in self._contents.said:
            self._contents.said.add(f"kept {path}")
            self._notes.add(NO_OUTPUT, name, f"{output} has a file that the component wrote itself: {path}")
        return False


def _described(record: ArtifactLogged | ModelLogged | StepValueLogged, source: Path) -> dict[str, Any]:
    described: dict[str, Any] = {
        "logged_name": record.name,
        "file_name": PurePosixPath(source).name,
        "size_bytes": record.file.size_bytes,
        "is_directory": record.file.is_directory,
    }
    if isinstance(record, ModelLogged) and record.register_as is not None:
        described["registered_as"] = record.register_as
    return described
