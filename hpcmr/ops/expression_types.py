"""Types of expressions: a tree with names becomes nodes with types, over the columns that come in.

The rules are NumPy's (`numpy.result_type`, constants of Python take the type of the other side), with these choices:

- bool counts as int8 in arithmetic, two of them as int64; float16 counts as float32;
- ``/`` of integers gives float64; ``//`` and ``%`` by an integer 0, and an integer to a negative power, are null;
- integers wrap around; signed and unsigned integers compare by value;
- an operation on a null is null, but for ``& |`` (three-valued), `is_null`, `fill_null` and `when`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmr.data.schema import BYTES, FLOAT64, INT64, TEXT, ColumnType, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops import expression_dates as dates
from hpcmr.ops.expression import INFIX, Expr, show

BOOL = ColumnType.fixed("bool")
FLOATS = {"sqrt", "exp", "log", "log2", "log10", "sin", "cos"}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
MIRRORED = {"eq": "eq", "ne": "ne", "lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
TOTAL = {"col", "lit", "is_null"}


class Node:
    """An operation whose type is known.

    Attributes
    ----------
    op, args, extra
        As of `Expr`; names are resolved, casts are explicit (`to`), functions of strings stay as they are.
    type : ColumnType
    weak : bool
        A constant of Python's, which takes the type of the other side.
    key : str
        Equal for equal nodes.
    """

    __slots__ = ("args", "extra", "key", "op", "type", "weak")

    def __init__(self, op: str, kind: ColumnType, args: tuple[Node, ...] = (), extra: Any = None, weak: bool = False) -> None:
        self.op, self.type, self.args, self.extra, self.weak = op, kind, args, extra, weak
        told = extra.tobytes() if isinstance(extra, np.ndarray | np.generic) else repr(extra)
        self.key: str = hashlib.sha256(f"{op}|{kind}|{told!r}|{[a.key for a in args]}".encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def kind(self) -> str:
        """NumPy's letter of the kind; empty for what has no fixed width."""
        return self.type.np_dtype.kind if self.type.is_fixed else ""

    @property
    def is_string(self) -> bool:
        return self.type.is_string or self.kind == "S"

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.type.np_dtype


class Trouble(Exception):
    """What is wrong with an operation; the caller adds the expression."""


def columns_of(schema: Schema) -> dict[str, Node]:
    return {f.name: Node("col", f.type, (), f.name) for f in schema}


class Binder:
    """Turns trees into nodes.

    Parameters
    ----------
    columns : mapping of str to Node
        What each name stands for.
    verb : str
        Whose expressions these are, for messages.
    """

    def __init__(self, columns: Mapping[str, Node], verb: str) -> None:
        self._columns = columns
        self._verb = verb
        self._memo: dict[str, Node] = {}

    def bind(self, expr: Expr) -> Node:
        """The node of an expression.

        Raises
        ------
        JobSpecError
            With the operation that makes no sense, the whole expression, and what to do.
        """
        return settled(self._node(expr, expr))

    def _node(self, expr: Expr, whole: Expr) -> Node:
        found = self._memo.get(expr._digest)
        if found is None:
            try:
                if expr.op == "col":
                    found = self._column(expr.extra)
                elif expr.op == "lit":
                    found = constant(expr.extra)
                else:
                    found = operation(expr.op, [self._node(a, whole) for a in expr.args], expr.extra)
            except Trouble as trouble:
                inside = "" if expr is whole else f" in {show(whole)}"
                raise JobSpecError(f"{self._verb}: {show(expr)}{inside}: {trouble}") from None
            self._memo[expr._digest] = found
        return found

    def _column(self, name: str) -> Node:
        if name not in self._columns:
            try:
                Schema.of({n: c.type for n, c in self._columns.items()})[name]
            except JobSpecError as error:
                raise Trouble(str(error)) from None
        return self._columns[name]


# ---- constants ---------------------------------------------------------------------------------------------------------------


