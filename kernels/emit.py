"""Functions of the user's as compiled loops: the source of a driver around them, compiled and cached.

A kernel ``f(row, emit)`` becomes a loop over rows in which `row` is a named tuple of one row's values and each ``emit(a, b)``
writes a record to output arrays. Arrays have an end: a row that does not fit is undone, the driver returns its number, and
the caller comes back with larger arrays (so a kernel may see a row twice; it keeps no state anyway).

The user's function is taken by its source, because ``emit(...)`` is rewritten to a call that Numba can compile. Functions that
it calls are compiled with it. What is compiled is written to the cache folder under a digest of the source, of all values
that it captured, and of this package, the compiler and the processor.
"""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import inspect
import os
import re
import sys
import types as pytypes
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import config as _config
from numba.core.errors import TypingError
from numba.extending import overload

from hpcmr.kernels.jit import cache_root, source_digest

ROW, FLAG, SLOTS = 0, 1, 2     # state: row at hand, 1 + output column that a value did not fit, then rows and bytes written
NO_FIT_RANGE, NO_FIT_SHAPE = 1, 2

# User code is checked: an index out of range or a division by zero is an error with a record number, never a wild read.
OPTIONS = {"nogil": True, "boundscheck": True, "error_model": "python"}


class KernelTrouble(Exception):
    """Why a function cannot be a kernel, and at which line of its file."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class Column(NamedTuple):
    """A column as a kernel sees it: `dtype` of NumPy, or "bytes"; `shape` of one row's value."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def is_bytes(self) -> bool:
        return self.dtype == "bytes"


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


# ---- the user's source -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _module_tree(path: str, lines: tuple[str, ...]) -> ast.Module:
    return ast.parse("".join(lines), path)


def definition(fn: Callable[..., Any]) -> ast.FunctionDef:
    """The function's definition with the line numbers of its file, without decorators and annotations."""
    code = fn.__code__
    try:
        tree = _module_tree(code.co_filename, tuple(inspect.findsource(fn)[0]))
    except (OSError, TypeError, SyntaxError):
        raise KernelTrouble("its source cannot be read, which a kernel needs; define it in a file") from None
    if fn.__name__ == "<lambda>":
        return _from_lambda(tree, code)
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and min([n.lineno, *(d.lineno for d in n.decorator_list)]) == code.co_firstlineno]
    if not found:
        raise KernelTrouble("a kernel is an ordinary function defined with def (no async, no class)")
    node = copy.deepcopy(found[0])
    node.decorator_list, node.returns = [], None
    for arg in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs):
        arg.annotation = None
    node.args.defaults, node.args.kw_defaults = [], [None] * len(node.args.kwonlyargs)
    return node


def _from_lambda(tree: ast.Module, code: pytypes.CodeType) -> ast.FunctionDef:
    names = list(code.co_varnames[:code.co_argcount])
    places = [(line, column) for line, _, column, _ in code.co_positions() if line is not None and column is not None]
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.lineno == code.co_firstlineno and [a.arg for a in n.args.args] == names
             and all((n.body.lineno, n.body.col_offset) <= p <= (n.body.end_lineno, n.body.end_col_offset) for p in places if p[1] > 0)]
    if not found:
        raise KernelTrouble("its source cannot be taken out of the statement around it; define it with def", code.co_firstlineno)
    node = copy.deepcopy(min(found, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0)))
    body: ast.stmt = ast.Expr(node.body) if names[1:] == ["emit"] else ast.Return(node.body)
    node.args.defaults = []
    function = ast.FunctionDef("kernel_lambda", node.args, [ast.copy_location(body, node)], [])
    return ast.fix_missing_locations(ast.copy_location(function, node))


def _statements(text: str, at: ast.AST) -> list[ast.stmt]:
    """Generated statements that stand, for messages, at the line of `at`."""
    made = ast.parse(text).body
    for top in made:
        for n in ast.walk(top):
            if hasattr(n, "lineno"):
                ast.copy_location(n, at)
    return made


def _emit_source(outputs: tuple[Column, ...], tag: str) -> str:
    """Statements that write the record ``_v<tag>_0, ...``."""
    lines, slot = [], 0
    for j, c in enumerate(outputs):
        v = f"_v{tag}_{j}"
        if c.is_bytes:
            slot += 1
            lines.append(f"_b{slot} = put_bytes(o{j}_ends, o{j}_data, _b0, {v}, _b{slot})")
            continue
        lines.append(f"if _b0 < o{j}.shape[0]:")
        lines += [f"    if put_array(o{j}, _b0, {v}):", f"        state[{FLAG}] = {16 * j + NO_FIT_SHAPE}"] if c.shape else [
            f"    if not fits({v}, Z{j}):", f"        state[{FLAG}] = {16 * j + NO_FIT_RANGE}", f"    o{j}[_b0] = {v}"]
    return "\n".join([*lines, "_b0 += 1"])


