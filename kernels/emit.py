"""Functions of the user's as compiled loops: the source of a driver around them, compiled and cached.

A kernel ``f(row, emit)`` becomes a loop over rows in which `row` is a named tuple of one row's values and each ``emit(a, b)``
writes a record to output arrays. Arrays have an end: a row that does not fit is undone, the driver returns its number, and
the caller comes back with larger arrays (so a kernel may see a row twice; it keeps no state anyway).

How the loop is written out of the user's source: `hpcmr.kernels.rewrite`. Functions that it calls are compiled with it. What is
compiled is written to the cache folder under a digest of the source, of all values that it captured, and of this package, the
compiler and the processor.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
import sys
import types as pytypes
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import config as _config
from numba.core.errors import TypingError
from numba.extending import overload

from hpcmr.kernels.cache import cache_root, source_digest
from hpcmr.kernels.rewrite import FOLD_SOURCE, SCAN_SOURCE, Column, KernelTrouble, definition, driver_of, group_source, ours, statements

# User code is checked: an index out of range or a division by zero is an error with a record number, never a wild read.
OPTIONS = {"nogil": True, "boundscheck": True, "error_model": "python"}


@dataclass
class Driver:
    """A compiled loop.

    For rows: ``run(start, stop, *inputs, *outputs, state, need) -> row`` where it stopped. For a fold:
    ``run(order, starts, values, out, slot, state)``. `inputs` are those of `Driver.inputs` only: columns that the kernel reads.
    """

    run: Any
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]


# ---- stores: one value into an output column, with the check that its type and range allow ----------------------------------


def fits(value, like):
    """Whether `value` can be stored as a number of the type of `like`; types that never can do not compile."""
    raise TypeError("to be called from compiled code")


@overload(fits)
def _fits(value, like):
    to, have = types.unliteral(like), types.unliteral(value)
    if isinstance(to, types.Integer) and isinstance(have, types.Integer | types.Boolean):
        return _fits_integer(to, have)
    allowed = ((isinstance(to, types.Float) and isinstance(have, types.Number | types.Boolean) and not isinstance(have, types.Complex))
               or (isinstance(to, types.Complex) and isinstance(have, types.Number)) or to == have)
    if not allowed:
        raise TypingError(f"hpcmr: an output of type {to} cannot take a {have}")
    return lambda value, like: True


def _fits_integer(to, have):
    if isinstance(have, types.Boolean) or (have.signed == to.signed and have.bitwidth <= to.bitwidth) or (to.signed and have.bitwidth < to.bitwidth):
        return lambda value, like: True
    low, high = int(to.minval), int(to.maxval)
    if have.signed:
        low, high = max(low, -(1 << 63)), min(high, (1 << 63) - 1)
        return lambda value, like: low <= value <= high
    top = np.uint64(high)
    return lambda value, like: np.uint64(value) <= top


def put_array(out, n, value):
    """``out[n] = value`` for rows that have a shape; True where the value has another one."""
    raise TypeError("to be called from compiled code")


@overload(put_array)
def _put_array(out, n, value):
    count = value.count if isinstance(value, types.UniTuple) else None
    if count is None and not (isinstance(value, types.Array) and value.ndim == out.ndim - 1):
        raise TypingError(f"hpcmr: an output whose rows have {out.ndim - 1} axes cannot take a {value}")
    item = types.unliteral(value.dtype)
    if not (item == out.dtype or (isinstance(out.dtype, types.Float) and isinstance(item, types.Float | types.Integer))):
        raise TypingError(f"hpcmr: an output of {out.dtype} cannot take values of {item}")
    if count is not None:
        def from_tuple(out, n, value):
            if len(value) != out.shape[1]:
                return True
            for j in range(len(value)):
                out[n, j] = value[j]
            return False
        return from_tuple

    def from_array(out, n, value):
        if value.shape != out.shape[1:]:
            return True
        out[n] = value
        return False
    return from_array


def put_bytes(ends, data, n, value, at):
    """Append `value` to `data` at `at` as row n and return its end; counts on beyond the data, so that the caller learns how much it needs."""
    raise TypeError("to be called from compiled code")


@overload(put_bytes)
def _put_bytes(ends, data, n, value, at):
    if not (isinstance(value, types.Bytes | types.ByteArray | types.MemoryView)
            or (isinstance(value, types.Array) and value.ndim == 1 and value.dtype == types.uint8)):
        raise TypingError(f"hpcmr: an output of bytes takes bytes or uint8 arrays such as row.name or row.name[2:8], not a {value}")

    def store(ends, data, n, value, at):
        end = at + len(value)
        if end <= data.shape[0]:
            for j in range(len(value)):
                data[at + j] = value[j]
        if n < ends.shape[0]:
            ends[n] = end
        return end
    return store


# ---- captured values -------------------------------------------------------------------------------------------------------


class _Captured:
    """What a function refers to outside itself: values as Numba takes them, and a digest of them all."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.stable = True
        self.seen: dict[int, Any] = {}

    def names_of(self, fn: Callable[..., Any]) -> dict[str, Any]:
        closure = dict(zip(fn.__code__.co_freevars, (c.cell_contents for c in fn.__closure__ or ()), strict=False))
        found = {}
        for name in sorted(_names(fn.__code__)):
            if name in closure:
                found[name] = self.value(name, closure[name])
            elif name in fn.__globals__:
                found[name] = self.value(name, fn.__globals__[name])
            elif not hasattr(builtins, name):
                self.hash.update(f"?{name}".encode())
        return found

    def value(self, name: str, item: Any) -> Any:
        inner = getattr(item, "fn", item) if getattr(item, "kind", None) == "kernel" else item     # a helper that is a kernel itself
        self.hash.update(f"{name}={type(inner).__name__}:".encode())
        if isinstance(inner, pytypes.FunctionType):
            return self.function(inner)
        if hasattr(inner, "py_func"):
            self.function(inner.py_func)
        elif isinstance(inner, np.ndarray):
            self.hash.update(f"{inner.dtype.str}{inner.shape}".encode() + np.ascontiguousarray(inner).tobytes())
        elif isinstance(inner, pytypes.ModuleType):
            self.hash.update(inner.__name__.encode())
        else:
            text = repr(inner)
            self.stable &= " at 0x" not in text
            self.hash.update(text.encode("utf-8", "replace"))
        return inner

    def function(self, fn: pytypes.FunctionType) -> Any:
        """A helper, compiled when it is called; its own helpers likewise."""
        if id(fn) in self.seen:
            return self.seen[id(fn)]
        self.hash.update(repr(_code_key(fn.__code__)).encode("utf-8", "replace") + repr(fn.__defaults__).encode())
        namespace: dict[str, Any] = {"__builtins__": builtins, "__name__": fn.__module__}
        cells = tuple(pytypes.CellType() for _ in fn.__code__.co_freevars)
        twin = pytypes.FunctionType(fn.__code__, namespace, fn.__name__, fn.__defaults__, cells)
        self.seen[id(fn)] = jitted = numba.njit(**OPTIONS)(twin)
        found = self.names_of(fn)         # may come back to this function
        for name, cell in zip(fn.__code__.co_freevars, cells, strict=True):
            cell.cell_contents = found.pop(name)
        namespace.update(found)
        return jitted


