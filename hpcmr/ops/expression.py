"""Expressions: what to compute of a row's columns, as a tree that is written with operators and never runs as Python.

A tree holds names, constants and operations, and knows no types: `hpcmr.ops.expression_types` finds these where the columns are
known, `hpcmr.ops.expression_program` runs it. Two trees with equal `fingerprint` give equal results.
"""

from __future__ import annotations

import datetime
import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from hpcmr.errors import JobSpecError

str_type = str          # `Expr.str` hides the name in the body of the class
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "pow": "**", "and": "&", "or": "|",
         "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class Expr:
    """A value of each row; made by `hpcmr.col`, `hpcmr.lit` and `hpcmr.when`, and by operators and methods of these.

    ``+ - * / // % **``, unary ``-``, comparisons, and ``& | ~`` for and, or, not. Python's ``and``, ``or``, ``not``, ``in`` and chained
    comparisons cannot be used. ``e[:, 0]`` is a component of a column whose values have a shape; strings have methods under `str`.
    """

    __slots__ = ("_digest", "args", "extra", "op")

    def __init__(self, op: str, args: tuple[Expr, ...] = (), extra: Any = None) -> None:
        self.op = op
        self.args = args
        self.extra = extra
        told = repr((op, _plain(extra), [a._digest for a in args]))
        self._digest: str_type = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    def fingerprint(self) -> tuple[Any, ...]:
        """The tree by value: operations, names, and constants with their types."""
        return ("expression", self._digest)

    # ---- operators -------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Expr:
        return Expr("add", (self, as_expr(other)))

    def __radd__(self, other: Any) -> Expr:
        return Expr("add", (as_expr(other), self))

    def __sub__(self, other: Any) -> Expr:
        return Expr("sub", (self, as_expr(other)))

    def __rsub__(self, other: Any) -> Expr:
        return Expr("sub", (as_expr(other), self))

    def __mul__(self, other: Any) -> Expr:
        return Expr("mul", (self, as_expr(other)))

    def __rmul__(self, other: Any) -> Expr:
        return Expr("mul", (as_expr(other), self))

    def __truediv__(self, other: Any) -> Expr:
        return Expr("div", (self, as_expr(other)))

    def __rtruediv__(self, other: Any) -> Expr:
        return Expr("div", (as_expr(other), self))

    def __floordiv__(self, other: Any) -> Expr:
        return Expr("floordiv", (self, as_expr(other)))

    def __rfloordiv__(self, other: Any) -> Expr:
        return Expr("floordiv", (as_expr(other), self))

    def __mod__(self, other: Any) -> Expr:
        return Expr("mod", (self, as_expr(other)))

    def __rmod__(self, other: Any) -> Expr:
        return Expr("mod", (as_expr(other), self))

    def __pow__(self, other: Any) -> Expr:
        return Expr("pow", (self, as_expr(other)))

    def __rpow__(self, other: Any) -> Expr:
        return Expr("pow", (as_expr(other), self))

    def __neg__(self) -> Expr:
        return Expr("neg", (self,))

    def __abs__(self) -> Expr:
        return self.abs()

    def __and__(self, other: Any) -> Expr:
        return Expr("and", (self, as_expr(other)))

    def __rand__(self, other: Any) -> Expr:
        return Expr("and", (as_expr(other), self))

    def __or__(self, other: Any) -> Expr:
        return Expr("or", (self, as_expr(other)))

    def __ror__(self, other: Any) -> Expr:
        return Expr("or", (as_expr(other), self))

    def __invert__(self) -> Expr:
        return Expr("not", (self,))

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return Expr("eq", (self, as_expr(other)))

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return Expr("ne", (self, as_expr(other)))

    def __lt__(self, other: Any) -> Expr:
        return Expr("lt", (self, as_expr(other)))

    def __le__(self, other: Any) -> Expr:
        return Expr("le", (self, as_expr(other)))

    def __gt__(self, other: Any) -> Expr:
        return Expr("gt", (self, as_expr(other)))

    def __ge__(self, other: Any) -> Expr:
        return Expr("ge", (self, as_expr(other)))

    def __hash__(self) -> int:
        return hash(self._digest)

    def __bool__(self) -> NoReturn:
        raise JobSpecError(f"{self} has no truth in Python, it has one in each row; write & | ~ for and, or, not, each side in parentheses; "
                           ".between(a, b) for a <= x <= b; .is_in([...]) for in")

    def __iter__(self) -> Iterator[Any]:
        raise JobSpecError(f"{self} cannot be iterated over; it stands for a value of each row")

    def __getitem__(self, index: Any) -> Expr:
        """``e[:, 0]``, ``e[:, 0, 2]``, ``e[:, 1:3]``: the first index stands for the rows and is ``:``."""
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) < 2 or not isinstance(parts[0], slice) or parts[0] != slice(None):
            raise JobSpecError(f"{self}[...]: the first index stands for all rows, so a component is {self}[:, 0]")
        if not all(isinstance(p, slice) or (isinstance(p, int) and not isinstance(p, bool)) for p in parts[1:]):
            raise JobSpecError(f"{self}[...]: components are taken by integers and slices, for example {self}[:, 0] or {self}[:, 0:2]")
        return Expr("index", (self,), tuple((p.start, p.stop, p.step) if isinstance(p, slice) else p for p in parts[1:]))

    # ---- functions of numbers --------------------------------------------------------------------------------------

    def sqrt(self) -> Expr:
        """Square root; NaN below zero. Integers give float64, here and in the functions below."""
        return Expr("sqrt", (self,))

    def exp(self) -> Expr:
        """e to the power of the value."""
        return Expr("exp", (self,))

    def log(self) -> Expr:
        """Natural logarithm; -inf of zero, NaN below."""
        return Expr("log", (self,))

    def log2(self) -> Expr:
        """Logarithm to the base of 2."""
        return Expr("log2", (self,))

    def log10(self) -> Expr:
        """Logarithm to the base of 10."""
        return Expr("log10", (self,))

    def sin(self) -> Expr:
        """Sine of an angle in radians."""
        return Expr("sin", (self,))

    def cos(self) -> Expr:
        """Cosine of an angle in radians."""
        return Expr("cos", (self,))

    def abs(self) -> Expr:
        """Absolute value, of the same type; of a complex number a float."""
        return Expr("abs", (self,))

    def floor(self) -> Expr:
        """The next whole number below, of the same type."""
        return Expr("floor", (self,))

    def ceil(self) -> Expr:
        """The next whole number above, of the same type."""
        return Expr("ceil", (self,))

    def round(self, decimals: int = 0) -> Expr:
        """Rounded to `decimals` places, halves to even, of the same type."""
        if not isinstance(decimals, int) or isinstance(decimals, bool) or not 0 <= decimals <= 22:
            raise JobSpecError(f"{self}.round({decimals!r}): decimals is an integer from 0 to 22")
        return Expr("round", (self,), decimals)

    # ---- types, nulls, sets ----------------------------------------------------------------------------------------

    def cast(self, kind: Any) -> Expr:
        """The value as another type, ``"int32"``, ``float``, ``"datetime64[s]"``; a value that the type cannot hold becomes null."""
        return Expr("cast", (self,), kind if isinstance(kind, str | type) else str(kind))

    def is_null(self) -> Expr:
        """Whether there is no value; never null itself."""
        return Expr("is_null", (self,))

    def is_nan(self) -> Expr:
        """Whether the value is NaN, or a date that is none (NaT)."""
        return Expr("is_nan", (self,))

    def fill_null(self, value: Any) -> Expr:
        """`value`, a constant or an expression, where there is none."""
        return Expr("fill_null", (self, as_expr(value)))

    def is_in(self, values: Iterable[Any]) -> Expr:
        """Whether the value equals one of `values`, constants."""
        if isinstance(values, str | bytes | Expr):
            raise JobSpecError(f"{self}.is_in({values!r}): give a list of constants")
        listed = tuple(v.item() if hasattr(v, "item") and getattr(v, "dtype", None) is not None and v.dtype.kind in "biufc" else v for v in values)
        wrong = next((v for v in listed if not isinstance(v, CONSTANTS) and type(v).__name__ not in DATES), None)
        if wrong is not None or None in listed:
            raise JobSpecError(f"{self}.is_in: {wrong!r} is no constant to compare with; for nulls write | {self}.is_null()")
        return Expr("is_in", (self,), listed)

    def between(self, low: Any, high: Any) -> Expr:
        """Whether ``low <= value <= high``."""
        return (self >= low) & (self <= high)

    @property
    def str(self) -> Strings:
        """Functions of text and bytes."""
        return Strings(self)

    def alias(self, name: str_type) -> Expr:
        """The same value under a name of its own."""
        if not isinstance(name, str_type) or not name:
            raise JobSpecError(f"{self}.alias({name!r}): a name is a str that is not empty")
        return Expr("alias", (self,), name)

    @property
    def name(self) -> str_type | None:
        """What a column made of it is called: its alias, else the first column in it; None where there is neither."""
        if self.op in ("alias", "col"):
            return str_type(self.extra)
        return next((n for n in (a.name for a in self.args) if n is not None), None)

    def __repr__(self) -> str_type:
        return show(self)


