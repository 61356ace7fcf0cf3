"""Aggregates that need the values of a group in their order: `list`, functions of the user's, and `first` and `last` of sorted groups."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn, ListColumn
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.data.sort_keys import SortLayout
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.group_function import GroupFunction
from hpcmr.ops.keyed_rows import Index, KeyedRows


class GroupLists(KeyedRows):
    """Rows of each group, in the order of the input or of some columns. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    order_by : tuple of str
        What the rows of a group are sorted by, before their order in the input.
    descending : tuple of bool
        For each of `order_by`.
    wants : tuple of Agg
        `list`, `first`, `last` of columns of any type, `apply`. Nulls are left out; `apply` gets rows in which none of its columns is null.
    """

    name = "aggregate"

    def __init__(self, keys: tuple[str, ...], order_by: tuple[str, ...], descending: tuple[bool, ...], wants: tuple[Agg, ...]) -> None:
        super().__init__(keys)
        self.order_by, self.descending, self.wants = order_by, descending, wants
        self.functions = {a.name: GroupFunction(a.option("f", None), _columns(a), a.option("out", None)) for a in wants if a.function == "apply"}

    @property
    def notice(self) -> str | None:
        from hpcmr.ops.map import slow_notice

        return next((slow_notice("agg", f.function) for f in self.functions.values() if f.function.kind != "kernel"), None)

    def fingerprint(self) -> tuple[Any, ...]:
        functions = tuple(f.fingerprint() for f in self.functions.values())
        return ("lists", self.keys, self.order_by, self.descending, tuple((a.function, a.column, a.name) for a in self.wants), functions)

    def bind(self, schema: Schema) -> Schema:
        SortLayout.of(schema, self.order_by, list(self.descending))              # raises where a column cannot be sorted by
        self.needed = tuple(dict.fromkeys((*self.keys, *self.order_by, *(c for a in self.wants for c in _columns(a)))))
        self.bind_rows(schema.select(self.needed))
        for function in self.functions.values():
            function.bind(schema)
        self.made = Schema((*schema.select(self.keys), *(self._field(a, schema) for a in self.wants)))
        return self.made

    def _field(self, agg: Agg, schema: Schema) -> Field:
        if agg.function == "apply":
            return Field(agg.name, self.functions[agg.name].out)
        column = schema[agg.column or ""]
        return Field(agg.name, ColumnType("list", item=column.type) if agg.function == "list" else column.type, column.attrs)

    def compile(self) -> None:
        """Compile functions that are kernels. Raises `KernelError`."""
        for function in self.functions.values():
            function.compile()

    def out_schema(self) -> Schema:
        return self.made

    def prepared(self, batch: Batch, origin: Any) -> Batch:
        return batch.select(self.needed)

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        columns = dict(self.firsts(rows, order, starts).columns)
        for agg in self.wants:
            values, bounds = _there([rows[c] for c in _columns(agg)], order, starts)
            if agg.function == "apply":
                columns[agg.name] = self.functions[agg.name].run(values, bounds)
            elif agg.function == "list":
                columns[agg.name] = ListColumn(bounds[:-1], bounds[1:], values[0])
            else:
                columns[agg.name] = _one(values[0], bounds[:-1] if agg.function == "first" else bounds[1:] - 1, bounds)
        return Batch(columns, len(starts) - 1)


def _columns(agg: Agg) -> tuple[str, ...]:
    """The columns that an aggregate needs."""
    found: tuple[str, ...] = agg.option("columns", (agg.column or "",))
    return found


def _there(columns: list[Column], order: Index, starts: Index) -> tuple[list[Column], Index]:
    """The rows in order without those that have a null, and where each group starts in them."""
    masks: list[NDArray[np.bool_]] = [c.valid for c in columns if c.valid is not None]
    if masks:
        there = np.logical_and.reduce(masks)[order]
        order, starts = order[there], np.concatenate([[0], np.cumsum(there)])[starts]
    taken = [c.take(order) for c in columns]
    for c in taken:
        c.valid = None
    return taken, starts


def _one(column: Column, places: Index, bounds: Index) -> Column:
    """A value for each group, null for one that has none."""
    found = bounds[1:] > bounds[:-1]
    out = column.take(np.clip(places, 0, len(column) - 1)) if len(column) else _blank(column, len(found))
    out.valid = None if found.all() else found
    return out


def _blank(column: Column, n: int) -> Column:
    """`n` zeros, empty strings or empty lists."""
    if isinstance(column, FixedColumn):
        return FixedColumn(np.zeros((n, *column.values.shape[1:]), column.values.dtype))
    out = copy.copy(column)
    out.starts = out.ends = np.zeros(n, np.int64)
    return out
