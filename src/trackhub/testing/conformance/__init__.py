"""Every promise of the backend contract, as tests to subclass: what `trackhub.backend.Backend` says in words.

In parts, by what is promised. `subject.py` is what an author supplies.
"""

from trackhub.testing.conformance.manners import HasManners
from trackhub.testing.conformance.odd import BearsOddThings
from trackhub.testing.conformance.once import ShowsItOnce
from trackhub.testing.conformance.read_back import ReadsItBack
from trackhub.testing.conformance.rewound import ShowsOneCurve
from trackhub.testing.conformance.shows import ShowsWhatWasLogged
from trackhub.testing.conformance.subject import Subject

__all__ = ["BackendConformance", "Subject"]


class BackendConformance(ShowsWhatWasLogged, ShowsItOnce, ShowsOneCurve, BearsOddThings, HasManners, ReadsItBack):
    """The conformance suite. Subclass it in a test module, and supply what `Subject` lists.

        class TestLab(BackendConformance):
            kind = LabBackend
            vendor_modules = ("labsdk",)

            def options(self, directory):
                return {"url": self.url}

            def read(self, directory, opened):
                return Shown(metrics=...)

    Its tests need pytest's `tmp_path` alone. Runs are written to a journal and go through the same delivery as in
    training, in the process of the test.
    """