class _Body:
    """The body of a kernel as statements of a loop: emits become stores, ``row.x`` becomes ``c0[_i]``, returns become breaks.

    The body stands in a loop of one turn. A return within an inner loop sets a flag, leaves that loop, and each loop around it
    leaves in turn. All is one function in the end: arrays handed to a second one are counted for every row, which cost 30 ns.
    """

    def __init__(self, row: str, emit: str | None, inputs: tuple[Column, ...], outputs: tuple[Column, ...], row_escapes: bool) -> None:
        self.row, self.emit, self.outputs = row, emit, outputs
        self.places = {} if row_escapes else {c.name: f"d{j}[s{j}[_i]:e{j}[_i]]" if c.is_bytes else f"c{j}[_i]" for j, c in enumerate(inputs)}
        self.emits = 0

    def block(self, statements: list[ast.stmt], depth: int) -> tuple[list[ast.stmt], bool]:
        """The statements rewritten, and whether one of them may return from within the loop that is `depth` deep."""
        out: list[ast.stmt] = []
        returns = False
        for s in statements:
            if isinstance(s, ast.Return):
                out += self._return(s, depth)
                returns = True
            elif isinstance(s, ast.Expr) and self._is_emit(s.value):
                out += self._emit(s.value)  # type: ignore[arg-type]
            elif isinstance(s, ast.For | ast.While):
                inner = self._loop(s, depth)
                out.append(s)
                if inner:
                    out += _statements("if _left:\n    break", s)
                    returns = True
            else:
                returns |= self._other(s, depth)
                out.append(s)
        return out, returns

    def _loop(self, s: ast.For | ast.While, depth: int) -> bool:
        if isinstance(s, ast.For):
            s.iter = self._expression(s.iter)
        else:
            s.test = self._expression(s.test)
        s.body, inner = self.block(s.body, depth + 1)
        s.orelse, after = self.block(s.orelse, depth)
        return inner or after

    def _other(self, s: ast.stmt, depth: int) -> bool:
        """A statement with blocks in it, or a simple one."""
        returns = False
        if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._check(s)
            return False
        for name, value in ast.iter_fields(s):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                block, found = self.block(value, depth)
                setattr(s, name, block)
                returns |= found
            elif isinstance(value, list) and value and isinstance(value[0], ast.ExceptHandler | ast.match_case):
                for part in value:
                    part.body, found = self.block(part.body, depth)
                    returns |= found
            elif isinstance(value, ast.expr):
                setattr(s, name, self._expression(value))
            elif isinstance(value, list):
                setattr(s, name, [self._expression(v) if isinstance(v, ast.expr) else v for v in value])
        return returns

    def _return(self, s: ast.Return, depth: int) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        if self.emit is None:
            value = s.value if s.value is not None else ast.copy_location(ast.Constant(None), s)
            out.append(ast.copy_location(ast.Assign([ast.Name("_value", ast.Store())], self._expression(value)), s))
        elif s.value is not None and not (isinstance(s.value, ast.Constant) and s.value.value is None):
            if not self._is_emit(s.value):
                raise KernelTrouble("a kernel with emit returns nothing; emit the value", s.lineno)
            out += self._emit(s.value)  # type: ignore[arg-type]
        return out + _statements("_left = True\nbreak", s)

    def _is_emit(self, node: ast.AST | None) -> bool:
        return self.emit is not None and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == self.emit

    def _emit(self, node: ast.Call) -> list[ast.stmt]:
        names = [c.name for c in self.outputs]
        given: dict[str, ast.expr] = dict(zip(names, node.args, strict=False))
        given.update({k.arg: k.value for k in node.keywords if k.arg is not None})
        if len(node.args) + len(node.keywords) != len(names) or set(given) != set(names):
            raise KernelTrouble(f"emit takes {len(names)} value{'s' * (len(names) != 1)} ({', '.join(names)}), as out= says; "
                                f"this call gives {len(node.args) + len(node.keywords)}", node.lineno)
        self.emits += 1
        out: list[ast.stmt] = [ast.copy_location(ast.Assign([ast.Name(f"_v{self.emits}_{j}", ast.Store())], self._expression(given[n])), node)
                               for j, n in enumerate(names)]
        return out + _statements(_emit_source(self.outputs, str(self.emits)), node)

    def _check(self, node: ast.AST) -> None:
        """`emit` stands only where it is a statement of its own; a generator is no kernel."""
        for n in ast.walk(node):
            if isinstance(n, ast.Name) and n.id == self.emit:
                raise KernelTrouble(f"{self.emit}({', '.join(c.name for c in self.outputs)}) can only be called, as a statement of its own: "
                                    "it cannot be kept, handed on, or stand in an expression", n.lineno)
            if isinstance(n, ast.Yield | ast.YieldFrom | ast.Await):
                raise KernelTrouble("a kernel calls emit(...) where a plain function would yield", n.lineno)

    def _expression(self, node: ast.expr) -> ast.expr:
        self._check(node)
        if not self.places:
            return node
        body = self

        class Columns(ast.NodeTransformer):
            def visit_Attribute(self, n: ast.Attribute) -> ast.AST:
                if isinstance(n.value, ast.Name) and n.value.id == body.row and n.attr in body.places:
                    made = ast.parse(body.places[n.attr], mode="eval").body
                    for part in ast.walk(made):
                        if hasattr(part, "lineno"):
                            ast.copy_location(part, n)
                    return made
                return self.generic_visit(n)

        return Columns().visit(node)


