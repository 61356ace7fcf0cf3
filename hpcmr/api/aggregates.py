"""Aggregates for ``group_by(...).agg(...)``: what to compute of the rows of each key.

Each function returns a description; nothing is computed here. Without ``name=`` (or a keyword in ``agg``) a result is called
after the column and the function: ``sum("value")`` gives ``value_sum``, and ``count()`` gives ``count``. A column is a name or an
expression: ``sum(mr.col("v") * mr.col("w"))`` gives ``v_sum``, after its alias or its first column.
Nulls are skipped. Results have the same bits on any number of ranks: floating-point sums are exact and rounded once.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from hpcmr.api.expressions import hidden
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import INTERPOLATIONS, Agg
from hpcmr.ops.expression import Expr
from hpcmr.ops.functions import plain_function, schema_of

Column = str | Expr


def _agg(function: str, column: Column | None, name: str | None, options: tuple[Any, ...] = ()) -> Agg:
    if isinstance(column, Expr):
        called = name or f"{column.name or 'value'}_{function}"
        if column.op == "col":
            return Agg(function, str(column.extra), called, options)
        return Agg(function, hidden(column), called, options, column)
    if column is not None and not isinstance(column, str):
        raise JobSpecError(f"{function} takes the name of a column or an expression such as mr.col('x') * 2, not {column!r}")
    return Agg(function, column, name or (function if column is None else f"{column}_{function}"), options)


def count(column: Column | None = None, *, name: str | None = None) -> Agg:
    """Number of rows, or of the rows in which `column` is no null; int64."""
    return _agg("count", column, name)


def sum(column: Column, *, name: str | None = None) -> Agg:
    """Sum. Integers: int64 (uint64 of unsigned ones), an error if it does not fit. Floats: exact, rounded once, float64."""
    return _agg("sum", column, name)


def min(column: Column, *, name: str | None = None) -> Agg:
    """Smallest value, of the column's type. NaN if a value is NaN; -0.0 is below +0.0."""
    return _agg("min", column, name)


def max(column: Column, *, name: str | None = None) -> Agg:
    """Largest value, of the column's type. NaN if a value is NaN; +0.0 is above -0.0."""
    return _agg("max", column, name)


def mean(column: Column, *, name: str | None = None) -> Agg:
    """Arithmetic mean: the exact sum divided by the count, rounded once; float64."""
    return _agg("mean", column, name)


def var(column: Column, *, ddof: int = 1, name: str | None = None) -> Agg:
    """Variance with divisor ``n - ddof``; float64, NaN where n is not above `ddof`."""
    return _agg("var", column, name, _ddof("var", ddof))


def std(column: Column, *, ddof: int = 1, name: str | None = None) -> Agg:
    """Standard deviation, the square root of `var`; float64."""
    return _agg("std", column, name, _ddof("std", ddof))


def first(column: Column, *, name: str | None = None) -> Agg:
    """Value of the first row in input order, of the column's type."""
    return _agg("first", column, name)


def last(column: Column, *, name: str | None = None) -> Agg:
    """Value of the last row in input order, of the column's type."""
    return _agg("last", column, name)


def any(column: Column, *, name: str | None = None) -> Agg:
    """Whether a value of the bool column is true; bool."""
    return _agg("any", column, name)


def all(column: Column, *, name: str | None = None) -> Agg:
    """Whether all values of the bool column are true; bool."""
    return _agg("all", column, name)


def count_distinct(column: Column, *, name: str | None = None) -> Agg:
    """Number of different values, exact; int64. All NaN are one value, and so are -0.0 and 0.0. Cost: a row of state for each value."""
    return _agg("count_distinct", column, name)


def median(column: Column, *, name: str | None = None) -> Agg:
    """Median, exact: the mean of the two middle values of an even number; float64. NaN if a value is NaN. Cost: as `count_distinct`."""
    return _agg("median", column, name)


def quantile(column: Column, q: float, interpolation: str = "linear", *, name: str | None = None) -> Agg:
    """Quantile, exact, as ``np.quantile`` gives it. NaN if a value is NaN.

    Parameters
    ----------
    column : str or Expr
        Numbers; dates too where the result is one of the values.
    q : float
        0 to 1: 0.5 is the median.
    interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        What stands between two values. The result is float64; of "lower", "higher" and "nearest", which pick a value, of its type.

    Notes
    -----
    Cost: a row of state for each different value of each group.
    """
    if interpolation not in INTERPOLATIONS:
        raise JobSpecError(f"quantile(interpolation={interpolation!r}): there are {', '.join(INTERPOLATIONS)}")
    return _agg("quantile", column, name, (("q", _share("quantile", q)), ("interpolation", interpolation)))


