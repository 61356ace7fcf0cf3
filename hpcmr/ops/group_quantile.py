"""Exact values of each group: `count_distinct`, `median` and `quantile`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.data.keys import word_count
from hpcmr.data.schema import FLOAT64, INT64, ColumnType, Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.fine_groups import FINE, FineGroups, Index, counts_of, is_number, met

PICKS = ("lower", "higher", "nearest")           # the result is one of the values


class GroupValues(FineGroups):
    """How often each group met each value of a column, and what follows from it. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    column : str
    wants : tuple of Agg
        `count_distinct`, `median`, `quantile`.
    """

    def __init__(self, keys: tuple[str, ...], column: str, wants: tuple[Agg, ...]) -> None:
        super().__init__(keys, wants)
        self.column = column

    def value_fields(self, schema: Schema) -> tuple[Field, ...]:
        kind = schema[self.column].type
        for agg in self.wants:
            check_values(agg, kind)
        return (Field(FINE, kind),)

    def values(self, batch: Batch) -> dict[str, Column]:
        return {FINE: batch[self.column]}

    def result_field(self, agg: Agg, schema: Schema) -> Field:
        if agg.function == "count_distinct":
            return Field(agg.name, INT64)
        column = schema[self.column]
        return Field(agg.name, column.type if agg.option("interpolation", "linear") in PICKS else FLOAT64, column.attrs)

    def result(self, agg: Agg, fine: Batch, starts: Index) -> Column:
        if agg.function == "count_distinct":
            return FixedColumn(np.add.reduceat(met(fine).astype(np.int64), starts[:-1]))
        return quantile_of(fine, starts, agg.option("q", 0.5), agg.option("interpolation", "mean"), fine[FINE])


def check_values(agg: Agg, kind: ColumnType) -> None:
    """Raise `JobSpecError` where the function does not take such values."""
    wants = ""
    if kind.kind == "list" or kind.shape or (kind.is_fixed and kind.np_dtype.kind == "c"):
        wants = "a column of integers, floats, bool, dates, bytes or text"
    elif agg.function in ("median", "quantile") and agg.option("interpolation", "mean") not in PICKS and not is_number(kind):
        wants = f"numbers (or interpolation={' or '.join(map(repr, PICKS))} for dates)"
    elif agg.function == "quantile" and word_count(kind) == 3:
        wants = "numbers or dates"
    if wants:
        raise JobSpecError(f"{agg.function}({agg.column!r}) needs {wants}, and the column is {kind}")


def quantile_of(fine: Batch, starts: Index, q: float, interpolation: str, values: Column) -> FixedColumn:
    """The `q` quantile of each group, as ``np.quantile`` gives it; null where the group has no value, NaN where one is NaN.

    Interpolation "mean" is that of ``np.median``.
    """
    from hpcmr.kernels.group_values import quantile_places

    assert isinstance(values, FixedColumn)
    n = len(starts) - 1
    low, high, last = (np.empty(n, np.int64) for _ in range(3))
    at = np.empty(n)
    quantile_places(starts, counts_of(fine), met(fine), q, low, high, at, last)
    found = last >= 0
    raw = values.values
    if raw.dtype.kind == "f":
        low, high = (np.where(np.isnan(raw[last]), last, x) for x in (low, high))       # of NaN, which is last, comes NaN
    if interpolation in PICKS:
        up = {"lower": np.zeros(n, np.bool_), "higher": at > 0, "nearest": _nearest_is_upper(fine, starts, q, at)}[interpolation]
        out = raw[np.where(up, high, low)]
    elif interpolation == "mean":
        out = middle(raw[low].astype(np.float64), np.where(at > 0, raw[high], raw[low]).astype(np.float64))
    else:
        out = between(raw[low].astype(np.float64), raw[high].astype(np.float64), np.where(at > 0, 0.5, 0.0) if interpolation == "midpoint" else at)
    return FixedColumn(out, None if found.all() else found)


def _nearest_is_upper(fine: Batch, starts: Index, q: float, at: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Halves go to the even rank, as ``np.quantile`` has it."""
    counts = np.add.reduceat(np.where(met(fine), counts_of(fine), 0), starts[:-1])
    odd = np.floor(np.maximum(counts - 1, 0) * q).astype(np.int64) % 2 == 1
    upper: NDArray[np.bool_] = (at > 0.5) | ((at == 0.5) & odd)
    return upper


def middle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of two values, rounded once."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = a + b
        return np.where(np.isinf(whole) & np.isfinite(a) & np.isfinite(b), a / 2 + b / 2, whole / 2) + 0.0


def between(a: NDArray[np.float64], b: NDArray[np.float64], at: NDArray[Any]) -> NDArray[np.float64]:
    """A point between a and b, by the formula of ``np.quantile``; where b - a overflows, by one that does not."""
    with np.errstate(over="ignore", invalid="ignore"):
        gap = b - a
        out = np.where(at >= 0.5, b - gap * (1 - at), a + gap * at)
        out = np.where(np.isfinite(gap), out, a * (1 - at) + b * at)
    return np.where((at == 0) | (a == b), a, out) + 0.0