CONSTANTS = (bool, int, float, complex, str, bytes, datetime.date)
DATES = ("datetime64", "timedelta64")


class Strings:
    """Functions of text and bytes. What is no UTF-8 is data: nothing fails on it and nothing changes it."""

    __slots__ = ("_expr",)

    def __init__(self, expr: Expr) -> None:
        self._expr = expr

    def length(self) -> Expr:
        """Characters of text, a byte that is no UTF-8 counting as one; bytes of bytes. int64."""
        return Expr("s_length", (self._expr,))

    def lower(self) -> Expr:
        """ASCII letters made small; all other bytes stay."""
        return Expr("s_lower", (self._expr,))

    def upper(self) -> Expr:
        """ASCII letters made large; all other bytes stay."""
        return Expr("s_upper", (self._expr,))

    def starts_with(self, prefix: str | bytes) -> Expr:
        """Whether the value begins with `prefix`."""
        return Expr("s_starts_with", (self._expr,), _pattern(prefix, "starts_with"))

    def ends_with(self, suffix: str | bytes) -> Expr:
        """Whether the value ends with `suffix`."""
        return Expr("s_ends_with", (self._expr,), _pattern(suffix, "ends_with"))

    def contains(self, part: str | bytes) -> Expr:
        """Whether `part` occurs in the value, byte for byte; it is no pattern."""
        return Expr("s_contains", (self._expr,), _pattern(part, "contains"))


