"""A partition in the order of its keys that does not fit in memory: sorted runs on scratch, merged in blocks.

What the engine spilled comes back in pieces that fit, each is sorted and put away in blocks, and then all runs are read side by side,
a block or two of each in memory. In every step all rows up to the least of the blocks' last rows are sorted together and given on: no row
that comes later can stand before them. Each row is written to scratch twice in all, by the engine and here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import MemoryTooSmall
from hpcmr.ops.contract import Spool, StageContext

COPIES = 3                   # rows that are sorted lie in memory so many times
PIECE_SHARE = 8              # of the free memory: what is read back and sorted at a time
MERGE_SHARE = 6              # of the free memory: the blocks of all runs that are merged, with their copies
BLOCK_NBYTES = 1 << 20
BLOCK_NBYTES_MIN = 1 << 12

Order = Callable[[Batch], NDArray[np.int64]]
Read = Callable[[int], Iterable[Partitioned]]


class SortedRuns:
    """Rows of one partition as sorted runs on scratch.

    Parameters
    ----------
    ctx : StageContext
        With a spool.
    order : callable
        The order of a batch's rows; no two rows are equal in it.
    """

    def __init__(self, ctx: StageContext, order: Order) -> None:
        assert ctx.spool is not None
        self.ctx, self.order = ctx, order
        self.spool: Spool = ctx.spool
        self.runs: list[list[Any]] = []
        self.block_nbytes = BLOCK_NBYTES

    def sort(self, nbytes: int, read: Read) -> None:
        """Sort about `nbytes` bytes that `read` gives in pieces of a limited size, and put them away."""
        limit = max(BLOCK_NBYTES_MIN, self.ctx.available() // PIECE_SHARE)
        runs = 2 + 2 * nbytes // limit
        self.block_nbytes = min(BLOCK_NBYTES, max(BLOCK_NBYTES_MIN, self.ctx.available() // (COPIES * MERGE_SHARE * runs)))
        for piece in read(limit):
            rows = piece.batch
            held = COPIES * rows.nbytes
            self.ctx.take(held, "rows of a group that are sorted in pieces")
            try:
                self.runs.append(list(self._put(rows.take(self.order(rows)))))
            finally:
                self.ctx.give(held)

    def _put(self, rows: Batch) -> Iterator[Any]:
        step = max(1, rows.nrows * self.block_nbytes // max(1, rows.nbytes))
        for first in range(0, rows.nrows, step):
            yield self.spool.put(rows.slice(first, first + step).compact())

    def merged(self) -> Iterator[Batch]:
        """All rows in order, a block at a time. May be called once."""
        waiting: list[Batch | None] = [None] * len(self.runs)
        held = 0
        try:
            while True:
                for i in range(len(self.runs)):
                    waiting[i] = self._filled(waiting[i], self.runs[i])
                now = sum(COPIES * b.nbytes for b in waiting if b is not None)
                held = self._account(held, now)
                live = [i for i, b in enumerate(waiting) if b is not None]
                if not live:
                    return
                yield self._step(waiting, live)
        finally:
            self._account(held, 0)
            self.drop()

    def _filled(self, block: Batch | None, run: list[Any]) -> Batch | None:
        """What waits of a run, with the next block behind it where there is little: the run that has least decides how far a step goes."""
        if not run or (block is not None and 2 * block.nbytes > self.block_nbytes):
            return block
        handle = run.pop(0)
        more = self.spool.get(handle)
        self.spool.drop(handle)
        return more if block is None else Batch.concat([block, more])

    def _step(self, waiting: list[Batch | None], live: list[int]) -> Batch:
        """The rows that nothing can come before; what is left of each run stays in `waiting`."""
        blocks = [b for b in waiting if b is not None]
        ends = np.cumsum([b.nrows for b in blocks])
        whole = Batch.concat(blocks)
        order = self.order(whole)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        open_runs = [place[end - 1] for i, end in zip(live, ends.tolist(), strict=True) if self.runs[i]]
        stop = int(min(open_runs)) + 1 if open_runs else len(order)
        first = 0
        for i, end in zip(live, ends.tolist(), strict=True):
            done = int((place[first:end] < stop).sum())
            block = waiting[i]
            assert block is not None
            waiting[i] = block.slice(done, block.nrows) if done < block.nrows else None
            first = end
        return whole.take(order[:stop]).compact()

    def _account(self, held: int, now: int) -> int:
        if now > held:
            self.ctx.take(now - held, "the blocks of a group that does not fit in memory")
        else:
            self.ctx.give(held - now)
        return now

    def drop(self) -> None:
        """Give the scratch back."""
        for run in self.runs:
            for handle in run:
                self.spool.drop(handle)
        self.runs = []


def too_large(key: object, nbytes: int) -> MemoryTooSmall:
    """The error of a group that a function wants to have as a whole."""
    return MemoryTooSmall(f"the group of key {key!r} has {nbytes:,} bytes, which do not fit in memory as a whole; "
                          "take it in blocks (apply(f, blocks=True)), or raise --memory")