def _names(code: pytypes.CodeType) -> set[str]:
    found = set(code.co_names) | set(code.co_freevars)
    for const in code.co_consts:
        if isinstance(const, pytypes.CodeType):
            found |= _names(const)
    return found


def _code_key(code: pytypes.CodeType) -> tuple[Any, ...]:
    return (code.co_code, code.co_names, code.co_varnames, tuple(_code_key(c) if isinstance(c, pytypes.CodeType) else c for c in code.co_consts))


# ---- types -----------------------------------------------------------------------------------------------------------------


def _zeros(outputs: tuple[Column, ...]) -> dict[str, Any]:
    """A scalar of each output's type, for `fits` to see."""
    return {f"Z{j}": np.zeros(1, c.dtype)[0] for j, c in enumerate(outputs) if not c.is_bytes}


def _array(dtype: str, ndim: int, readonly: bool) -> types.Array:
    return types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C", readonly=readonly)


def _input_types(columns: tuple[Column, ...]) -> list[Any]:
    out: list[Any] = []
    for c in columns:
        strings = [_array("int64", 1, True), _array("int64", 1, True), _array("uint8", 1, True)]
        out += strings if c.is_bytes else [_array(c.dtype, 1 + len(c.shape), True)]
    return out


def _output_types(columns: tuple[Column, ...]) -> list[Any]:
    out: list[Any] = []
    for c in columns:
        out += [_array("int64", 1, False), _array("uint8", 1, False)] if c.is_bytes else [_array(c.dtype, 1 + len(c.shape), False)]
    return out


