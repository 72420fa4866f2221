"""How trackhub is tested, checked, measured and built: `nox -l` lists the sessions.

Versions and requirements are read from pyproject.toml; nothing is repeated here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
EXTRAS = "kfp,mlflow,neptune,tensorboard"
BUILD = Path("build")
PLUGINS = ["examples/trackhub-csv", "examples/trackhub-wandb"]
"""Packages of plugins that the tests choose by name, as their users do."""
AT_ONCE = ("--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
"""Most tests wait for other processes. Those of a file stay together, as they share servers; files with few slow tests
must not all come last."""

nox.needs_version = ">=2025.5"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.error_on_external_run = True


def group(name: str) -> list[str]:
    """The requirements of one of pyproject.toml's dependency groups."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def install_wheel(session: nox.Session) -> None:
    """Build the wheel and install it, with the backends' packages, into the session; make sure it is what runs."""
    folder = Path(session.create_tmp()) / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    session.run_install("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    [wheel] = folder.glob("trackhub_sdk-*.whl")
    session.install(f"trackhub-sdk[{EXTRAS}] @ {wheel.resolve().as_uri()}", *group("tests"))
    session.install("--no-deps", *(f"./{plugin}" for plugin in PLUGINS))
    if os.environ.get("TRACKHUB_TEST_TORCH") == "1":
        session.install(*group("torch"))
    # A session that is used again may hold an earlier wheel of the same version.
    session.run_install("python", "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))
    session.run(
        "python",
        "-P",
        "-c",
        "import pathlib, sys, trackhub; home = pathlib.Path(trackhub.__file__).parent; "
        "sys.exit(None if 'site-packages' in home.parts else f'not the wheel: {home}')",
        env={"PYTHONPATH": None},
        silent=True,
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the built wheel; arguments after `--` go to pytest."""
    install_wheel(session)
    session.run("pytest", *AT_ONCE, "--timeout=300", *session.posargs, env={"PYTHONPATH": None})


@nox.session(python=PYTHONS, name="tests-on")
def tests_on(session: nox.Session) -> None:
    """The same on one Python after the other; those that are not installed are left out."""
    install_wheel(session)
    session.run("pytest", *AT_ONCE, "--timeout=300", *session.posargs, env={"PYTHONPATH": None})


@nox.session
def faults(session: nox.Session) -> None:
    """Run the long form of the tests of faults, then 500 seeded kills; arguments after `--` go to the campaign."""
    install_wheel(session)
    session.run("pytest", "--timeout=900", "tests/faults", env={"PYTHONPATH": None, "TRACKHUB_LONG_TESTS": "1"})
    session.run("python", "tests/faults/campaign.py", *session.posargs, env={"PYTHONPATH": None})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and that imports go one way through the house."""
    session.install(*group("lint"), *PYPROJECT["project"]["dependencies"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """Check types, and that the public API is what `tests/typing/api.py` says."""
    session.install(*group("types"), *PYPROJECT["project"]["dependencies"])
    session.run("mypy", env={"MYPYPATH": "src"})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs; a warning is an error."""
    session.install(*group("docs"), ".")
    session.run("python", "docs/generate.py")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", str(BUILD / "docs"))
    session.log("read build/docs/index.html")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against other ways to log, and print a table; arguments after `--` go to the benchmarks.

    With TRACKHUB_BENCH_LIGHTNING=1 Lightning is installed and measured too; that may download gigabytes of torch.
    """
    install_wheel(session)
    if os.environ.get("TRACKHUB_BENCH_LIGHTNING") == "1":
        session.install(*group("lightning"))
    session.run("python", "-m", "benchmarks", *session.posargs, env={"PYTHONPATH": None})


@nox.session(name="bench-component")
def bench_component(session: nox.Session) -> None:
    """Measure what the KFP backend adds to a component; arguments after `--` go to the benchmark."""
    install_wheel(session)
    session.run("python", "-m", "benchmarks.component", *session.posargs, env={"PYTHONPATH": None})


@nox.session(name="bench-scale")
def bench_scale(session: nox.Session) -> None:
    """Measure how cost grows up to a million points in a run; arguments after `--` go to the benchmark."""
    install_wheel(session)
    session.run("python", "-m", "benchmarks.scale", *session.posargs, env={"PYTHONPATH": None})


@nox.session
def soak(session: nox.Session) -> None:
    """Half an hour of faults against four backends at once; TRACKHUB_SOAK_SECONDS says for how long instead."""
    install_wheel(session)
    seconds = os.environ.get("TRACKHUB_SOAK_SECONDS", "1800")
    environment = {"PYTHONPATH": None, "TRACKHUB_SOAK_SECONDS": seconds}
    session.run("pytest", "-s", "tests/faults/test_soak.py", *session.posargs, env=environment)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel into build/dist, and check what a registry would read."""
    session.install(*group("build"))
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(BUILD / "dist"))
    session.run("twine", "check", "--strict", *map(str, sorted((BUILD / "dist").iterdir())))
