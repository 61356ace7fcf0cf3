"""What ``hpcmr job`` is given: finds the spec, loads the user's code, and names the run.

The user's module is loaded from its file under its own name, with its folder on ``sys.path`` as if it had been started as a
script, so that it can import its neighbours.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hpcmr.errors import JobSpecError

SPECS = ("job.toml", "job.py")
RUNS = "hpcmr-runs"


def find_spec(spec: str | None) -> Path:
    """The job's file: `spec`, else ``./job.toml``, else ``./job.py``.

    Raises
    ------
    JobSpecError
        There is no such file, or it is neither ``.toml`` nor ``.py``.
    """
    if spec is None:
        found = next((Path(name) for name in SPECS if Path(name).is_file()), None)
        if found is None:
            raise JobSpecError(f"there is neither ./job.toml nor ./job.py in {Path.cwd()}; name the job: hpcmr job SPEC")
        return found
    path = Path(spec)
    if path.suffix not in (".toml", ".py"):
        raise JobSpecError(f"{spec}: a job is a .toml job file or a .py file that defines job(ctx)")
    if not path.is_file():
        raise JobSpecError(f"{spec}: there is no such job file (looked in {path.absolute().parent})")
    return path


def default_run_dir(spec: Path, name: str, settings: list[str]) -> Path:
    """``hpcmr-runs/<name>-<hash of spec path and --set>`` in the working directory: the same command finds its run again."""
    told = "\0".join([str(spec.resolve()), *sorted(settings)])
    return Path(RUNS) / f"{name}-{hashlib.sha256(told.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def load_job(path: Path) -> Callable[[Any], Any]:
    """The function ``job`` of a ``.py`` file. What the module itself raises passes through."""
    job = getattr(load_file(path), "job", None)
    if not callable(job):
        raise JobSpecError(f"{path}: this file defines no function job(ctx); write `def job(ctx): ...`, with the actions of the job in it")
    return job


def load_file(path: Path) -> ModuleType:
    """The module of a file, loaded once."""
    path = path.resolve()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(path.name) and Path(file).resolve() == path and module.__name__ != "__main__":
            return module
    _see(path.parent)
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"hpcmr_job_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _see(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def load_function(name: str, folder: Path) -> Callable[..., Any]:
    """The function ``module:function`` or ``file.py:function``, as seen from `folder`.

    Raises
    ------
    JobSpecError
        There is no such file, module or function. What the module itself raises passes through.
    """
    home, _, attribute = name.rpartition(":")
    if not home or not attribute.isidentifier():
        raise JobSpecError(f"{name!r} names no function; write 'module:function' or 'file.py:function'")
    module = _load_home(name, home, folder)
    function = getattr(module, attribute, None)
    if function is None:
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        there = ", ".join(n for n in own if not n.startswith("_"))
        raise JobSpecError(f"{name!r}: there is no function {attribute!r} in {home}; there are {there or 'none'}")
    if not callable(function):
        raise JobSpecError(f"{name!r} is a {type(function).__name__}, not a function")
    return function


def _load_home(name: str, home: str, folder: Path) -> ModuleType:
    if home.endswith(".py"):
        path = folder / Path(home).expanduser()
        if not path.is_file():
            raise JobSpecError(f"{name!r}: there is no file {path}")
        return load_file(path)
    _see(folder.resolve())
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name is not None and (home == error.name or home.startswith(error.name + ".")):
            raise JobSpecError(f"{name!r}: there is no module {error.name!r}, neither installed nor in {folder}") from error
        raise


def named_outputs(path: Path) -> list[str]:
    """Names of outputs that stand literally in a ``.py`` job, as in ``ctx.output("stats")``; what is computed is not found."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []        # told when the file is loaded
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "output"]
    names = [c.args[0].value for c in calls if len(c.args) == 1 and isinstance(c.args[0], ast.Constant)]
    return list(dict.fromkeys(n for n in names if isinstance(n, str)))
