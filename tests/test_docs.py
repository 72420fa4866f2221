"""The documentation is true: its code runs, its generated pages are current, and nothing public is left out."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trackhub
from trackhub import lowering, plugins, settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = Path(str(trackhub.__file__)).parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NEEDED = {name: name for name in ("kfp", "mlflow", "neptune", "numpy", "tensorboard")}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(language: str, code: str) -> Iterator[list[str]]:
    """The programs to run for a block."""
    if language == "python":
        # From a file: KFP reads the source of a component.
        yield [sys.executable, "block.py"]
    elif language == "shell":
        for line in code.splitlines():
            if line.startswith("trackhub "):
                yield [sys.executable, "-m", "trackhub", *line.split()[1:]]


PAGES_WITH_CODE = [page for page in PAGES if any(list(commands(*block)) for block in blocks(page))]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKHUB_", "MLFLOW_"))}
    return {**kept, **more}


def run(command: list[str], directory: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=directory, env=clean_environment(**variables), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{' '.join(command[1:])}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    text = "\n".join(code for _, code in blocks(page))
    for word, package in NEEDED.items():
        if re.search(rf"\b{word}\b", text) and importlib.util.find_spec(package) is None:
            # Not imported here: neptune reads its timeouts when it is, and the backend must be the first to do so.
            pytest.skip(f"{package} is not installed")
    for language, code in blocks(page):
        (tmp_path / "block.py").write_text(code, encoding="utf-8")
        for command in commands(language, code):
            run(command, tmp_path)


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        languages = {fence.split()[0] for fence in fences[::2] if fence}
        assert languages <= {"python", "shell", "text", "toml", "{toctree}", "{eval-rst}", "{literalinclude}"}, name_of(
            page
        )


def test_what_the_page_on_plugins_shows_is_in_the_example() -> None:
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```{literalinclude} (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {path.rpartition("/")[2] for path, _ in shown} == {"pyproject.toml", "__init__.py", "test_csv.py"}
    for path, options in shown:
        source = (DOCS / path).read_text(encoding="utf-8")
        for option, text in re.findall(r'^:(\S+): "?(.*?)"?$', options, re.MULTILINE):
            if option in ("start-at", "end-before"):
                assert source.count(text) >= 1, text
            if option == "pyobject":
                assert re.search(rf"^ *(def|class) {text.rpartition('.')[2]}\b", source, re.MULTILINE), text


def test_the_generated_pages_are_current() -> None:
    for path, text in load_generator().pages().items():
        assert (DOCS / path).read_text(encoding="utf-8") == text, "run python docs/generate.py"


def test_every_setting_is_on_the_settings_page() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    for name, info in settings.Settings.model_fields.items():
        assert f"`{settings.variable_of(name)}`" in page
        assert info.description, name
        assert info.description in page
    for backend in plugins.BUILT_IN:
        for name, info in plugins.find_backend(backend).Options.model_fields.items():
            assert f"`TRACKHUB_{backend.upper()}_{name.upper()}`" in page
            assert info.description, f"{backend} {name}"
            assert info.description in page


def test_every_variable_that_a_page_names_exists() -> None:
    known = {settings.variable_of(name) for name in settings.Settings.model_fields}
    for backend in plugins.BUILT_IN:
        known |= {
            f"TRACKHUB_{backend.upper()}_{name.upper()}" for name in plugins.find_backend(backend).Options.model_fields
        }
    known |= {
        "TRACKHUB_CSV_DIRECTORY",
        "TRACKHUB_TEST_TORCH",
        "TRACKHUB_TEST_SERVERS",
        "TRACKHUB_BENCH_LIGHTNING",
        "TRACKHUB_SOAK_SECONDS",
        "TRACKHUB_SOAK_SEED",
    }  # the example of a plugin; noxfile.py
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        named = set(re.findall(r"\bTRACKHUB_[A-Z_]*[A-Z]\b(?!_)", page.read_text(encoding="utf-8")))
        assert named <= known, name_of(page)


def test_every_backend_has_a_page_and_every_kind_a_row() -> None:
    table = (DOCS / "backends/index.md").read_text(encoding="utf-8")
    for backend in plugins.BUILT_IN:
        assert (DOCS / f"backends/{backend}.md").is_file()
    for kind in lowering.KINDS.values():
        assert f"| {kind.replace('_', ' ')} |" in table


def test_every_processor_and_every_kind_is_on_the_page_of_processors() -> None:
    page = (DOCS / "processors.md").read_text(encoding="utf-8")
    for name in plugins.BUILT_IN_PROCESSORS:
        kind = plugins.find_processor(name)
        assert f"| `{name}" in page
        assert f".. autoclass:: {kind.__module__}.{kind.__name__}()" in page
    for kind_of_record in lowering.KINDS.values():
        assert f"`{kind_of_record}:`" in page


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    errors = importlib.import_module("trackhub.errors")
    for name in trackhub.__all__:
        assert name in page or hasattr(errors, name) or name in {"__version__", "hookimpl"}, name


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            if "://" not in target:
                assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)}: {target}"


@pytest.mark.parametrize(
    "name",
    sorted(
        ".".join(("trackhub", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    ),
)
def test_the_examples_in_docstrings_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What other tests have taught it to hide may be a word of an example.
    monkeypatch.setattr("trackhub.redaction._pattern", None)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"backends": "tensorbord"}, "no backend is called 'tensorbord'; did you mean 'tensorboard'?"),
        ({"backends": "tensorboard", "tensorboard": {"logdri": "x"}}, "has no option 'logdri'; did you mean 'logdir'?"),
        ({"mode": "onlin"}, "mode = 'onlin' is not accepted"),
        ({"backend": "mlflow"}, "init() has no argument 'backend'"),
        (
            {"backends": "mlflow", "mlflow": {"tracking_uri": "./mlruns"}},
            "mlflow tracking_uri './mlruns' is a directory, which MLflow no longer writes to",
        ),
    ],
)
def test_what_init_refuses_is_refused_in_the_words_of_the_troubleshooting_page(
    arguments: dict[str, Any], quoted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((trackhub.SettingsError, TypeError)) as refusal:
        trackhub.init(**arguments)
    assert quoted in str(refusal.value)
    assert quoted in (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_the_tests_that_the_readme_names_for_its_promises_exist() -> None:
    named = re.findall(r"`(tests/[\w./]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_decision_is_listed_and_has_the_four_parts() -> None:
    assert ":glob:\n\n0*\n" in (DOCS / "decisions/index.md").read_text(encoding="utf-8")
    numbers = [page.name[:4] for page in (DOCS / "decisions").glob("0*.md")]
    assert len(numbers) == len(set(numbers))
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Options", "Decision", "Consequences"], page.name