# ---- building --------------------------------------------------------------------------------------------------------------


def build(fn: Callable[..., Any], columns: tuple[Column, ...], outputs: tuple[Column, ...]) -> Driver:
    """The driver of a kernel over rows: compiled, or loaded from the cache.

    Parameters
    ----------
    fn : function
        ``f(row, emit)``, or ``f(row)`` that returns one value, or a tuple of one value for each output.
    columns : tuple of Column
        What there is to read.
    outputs : tuple of Column
        What is emitted, in the order of `emit`'s arguments.

    Raises
    ------
    KernelTrouble
        With the line of the user's file.

    Notes
    -----
    Collective: no. Cost: about a second, or a tenth of one from the cache.
    """
    node = definition(fn)
    arguments = [a.arg for a in node.args.args]
    if len(arguments) not in (1, 2) or node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        raise KernelTrouble(f"a kernel is f(row, emit) or f(row); this one takes ({', '.join(arguments)})", node.lineno)
    if fn.__defaults__ or fn.__kwdefaults__:
        raise KernelTrouble("a kernel's arguments have no defaults", node.lineno)
    tree, inputs = driver_of(node, arguments[0], arguments[1] if len(arguments) == 2 else None, columns, outputs)
    counters = _array("int64", 1, False)
    signature = types.int64(types.int64, types.int64, *_input_types(inputs), *_output_types(outputs), counters, counters)
    names = {"Row": namedtuple("Row", [c.name for c in inputs]), **_zeros(outputs)}  # type: ignore[misc]
    return Driver(_compiled(fn, tree, names, signature), inputs, outputs)


def build_fold(fn: Callable[..., Any], dtype: str, running: bool = False) -> Driver:
    """The driver of a fold ``f(a, b)`` over groups of scalars of `dtype`.

    With `running` that of a scan: every value on the way goes to `out`, `order` is not looked at, and `starts` is empty where `slot` does
    not hold a value to begin with.
    """
    node = definition(fn)
    if len(node.args.args) != 2:
        raise KernelTrouble(f"a fold is f(a, b); this one takes ({', '.join(a.arg for a in node.args.args)})", node.lineno)
    index = _array("int64", 1, True)
    signature = types.int64(index, index, _array(dtype, 1, True), _array(dtype, 1, False), _array(dtype, 1, False), _array("int64", 1, False))
    column = Column("value", dtype)
    node.name = "user"
    tree = ast.Module([node, *statements(SCAN_SOURCE if running else FOLD_SOURCE, node)], [])
    return Driver(_compiled(fn, tree, _zeros((column,)), signature), (column,), (column,))


