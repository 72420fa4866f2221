"""Writes the pages that say what the code says: the settings, what each backend supports, and the commands.

    python docs/generate.py            write them
    python docs/generate.py --check    say which are out of date, and fail

`nox -s docs` writes them before it builds, and tests/test_docs.py checks that what is committed is current. Nothing is
described here: every sentence comes from a `Field(description=...)`, a docstring, or a class.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import typer.main
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from trackhub import cli, lowering, plugins, settings
from trackhub.backend import Backend, VendorVariable
from trackhub.testing import Shown, samples
from trackhub.testing.rehearsal import Rehearsal

HERE = Path(__file__).parent
SIMPLER = {"tables": "a table", "figures": "a figure", "artifacts": "a file"}
NOTE = "<!-- Written by docs/generate.py: change settings.py, a backend or cli.py instead. -->"


def pages() -> dict[Path, str]:
    """Path below docs/ -> what the page must say."""
    return {
        Path("settings.md"): settings_page(),
        Path("backends/index.md"): backends_page(),
        Path("commands.md"): commands_page(),
    }


def settings_page() -> str:
    """Every setting, and every option of the built-in backends."""
    lines = [
        "# Settings",
        NOTE,
        "",
        "A value is taken from the first of these places that has it:",
        "",
        "1. the argument of `trackhub.init`",
        "2. the environment variable",
        "3. for an option of a backend: the vendor's own variable",
        "4. `trackhub.toml`, or `[tool.trackhub]` in `pyproject.toml`, in the working directory or the nearest folder "
        "above it",
        "5. the default",
        "",
        "What is not accepted raises in `init`, and the message says where the value came from. `trackhub doctor` "
        "shows the values in force with their sources. A `TRACKHUB_*` variable that nothing reads is warned of.",
        "",
        "```toml",
        "# trackhub.toml; in pyproject.toml the same goes under [tool.trackhub] and [tool.trackhub.mlflow]",
        'project = "digits"',
        'backends = ["mlflow", "tensorboard"]',
        "",
        "[mlflow]",
        'tracking_uri = "http://127.0.0.1:5000"',
        "```",
        "",
        "## Of a run",
        "",
    ]
    for name, info in settings.Settings.model_fields.items():
        lines += _entry(name, info, settings.variable_of(name))
    lines += [
        "## Of a backend",
        "",
        'An option is given as `init(mlflow={"experiment": ...})`, as `TRACKHUB_<BACKEND>_<OPTION>`, or in the '
        "backend's table of the settings file. What is secret is never written into the run directory.",
        "",
    ]
    for backend in _built_in():
        lines += [f"### {backend.name}", ""]
        for name, info in backend.Options.model_fields.items():
            variable = f"{settings.PREFIX}{backend.name.upper().replace('-', '_')}_{name.upper()}"
            lines += _entry(name, info, variable, next(_vendor_variables(info), None))
    return "\n".join(lines).rstrip() + "\n"


def backends_page() -> str:
    """What each backend does with each kind of record."""
    backends = _built_in()
    names = [backend.name for backend in backends]
    lines = [
        "# Backends",
        NOTE,
        "",
        "What a backend can show is read off its class. A kind that it has no place for is shown as a simpler one; "
        "where nothing fits it is left out there, counted in the delivery report, and still in the run directory. The "
        "table is made by giving a record of each kind to each class.",
        "",
        f"| kind | {' | '.join(f'[{name}]({name}.md)' for name in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    lines += capability_rows(backends)
    lines += [
        "",
        "`trackhub backends` shows which of them are installed, and in which version. Others come as plugins: see "
        "[Writing a backend](../plugins.md).",
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *names,
        "```",
    ]
    return "\n".join(lines) + "\n"


def capability_rows(backends: Sequence[type[Backend]]) -> list[str]:
    """Kind by kind what becomes of a record at each backend: shown, shown as something simpler, or left out."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for kind in lowering.KINDS.values():
            cells = []
            for backend in backends:
                run = Rehearsal(Path(directory), backend, backend.Options(), lambda _: Shown())
                supported = lowering.supported_kinds(backend)
                shown = lowering.lower(samples.sample(run, kind), supported, run.info())
                names = dict.fromkeys(SIMPLER.get(lowering.KINDS[type(record)], "") for record in shown)
                cells.append("shown" if kind in supported else f"as {' and '.join(names)}" if names else "left out")
            rows.append(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    return rows


def commands_page() -> str:
    """Every command of the command line, with its options."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    lines = [
        "# Commands",
        NOTE,
        "",
        f"{group.help} `python -m trackhub` is the same, for where the script is not on the path.",
        "",
    ]
    for name, command in group.commands.items():
        parameters = [one for one in command.params if not getattr(one, "hidden", False)]
        given = [one for one in parameters if one.param_type_name == "argument"]
        lines += [f"## trackhub {' '.join([name, *(str(one.metavar) for one in given)])}", ""]
        lines += [_with_code(command.help or ""), ""]
        for one in parameters:
            shown = str(one.metavar).strip("[].") if one in given else f"{one.opts[0]} {one.metavar or ''}".strip()
            lines += [f"`{shown}`", f": {_with_code(getattr(one, 'help', ''))}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _with_code(text: str) -> str:
    """Help is written for terminals; in a page, what is code is marked."""
    return re.sub(r"(?<!\w)(--[a-z]+|TRACKHUB_[A-Z]+|\.trackhub)\b", r"`\1`", text)


def _built_in() -> list[type[Backend]]:
    return [plugins.find_backend(name) for name in plugins.BUILT_IN]


def _entry(name: str, info: FieldInfo, variable: str, vendor: str | None = None) -> list[str]:
    variables = f"`{variable}`" + (f", or the vendor's own `{vendor}`" if vendor else "")
    return [
        f"`{name}`",
        f": {info.description or ''}",
        "",
        f"  {variables} · {_type_text(info.annotation)}{_default_text(info)}",
        "",
    ]


def _vendor_variables(info: FieldInfo) -> Iterator[str]:
    return (entry.name for entry in info.metadata if isinstance(entry, VendorVariable))


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), [a for a in get_args(annotation) if a not in (type(None), ...)]
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list, set, frozenset):
        return "names with commas between"
    if arguments:
        return " or ".join(dict.fromkeys(map(_type_text, arguments)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping"
    return {
        str: "text",
        Path: "path",
        SecretStr: "text, secret",
        int: "whole number",
        float: "number",
        bool: "yes or no",
    }.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default_text(info: FieldInfo) -> str:
    """The default, where there is one; None is explained by the description."""
    default = info.get_default()
    if info.is_required():
        return " · required"
    if default is None or default == ():
        return ""
    return f" · default `{default:g}`" if isinstance(default, float) else f" · default `{default}`"


def main() -> int:
    """Write the pages, or with `--check` only compare."""
    stale = [path for path, text in pages().items() if _now(path) != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path} is out of date: run python docs/generate.py")
        return 1 if stale else 0
    for path in stale:
        (HERE / path).write_text(pages()[path], encoding="utf-8")
        print(f"wrote docs/{path}")
    return 0


def _now(path: Path) -> str:
    file = HERE / path
    return file.read_text(encoding="utf-8") if file.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
