"""Finer groups: what an aggregate of values, not of sums, is made of.

Distinct values, their median, a sketch: each is known from *how often each value was met*. So rows are counted by (keys, value), in
the table that all aggregates use; only the partition is that of the keys alone, so that all values of a key meet at one owner. They
arrive in order, and what a group becomes is read off its stretch. A sketch is the same with coarser values: the state of a group is
as large as the number of different values that it met, whatever the order of rows and merges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate, keys_of_draws
from hpcmr.ops.contract import Origin, StageContext
from hpcmr.ops.keyed_rows import group_starts
from hpcmr.ops.null_keys import partitioned

FINE = "#value"
COUNT = "#count"
LOOK_ROWS = 1 << 16          # rows after which it is looked whether values repeat
PAYS = 0.25                  # distinct values per row above which rows are kept as they are

Index = NDArray[np.int64]


class FineGroups(Aggregate, ABC):
    """Rows counted by keys and value. A `KeyedOperator`; a child tells what the value is and what a group becomes.

    Parameters
    ----------
    keys : tuple of str
    wants : tuple of Agg
        What is to be made of the values.
    """

    def __init__(self, keys: tuple[str, ...], wants: tuple[Agg, ...]) -> None:
        super().__init__((*keys, FINE), (Agg("count", None, COUNT),), "direct")
        self.outer = keys
        self.wants = wants

    def fingerprint(self) -> tuple[Any, ...]:
        return (type(self).__name__, *super().fingerprint(), tuple((a.function, a.column, a.name, a.options) for a in self.wants))

    # ---- what a child says ---------------------------------------------------------------------------------------------

    @abstractmethod
    def value_type(self, schema: Schema) -> ColumnType:
        """Type of the column `FINE`."""

    @abstractmethod
    def values(self, batch: Batch) -> Column:
        """This column of a batch."""

    @abstractmethod
    def result_field(self, agg: Agg, schema: Schema) -> Field:
        ...

    @abstractmethod
    def result(self, agg: Agg, fine: Batch, starts: Index) -> Column:
        """An aggregate of groups whose values are rows ``starts[g]`` to ``starts[g + 1]`` of `fine`, in order."""

    # ---- the operator --------------------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema:
        keys = schema.select(self.outer)
        super().bind(keys.with_field(Field(FINE, self.value_type(schema))))
        self.by = KeyLayout.of(schema, self.outer)
        self.made = Schema(tuple(Field(f.name, f.type, f.attrs) for f in keys) + tuple(self.result_field(a, schema) for a in self.wants))
        return self.made

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.plain: list[NDArray[np.uint64]] = []
        self.plain_nbytes = self.looked = 0
        self.aside = False
        self.rows_all = np.inf
        super().open(ctx, None if estimate is None else self._fine(estimate))
        if estimate is not None:
            self.rows_all = self._rows_expected(estimate)

    def import_kernels(self) -> None:
        from hpcmr.kernels import group_values  # noqa: F401

        super().import_kernels()

    def _fine(self, batch: Batch) -> Batch:
        return Batch({**batch.select(self.outer).columns, FINE: self.values(batch)}, batch.nrows)

    def consume(self, batch: Batch, origin: Origin) -> int:
        return super().consume(self._fine(batch), origin)

    def _consume_directly(self, batch: Batch, origin: Origin) -> None:
        if self.aside:
            rows = np.empty((batch.nrows, self.layout.width + 1), np.uint64)
            rows[:, :-1] = encode_keys(batch, self.layout).words
            rows[:, -1] = 1
            self.plain.append(rows)
            self.plain_nbytes += rows.nbytes
            return
        super()._consume_directly(batch, origin)
        self.looked += batch.nrows
        # Where hardly a value repeats the table would only be slow: rows become states of one row each.
        if self.looked > LOOK_ROWS and not self.layout.has_strings:
            self.aside = keys_of_draws(self.looked, int(self.table.groups[0])) > PAYS * self.rows_all
            self.looked = 0 if self.aside else self.looked

    def _sealed(self) -> Partitioned:
        long = self.table.long
        batch = self.table.seal(1).batch
        rows = batch["state"].values  # type: ignore[union-attr]
        if self.plain:
            rows = np.concatenate([rows, *self.plain])
            batch = Batch({"state": FixedColumn(rows)}, len(rows))
        self.plain, self.plain_nbytes, self.looked = [], 0, 0
        return partitioned(batch, key_hashes(rows, self.by, long.hashes), self.ctx.partitions)

    def _extra_nbytes(self) -> int:
        return super()._extra_nbytes() + self.plain_nbytes

    def finish(self, partition: int) -> Batch:
        fine = super().finish(partition)
        if not fine.nrows:
            return Batch.empty(self.made)
        keys = fine.select(self.outer)
        starts = group_starts(keys, self.by)
        found = {a.name: self.result(a, fine, starts) for a in self.wants}
        return Batch({**keys.take(starts[:-1]).columns, **found}, len(starts) - 1)

    def close(self) -> None:
        super().close()
        self.plain, self.plain_nbytes = [], 0


def key_hashes(rows: NDArray[np.uint64], layout: KeyLayout, long_hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the keys that state rows begin with."""
    from hpcmr.kernels.keys import hash_words

    out = np.empty(len(rows), np.uint64)
    hash_words(rows.reshape(-1), rows.shape[1], len(rows), layout.string_ends, long_hashes, out)
    return out


def met(fine: Batch) -> NDArray[np.bool_]:
    """Rows that stand for a value, not for null."""
    valid = fine[FINE].valid
    return np.ones(fine.nrows, np.bool_) if valid is None else np.ascontiguousarray(valid)


def counts_of(fine: Batch) -> Index:
    column = fine[COUNT]
    assert isinstance(column, FixedColumn)
    return np.ascontiguousarray(column.values, np.int64)


def is_number(kind: ColumnType) -> bool:
    return kind.is_fixed and not kind.shape and kind.np_dtype.kind in "iuf"