def build_group(fn: Callable[..., Any], columns: tuple[Column, ...], dtype: str) -> Driver:
    """The driver of a function of arrays, one for each of `columns`, over groups: ``run(starts, *values, out, state)``."""
    node = definition(fn)
    arguments = [a.arg for a in node.args.args]
    if len(arguments) != len(columns) or node.args.vararg or node.args.kwarg or node.args.kwonlyargs or fn.__defaults__:
        raise KernelTrouble(f"it takes ({', '.join(arguments)}) and is given {len(columns)} array{'s' if len(columns) > 1 else ''}", node.lineno)
    index, out = _array("int64", 1, True), Column("value", dtype)
    values = [_array(c.dtype, 1 + len(c.shape), True) for c in columns]
    signature = types.int64(index, *values, _array(dtype, 1, False), _array("int64", 1, False))
    node.name = "user"
    tree = ast.Module([node, *statements(group_source(len(columns)), node)], [])
    return Driver(_compiled(fn, tree, _zeros((out,)), signature), columns, (out,))


def _compiled(fn: Callable[..., Any], tree: ast.Module, names: dict[str, Any], signature: Any) -> Any:
    """`drive` of `tree`, compiled or from the cache. Line 1 is the first line of the function, wherever it stands in its file."""
    captured = _Captured()
    names = {**names, "fits": fits, "put_array": put_array, "put_bytes": put_bytes}
    namespace = {**captured.names_of(fn), **{ours(n): v for n, v in names.items()}}
    first = fn.__code__.co_firstlineno
    ast.increment_lineno(tree, 1 - first)
    source = ast.unparse(tree)
    key = hashlib.sha256(f"{source}|{signature}|{captured.hash.hexdigest()}|{OPTIONS}".encode("utf-8", "replace")).hexdigest()[:20]
    path = _written(f"kernel_{key}.py", f"# {fn.__module__}.{fn.__qualname__}\n\n{source}\n")
    module = pytypes.ModuleType(f"hpcmr.kernels.kernel_{key}")
    module.__dict__.update(namespace, __file__=str(path))
    sys.modules[module.__name__] = module      # Numba finds the globals of what it loads from its cache there
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(path.parent)
    try:
        exec(compile(tree, str(path), "exec"), module.__dict__)
        if hasattr(module, "user"):
            module.user = numba.njit(forceinline=True, **OPTIONS)(module.user)
        return numba.njit([signature], cache=captured.stable, **OPTIONS)(module.drive)
    except Exception as error:     # Numba leaves its inner errors as they are
        raise _explained(error, fn, str(path)) from None
    finally:
        _config.CACHE_DIR = before


def _written(name: str, text: str) -> Path:
    folder = cache_root() / f"user-{source_digest()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():      # never written again: the time of the file is part of Numba's stamp
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    return path


def _explained(error: Exception, fn: Callable[..., Any], path: str) -> KernelTrouble:
    """What Numba could not do, and the line of the user's file: the last one that its message names, in a helper or the kernel."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    file, first = fn.__code__.co_filename, fn.__code__.co_firstlineno
    places = [int(n) + (first - 1 if name == path else 0)
              for name, n in re.findall(f"({re.escape(path)}|{re.escape(file)})" + r'"?[,:]? ?(?:line )?\(?(\d+)', text)]
    if not places and (loc := getattr(error, "loc", None)) is not None and loc.filename == path:
        places = [loc.line + first - 1]
    line = places[-1] if places else first
    reason = next((part.split("hpcmr: ", 1)[1] for part in text.splitlines() if "hpcmr: " in part), None) or _first_reason(text)
    return KernelTrouble(reason, line)


_NOISE = ("Failed in", "During: ", "File ", "This error", "This is not usually", "To see", "https", "For more", "http", "- ", "*", "Overload", ">>>",
          "There are", "In ", "def ", "<source", "Enable logging")


def _first_reason(text: str) -> str:
    """The lines of Numba's message that say why, without its banners and places."""
    text = re.sub(r'File ".*?", line \d+:.*?\n\s*\^', "", text, flags=re.DOTALL)
    lines = [s.strip() for s in text.splitlines()]
    kept = [s for s in lines if s and not s.startswith(_NOISE) and set(s) - set("^~-. ")]
    return " ".join(kept[:2]).replace(" Raised from None", "")[:400].rstrip(". ") or (text.strip().splitlines() or ["Numba gave no reason"])[0]
