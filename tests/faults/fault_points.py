"""Faults at a named place of the code: the product has no hooks for tests, so Python itself is asked to look.

A `sitecustomize` on the path of the processes wraps one function as soon as its module is imported. When it is called,
or inside it a function of C is, or when it has returned, for the n-th time, the fault happens there: a signal to the
process itself, `os._exit`, an exception, or a kill of training and delivery in one go. It happens once in all, so what
is started anew is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from stage import Stage

_SITECUSTOMIZE = """
import importlib.util, os, signal, sys

module, function, where, count, fault, role, mark = sys.FAULT = {fault!r}
left = count


def happen():
    global left
    left -= 1
    if left:
        return
    try:
        descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    sys.setprofile(None)
    if fault == "both":
        other = os.getppid()
        os.kill(other, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "exit":
        os._exit(9)
    elif fault == "exception":
        raise LookupError("a fault at a named place")
    else:
        os.kill(os.getpid(), getattr(signal, fault))


def look(frame, event, argument):
    if event == "c_call" and frame.f_code is looked_at and argument.__name__ == where:
        happen()


def wrap(module):
    global looked_at
    *path, name = function.split(".")
    owner = module
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    looked_at = original.__code__

    def wrapped(*arguments, **more):
        if os.path.exists(mark):
            return original(*arguments, **more)
        if where == "call":
            happen()
        elif where != "return":
            sys.setprofile(look)
        try:
            result = original(*arguments, **more)
        finally:
            sys.setprofile(None)
        if where == "return":
            happen()
        return result

    setattr(owner, name, wrapped)


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_wrap(loaded):
            execute(loaded)
            wrap(loaded)

        spec.loader.exec_module = execute_and_wrap
        return spec


delivers = "trackhub.delivery_process" in sys.orig_argv
if delivers == (role == "delivery") and not os.path.exists(mark):
    sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class Point:
    """A place in the code.

    Args:
        function: `module:function`, or `module:Class.method`.
        where: "call" for before it, "return" for after it, or the name of a function of C that it calls.
        count: The how many-th time.
    """

    function: str
    where: str = "call"
    count: int = 1


def set_fault(stage: Stage, point: Point, fault: str, role: str) -> None:
    """Have a fault happen in the processes of a stage.

    Args:
        stage: The stage.
        point: Where in the code.
        fault: A signal by name, "exit", "exception", or "both": the delivery process kills the training and itself.
        role: "training" or "delivery".
    """
    module, _, function = point.function.partition(":")
    details = (module, function, point.where, point.count, fault, role, str(stage.path / "fault"))
    code = _SITECUSTOMIZE.replace("sys.FAULT = {fault!r}", repr(details))
    (stage.plugins / "sitecustomize.py").write_text(code, encoding="utf-8")


def has_happened(stage: Stage) -> int:
    """The process in which the fault has happened; 0 for not yet."""
    mark = stage.path / "fault"
    content = mark.read_text(encoding="utf-8") if mark.exists() else ""
    return int(content or 0)
