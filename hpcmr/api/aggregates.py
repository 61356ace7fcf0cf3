"""Aggregates for ``group_by(...).agg(...)``: what to compute of the rows of each key.

Each function returns a description; nothing is computed here. Without ``name=`` (or a keyword in ``agg``) a result is called
after the column and the function: ``sum("value")`` gives ``value_sum``, and ``count()`` gives ``count``.
Nulls are skipped. Results have the same bits on any number of ranks: floating-point sums are exact and rounded once.
"""

from __future__ import annotations

import builtins
from typing import Any

from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg


def _agg(function: str, column: str | None, name: str | None, options: tuple[Any, ...] = ()) -> Agg:
    if column is not None and not isinstance(column, str):
        raise JobSpecError(f"{function} takes the name of a column, not {column!r}")
    return Agg(function, column, name or (function if column is None else f"{column}_{function}"), options)


def count(column: str | None = None, *, name: str | None = None) -> Agg:
    """Number of rows, or of the rows in which `column` is no null; int64."""
    return _agg("count", column, name)


def sum(column: str, *, name: str | None = None) -> Agg:
    """Sum. Integers: int64 (uint64 of unsigned ones), an error if it does not fit. Floats: exact, rounded once, float64."""
    return _agg("sum", column, name)


def min(column: str, *, name: str | None = None) -> Agg:
    """Smallest value, of the column's type. NaN if a value is NaN; -0.0 is below +0.0."""
    return _agg("min", column, name)


def max(column: str, *, name: str | None = None) -> Agg:
    """Largest value, of the column's type. NaN if a value is NaN; +0.0 is above -0.0."""
    return _agg("max", column, name)


def mean(column: str, *, name: str | None = None) -> Agg:
    """Arithmetic mean: the exact sum divided by the count, rounded once; float64."""
    return _agg("mean", column, name)


def var(column: str, *, ddof: int = 1, name: str | None = None) -> Agg:
    """Variance with divisor ``n - ddof``; float64, NaN where n is not above `ddof`."""
    return _agg("var", column, name, _ddof("var", ddof))


def std(column: str, *, ddof: int = 1, name: str | None = None) -> Agg:
    """Standard deviation, the square root of `var`; float64."""
    return _agg("std", column, name, _ddof("std", ddof))


def first(column: str, *, name: str | None = None) -> Agg:
    """Value of the first row in input order, of the column's type."""
    return _agg("first", column, name)


def last(column: str, *, name: str | None = None) -> Agg:
    """Value of the last row in input order, of the column's type."""
    return _agg("last", column, name)


def any(column: str, *, name: str | None = None) -> Agg:
    """Whether a value of the bool column is true; bool."""
    return _agg("any", column, name)


def all(column: str, *, name: str | None = None) -> Agg:
    """Whether all values of the bool column are true; bool."""
    return _agg("all", column, name)


def _ddof(function: str, ddof: int) -> tuple[Any, ...]:
    if not isinstance(ddof, int) or isinstance(ddof, bool) or ddof < 0:
        raise JobSpecError(f"{function}(ddof={ddof!r}): ddof is the integer taken from the count, 0 or above")
    return (("ddof", ddof),)


def check_distinct(names: list[str], what: str) -> None:
    """Raise `JobSpecError` if a name stands twice."""
    twice = sorted({n for n in names if builtins.sum(m == n for m in names) > 1})
    if twice:
        raise JobSpecError(f"{what}: two columns would be called {twice[0]!r}; give one of them another name, for example total=mr.sum(...)")
