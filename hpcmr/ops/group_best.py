"""The best rows of each group by one column: `argmin`, `argmax` and `top_k`."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, Column, FixedColumn, ListColumn
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.data.sort_keys import SortLayout, nulls_in, order_of
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.keyed_rows import ORIGIN, Index, KeyedRows, group_starts

NAN_FIRST = "#nan"


class GroupBest(KeyedRows):
    """The first `k` rows of each group in the order of a column; of equal ones those that come first in the input. A `KeyedOperator`.

    What is not among the best of the rows that wait cannot be among the best of all: they are dropped early, and a group never holds
    more than k rows of each rank for long.

    Parameters
    ----------
    keys : tuple of str
    by : str
        The column that decides. Rows in which it is null come last, and are no result.
    k : int
    descending : bool
    nan_first : bool
        Whether NaN beats all numbers (as in `min` and `max`) or comes behind them (as in a sort).
    wants : tuple of Agg
        `argmin`, `argmax` (one value), `top_k` (a list).
    """

    name = "aggregate"
    combines = "any"

    def __init__(self, keys: tuple[str, ...], by: str, k: int, descending: bool, nan_first: bool, wants: tuple[Agg, ...]) -> None:
        super().__init__(keys)
        self.by, self.k, self.descending, self.nan_first, self.wants = by, k, descending, nan_first, wants

    def fingerprint(self) -> tuple[Any, ...]:
        return ("best", self.keys, self.by, self.k, self.descending, self.nan_first, tuple((a.function, a.column, a.name) for a in self.wants))

    def bind(self, schema: Schema) -> Schema:
        kind = schema[self.by].type
        if kind.kind == "list" or kind.shape or (kind.is_fixed and kind.np_dtype.kind == "c"):
            raise JobSpecError(f"{self.wants[0].function} by {self.by!r} needs numbers, bool, dates, bytes or text, and the column is {kind}")
        self.needed = tuple(dict.fromkeys((*self.keys, self.by, *(a.column or "" for a in self.wants))))
        self.bind_rows(schema.select(self.needed))
        fields = []
        for agg in self.wants:
            column = schema[agg.column or ""]
            listed = agg.function == "top_k"
            fields.append(Field(agg.name, ColumnType("list", item=column.type) if listed else column.type, column.attrs))
        self.made = Schema(tuple(schema.select(self.keys)) + tuple(fields))
        return self.made

    def out_schema(self) -> Schema:
        return self.made

    def prepared(self, batch: Batch, origin: Any) -> Batch:
        return batch.select(self.needed)

    def groups(self, rows: Batch) -> tuple[Index, Index]:
        """Rows in the order of key, column and origin."""
        names, turned, columns = list(self.keys), [False] * len(self.keys), dict(rows.columns)
        by = rows[self.by]
        if self.nan_first and isinstance(by, FixedColumn) and by.values.dtype.kind == "f":
            columns[NAN_FIRST] = FixedColumn(~np.isnan(by.values), by.valid)
            names.append(NAN_FIRST)
            turned.append(False)
        if self.by in self.keys:
            columns["#by"] = by
        names.append("#by" if self.by in self.keys else self.by)
        turned.append(self.descending)
        whole = Batch(columns, rows.nrows)
        layout = SortLayout.of(whole.schema, names, turned, nulls_in(whole, names))
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        order = order_of(whole, layout, origin.values)
        return order, group_starts(rows.select(self.keys).take(order), self.layout)

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        place = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
        return rows.take(order[place < self.k])

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        lengths = np.diff(starts)
        place = np.arange(len(order)) - np.repeat(starts[:-1], lengths)
        by = rows[self.by]
        there = place < self.k
        if by.valid is not None:
            there &= by.valid[order]
        picked = order[there]
        ends = np.cumsum(np.add.reduceat(there.astype(np.int64), starts[:-1]))
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        columns = dict(self.firsts(rows, order, starts).columns)
        for agg in self.wants:
            column = rows[agg.column or ""]
            if agg.function == "top_k":
                columns[agg.name] = ListColumn(begins, ends, column.take(picked))
            else:
                columns[agg.name] = _only(column, picked, begins, ends)
        return Batch(columns, len(lengths))


def _only(column: Column, picked: Index, begins: Index, ends: Index) -> Column:
    """The picked value of each group; null where there is none."""
    found = ends > begins
    if not len(picked):
        out = column.take(np.zeros(len(found), np.int64))
    else:
        out = column.take(picked[np.minimum(begins, len(picked) - 1)])
    if not found.all():
        out.valid = found if out.valid is None else found & out.valid
    return out