def constant(value: Any) -> Node:
    if isinstance(value, np.generic):
        if value.dtype.kind in "biufcmM":
            return literal(value, ColumnType.fixed(value.dtype))
        value = value.item()
    if isinstance(value, bool):
        return literal(np.bool_(value), BOOL)
    if isinstance(value, int):
        return Node("lit", _integer_type(value), (), value, weak=True)
    if isinstance(value, float):
        return Node("lit", FLOAT64, (), np.float64(value), weak=True)
    if isinstance(value, complex):
        return Node("lit", ColumnType.fixed("complex128"), (), np.complex128(value), weak=True)
    if isinstance(value, str | bytes):
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        return Node("lit", TEXT if isinstance(value, str) else BYTES, (), raw, weak=True)
    return literal(dates.of(value), ColumnType.fixed(dates.of(value).dtype))


def literal(value: Any, kind: ColumnType) -> Node:
    return Node("lit", kind, (), np.asarray(value, kind.np_dtype)[()])


def _integer_type(value: int) -> ColumnType:
    if not -(1 << 63) <= value < 1 << 64:
        raise Trouble(f"the integer {value} does not fit in 64 bits; write it as a float")
    return INT64 if value < 1 << 63 else ColumnType.fixed("uint64")


def settled(node: Node) -> Node:
    """A node with a type of its own; constants take that of their value."""
    if node.op != "lit" or not node.weak:
        return node
    return Node("lit", node.type, (), node.extra) if node.is_string else literal(node.extra, node.type)


def fitted(node: Node, other: Node) -> Node:
    """A constant of Python's in the type of the other side, where that can hold it."""
    if not node.weak:
        return node
    if other.weak or node.is_string or other.kind not in "biufc" or not other.kind:
        return settled(node)
    value = node.extra
    if node.kind in "iu":
        if other.kind in "iu":
            info = np.iinfo(other.dtype)
            return literal(value, ColumnType.fixed(other.dtype)) if info.min <= value <= info.max else settled(node)
        return literal(value, ColumnType.fixed(number_type(other))) if other.kind in "fc" else settled(node)
    if node.kind == "f" and other.kind in "fc":
        return literal(value, ColumnType.fixed(number_type(other)))
    return literal(value, ColumnType.fixed("complex64" if number_type(other) == np.float32 else "complex128")) if node.kind == "c" else settled(node)


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def number_type(node: Node) -> np.dtype[Any]:
    """What an operand counts as in arithmetic."""
    return np.dtype({"bool": "int8", "float16": "float32"}.get(node.dtype.name, node.dtype.name))


def promoted(a: Node, b: Node) -> np.dtype[Any]:
    if a.kind == b.kind == "b":
        return np.dtype(np.int64)
    return np.result_type(number_type(a), number_type(b))


def shape_of(*nodes: Node) -> tuple[int, ...]:
    shapes = {n.type.shape for n in nodes} - {()}
    if len(shapes) > 1:
        raise Trouble("values of shapes " + " and ".join(map(str, sorted(shapes))) + " do not go together; take components, for example x[:, 0]")
    return shapes.pop() if shapes else ()


def to(node: Node, dtype: Any) -> Node:
    """`node` as another type that can hold its values."""
    kind = ColumnType.fixed(dtype, node.type.shape)
    if kind == node.type:
        return node
    if node.op == "lit" and node.kind in "biufc":
        return literal(node.extra, kind)
    return Node("to", kind, (node,))


def numbers(what: str, nodes: list[Node], kinds: str = "biufc", hint: str = "") -> list[Node]:
    for node in nodes:
        if not node.kind or node.kind not in kinds:
            raise Trouble(f"{what} of {node.type} makes no sense" + (f"; {hint}" if hint else ""))
    return nodes


def pair(args: list[Node]) -> tuple[Node, Node]:
    a, b = args
    return fitted(a, b), fitted(b, a)


def scalars(what: str, nodes: list[Node]) -> None:
    for node in nodes:
        if node.type.shape:
            raise Trouble(f"{what} takes one number a row, and this is {node.type}; take components, for example x[:, 0]")


