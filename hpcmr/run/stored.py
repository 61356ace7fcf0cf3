"""State of a stage that lies in the run directory: brought back a range of partitions at a time, and only what is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.world import World
from hpcmr.data.partitioning import Partitioned, owner_bounds
from hpcmr.ops.contract import StageContext
from hpcmr.store.pieces import PieceFile

WINDOW_NBYTES = 64 << 20
WINDOW_SHARE = 8         # of the memory that is free, what a window may take
STEPS = 1024             # ranges in which the bytes of a file are asked for, to cut owners by


class Stored:
    """Files of pieces, of which this rank wants the partitions `first` to ``stop - 1``.

    Parameters
    ----------
    files : sequence of PieceFile
        In the order in which they were written.
    first, stop : int
    ctx : StageContext
        Whose memory a window is accounted to.

    Attributes
    ----------
    nbytes : int
        Of the partitions wanted.

    Notes
    -----
    Digests are kept for runs of partitions of about 1 MiB, so neighbours are read together: a *window*. What is not asked for is not read.
    """

    def __init__(self, files: Sequence[PieceFile], first: int, stop: int, ctx: StageContext) -> None:
        self.files = [f for f in files if f.rows_of(first, stop)]
        self.first, self.stop, self.ctx = first, stop, ctx
        self.nbytes = self.nbytes_of(first, stop)
        self.nbytes_read = 0
        self._window: list[Partitioned] = []
        self._from = self._to = first
        self._taken = 0

    def nbytes_of(self, first: int, stop: int) -> int:
        return sum(f.nbytes_of(first, stop) for f in self.files)

    def read(self, partition: int, limit_nbytes: int = 1 << 62) -> Iterator[Partitioned]:
        """The rows of a partition, of one file after the other; they are the caller's. Raises `StorageError`, `MemoryTooSmall`."""
        if self.nbytes_of(partition, partition + 1) > limit_nbytes:
            for f in self.files:
                if f.rows_of(partition, partition + 1):
                    yield f.read(partition, partition + 1)
            return
        if not self._from <= partition < self._to:
            self._load(partition)
        for part in self._window:
            if part.covers(partition):
                batch = part.part(partition)
                if batch.nrows:
                    yield Partitioned(batch, np.array([0, batch.nrows], np.int64), partition)

    def _load(self, partition: int) -> None:
        self.close()
        room = min(WINDOW_NBYTES, self.ctx.available() // WINDOW_SHARE)
        last, nbytes = partition + 1, self.nbytes_of(partition, partition + 1)
        while last < self.stop and (more := self.nbytes_of(last, last + 1)) + nbytes <= room:
            last, nbytes = last + 1, nbytes + more
        self.ctx.take(nbytes, "what is read back from a checkpoint")
        self._taken = nbytes
        self._window = [f.read(partition, last) for f in self.files if f.rows_of(partition, last)]
        self._from, self._to = partition, last
        self.nbytes_read += nbytes

    def close(self) -> None:
        """Give the memory back. Never raises."""
        self._window, self._from, self._to = [], self.first, self.first
        self.ctx.give(self._taken)
        self._taken = 0


def stored_bounds(world: World, files: Sequence[PieceFile], count: int) -> NDArray[np.int64]:
    """Who owns which of `count` partitions, by the bytes in all files, of which each rank looks at a share. Collective: yes."""
    weights = np.zeros(count, np.int64)
    step = max(1, count // STEPS)
    for f in files[world.rank::world.size]:
        for a in range(f.first, f.first + f.count, step):
            b = min(a + step, f.first + f.count)
            weights[a:b] += f.nbytes_of(a, b) // (b - a)
    return owner_bounds(world.allreduce(weights), world.size)