class When:
    """A condition that waits for its value: what `hpcmr.when` gives."""

    __slots__ = ("_cases", "_condition")

    def __init__(self, condition: Any, cases: tuple[tuple[Expr, Expr], ...] = ()) -> None:
        self._condition = as_expr(condition)
        self._cases = cases

    def then(self, value: Any) -> Then:
        """The value where the condition is true."""
        return Then((*self._cases, (self._condition, as_expr(value))))


class Then(Expr):
    """Conditions with values, null where none is true; `otherwise` gives the value for these rows."""

    __slots__ = ("_cases",)

    def __init__(self, cases: tuple[tuple[Expr, Expr], ...]) -> None:
        made = _chosen(cases, None)
        super().__init__(made.op, made.args, made.extra)
        self._cases = cases

    def when(self, condition: Any) -> When:
        """A further condition, for rows where none before was true."""
        return When(condition, self._cases)

    def otherwise(self, value: Any) -> Expr:
        """The value where no condition is true (or they are null)."""
        return _chosen(self._cases, as_expr(value))


def _chosen(cases: tuple[tuple[Expr, Expr], ...], last: Expr | None) -> Expr:
    for condition, value in reversed(cases):
        last = Expr("when", (condition, value) if last is None else (condition, value, last))
    assert last is not None
    return last


def as_expr(value: Any) -> Expr:
    """An expression as it is, a constant as one."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, When):
        raise JobSpecError("when(...) has no value yet; go on with .then(value).otherwise(value)")
    if value is None:
        raise JobSpecError("None is no constant of an expression: x.is_null() asks for nulls, x.fill_null(v) fills them, "
                           "when(c).then(x) is null where c is not true")
    shaped = getattr(value, "shape", ()) != ()
    if shaped or not (isinstance(value, CONSTANTS) or type(value).__module__ == "numpy"):
        raise JobSpecError(f"{type(value).__name__} is no constant of an expression; constants are bool, int, float, complex, str, bytes, dates "
                           "and NumPy scalars, columns are mr.col('name'), and a function of yours goes to with_columns or map")
    return Expr("lit", (), value)


def _pattern(value: Any, method: str) -> bytes:
    if not isinstance(value, str | bytes):
        raise JobSpecError(f"str.{method}({value!r}): give a str or bytes")
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A constant as text that tells its type and every bit of it."""
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return str(value.dtype), value.tobytes()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    return type(value).__name__, value.__qualname__ if isinstance(value, type) else repr(value)


def columns_in(expr: Expr) -> set[str]:
    """Names of the columns that an expression reads."""
    found: set[str] = set()
    seen: set[str] = set()
    stack = [expr]
    while stack:
        e = stack.pop()
        if e._digest not in seen:
            seen.add(e._digest)
            stack += e.args
            if e.op == "col":
                found.add(e.extra)
    return found


def show(expr: Expr, depth: int = 0) -> str:
    """An expression as a user would write it, without the quotes around columns; what lies deep is left out."""
    if expr.op == "col":
        return str(expr.extra)
    if expr.op == "lit":
        return repr(expr.extra) if isinstance(expr.extra, CONSTANTS) else str(expr.extra)
    if depth > 6:
        return "..."
    args = [show(a, depth + 1) for a in expr.args]
    if expr.op in INFIX:
        return f"({args[0]} {INFIX[expr.op]} {args[1]})"
    if expr.op in ("neg", "not"):
        return ("-" if expr.op == "neg" else "~") + args[0]
    if expr.op == "index":
        return f"{args[0]}[:, {', '.join(_shown_index(p) for p in expr.extra)}]"
    if expr.op == "when":
        return f"when({args[0]}).then({args[1]})" + (f".otherwise({args[2]})" if len(args) > 2 else "")
    inside = [*args[1:], *([] if expr.extra is None else [_shown_extra(expr.extra)])]
    return f"{args[0]}.{expr.op.replace('s_', 'str.', 1) if expr.op.startswith('s_') else expr.op}({', '.join(inside)})"


def _shown_index(part: Any) -> str:
    if not isinstance(part, tuple):
        return str(part)
    start, stop, step = ("" if p is None else str(p) for p in part)
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _shown_extra(extra: Any) -> str:
    if isinstance(extra, type):
        return extra.__name__
    if isinstance(extra, tuple):
        return "[" + ", ".join(map(repr, extra[:4])) + (", ...]" if len(extra) > 4 else "]")
    return repr(extra)
