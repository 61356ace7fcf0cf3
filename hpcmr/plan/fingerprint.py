"""Fingerprints: what a plan does, and what code it does it with, as short stable digests.

The plan fingerprint is compared on all ranks before each action and recorded with what the action publishes; the code
fingerprint tells whether a job was edited since. Both depend on values alone: never on addresses, ranks, or the order in
which a dictionary was filled.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hpcmr.data.source import Split
from hpcmr.plan.imports import imports_of
from hpcmr.plan.nodes import Apply, Keyed, Node, Pair, Persist, Read, Union, walk

DIGITS = 32


class _Digest:
    """Feeds nested values into a hash, each with its type and length, so that no two different values feed the same bytes."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.keep: list[Any] = []     # ids stay unique as long as the objects live

    def hexdigest(self) -> str:
        return self.hash.hexdigest()[:DIGITS]

    def piece(self, kind: str, data: bytes) -> None:
        self.hash.update(f"{kind}:{len(data)}:".encode() + data)

    def value(self, item: Any) -> None:
        if item is None or isinstance(item, bool | int):
            self.piece(type(item).__name__, repr(item).encode())
        elif isinstance(item, float):
            self.piece("float", struct.pack("<d", item))
        elif isinstance(item, str):
            self.piece("str", item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, bytes | bytearray | memoryview):
            self.piece("bytes", bytes(item))
        elif isinstance(item, complex | Path):
            self.piece(type(item).__name__, str(item).encode("utf-8", "surrogatepass"))
        else:
            self._nested(item)

    def _nested(self, item: Any) -> None:
        if id(item) in self.seen:
            self.piece("again", str(self.seen[id(item)]).encode())
            return
        self.seen[id(item)] = len(self.seen)
        self.keep.append(item)
        if isinstance(item, tuple | list):
            self.piece("list", str(len(item)).encode())
            for part in item:
                self.value(part)
        elif isinstance(item, set | frozenset):
            self.piece("set", "".join(sorted(digest_of(part) for part in item)).encode())
        elif isinstance(item, dict):
            self.piece("dict", str(len(item)).encode())
            for name in sorted(item, key=repr):
                self.value(name)
                self.value(item[name])
        else:
            self._object(item)

    def _object(self, item: Any) -> None:
        function = getattr(item, "py_func", item)      # a compiled function stands for its source
        if isinstance(function, types.MethodType):
            self.value((function.__func__, function.__self__))
        elif isinstance(function, types.FunctionType):
            self._function(function)
        elif isinstance(item, types.CodeType):
            self.value((item.co_code, item.co_names, item.co_varnames, item.co_freevars, item.co_flags, item.co_consts))
        elif isinstance(item, types.ModuleType | types.BuiltinFunctionType | type):
            self.piece("name", f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', item.__name__)}".encode())
        elif hasattr(item, "tobytes") and hasattr(item, "dtype"):
            self.piece("array", f"{item.dtype}{item.shape}".encode())
            self.piece("bytes", item.tobytes())
        elif callable(getattr(item, "fingerprint", None)):
            self.value(item.fingerprint())
        else:
            self._instance(item)

    def _instance(self, item: Any) -> None:
        """The user's objects count with their attributes, those of libraries with their text, if it tells more than an address."""
        kind = type(item)
        self.piece("object", f"{kind.__module__}.{kind.__qualname__}".encode())
        if not is_installed(getattr(sys.modules.get(kind.__module__), "__file__", None)):
            self.value(vars(item) if hasattr(item, "__dict__") else None)
        elif getattr(kind, "__repr__", None) is not object.__repr__ and " at 0x" not in (text := repr(item)):
            self.value(text)

    def _function(self, function: types.FunctionType) -> None:
        """Code, defaults, captured values, and the global values and functions of the user's that it refers to."""
        self.piece("function", function.__qualname__.encode())
        self.value(function.__code__)
        self.value((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:
                self.piece("empty", b"")
        if is_installed(getattr(sys.modules.get(function.__module__), "__file__", None)):
            return
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self.piece("global", name.encode())
                self.value(function.__globals__[name])


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and the functions inside it look up."""
    found = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found |= _names(const)
    return found


def digest_of(*values: Any) -> str:
    """Digest of nested plain values, arrays and functions; 32 hex digits.

    Parameters
    ----------
    *values : any
        None, bool, int, float, str, bytes, paths, arrays, functions; tuples, lists, sets and dicts of these. Other objects
        count with their type and attributes.

    Notes
    -----
    Collective: no. Cost: one pass over the values.
    """
    digest = _Digest()
    digest.value(values)
    return digest.hexdigest()


def plan_fingerprint(node: Node, outlet: tuple[Any, ...] = ()) -> str:
    """Digest of the plan that ends in `node`, and of the action `outlet` on it; 32 hex digits.

    Equal fingerprints mean the same rows in the same order. Labels and lines of the program do not count.
    """
    places: dict[int, int] = {}
    items = []
    for place, item in enumerate(walk(node)):
        places[id(item)] = place
        items.append(_node(item, places))
    return digest_of(items, outlet)


def inputs_digest(splits: Sequence[Split]) -> str:
    """Digest of what a survey found: names, sizes and times of the files, and how they were cut; 32 hex digits."""
    return digest_of([(s.index, s.nbytes, s.where, s.part) for s in splits])


def _node(item: Node, places: dict[int, int]) -> tuple[Any, ...]:
    """What a node is, and where in the list of all nodes those stand that it is made of."""
    if isinstance(item, Read):
        return ("read", item.source.name, item.source.fingerprint())
    if isinstance(item, Apply):
        return ("apply", places[id(item.parent)], item.step.name, item.step.fingerprint())
    if isinstance(item, Keyed):
        return ("keyed", places[id(item.parent)], item.operator.name, item.operator.fingerprint(), item.partitions)
    if isinstance(item, Union):
        return ("union", *(places[id(p)] for p in item.parents))
    if isinstance(item, Pair):
        return ("pair", places[id(item.left)], places[id(item.right)], item.operator.name, item.operator.fingerprint(), item.partitions)
    assert isinstance(item, Persist)
    return ("persist", item.kept.digest if item.kept.parent is None else places[id(item.parent)])


def code_fingerprint(spec: Path | None, functions: Iterable[Callable[..., Any]] = ()) -> str:
    """Digest of the code of a job: its file, the modules imported from the file's folder, and `functions` with what they captured.

    Parameters
    ----------
    spec : Path or None
        The ``.py`` file of the job; None of a job file, whose keys are all in its plan.
    functions : iterable of callable, optional
        Functions of the user's; the modules imported from the folders of their files count too.
    """
    listed = list(functions)
    modules = [(path.name, path.read_bytes()) for path in code_files(spec, listed)]
    return digest_of(spec.read_bytes() if spec else None, modules, listed)


def code_files(spec: Path | None, functions: Iterable[Callable[..., Any]] = ()) -> list[Path]:
    """Files of the user's code that a job is made of: what was imported from the folders of `spec` and of `functions`, and what these import.

    Imports inside of functions count before they are run. Names that are put together at run time are seen once they were imported.
    """
    homes = {Path(c.co_filename).resolve().parent for c in map(_code_of, functions) if c is not None}
    homes |= {spec.resolve().parent} if spec else set()
    files = {path for folder in homes if not is_installed(str(folder / "x.py")) for path in own_modules(folder)}
    files |= {spec.resolve()} if spec else set()
    return sorted(path for path in files | imports_of(files) if not is_installed(str(path)))


def _code_of(function: Any) -> types.CodeType | None:
    inner = getattr(function, "fn", getattr(function, "py_func", function))
    return getattr(inner, "__code__", None)


def own_modules(folder: Path) -> list[Path]:
    """Files of the modules that were imported from `folder` and below and are no installed packages."""
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or not name.endswith(".py"):
            continue
        path = Path(name).resolve()
        if path.is_relative_to(folder) and path.is_file() and not is_installed(name):
            found.add(path)
    return sorted(found)


def is_installed(file: str | None) -> bool:
    """Whether a module's file belongs to Python, to a package that was installed, or to this package."""
    if file is None:
        return True
    path = Path(file).resolve()
    return any(path.is_relative_to(home) for home in _homes())


def _homes() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    own = Path(__file__).resolve().parents[1]
    return tuple({Path(p).resolve() for p in (sysconfig.get_path(k) for k in kinds) if p} | {own, own.parent / "kernels"})