def _columns_read(node: ast.FunctionDef, row: str, columns: tuple[Column, ...]) -> tuple[tuple[Column, ...], bool]:
    """Columns that the kernel reads as ``row.name``; all of them, and True, where `row` is used in another way (handed to a helper)."""
    attributes = {id(n.value): n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == row}
    uses = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == row]
    if any(id(n) not in attributes for n in uses):
        return tuple(c for c in columns if c.name.isidentifier() and not c.name.startswith("_")), True
    wanted = {a.attr: a.lineno for a in sorted(attributes.values(), key=lambda a: -a.lineno)}
    known = {c.name for c in columns}
    for name, line in wanted.items():
        if name not in known:
            raise KernelTrouble(f"there is no column {name!r} that a kernel can read; the columns are {', '.join(c.name for c in columns) or 'none'}", line)
        if name.startswith("_"):
            raise KernelTrouble(f"a column whose name starts with an underscore cannot be read by a kernel: {name!r}; rename it first", line)
    return tuple(c for c in columns if c.name in wanted), False


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
        twin = pytypes.FunctionType(fn.__code__, namespace, fn.__name__, fn.__defaults__, fn.__closure__)
        self.seen[id(fn)] = jitted = numba.njit(**OPTIONS)(twin)
        if not fn.__code__.co_freevars:
            namespace.update(self.names_of(fn))
        else:
            namespace.update(fn.__globals__)
            self.names_of(fn)
        return jitted


def _names(code: pytypes.CodeType) -> set[str]:
    found = set(code.co_names) | set(code.co_freevars)
    for const in code.co_consts:
        if isinstance(const, pytypes.CodeType):
            found |= _names(const)
    return found


def _code_key(code: pytypes.CodeType) -> tuple[Any, ...]:
    return (code.co_code, code.co_names, code.co_varnames, tuple(_code_key(c) if isinstance(c, pytypes.CodeType) else c for c in code.co_consts))


# ---- the driver's source ---------------------------------------------------------------------------------------------------


def _input_arguments(columns: tuple[Column, ...]) -> list[str]:
    out = []
    for j, c in enumerate(columns):
        out += [f"s{j}", f"e{j}", f"d{j}"] if c.is_bytes else [f"c{j}"]
    return out


def _output_arguments(columns: tuple[Column, ...]) -> list[str]:
    out = []
    for j, c in enumerate(columns):
        out += [f"o{j}_ends", f"o{j}_data"] if c.is_bytes else [f"o{j}"]
    return out