def _arithmetic(op: str, args: list[Node], extra: Any) -> Node:
    if any(a.kind and a.kind in "mM" for a in args):
        return dates.arithmetic(op, args)
    numbers(f"{INFIX[op]}", args, hint="it takes numbers; x.cast(...) makes some" if not any(a.is_string for a in args)
            else "text has x.str.length(), .starts_with(...) and others; split_columns and parsing functions make numbers of it")
    a, b = pair(args)
    kind = promoted(a, b)
    if op == "div" and kind.kind in "iu":
        kind = np.dtype(np.float64)
    if op in ("floordiv", "mod", "pow"):
        if kind.kind == "c":
            raise Trouble(f"{INFIX[op]} of complex numbers is not there")
        if kind.kind in "iu":
            scalars(f"{INFIX[op]} of integers", [a, b])
        if op == "pow" and kind.kind in "iu" and b.op == "lit" and b.extra < 0:
            raise Trouble("an integer to a negative power is no integer; make one side a float, for example x ** -1.0")
    return Node(op, ColumnType.fixed(kind, shape_of(a, b)), (to(a, kind), to(b, kind)))


def _compare(op: str, args: list[Node], extra: Any) -> Node:
    a, b = args
    if a.is_string and b.is_string:
        cmp = Node("s_compare" if op not in ("eq", "ne") else "s_equal", ColumnType.fixed("int8"), (settled(a), settled(b)))
        if op in ("eq", "ne"):
            return Node(op, BOOL, (cmp, literal(1, cmp.type)))
        return Node(op, BOOL, (cmp, literal(0, cmp.type)))
    if any(n.kind and n.kind in "mM" for n in args):
        a, b = dates.comparable(args)
        return Node(op, ColumnType.fixed("bool", shape_of(a, b)), (a, b))
    if a.is_string != b.is_string or not a.kind or not b.kind:
        raise Trouble(f"{a.type} and {b.type} cannot be compared; compare numbers with numbers and text or bytes with these")
    a, b = pair(args)
    if op not in ("eq", "ne") and "c" in (a.kind, b.kind):
        raise Trouble("complex numbers have no order; compare x.abs()")
    shape = shape_of(a, b)
    if {a.kind, b.kind} == {"i", "u"} and np.result_type(a.dtype, b.dtype).kind == "f":
        if a.kind == "u":
            a, b, op = b, a, MIRRORED[op]
        return Node(f"mixed_{op}", ColumnType.fixed("bool", shape), (to(a, np.int64), to(b, np.uint64)))
    kind = promoted(a, b)
    return Node(op, ColumnType.fixed("bool", shape), (to(a, kind), to(b, kind)))


def _logic(op: str, args: list[Node], extra: Any) -> Node:
    sign = INFIX.get(op, "~")
    if all(a.kind == "b" for a in args):
        return Node(op, ColumnType.fixed("bool", shape_of(*args)), tuple(args))
    if any(a.kind not in ("i", "u") for a in args):
        raise Trouble(f"{sign} takes true and false on both sides, or integers, not {' and '.join(str(a.type) for a in args)}; "
                      "comparisons need parentheses: (x > 1) & (y < 2)")
    if len(args) == 1:
        return Node("bitnot", args[0].type, tuple(args))
    a, b = pair(args)
    kind = promoted(a, b)
    if kind.kind == "f":
        raise Trouble(f"{sign} of {a.type} and {b.type}: no integer type holds both; cast one")
    return Node("bit" + op, ColumnType.fixed(kind, shape_of(a, b)), (to(a, kind), to(b, kind)))


# ---- functions ---------------------------------------------------------------------------------------------------------------


def _float_function(op: str, args: list[Node], extra: Any) -> Node:
    x = settled(numbers(op, args, "biuf", "it takes real numbers")[0])
    kind = np.dtype(np.float32) if number_type(x) == np.float32 else np.dtype(np.float64)
    return Node(op, ColumnType.fixed(kind, x.type.shape), (to(x, kind),))


def _same_type(op: str, args: list[Node], extra: Any) -> Node:
    x = settled(args[0])
    if op == "abs" and x.kind == "c":
        return Node(op, ColumnType.fixed("float32" if x.dtype == np.complex64 else "float64", x.type.shape), (x,))
    numbers(op, [x], {"neg": "iufcm", "abs": "iuf"}.get(op, "iuf"), "for true and false write ~x, or cast to an integer" if x.kind == "b" else "")
    if op in ("floor", "ceil", "round") and x.kind in "iu":
        return x
    kind = x.dtype if x.kind == "m" else number_type(x)
    return Node(op, ColumnType.fixed(kind, x.type.shape), (to(x, kind),), extra)


