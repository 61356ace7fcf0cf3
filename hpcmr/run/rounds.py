"""A round: all ranks seal what their operator holds, send every partition to its owner, and merge what they got."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.buffers import Buffers
from hpcmr.comm.exchange import exchange
from hpcmr.comm.travel import Stats
from hpcmr.comm.world import World
from hpcmr.data.batch import BytesColumn, Column, FixedColumn
from hpcmr.data.partitioning import Partitioned, owner_bounds
from hpcmr.ops.contract import KeyedOperator
from hpcmr.run.context import RunContext

KEPT_SHARE = 8       # of the memory that is free at the first round, the part that receive buffers may keep for the next one


class Shuffle:
    """The rounds of one stage.

    Attributes
    ----------
    bounds : (size + 1,) int64 or None
        Partitions that each rank owns, cut by the bytes of the first round; they stay for the whole stage.
    stats : Stats
    """

    def __init__(self, world: World, operator: KeyedOperator, ctx: RunContext) -> None:
        self.world, self.operator, self.ctx = world, operator, ctx
        self.bounds: NDArray[np.int64] | None = None
        self.stats = Stats()
        self._buffers = Buffers(max(0, ctx.available() // KEPT_SHARE))

    def round(self) -> None:
        self.one_round()
        pending = getattr(self.operator, "pending", None)
        while pending is not None and int(self.world.allreduce(np.array([pending()], np.int64))[0]):
            self.one_round()

    def one_round(self) -> None:
        """Drain, seal, exchange, merge. Collective: yes; it begins with an `agree`, where a rank that failed joins."""
        with self.world.together("seal the state of a stage"):
            self.operator.drain()
            part = self.operator.seal()
        if self.bounds is None:
            self.bounds = self._cut(part)
        taken = 0

        def take(nbytes: int) -> None:
            nonlocal taken
            self.ctx.take(nbytes, "the receive buffers of an exchange")
            taken += nbytes

        try:
            received = exchange(self.world, part, self.bounds, copy_self=part.reused, buffers=self._buffers, stats=self.stats, take=take)
        finally:
            self.ctx.give(taken)        # the operator accounts for what it keeps of this
        del part
        with self.world.together("merge the state of a stage"):
            for piece in received:
                self.operator.merge(piece)

    def _cut(self, part: Partitioned) -> NDArray[np.int64]:
        if self.world.size == 1:
            return np.array([0, part.count], np.int64)
        return owner_bounds(self.world.allreduce(partition_nbytes(part)), self.world.size)


def partition_nbytes(part: Partitioned) -> NDArray[np.int64]:
    """Bytes of the rows of each partition: ``(partitions,) int64``."""
    out = np.zeros(part.count, np.int64)
    for column in part.batch.columns.values():
        out += np.diff(_nbytes_before(column, part.starts))
    return out


def _nbytes_before(column: Column, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of a column's rows before each cut."""
    if isinstance(column, FixedColumn):
        return cuts * column.type.row_nbytes
    offsets = column.offsets()[cuts]
    if isinstance(column, BytesColumn):
        return offsets + 16 * cuts
    return _nbytes_before(column.compact().child, offsets) + 16 * cuts
