"""Files of a run: stored under their names, whole, by the time the call returns.

Apart from the backend because the client has two ideas of a file: by path, which it reads when it likes, and by
content, which it copies at the call.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trackhub.backend import Notes
from trackhub.backends.neptune.client import file_type
from trackhub.backends.neptune.fields import FILE
from trackhub.backends.neptune.session import Session
from trackhub.errors import RecordRejected


class Uploads:
    """Uploads to one run.

    Args:
        session: The run.
        client: The client's module.
        notes: Of the backend.
    """

    def __init__(self, session: Session, client: str, notes: Notes) -> None:
        self._session = session
        self._client = client
        self._notes = notes

    def put(self, prefix: str, name: str, source: Path, extension: str | None = None) -> None:
        """Store a file; its extension is its name's if none is given.

        Raises:
            RecordRejected: It cannot be read.
        """
        try:
            size = source.stat().st_size
            source.open("rb").close()
        except OSError as error:
            raise RecordRejected(f"{source} cannot be read: {error.strerror}") from error
        path = self._session.place(prefix, name, FILE)
        if path is None:
            return
        ending = _extension(name, source) if extension is None else extension

        def upload(run: Any) -> None:
            file = file_type(self._client)
            if not self._session.offline:
                # Read from the snapshot while we wait: no second copy of it on the way.
                run[path].upload(file.from_path(str(source), extension=ending))
                return
            with source.open("rb") as stream:
                run[path].upload(file.from_stream(stream, extension=ending))

        self._session.send(f"store {path}", upload, size)

    def put_content(self, prefix: str, name: str, content: bytes, extension: str) -> str | None:
        """Store what is in memory; gives back its path, None if there was no room for it."""
        path = self._session.place(prefix, name, FILE)
        if path is not None:

            def upload(run: Any) -> None:
                run[path].upload(file_type(self._client).from_content(content, extension=extension))

            self._session.send(f"store {path}", upload, len(content))
        return path

    def keep_whole(self, kind: str, name: str, text: str) -> str:
        """Store a text that is too long for where it belongs, below `kind`; gives back where it is."""
        content = text.encode("utf-8", "backslashreplace")
        path = self.put_content("trackhub/long_values", f"{kind}/{name}", content, "txt") or "the run directory"
        self._notes.add("shortened", name[:200], f"{len(text)} characters; the whole value is in {path}")
        return path


def _extension(name: str, source: Path) -> str:
    for text in (name, source.name):
        if (found := re.search(r"\.([A-Za-z0-9]{1,10})$", text)) is not None:
            return found[1]
    return "bin"