def _index(op: str, args: list[Node], extra: Any) -> Node:
    """Components are taken of columns: what is computed of a shaped column is computed of its components alone."""
    (x,) = args
    index = tuple(slice(*p) if isinstance(p, tuple) else p for p in extra)
    try:
        picked = np.empty(x.type.shape, np.int8)[index]
    except IndexError:
        raise Trouble(f"the value of a row is {x.type}, so the index after ':' has up to {len(x.type.shape)} parts within {x.type.shape}"
                      if x.type.shape else f"{x.type} has no components") from None
    if picked.size == 0:
        raise Trouble(f"no component of {x.type} is left")
    kind = ColumnType(x.type.kind, x.type.dtype, picked.shape, x.type.item)
    if x.op == "col" and not picked.shape:
        return Node("part", kind, (x,), int(np.arange(int(np.prod(x.type.shape))).reshape(x.type.shape)[index]))
    if x.op in ("col", "view"):
        return Node("view", kind, (x,), extra)
    inner = tuple(_index(op, [a], extra) if a.type.shape else a for a in x.args)
    return Node(x.op, kind, inner, x.extra)


def _is_nan(op: str, args: list[Node], extra: Any) -> Node:
    x = settled(numbers("is_nan", args, "biufcmM", "for nulls write x.is_null()")[0])
    return Node("is_nan", ColumnType.fixed("bool", x.type.shape), (x,))


def _is_null(op: str, args: list[Node], extra: Any) -> Node:
    return Node("is_null", BOOL, (settled(args[0]),))


def _merged(what: str, a: Node, b: Node) -> tuple[Node, Node]:
    """Two values of which a row takes one, in one type."""
    if a.is_string and b.is_string:
        told = {n.type for n in (a, b) if not n.weak} or {a.type, b.type}
        kind = TEXT if TEXT in told else BYTES
        return _as_string(a, kind), _as_string(b, kind)
    if not a.kind or not b.kind or a.is_string or b.is_string:
        raise Trouble(f"{what} has {a.type} for some rows and {b.type} for others; give them one type")
    if a.type.shape != b.type.shape and a.op != "lit" and b.op != "lit":
        raise Trouble(f"{what} has {a.type} for some rows and {b.type} for others; give them one shape")
    if "m" in (a.kind, b.kind) or "M" in (a.kind, b.kind):
        return dates.comparable([a, b])
    if a.kind == b.kind == "b":
        return a, b
    a, b = pair([a, b])
    dtype = promoted(a, b)
    return to(a, dtype), to(b, dtype)


def _as_string(node: Node, kind: ColumnType) -> Node:
    node = settled(node)
    return node if node.type == kind else Node("s_as", kind, (node,))


def _fill_null(op: str, args: list[Node], extra: Any) -> Node:
    x, v = args
    if x.kind and v.weak and v.kind and fitted(v, x).kind != x.kind and x.kind in "biuf":
        raise Trouble(f"{v.extra!r} does not fit in {x.type}; write x.cast('float64').fill_null({v.extra!r})")
    a, b = _merged("it", x, v)
    return Node("s_fill" if a.is_string else "fill_null", _shaped(a, b), (a, b))


def _shaped(a: Node, b: Node) -> ColumnType:
    return ColumnType(a.type.kind, a.type.dtype, shape_of(a, b), a.type.item)


def _when(op: str, args: list[Node], extra: Any) -> Node:
    condition, *values = args
    if condition.kind != "b" or condition.type.shape:
        raise Trouble(f"the condition is {condition.type}; it must be true or false for a row, for example x > 0")
    if len(values) == 1:
        x = settled(values[0])
        if not x.kind and not x.is_string:
            raise Trouble(f"values of type {x.type} cannot be chosen from")
        x = _as_string(x, BYTES) if x.kind == "S" else x if x.is_string or x.kind in "bmM" else to(x, number_type(x))
        return Node("s_when" if x.is_string else "when", x.type, (condition, x))
    a, b = _merged("it", *values)
    return Node("s_when" if a.is_string else "when", _shaped(a, b), (condition, a, b))


