"""A round: all ranks seal what their operator holds and send every partition to its owner, who keeps it until all rows have come.

Memory on the way: what is sealed, the receive buffers, and what was received before are accounted to the rank's budget. Where it is
short, an operator is asked to seal once its state has grown by a share of the budget, what was received goes to scratch (`Shelf`), and
if some rank could not take what all others have for it, they send in turns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.buffers import Buffers
from hpcmr.comm.exchange import exchange
from hpcmr.comm.travel import Stats
from hpcmr.comm.world import World
from hpcmr.data.batch import BytesColumn, Column, FixedColumn
from hpcmr.data.partitioning import Partitioned, owner_bounds
from hpcmr.errors import HpcmrError
from hpcmr.ops.contract import KeyedOperator
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext
from hpcmr.run.shelf import Shelf
from hpcmr.run.stored import Stored, stored_bounds
from hpcmr.store.pieces import PieceFile

KEPT_SHARE = 8       # of the memory that is free at the first round, the part that receive buffers may keep for the next one
ROUND_SHARE = 8      # of the budget, what an operator's state may grow by between two rounds, if it does not say so itself
RESERVE_SHARE = 2    # of the budget, what must be free after a round: else what was received goes to scratch


class Shuffle:
    """The rounds of one stage.

    Parameters
    ----------
    world : World
    operator : KeyedOperator
    ctx : RunContext
    bounds : (size + 1,) int64, optional
        Partitions that each rank owns, where that is settled; else they are cut by the bytes of the first round.
    section : Section, optional
        Of the stage in the checkpoints of the job. Where it has a record, its pieces count as received.

    Attributes
    ----------
    bounds : (size + 1,) int64 or None
        They stay for the whole stage.
    stats : Stats
    """

    def __init__(self, world: World, operator: KeyedOperator, ctx: RunContext, bounds: NDArray[np.int64] | None = None,
                 section: Section | None = None) -> None:
        self.world, self.operator, self.ctx = world, operator, ctx
        self.bounds = bounds
        self.stats = Stats()
        self._buffers = Buffers(max(0, ctx.available() // KEPT_SHARE))
        self._shelf = Shelf(ctx, hasattr(operator, "bring"), section)
        self._files: list[PieceFile] = []
        self._rounds = 0
        self._grown_from = ctx.taken_nbytes

    def pressure(self) -> float:
        """How badly a round is wanted: because the operator says so, or because its state has grown by as much as a round may have."""
        share = getattr(self.operator, "round_share", ROUND_SHARE)
        return max(self.operator.pressure(), (self.ctx.taken_nbytes - self._grown_from) * share / self.ctx.limit_nbytes)

    def round(self, last: bool = False) -> None:
        """Drain, seal, exchange, until no rank has anything left to seal. Collective: yes; it begins with an `agree`, where a rank that
        failed joins. `last`: no further rows will come.
        """
        while self._once(last):
            pass

    def _once(self, last: bool) -> bool:
        """Whether a further round is due: somebody's operator is not empty yet."""
        held = 0
        try:
            with self.world.together("seal the state of a stage"):
                self.operator.drain()
                part = self.operator.seal()
                more = bool(getattr(self.operator, "pending", bool)())
                held = self._hold(part)
        except BaseException:
            self.ctx.give(held)        # it failed elsewhere
            raise
        if self.bounds is None or int(self.bounds[-1]) != part.count:       # an operator may cut partitions of its own
            self.bounds = self._cut(part)
        turns, again = self._turns(part, more)
        only = last and self._rounds == 0 and turns == 1 and not again
        self._exchange(part, held, turns, copy_self=part.reused or (self.world.size > 1 and not only))
        self._rounds += 1
        del part
        self._grown_from = self.ctx.taken_nbytes
        return again

    def _hold(self, part: Partitioned) -> int:
        """Account what was sealed, unless its memory is the operator's."""
        nbytes = 0 if part.reused else part.batch.nbytes
        self._shelf.make_room(nbytes)
        self.ctx.take(nbytes, "the state that an exchange sends")
        return nbytes

    def _turns(self, part: Partitioned, more: bool) -> tuple[int, bool]:
        """In how many turns the ranks must send, so that each has room for what comes; and whether any has more to seal."""
        assert self.bounds is not None
        if self.world.size == 1:
            return 1, more
        before = np.zeros(self.world.size + 1, np.int64)
        for column in part.batch.columns.values():
            before += _nbytes_before(column, part.starts[self.bounds])
        coming = int(self.world.allreduce(np.diff(before))[self.world.rank])
        room = max(1, self.ctx.available() + self._shelf.nbytes)
        most = self.world.allreduce(np.array([-(-coming // room), more], np.int64), "max").tolist()
        return max(1, min(self.world.size, most[0])), bool(most[1])

    def _exchange(self, part: Partitioned, held: int, turns: int, copy_self: bool) -> None:
        """Send and receive; what stays on this rank without a copy keeps all that was sealed."""
        none = Partitioned(part.batch.slice(0, 0), np.zeros(part.count + 1, np.int64), reused=part.reused)
        try:
            for turn in range(turns):
                self._take_in(part if self.world.rank % turns == turn else none, copy_self)
            if not copy_self:
                self._shelf.nbytes, held = self._shelf.nbytes + held, 0
        finally:
            self.ctx.give(held)
        with self.world.together("keep what an exchange brought"):
            self._shelf.make_room(self.ctx.limit_nbytes // RESERVE_SHARE)

    def _take_in(self, part: Partitioned, copy_self: bool) -> None:
        assert self.bounds is not None
        taken = 0

        def take(nbytes: int) -> None:
            nonlocal taken
            self._shelf.make_room(nbytes)
            self.ctx.take(nbytes, "the receive buffers of an exchange")
            taken = nbytes

        try:
            received = exchange(self.world, part, self.bounds, copy_self=copy_self, buffers=self._buffers, stats=self.stats, take=take)
        except BaseException:
            self.ctx.give(taken)
            raise
        self._shelf.put(received, taken)

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    def restore(self, section: Section) -> None:
        """Take over what an earlier attempt received, wherever it was. Collective: yes."""
        record = section.record
        assert record is not None
        with self.world.together("open a checkpoint"):
            self._files = section.files(record.pieces)
        if self.bounds is None and "count" in record.facts:
            self.bounds = stored_bounds(self.world, self._files, int(record.facts["count"]))

    def tell(self, fresh: Fresh) -> None:
        """Give a checkpoint what was received since the last one. Between rounds."""
        self._shelf.tell(fresh)

    @property
    def untold_nbytes(self) -> int:
        """Bytes that `tell` would give."""
        return self._shelf.untold_nbytes

    # -- after the last round ----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """All rows have come: merge them, or make ready to merge a partition at a time (`bring`). Collective: yes."""
        self._buffers = Buffers()
        with self.world.together("merge the state of a stage"):
            if self._files:
                assert self.bounds is not None
                mine = self.bounds[self.world.rank:self.world.rank + 2].tolist()
                self._shelf.stored = Stored(self._files, mine[0], mine[1], self.ctx)
            self._shelf.end(self.operator)

    def bring(self, partition: int) -> None:
        """Merge what of an own partition lies on scratch; called before it is finished. Raises `MemoryTooSmall` or `StorageError`."""
        self._shelf.bring(partition, self.operator)

    def close(self) -> None:
        """Give all memory and scratch back. Never raises; may be called twice."""
        self._shelf.close()

    def _cut(self, part: Partitioned) -> NDArray[np.int64]:
        if self.world.size == 1:
            return np.array([0, part.count], np.int64)
        return cut_owners(self.world, partition_nbytes(part))


def cut_owners(world: World, nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Who owns which partitions, from what this rank knows of the bytes in each. Collective: yes."""
    lengths = world.allreduce(np.array([len(nbytes), -len(nbytes)], np.int64), "max")
    if lengths[0] != -lengths[1]:
        raise HpcmrError(f"ranks count from {-lengths[1]:,} to {lengths[0]:,} partitions; this is a defect of hpcmr, please report it")
    return owner_bounds(world.allreduce(nbytes), world.size)


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