def approx_quantile(column: Column, q: float, error: float = 0.01, *, name: str | None = None) -> Agg:
    """Quantile from a sketch: within a relative error of the exact one.

    Parameters
    ----------
    column : str or Expr
        Numbers.
    q : float
        0 to 1.
    error : float
        The result r and the exact ``quantile(column, q, "lower")`` e have ``abs(r - e) <= error * abs(e)``, always (of numbers from
        2.3e-308 in magnitude; smaller ones may become 0).

    Notes
    -----
    float64; NaN if a value is NaN. Values are counted in buckets by sign, exponent and leading bits; merging adds counts, so that no
    order of rows or ranks changes a bit. Cost: a row of state for each bucket that a group met; ``2 / error`` buckets or fewer for
    each factor of two between values.
    """
    return _agg("approx_quantile", column, name, (("q", _share("approx_quantile", q)), ("error", error)))


def approx_count_distinct(column: Column, error: float = 0.01, *, name: str | None = None) -> Agg:
    """Number of different values from a HyperLogLog sketch; int64.

    Parameters
    ----------
    column : str or Expr
    error : float
        Standard error, relative: two of three results lie within it, 95 % within twice as much. From 0.0041 on.

    Notes
    -----
    Merging takes maxima, so that no order of rows or ranks changes a bit. Cost: a row of state for each register that a group met: as
    many as it has different values, 16,384 at most for an error of 1 %.
    """
    return _agg("approx_count_distinct", column, name, (("error", error),))


def argmin(column: Column, of: str, *, name: str | None = None) -> Agg:
    """Value of the row in which column `of` is smallest, of the column's type; the first such row in input order.

    NaN counts as smallest, as in `min`; rows in which `of` is null are skipped.
    """
    return _agg("argmin", column, name, (("of", _named("argmin", of)),))


def argmax(column: Column, of: str, *, name: str | None = None) -> Agg:
    """Value of the row in which column `of` is largest, of the column's type; the first such row in input order.

    NaN counts as largest, as in `max`; rows in which `of` is null are skipped.
    """
    return _agg("argmax", column, name, (("of", _named("argmax", of)),))


def top_k(column: Column, k: int, *, name: str | None = None) -> Agg:
    """List of the `k` largest values, largest first, NaN behind all numbers; shorter where there are fewer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise JobSpecError(f"top_k({column!r}, {k!r}): k is a number of values, 1 or above")
    return _agg("top_k", column, name, (("k", k),))


def list(column: Column, *, name: str | None = None) -> Agg:
    """List of all values in the order of the input. Cost: all values of a partition in memory."""
    return _agg("list", column, name)


def fold(column: Column, function: Callable[..., Any], *, exact: bool = False, name: str | None = None) -> Agg:
    """Values folded two at a time by a function of yours, which is combiner and reducer; of the column's type.

    Parameters
    ----------
    column : str or Expr
    function : callable
        ``f(a, b)``, a `@kernel` (compiled; numbers only) or plain. It is called in the order of the rows within a split, then on the
        partial results in the order of splits.
    exact : bool
        It is associative and commutative and does not round: partial results may be folded in any order, and less travels.
    """
    return _agg("fold", column, name, (("f", plain_function(function)), ("exact", exact)))


def apply(function: Callable[..., Any], *columns: str, out: Any = "float64", name: str | None = None) -> Agg:
    """A function of yours of the values of each group: ``apply(f, "x", "w")`` calls ``f(x, w)`` with arrays.

    Parameters
    ----------
    function : callable
        A `@kernel` is compiled; others are called with NumPy arrays. It returns a number.
    *columns : str
        Columns that it gets, without the rows in which one of them is null; in the order of the input, or of ``group_by(order_by=...)``.
    out : type
        Of the result.

    Notes
    -----
    Where no row is left the result is null and the function is not called. Cost: all rows of these columns travel once.
    """
    if not columns or not builtins.all(isinstance(c, str) for c in columns):
        shown = ", ".join(map(repr, columns))
        raise JobSpecError(f"apply({shown}): name the columns whose arrays the function takes, for example mr.apply(f, 'x', 'w')")
    made = plain_function(function)
    called = name or f"{columns[0]}_{made.name.rpartition('.')[2].strip('<>')}"
    return Agg("apply", columns[0], called, (("f", made), ("columns", columns), ("out", schema_of({"value": out})["value"].type)))


def _share(function: str, q: float) -> float:
    if not isinstance(q, int | float) or isinstance(q, bool) or not 0 <= q <= 1:
        raise JobSpecError(f"{function}(q={q!r}): q is a number from 0 to 1")
    return float(q)


def _named(function: str, of: object) -> str:
    if not isinstance(of, str):
        raise JobSpecError(f"{function}(of={of!r}): of is the name of a column; make it one with with_columns")
    return of


def _ddof(function: str, ddof: int) -> tuple[Any, ...]:
    if not isinstance(ddof, int) or isinstance(ddof, bool) or ddof < 0:
        raise JobSpecError(f"{function}(ddof={ddof!r}): ddof is the integer taken from the count, 0 or above")
    return (("ddof", ddof),)


def check_distinct(names: builtins.list[str], what: str) -> None:
    """Raise `JobSpecError` if a name stands twice."""
    twice = sorted({n for n in names if builtins.sum(m == n for m in names) > 1})
    if twice:
        raise JobSpecError(f"{what}: two columns would be called {twice[0]!r}; give one of them another name, for example total=mr.sum(...)")
