"""What a rank received in exchanges and its operator has not merged yet: in memory, and on scratch where that is short.

Nothing is merged before all rows have come. What fits in memory is merged then, all at once. Else everything lies on scratch by
partition, written once, and a partition is read back and merged right before it is finished.

What a checkpoint is still writing is lent to it: it is not merged, since operators write into what they have merged, and a partition of
it that is finished meanwhile is copied. What an earlier attempt left in the run directory is brought like that which lies on scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from hpcmr.data.partitioning import Partitioned
from hpcmr.ops.contract import KeyedOperator
from hpcmr.ops.hold import compact_copy
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext
from hpcmr.run.stored import Stored

SEGMENT_SHARE = 10     # of the budget: what is written together for an operator that takes a partition in parts
BRING_FACTOR = 3       # of a partition's bytes on scratch: the memory to merge and finish it as a whole
FINISH_SHARE = 8       # of the budget: what must be left, beside half of what was received, to merge and finish all of it in memory
COPY_SHARE = 8         # of the budget: what of the rows on scratch is in memory while a checkpoint copies them


class Shelf:
    """The received pieces of one operator.

    Parameters
    ----------
    ctx : RunContext
        Whose memory they are accounted to.
    in_parts : bool
        The operator can take a partition in parts (`bring`).
    section : Section, optional
        Of the stage in the checkpoints of the job.

    Attributes
    ----------
    nbytes : int
        Memory that the pieces in memory keep.
    stored : Stored or None
        What an earlier attempt left.
    """

    def __init__(self, ctx: RunContext, in_parts: bool = False, section: Section | None = None) -> None:
        self.ctx = ctx
        self.in_parts = in_parts
        self.section = section
        self.nbytes = 0
        self.stored: Stored | None = None
        self._pieces: list[Partitioned] = []
        self._told = 0                          # how many of them a checkpoint knows of
        self._lent: list[Partitioned] = []
        self._spool: Any = None
        self._spool_nbytes = 0
        self._untold: list[Any] = []            # segments on scratch that no checkpoint knows of
        self._copying = False

    def put(self, pieces: list[Partitioned], nbytes: int) -> None:
        """Take pieces, and over the account of the `nbytes` bytes that they keep."""
        if pieces:
            self._pieces += pieces
            self.nbytes += nbytes
        else:
            self.ctx.give(nbytes)

    # -- room --------------------------------------------------------------------------------------------------------------------

    def make_room(self, nbytes: int) -> None:
        """Spill if less than `nbytes` bytes are left."""
        if self._pieces and self.ctx.available() < nbytes:
            self.spill()

    def spill(self) -> None:
        """Write all that is in memory to scratch. Raises `StorageError`."""
        if not self._pieces:
            self._forget()
            return
        if self.section is not None and self._told:
            self.section.wait()                 # it holds on to the memory that is wanted back
        if self._spool is None:
            self._spool = self.ctx.new_spool()
        for group in self._segments(self._pieces[:self._told]):
            self._spool.append(group)
        before = len(self._spool)
        for group in self._segments(self._pieces[self._told:]):
            self._spool.append(group)
        if self.section is not None:
            self._untold += self._spool.handles()[before:]
        self._forget()
        more = self._spool.memory_nbytes + self._spool.buffer_nbytes - self._spool_nbytes
        self.ctx.take(more, "the index of what lies on scratch")
        self._spool_nbytes += more

    def _segments(self, pieces: list[Partitioned]) -> list[list[Partitioned]]:
        """Pieces as they are to be written: those of one schema together (an operator may seal several kinds of state in
        turn), in segments that can be read one at a time where the operator does so (`bring`).
        """
        out: dict[Any, list[list[Partitioned]]] = {}
        sizes: dict[Any, int] = {}
        for piece in pieces:
            schema, nbytes = piece.batch.schema, piece.batch.nbytes if self.in_parts else 0
            groups = out.setdefault(schema, [])
            if not groups or (sizes[schema] + nbytes > self.ctx.limit_nbytes // SEGMENT_SHARE and self.in_parts):
                groups.append([])
                sizes[schema] = 0
            groups[-1].append(piece)
            sizes[schema] += nbytes
        return [g for groups in out.values() for g in groups]

    def _forget(self) -> None:
        self._pieces, self._told = [], 0
        self.ctx.give(self.nbytes)
        self.nbytes = 0

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    def tell(self, fresh: Fresh) -> None:
        """Give a checkpoint what none knows of."""
        fresh.pieces += self._pieces[self._told:]
        self._told = len(self._pieces)
        spool, limit_nbytes = self._spool, self.ctx.limit_nbytes // COPY_SHARE
        for handle in self._untold:
            fresh.copies.append(partial(spool.copy, handle, limit_nbytes))
        self._copying = bool(self._untold)
        self._untold = []

    @property
    def untold_nbytes(self) -> int:
        """Bytes that `tell` would give."""
        return sum(p.batch.nbytes for p in self._pieces[self._told:]) + sum(h.nbytes(0, h.count) for h in self._untold)

    # -- after the last round ------------------------------------------------------------------------------------------------------

    def end(self, operator: KeyedOperator) -> None:
        """All rows have come: merge what is in memory, if it fits, or else get ready to `bring` it."""
        wanted = self.nbytes // 2 + self.ctx.limit_nbytes // FINISH_SHARE
        if hasattr(operator, "finish_nbytes"):
            wanted = max(wanted, operator.finish_nbytes(self._pieces))
        # An operator that takes a partition in parts gets all of it so.
        if self._spool is not None or (self.stored is not None and self.in_parts) or self.ctx.available() < wanted:
            self.spill()
            return
        if self.section is not None and self._told and self.section.writing:
            self._lent, self._pieces, self._told = self._pieces, [], 0
            return
        pieces = self._pieces
        self._forget()
        for piece in pieces:
            operator.merge(piece)        # it accounts for what it keeps

    def bring(self, partition: int, operator: KeyedOperator) -> None:
        """Merge what of a partition was not merged yet.

        Raises
        ------
        MemoryTooSmall
            It does not fit in memory.
        StorageError
            It cannot be read, or is not what was written.
        """
        nbytes = self._spool.nbytes_of(partition) if self._spool is not None else 0
        nbytes += self.stored.nbytes_of(partition, partition + 1) if self.stored is not None else 0
        if nbytes:
            bring = getattr(operator, "bring", None)
            if bring is not None and self.ctx.available() < BRING_FACTOR * nbytes:
                bring(partition, nbytes, lambda limit_nbytes: self._read(partition, limit_nbytes))
                return
            self.ctx.take(nbytes, f"partition {partition} of {operator.name}, which must be in memory as a whole to be finished,")
            try:
                pieces = list(self._read(partition))
            finally:
                self.ctx.give(nbytes)
            for piece in pieces:
                operator.merge(piece)
        if self._lent:
            self._bring_lent(partition, operator)

    def _read(self, partition: int, limit_nbytes: int = 1 << 62) -> Iterator[Partitioned]:
        if self.stored is not None:
            yield from self.stored.read(partition, limit_nbytes)
        if self._spool is not None:
            yield from self._spool.read(partition, limit_nbytes)

    def _bring_lent(self, partition: int, operator: KeyedOperator) -> None:
        assert self.section is not None
        copy = self.section.writing
        for piece in self._lent:
            if piece.covers(partition):
                batch = piece.part(partition)
                if batch.nrows:
                    batch = compact_copy(batch) if copy else batch
                    operator.merge(Partitioned(batch, np.array([0, batch.nrows], np.int64), partition))

    def close(self) -> None:
        """Give all memory and scratch back. Never raises; may be called twice."""
        if self._copying and self.section is not None:
            self.section.wait()
        self._copying = False
        self.ctx.give(self.nbytes + self._spool_nbytes)
        self._pieces, self._lent, self._untold = [], [], []
        self.nbytes = self._spool_nbytes = self._told = 0
        if self.stored is not None:
            self.stored.close()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
