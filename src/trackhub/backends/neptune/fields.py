"""Which fields a Neptune run has, and where a new one can be.

Apart from the backend because a path that is both a field and a namespace, or has two types, is refused by Neptune
only after the call; here it is known before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from trackhub.backends.neptune.names import MAX_FILE_PATH_BYTES, MAX_PATH_BYTES, SLASH, to_path

MAX_FIELDS = 9000
_RESERVED_FIELDS = 50
"""For what Neptune itself and the end of the run still have to write."""
FILE, FLOATS, STRINGS, IMAGES = "File", "FloatSeries", "StringSeries", "FileSeries"


class Fields:
    """The fields of one run.

    Args:
        structure: Path -> type of those there are.
        max_fields: How many there may be.
    """

    def __init__(self, structure: Mapping[str, str], max_fields: int = MAX_FIELDS) -> None:
        self._types: dict[str, str] = {}
        self._namespaces: Counter[str] = Counter()
        self._places: dict[tuple[str, str, str], str] = {}
        self._room = max(max_fields - _RESERVED_FIELDS, max_fields // 2)
        self._found = frozenset(structure)
        for path, kind in structure.items():
            self.add(path, kind)

    def was_found(self, path: str) -> bool:
        """Whether the field was there before anything was placed."""
        return path in self._found

    def of_type(self, prefix: str, kind: str) -> list[str]:
        """The paths of the fields below a namespace that have a type."""
        return [path for path, one in self._types.items() if one == kind and path.startswith(f"{prefix}/")]

    def type_of(self, path: str) -> str | None:
        """The type of a field; None if there is none."""
        return self._types.get(path)

    def add(self, path: str, kind: str) -> None:
        """A field is there, of this type."""
        if path not in self._types:
            parts = path.split("/")
            for depth in range(1, len(parts)):
                self._namespaces["/".join(parts[:depth])] += 1
        self._types[path] = kind

    def place(self, prefix: str, name: str, kind: str = "") -> str | None:
        """Where something is to be stored; the same place whenever it is asked, in whichever process.

        Args:
            prefix: The namespace.
            name: Its name there.
            kind: The type it needs; any if empty.

        Returns:
            The path; None if the run can have no more fields.
        """
        known = self._places.get((prefix, name, kind))
        if known is None:
            known = self._find(to_path(prefix, name, MAX_FILE_PATH_BYTES if kind == FILE else MAX_PATH_BYTES), kind)
            if known not in self._types:
                if len(self._types) >= self._room:
                    return None
                self.add(known, kind)
            self._places[prefix, name, kind] = known
        return known

    def known_place(self, prefix: str, name: str, kind: str) -> str | None:
        """Where something is stored; None if it has no place yet."""
        path = self._places.get((prefix, name, kind)) or self._find(to_path(prefix, name, MAX_PATH_BYTES), kind)
        return path if self._types.get(path) == kind else None

    def _find(self, wanted: str, kind: str) -> str:
        first, *rest = wanted.split("/")
        path = first
        for part in rest:
            # What is a field cannot have others below it: they are beside it, with the slash in their name.
            path += (SLASH if path in self._types else "/") + part
        while self._namespaces[path] or (kind and self._types.get(path, kind) != kind):
            path += SLASH
        return path
