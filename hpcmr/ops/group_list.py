"""All values of each group in the order of the input: `list`."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, ListColumn
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.keyed_rows import Index, KeyedRows


class GroupLists(KeyedRows):
    """Columns whose values become lists, nulls left out. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    wants : tuple of Agg
        `list` of columns of any type.
    """

    name = "aggregate"

    def __init__(self, keys: tuple[str, ...], wants: tuple[Agg, ...]) -> None:
        super().__init__(keys)
        self.wants = wants

    def fingerprint(self) -> tuple[Any, ...]:
        return ("lists", self.keys, tuple((a.column, a.name) for a in self.wants))

    def bind(self, schema: Schema) -> Schema:
        self.needed = tuple(dict.fromkeys((*self.keys, *(a.column or "" for a in self.wants))))
        self.bind_rows(schema.select(self.needed))
        lists = (Field(a.name, ColumnType("list", item=schema[a.column or ""].type), schema[a.column or ""].attrs) for a in self.wants)
        self.made = Schema((*schema.select(self.keys), *lists))
        return self.made

    def out_schema(self) -> Schema:
        return self.made

    def prepared(self, batch: Batch, origin: Any) -> Batch:
        return batch.select(self.needed)

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        columns = dict(self.firsts(rows, order, starts).columns)
        for agg in self.wants:
            child = rows[agg.column or ""].take(order)
            bounds = starts
            if child.valid is not None:
                bounds = np.concatenate([[0], np.cumsum(child.valid)])[starts]
                child = child.take(np.flatnonzero(child.valid))
                child.valid = None
            columns[agg.name] = ListColumn(bounds[:-1], bounds[1:], child)
        return Batch(columns, len(starts) - 1)
