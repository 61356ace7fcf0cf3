"""From the source of a kernel to the source of a loop over rows.

``f(row, emit)`` is taken by its source. Its body becomes the body of a loop: ``row.x`` becomes ``c0[_i]``, each ``emit(a, b)`` the
stores of one record, ``return`` a way out of the loops around it. Nothing here compiles; `hpcmr.kernels.emit` does.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types as pytypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

ROW, FLAG, SLOTS = 0, 1, 2     # state: row at hand, what did not fit (16 * output column + reason), then rows and bytes written
NO_FIT_RANGE, NO_FIT_SHAPE = 1, 2


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
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
             and min([n.lineno, *(d.lineno for d in n.decorator_list)]) == code.co_firstlineno]
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


OURS = "_hpcmr_"
_SHARED = {"range", "ValueError", "drive", "user"}


def ours(name: str) -> str:
    """A name of the driver's, which no name of the user's can be."""
    return OURS + name


def _generated(tree: ast.AST, at: ast.AST, theirs: str = "") -> None:
    """Give generated nodes names of ours, but for that of the user's row, and the line of `at`, for messages."""
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and n.id not in _SHARED and n.id != theirs:
            n.id = ours(n.id)
        elif isinstance(n, ast.arg):
            n.arg = ours(n.arg)
        if hasattr(n, "lineno"):
            ast.copy_location(n, at)


def statements(text: str, at: ast.AST, theirs: str = "") -> list[ast.stmt]:
    """Generated statements."""
    made = ast.parse(text).body
    for top in made:
        _generated(top, at, theirs)
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
        self.places = {} if row_escapes else {c.name: _place(j, c) for j, c in enumerate(inputs)}
        self.emits = 0

    def block(self, body: list[ast.stmt], depth: int) -> tuple[list[ast.stmt], bool]:
        """The statements rewritten, and whether one of them may return from within the loop that is `depth` deep."""
        out: list[ast.stmt] = []
        returns = False
        for s in body:
            if isinstance(s, ast.Return):
                out += self._return(s, depth)
                returns = True
            elif isinstance(s, ast.Expr) and self._is_emit(s.value):
                out += self._emit(s.value)  # type: ignore[arg-type]
            elif isinstance(s, ast.For | ast.While):
                inner = self._loop(s, depth)
                out.append(s)
                if inner:
                    out += statements("if _left:\n    break", s)
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
            out.append(ast.copy_location(ast.Assign([ast.Name(ours("_value"), ast.Store())], self._expression(value)), s))
        elif s.value is not None and not (isinstance(s.value, ast.Constant) and s.value.value is None):
            if not self._is_emit(s.value):
                raise KernelTrouble("a kernel with emit returns nothing; emit the value", s.lineno)
            out += self._emit(s.value)  # type: ignore[arg-type]
        return out + statements("_left = True\nbreak", s)

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
        out: list[ast.stmt] = [ast.copy_location(ast.Assign([ast.Name(ours(f"_v{self.emits}_{j}"), ast.Store())], self._expression(given[n])), node)
                               for j, n in enumerate(names)]
        return out + statements(_emit_source(self.outputs, str(self.emits)), node)

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
                    _generated(made, n)
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
            raise KernelTrouble(f"there is no column {name!r} that a kernel can read; "
                                f"the columns are {', '.join(c.name for c in columns) or 'none'}", line)
        if name.startswith("_"):
            raise KernelTrouble(f"a column whose name starts with an underscore cannot be read by a kernel: {name!r}; rename it first", line)
    return tuple(c for c in columns if c.name in wanted), False


def _place(j: int, column: Column) -> str:
    """A row's value of the j-th column that is read."""
    return f"d{j}[s{j}[_i]:e{j}[_i]]" if column.is_bytes else f"c{j}[_i]"


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


def driver_of(node: ast.FunctionDef, row: str, emit: str | None, columns: tuple[Column, ...], outputs: tuple[Column, ...],
              ) -> tuple[ast.Module, tuple[Column, ...]]:
    """The loop over rows with the kernel's body in it, and the columns that it reads."""
    inputs, escapes = _columns_read(node, row, columns)
    body, _ = _Body(row, emit, inputs, outputs, escapes).block(node.body, 0)
    ins, outs = _input_arguments(inputs), _output_arguments(outputs)
    slots = 1 + sum(c.is_bytes for c in outputs)
    capacity = [f"{outs[0]}.shape[0]", *(f"o{j}_data.shape[0]" for j, c in enumerate(outputs) if c.is_bytes)]
    full = " or ".join(f"_b{k} > {capacity[k]}" for k in range(slots))
    arguments = ", ".join(["_start", "_stop", *ins, *outs, "state", "need"])
    lines = [f"def drive({arguments}):", *(f"    _b{k} = state[{SLOTS + k}]" for k in range(slots)),
             "    for _i in range(_start, _stop):", f"        state[{ROW}] = _i", "        _left = False"]
    lines += [f"        _a{k} = _b{k}" for k in range(slots)]
    if escapes:
        lines.append(f"        {row} = Row({', '.join(_place(j, c) for j, c in enumerate(inputs))})")
    lines += ["        for _once in range(1):", "            pass"]
    if emit is None:
        lines += ["        if not _left:", f"            raise ValueError('{NOTHING}')"]
        lines += [f"        _v0_{j} = _value" + (f"[{j}]" if len(outputs) > 1 else "") for j in range(len(outputs))]
        lines += ["        " + line for line in _emit_source(outputs, "0").splitlines()]
    lines += [f"        if state[{FLAG}] != 0 or {full}:"]
    lines += [f"            need[{k}] = _b{k}; state[{SLOTS + k}] = _a{k}" for k in range(slots)]
    lines += ["            return _i", *(f"    state[{SLOTS + k}] = _b{k}" for k in range(slots)), "    return _stop"]
    drive = statements("\n".join(lines), node, theirs=row)[0]
    once = next(n for n in ast.walk(drive) if isinstance(n, ast.For) and isinstance(n.target, ast.Name) and n.target.id == ours("_once"))
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


def group_source(columns: int) -> str:
    """The driver of a function of arrays over groups of sorted rows; groups without rows are passed over."""
    names = [f"c{i}" for i in range(columns)]
    return f"""def drive(starts, {', '.join(names)}, out, state):
    for g in range(starts.shape[0] - 1):
        a = starts[g]
        b = starts[g + 1]
        if a < b:
            state[{ROW}] = g
            v = user({', '.join(f'{n}[a:b]' for n in names)})
            if not fits(v, Z0):
                state[{FLAG}] = {NO_FIT_RANGE}
                return g
            out[g] = v
    return starts.shape[0] - 1
"""


SCAN_SOURCE = f"""def drive(order, starts, values, out, slot, state):
    for j in range(values.shape[0]):
        if j == 0 and starts.shape[0] == 0:
            slot[0] = values[0]
        else:
            state[{ROW}] = j
            v = user(slot[0], values[j])
            if not fits(v, Z0):
                state[{FLAG}] = {NO_FIT_RANGE}
                return j
            slot[0] = v
        out[j] = slot[0]
    return values.shape[0]
"""
