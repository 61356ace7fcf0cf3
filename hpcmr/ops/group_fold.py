"""An aggregate of the user's that is a combiner, too: ``f(a, b)`` over the values of a group."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.schema import Field, Schema
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.contract import Origin
from hpcmr.ops.fine_groups import FINE
from hpcmr.ops.keyed_rows import ORIGIN, ORIGIN_BITS, Index
from hpcmr.ops.reduce_by_key import ReduceByKey


class GroupFold(ReduceByKey):
    """The values of a column folded two at a time, as `reduce_by_key` does it; nulls are left out. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    column : str
    function : callable or UserFunction
        See `hpcmr.ops.fold.Fold`.
    exact : bool
        See `hpcmr.ops.reduce_by_key.ReduceByKey`.
    wants : tuple of Agg
    """

    def __init__(self, keys: tuple[str, ...], column: str, function: Callable[..., Any], exact: bool, wants: tuple[Agg, ...]) -> None:
        super().__init__(function, keys, None, exact)
        self.column, self.wants = column, wants

    def fingerprint(self) -> tuple[Any, ...]:
        return ("fold", self.column, tuple(a.name for a in self.wants), *super().fingerprint())

    def bind(self, schema: Schema) -> Schema:
        column, keys = schema[self.column], tuple(schema.select(self.keys))
        super().bind(Schema((*keys, Field(FINE, column.type, column.attrs))))
        self.made = Schema((*(Field(f.name, f.type, f.attrs) for f in keys), *(Field(a.name, column.type, column.attrs) for a in self.wants)))
        return self.made

    def out_schema(self) -> Schema:
        return self.made

    def prepared(self, batch: Batch, origin: Origin) -> Batch:
        return Batch({**batch.select(self.keys).columns, FINE: batch[self.column]}, batch.nrows)

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        record = None if self.exact else int(origin.values[0]) & ((1 << ORIGIN_BITS) - 1)
        firsts = rows.select((*self.keys, ORIGIN)).take(order[starts[:-1]])
        return Batch({**firsts.columns, FINE: self._folded(rows, order, starts, record)[FINE]}, len(starts) - 1).select((*self.schema.names, ORIGIN))

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        values = self._folded(rows, order, starts, None)[FINE]
        return Batch({**self.firsts(rows, order, starts).columns, **{a.name: values for a in self.wants}})

    def _folded(self, rows: Batch, order: Index, starts: Index, record: int | None) -> Batch:
        """A value for each group, null where it has none. Of such a group one null row stays, which the function does not see."""
        column = rows[FINE]
        if column.valid is None:
            return self.fold.run(rows.select((FINE,)), order, starts, record)
        there = column.valid[order]
        found = np.add.reduceat(there.astype(np.int64), starts[:-1]) > 0
        there[starts[:-1]] |= ~found
        bounds = np.concatenate([[0], np.cumsum(there)])[starts]
        bare = copy.copy(column)
        bare.valid = None
        out = self.fold.run(Batch({FINE: bare}), order[there], bounds, record)
        out = Batch({FINE: copy.copy(out[FINE])})
        out[FINE].valid = None if found.all() else found
        return out
