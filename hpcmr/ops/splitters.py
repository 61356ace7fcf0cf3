"""Where a sort cuts its rows into partitions: a sample of the rows, and the splitters that are chosen from it.

Both depend on the rows and their origins alone, never on which rank saw what. A splitter is a row: its key *and its origin*, so that also many
rows with one key are cut in the middle, in their order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.sort_keys import SortLayout, encode_sort_keys, order_of, strings_of, tails_of
from hpcmr.ops.contract import Collective, Origin

SAMPLE_ROWS = 4096
"""Rows of the sample for each partition: half as many at least. A partition is then off its mean by 2.2 % (one standard deviation), and by
nothing where it holds fewer rows."""
SAMPLE_ROWS_MAX = 1 << 22
SAMPLE_NBYTES_MAX = 64 << 20
CELL_BITS_MAX = 14
ORIGIN_BITS = 40
_ORIGIN, _LEVEL = "#origin", "#level"


def origin_word(origin: Origin) -> int:
    """An origin as one number that orders as origins do."""
    return (origin.split << ORIGIN_BITS) + origin.row


class Sample:
    """Rows drawn by a hash of their origins.

    Half of all rows have level 1 or above, a quarter level 2, and so on. What is kept are all rows from the lowest level on at which the
    sample has no more rows and bytes than it may: which one that is follows from the rows of all ranks.

    Parameters
    ----------
    names : tuple of str
        Columns that are kept.
    partitions : int
    seed : int
    """

    def __init__(self, names: tuple[str, ...], partitions: int, seed: int) -> None:
        self.names = names
        self.rows_max = min(SAMPLE_ROWS * partitions, SAMPLE_ROWS_MAX)
        self.seed = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x5DEECE66D) & ((1 << 64) - 1))
        self.level = 0
        self.rows = self.nbytes = 0
        self._parts: list[Batch] = []
        self._places = np.zeros(0, np.int64)
        self._levels = np.zeros(0, np.uint8)

    def add(self, batch: Batch, origin: Origin) -> None:
        """Draw from the rows of a batch."""
        from hpcmr.kernels.sort_rows import draw

        n = batch.nrows
        if len(self._places) < n + 1:
            self._places, self._levels = np.empty(n + 1, np.int64), np.empty(n + 1, np.uint8)
        first = origin_word(origin)
        found = int(draw(self.seed, np.uint64(first), n, self.level, self._places, self._levels))
        if not found:
            return
        places = self._places[:found]
        part = batch.select(self.names).take(places).compact()
        part.columns[_ORIGIN] = FixedColumn((places + first).view(np.uint64))
        part.columns[_LEVEL] = FixedColumn(self._levels[:found].copy())
        self._parts.append(part)
        self.rows += found
        self.nbytes += part.nbytes
        while self.rows > self.rows_max or self.nbytes > SAMPLE_NBYTES_MAX:
            self._raise(self.level + 1)

    def _raise(self, level: int) -> None:
        """Keep rows of this level and above only."""
        self.level = level
        kept = []
        for part in self._parts:
            column = part[_LEVEL]
            assert isinstance(column, FixedColumn)
            rows = np.flatnonzero(column.values >= level)
            if len(rows):
                kept.append(part.take(rows).compact() if len(rows) < part.nrows else part)
        self._parts = [Batch.concat(kept)] if len(kept) > 64 else kept
        self.rows, self.nbytes = sum(p.nrows for p in self._parts), sum(p.nbytes for p in self._parts)

    def gather(self, together: Collective, nothing: Batch) -> Batch:
        """The sample of all rows, on every rank. Collective: yes. `nothing`: no rows, with the columns that are kept."""
        self._raise(int(together.allreduce(np.array([self.level], np.int64), "max")[0]))
        while True:                      # the same numbers on every rank
            rows, nbytes = together.allreduce(np.array([self.rows, self.nbytes], np.int64)).tolist()
            if rows <= self.rows_max and nbytes <= SAMPLE_NBYTES_MAX:
                break
            self._raise(self.level + 1)
        none = Batch({**nothing.select(self.names).columns, _ORIGIN: FixedColumn(np.zeros(0, np.uint64)), _LEVEL: FixedColumn(np.zeros(0, np.uint8))})
        mine = Batch.concat(self._parts) if self._parts else none
        self._parts = []
        return together.allgather_batch(mine.compact())


class Splitters:
    """Rows that begin partitions 1, 2, ... of a sort.

    Parameters
    ----------
    rows : Batch
        These rows, in order, with their origins.
    layout : SortLayout
    long : tuple of str
        Columns that have strings longer than their words, on any rank.
    """

    @classmethod
    def chosen(cls, sample: Batch, layout: SortLayout, partitions: int, long: tuple[str, ...]) -> Splitters:
        """From a sample of all rows (`Sample.gather`)."""
        origins = sample[_ORIGIN]
        assert isinstance(origins, FixedColumn)
        order = order_of(sample, layout, origins.values)
        return cls(sample.take(order[(np.arange(1, partitions) * len(order)) // partitions] if len(order) else order).compact(), layout, long)

    def __init__(self, rows: Batch, layout: SortLayout, long: tuple[str, ...]) -> None:
        self.layout, self.long = layout, long
        origins = rows[_ORIGIN]
        assert isinstance(origins, FixedColumn)
        self.rows = rows
        self.words = encode_sort_keys(self.rows, layout)
        self.origins = np.ascontiguousarray(origins.values)
        self._strings = {n: strings_of(self.rows[n]) for n in long}
        self._tails = tails_of(layout, self._strings)
        self._cut()

    def _cut(self) -> None:
        """Cells of the first word, and the splitters in each: where a cell has none, no row of it is compared."""
        first = np.ascontiguousarray(self.words[:, 0])
        lo, hi = (int(first[0]), int(first[-1])) if len(first) else (0, 0)
        bits = min(CELL_BITS_MAX, max(6, len(first).bit_length() + 6))
        self.lo, self.shift = np.uint64(lo), max(0, (hi - lo).bit_length() - bits)
        count = ((hi - lo) >> self.shift) + 1
        begins = np.arange(count, dtype=np.uint64) << np.uint64(self.shift)
        begins += self.lo
        self.cells = np.zeros((count, 2), np.uint16)
        self.cells[:, 0] = np.searchsorted(first, begins, "left")
        self.cells[0, 0] = 0                                # rows below the first splitter are in cell 0 as well
        self.cells[:, 1] = np.searchsorted(first, begins + np.uint64((1 << self.shift) - 1), "right")
        self.cells[-1, 1] = len(first)

    def assign(self, records: NDArray[np.uint64], batch: Batch, origin: Origin, out: NDArray[np.uint16]) -> None:
        """Partition of each row of `batch`, whose words come first in ``records (n, r)``."""
        from hpcmr.kernels.sort_rows import assign

        strings = {n: strings_of(batch[n]) for n in self.long}
        tails = tails_of(self.layout, strings)
        assign(records.ctypes.data, 8 * records.shape[1], np.uint64(0), len(records), np.uint64(origin_word(origin)), self.lo, self.shift, self.cells,
               self.words, self.origins, self._tails, tails, out)

    def bounds(self, partition: int) -> tuple[int, int] | None:
        """Least and greatest first word that rows of a partition can have; None for the first and the last one."""
        if not 0 < partition < len(self.words):
            return None
        return int(self.words[partition - 1, 0]), int(self.words[partition, 0])

    @property
    def nbytes(self) -> int:
        return int(self.words.nbytes + self.origins.nbytes + self.cells.nbytes) + self.rows.nbytes

