"""The first k rows in the order of some columns, without sorting the others. A `KeyedOperator` of one partition.

Each rank keeps the rows that may be among the first: all that came since the last cut, of which those behind the k-th row known so far
are dropped as they come. It seals at most k rows, in order and with their origins; the owner cuts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.data.sort_keys import SortLayout, directions, encode_sort_keys, order_of
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin, StageContext
from hpcmr.ops.keyed_rows import owned
from hpcmr.ops.splitters import origin_word

ORIGIN = "#origin"
WAITING_ROWS = 1 << 16       # rows beyond k that wait for the next cut


class TopK:
    """The first `k` rows in the order of `keys`; equal ones in the order of the input.

    Parameters
    ----------
    k : int
    keys : sequence of str
    descending : bool or sequence of bool
    hidden : sequence of str
        Columns that are sorted by and are not in the result.
    """

    name = "top_k"
    partitioned_by = None

    def __init__(self, k: int, keys: Sequence[str], descending: bool | Sequence[bool] = True, hidden: Sequence[str] = ()) -> None:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0:
            raise JobSpecError(f"top_k({k!r}): the number of rows is an integer, 0 or above")
        self.k = int(k)
        self.by = tuple(keys)
        self.descending = directions(self.by, descending)
        self.hidden = tuple(hidden)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.k, self.by, self.descending, self.hidden)

    def bind(self, schema: Schema) -> Schema:
        # Nulls may come at any time, and words of two layouts cannot be compared.
        self.layout = SortLayout.of(schema, self.by, self.descending, self.by)
        self.schema = schema
        self.out_schema = Schema(tuple(f for f in schema if f.name not in self.hidden))
        return self.out_schema

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.held = 0
        self.rows_in = 0
        self._worst: NDArray[np.uint64] | None = None      # words of the k-th row so far
        self._forget()

    def import_kernels(self) -> None:
        import hpcmr.kernels.sort
        import hpcmr.kernels.sort_keys  # noqa: F401

    def _forget(self) -> None:
        self._kept: list[Batch] = []
        self._rows = 0

    def _hold(self, nbytes: int) -> None:
        if nbytes > self.held:
            self.ctx.take(nbytes - self.held, f"the rows of {self.name}")
        else:
            self.ctx.give(self.held - nbytes)
        self.held = nbytes

    def consume(self, batch: Batch, origin: Origin) -> None:
        self.rows_in += batch.nrows
        if self.k == 0:
            return
        origins = np.arange(origin_word(origin), origin_word(origin) + batch.nrows, dtype=np.uint64)
        if self._worst is not None:
            rows = np.flatnonzero(_at_most(encode_sort_keys(batch, self.layout), self._worst))
            if not len(rows):
                return
            batch, origins = batch.take(rows), origins[rows]
        self._add(owned(batch), origins)

    def _add(self, batch: Batch, origins: NDArray[np.uint64]) -> None:
        batch.columns[ORIGIN] = FixedColumn(origins)
        self._kept.append(batch)
        self._rows += batch.nrows
        self._hold(self.held + batch.nbytes)
        if self._rows > self.k + max(self.k, WAITING_ROWS):
            self._cut()

    def _cut(self) -> None:
        """Keep the first k rows of what is there, in order."""
        if not self._kept:
            return
        rows = Batch.concat(self._kept)
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        words = encode_sort_keys(rows, self.layout)
        order = order_of(rows, self.layout, origin.values, words)[:self.k]
        if len(order) == self.k:
            self._worst = words[order[-1]].copy()
        kept = owned(rows.take(order))
        self._kept, self._rows = [kept], kept.nrows
        self._hold(kept.nbytes)

    def pressure(self) -> float:
        return 0.0

    def drain(self) -> None:
        self._cut()

    def seal(self) -> Partitioned:
        """The first k rows of this rank; what it merged is among them."""
        self._cut()
        none = Batch({**Batch.empty(self.schema).columns, ORIGIN: FixedColumn(np.zeros(0, np.uint64))})
        whole = self._kept[0].compact() if self._kept else none
        self._forget()
        self._hold(0)
        starts = np.zeros(self.ctx.partitions + 1, np.int64)
        starts[1:] = whole.nrows
        return Partitioned(whole, starts)

    def merge(self, part: Partitioned) -> None:
        if part.batch.nrows and part.first == 0:
            batch = owned(part.batch.slice(0, int(part.starts[1])))
            origin = batch.columns.pop(ORIGIN)
            assert isinstance(origin, FixedColumn)
            self._add(Batch(batch.columns, batch.nrows), origin.values)

    def finish(self, partition: int) -> Batch:
        if partition or not self._kept:
            return Batch.empty(self.out_schema)
        self._cut()
        out = self._kept[0].select(self.out_schema.names)
        self._forget()
        return out

    def close(self) -> None:
        self._hold(0)
        self._forget()


def _at_most(words: NDArray[np.uint64], last: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Rows whose words are not behind `last`."""
    below, equal = words[:, 0] < last[0], words[:, 0] == last[0]
    for w in range(1, len(last)):
        below |= equal & (words[:, w] < last[w])
        equal &= words[:, w] == last[w]
    return below | equal
