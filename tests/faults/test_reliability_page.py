"""The table of docs/reliability.md is true: every test it names is there, and every test of faults is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
ROW = re.compile(r"^\| (?!Fault|---)(.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def named() -> set[tuple[str, str]]:
    return set(NAMED.findall(PAGE.read_text(encoding="utf-8")))


def test_every_fault_in_the_table_names_a_test() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) > 30
    assert [fault for fault, _, shown_by in rows if not NAMED.search(shown_by)] == []


def test_every_test_that_is_named_exists() -> None:
    assert [(file, name) for file, name in named() if name not in functions_of(TESTS / file)] == []


def test_every_test_of_faults_is_in_the_table() -> None:
    files = [path for path in sorted((TESTS / "faults").glob("test_*.py")) if path != Path(__file__)]
    there = {(path.relative_to(TESTS).as_posix(), name) for path in files for name in functions_of(path)}
    assert there - named() == set()
