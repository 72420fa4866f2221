"""What the author of a backend supplies to the conformance suite.

Apart from the tests because it is all that an author has to read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from trackhub.backend import Backend, OpenedRun
from trackhub.testing.rehearsal import Rehearsal
from trackhub.testing.shown import Shown


class Subject:
    """The backend under test: how to make it, how to read it back, and what its vendor can do.

    Set a capability to False only where the vendor cannot do it; the suite then expects that the loss is reported, or
    skips a test and says why.
    """

    kind: ClassVar[type[Backend]]
    """The backend's class."""

    vendor_modules: ClassVar[tuple[str, ...]] = ()
    """Modules of the vendor that must not be imported before `open`."""

    is_registered: ClassVar[bool] = True
    """Whether an installed package names the backend under the entry point, so that users find it by its name."""

    shows_params: ClassVar[bool] = True
    """Whether `read` finds params."""

    shows_tags: ClassVar[bool] = True
    """Whether `read` finds tags."""

    shows_files: ClassVar[bool] = True
    """Whether `read` finds artifacts with their content."""

    shows_children: ClassVar[bool] = True
    """Whether a child run is a run of its own at the vendor."""

    shows_once: ClassVar[bool] = True
    """Whether what is sent again is shown once. False only where nothing that was sent can be told apart or taken back,
    and showing it twice does no harm."""

    keeps_steps: ClassVar[bool] = True
    """Whether points have steps; where they have none, `read` may number them as it likes."""

    keeps_every_step: ClassVar[bool] = True
    """Whether all points of a metric are kept, not only the last."""

    keeps_times: ClassVar[bool] = True
    """Whether points keep the time they were logged, to the millisecond."""

    keeps_doubles: ClassVar[bool] = True
    """Whether values are 64-bit floats, not 32-bit."""

    takes_any_step_order: ClassVar[bool] = True
    """Whether steps may go backwards and come again."""

    takes_back: ClassVar[bool] = True
    """Whether steps that a later attempt logs anew are no longer shown as the earlier one logged them. Counts for a
    backend that overrides `rewind`; another one is expected to show both."""

    tells_status: ClassVar[bool] = True
    """Whether `read` finds how the run ended."""

    tells_killed_from_failed: ClassVar[bool] = True
    """Whether a killed run is shown otherwise than a failed one."""

    def options(self, directory: Path) -> Mapping[str, Any]:
        """The options to test with, as given to `init(<backend>={...})`.

        Args:
            directory: A directory of the test's own.
        """
        return {}

    def options_that_lead_nowhere(self, directory: Path) -> Mapping[str, Any] | None:
        """Options with which the vendor cannot be reached: a closed port, a path below a file. None: there are none.

        Args:
            directory: A directory of the test's own.
        """
        return None

    def read(self, directory: Path, opened: OpenedRun) -> Shown:
        """Read a run back, with the vendor's own reader and never with the code under test.

        Args:
            directory: What `options` was given.
            opened: What the backend's `open` answered.
        """
        raise NotImplementedError

    def rehearse(
        self,
        directory: Path,
        name: str = "run",
        parent: Rehearsal | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Rehearsal:
        """A new run for this backend, for the suite and for further tests of an author.

        Args:
            directory: The test's directory.
            name: The name people see.
            parent: The run it is a child of.
            options: Instead of what `options` gives.
        """
        given = self.options(directory) if options is None else options
        made = self.kind.resolve(self.kind.Options.model_validate(dict(given)), directory)
        return Rehearsal(directory, self.kind, made, lambda opened: self.read(directory, opened), name, parent)

    def expected(self, value: float) -> float:
        """A metric's value as the vendor stores it."""
        if self.keeps_doubles:
            return value
        single: float = struct.unpack("<f", struct.pack("<f", value))[0]
        return single

    def kept(self, logged: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
        """What the vendor should keep of points of `(step, value)`, sorted."""
        points = [(step if self.keeps_steps else 0, self.expected(value)) for step, value in logged]
        return sorted(points if self.keeps_every_step else points[-1:])

    def found(self, shown: Shown, name: str) -> list[tuple[int, float]]:
        """The points of `(step, value)` that were found of a metric, sorted."""
        points = shown.metrics.get(name, [])
        return sorted((point[0] if self.keeps_steps else 0, point[1]) for point in points)