def _driver(node: ast.FunctionDef, row: str, emit: str | None, columns: tuple[Column, ...], outputs: tuple[Column, ...],
            ) -> tuple[ast.Module, tuple[Column, ...]]:
    """The loop over rows with the kernel's body in it, and the columns that it reads."""
    inputs, escapes = _columns_read(node, row, columns)
    body, _ = _Body(row, emit, inputs, outputs, escapes).block(node.body, 0)
    ins, outs = _input_arguments(inputs), _output_arguments(outputs)
    slots = 1 + sum(c.is_bytes for c in outputs)
    capacity = [f"{outs[0]}.shape[0]", *(f"o{j}_data.shape[0]" for j, c in enumerate(outputs) if c.is_bytes)]
    full = " or ".join(f"_b{k} > {capacity[k]}" for k in range(slots))
    lines = [f"def drive({', '.join(['_start', '_stop', *ins, *outs, 'state', 'need'])}):", *(f"    _b{k} = state[{SLOTS + k}]" for k in range(slots)),
             "    for _i in range(_start, _stop):", f"        state[{ROW}] = _i", "        _left = False"]
    lines += [f"        _a{k} = _b{k}" for k in range(slots)]
    if escapes:
        lines.append(f"        {row} = Row(" + "".join((f"d{j}[s{j}[_i]:e{j}[_i]]" if c.is_bytes else f"c{j}[_i]") + ", " for j, c in enumerate(inputs)) + ")")
    lines += ["        for _once in range(1):", "            pass"]
    if emit is None:
        lines += ["        if not _left:", f"            raise ValueError('{NOTHING}')"]
        lines += [f"        _v0_{j} = _value" + (f"[{j}]" if len(outputs) > 1 else "") for j in range(len(outputs))]
        lines += ["        " + line for line in _emit_source(outputs, "0").splitlines()]
    lines += [f"        if state[{FLAG}] != 0 or {full}:"]
    lines += [f"            need[{k}] = _b{k}; state[{SLOTS + k}] = _a{k}" for k in range(slots)]
    lines += ["            return _i", *(f"    state[{SLOTS + k}] = _b{k}" for k in range(slots)), "    return _stop"]
    drive = _statements("\n".join(lines), node)[0]
    once = next(n for n in ast.walk(drive) if isinstance(n, ast.For) and isinstance(n.target, ast.Name) and n.target.id == "_once")
    once.body = body or once.body
    return ast.fix_missing_locations(ast.Module([drive], [])), inputs


NOTHING = "the kernel returned nothing for this row"

FOLD_SOURCE = f"""def drive(order, starts, values, out, slot, state):
    for g in range(starts.shape[0] - 1):
        slot[0] = values[order[starts[g]]]
        for j in range(starts[g] + 1, starts[g + 1]):
            state[{ROW}] = order[j]
            v = user(slot[0], values[order[j]])
            if not fits(v, Z0):
                state[{FLAG}] = {NO_FIT_RANGE}
                return g
            slot[0] = v
        out[g] = slot[0]
    return starts.shape[0] - 1
"""


def _zeros(outputs: tuple[Column, ...]) -> dict[str, Any]:
    """A scalar of each output's type, for `fits` to see."""
    return {f"Z{j}": np.zeros(1, c.dtype)[0] for j, c in enumerate(outputs) if not c.is_bytes}


def _array(dtype: str, ndim: int, readonly: bool) -> types.Array:
    return types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C", readonly=readonly)


def _input_types(columns: tuple[Column, ...]) -> list[Any]:
    out: list[Any] = []
    for c in columns:
        out += [_array("int64", 1, True), _array("int64", 1, True), _array("uint8", 1, True)] if c.is_bytes else [_array(c.dtype, 1 + len(c.shape), True)]
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
    tree, inputs = _driver(node, arguments[0], arguments[1] if len(arguments) == 2 else None, columns, outputs)
    signature = types.int64(types.int64, types.int64, *_input_types(inputs), *_output_types(outputs), _array("int64", 1, False), _array("int64", 1, False))
    names = {"Row": namedtuple("Row", [c.name for c in inputs]), **_zeros(outputs)}  # type: ignore[misc]
    return Driver(_compiled(fn, tree, names, signature), inputs, outputs)


def build_fold(fn: Callable[..., Any], dtype: str) -> Driver:
    """The driver of a fold ``f(a, b)`` over groups of scalars of `dtype`."""
    node = definition(fn)
    if len(node.args.args) != 2:
        raise KernelTrouble(f"a fold is f(a, b); this one takes ({', '.join(a.arg for a in node.args.args)})", node.lineno)
    index = _array("int64", 1, True)
    signature = types.int64(index, index, _array(dtype, 1, True), _array(dtype, 1, False), _array(dtype, 1, False), _array("int64", 1, False))
    column = Column("value", dtype)
    node.name = "user"
    tree = ast.Module([node, *_statements(FOLD_SOURCE, node)], [])
    return Driver(_compiled(fn, tree, _zeros((column,)), signature), (column,), (column,))


def _compiled(fn: Callable[..., Any], tree: ast.Module, names: dict[str, Any], signature: Any) -> Any:
    """`drive` of `tree`, compiled or from the cache. Line 1 is the first line of the function, wherever it stands in its file."""
    captured = _Captured()
    namespace = {**captured.names_of(fn), **names, "fits": fits, "put_array": put_array, "put_bytes": put_bytes}
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