def _is_in(op: str, args: list[Node], extra: Any) -> Node:
    x, values = settled(args[0]), list(extra)
    if x.is_string:
        if not all(isinstance(v, str | bytes) for v in values):
            raise Trouble(f"{x.type} is compared with str and bytes only")
        raw = sorted({v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values})
        return Node("s_is_in", BOOL, (x,), tuple(raw))
    if x.kind and x.kind in "mM":
        x, table = dates.table(x, values)
    else:
        numbers("is_in", [x], "biuf")
        if not all(isinstance(v, bool | int | float) for v in values):
            raise Trouble(f"{x.type} is compared with numbers only")
        whole = x.kind != "f" and not any(isinstance(v, float) for v in values)
        dtype = number_type(x) if whole or x.kind == "f" else np.dtype(np.float64)
        if whole:
            info = np.iinfo(dtype)
            values = [v for v in values if info.min <= v <= info.max]
        table = np.array([v for v in values if v == v], dtype)
        x = to(x, dtype)
    return Node("is_in", ColumnType.fixed("bool", x.type.shape), (x,), np.unique(table))


def _cast(op: str, args: list[Node], extra: Any) -> Node:
    x = settled(args[0])
    try:
        kind = {int: INT64, float: FLOAT64, bool: BOOL, str: TEXT, bytes: BYTES, complex: ColumnType.fixed("complex128")}.get(extra)
        if kind is None:
            kind = ColumnType.parse({"int": "int64", "float": "float64", "str": "text"}.get(extra, extra)) if isinstance(extra, str) \
                else ColumnType.fixed(extra)
    except (JobSpecError, DataError, TypeError) as error:
        raise Trouble(f"{error}") from None
    if x.is_string and kind.is_string:
        return _as_string(x, kind)
    if not kind.is_fixed or kind.shape or not x.kind or kind.np_dtype.kind == "S" or x.kind == "S" or kind.dtype == "float16":
        raise Trouble(f"{x.type} is not cast to {kind}; cast goes between numbers, between numbers and dates, between text and bytes"
                      + ("; split_columns and parsing functions make numbers of text" if x.is_string else ""))
    if kind.np_dtype == x.dtype:
        return x
    if "m" in (x.kind, kind.np_dtype.kind) or "M" in (x.kind, kind.np_dtype.kind):
        return dates.cast(x, kind.np_dtype)
    if x.kind == "c" and kind.np_dtype.kind != "c":
        raise Trouble("a complex number is not cast to a real one; take x.abs()")
    if kind.np_dtype.kind in "iu" and not (x.kind == "b"):
        scalars("cast to integers", [x])
    wider = np.can_cast(x.dtype, kind.np_dtype, "safe") or kind.np_dtype.kind in "fc"
    out = ColumnType.fixed(kind.np_dtype, x.type.shape)
    if x.op == "lit" and (wider or kind.np_dtype.kind == "b"):
        return literal(x.extra, out)
    return Node("to" if wider or kind.np_dtype.kind == "b" else "cast", out, (x,))


def _string(op: str, args: list[Node], extra: Any) -> Node:
    x = settled(args[0])
    if not x.is_string or x.type.shape:
        raise Trouble(f"str functions take text or bytes, and this is {x.type}")
    if op in ("s_lower", "s_upper"):
        return Node(op, x.type if x.type.is_string else BYTES, (x,))
    return Node(op, INT64 if op == "s_length" else BOOL, (x,), extra)


def _alias(op: str, args: list[Node], extra: Any) -> Node:
    return settled(args[0])


RULES: dict[str, Callable[[str, list[Node], Any], Node]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "floordiv", "mod", "pow"), _arithmetic), **dict.fromkeys(COMPARISONS, _compare),
    **dict.fromkeys(("and", "or", "not"), _logic), **dict.fromkeys(FLOATS, _float_function),
    **dict.fromkeys(("neg", "abs", "floor", "ceil", "round"), _same_type),
    **dict.fromkeys(("s_length", "s_lower", "s_upper", "s_starts_with", "s_ends_with", "s_contains"), _string),
    "index": _index, "is_nan": _is_nan, "is_null": _is_null, "fill_null": _fill_null, "when": _when, "is_in": _is_in, "cast": _cast, "alias": _alias,
}


def operation(op: str, args: list[Node], extra: Any) -> Node:
    """The node of an operation on nodes. Raises `Trouble`."""
    return RULES[op](op, args, extra)
