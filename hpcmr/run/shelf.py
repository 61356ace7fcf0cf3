"""What a rank received in exchanges and its operator has not merged yet: in memory, and on scratch where that is short.

Nothing is merged before all rows have come. What fits in memory is merged then, all at once. Else everything lies on scratch by
partition, written once, and a partition is read back and merged right before it is finished.
"""

from __future__ import annotations

from typing import Any

from hpcmr.data.partitioning import Partitioned
from hpcmr.ops.contract import KeyedOperator
from hpcmr.run.context import RunContext

SEGMENT_SHARE = 10     # of the budget: what is written together for an operator that takes a partition in parts
BRING_FACTOR = 3       # of a partition's bytes on scratch: the memory to merge and finish it as a whole
FINISH_SHARE = 8       # of the budget: what must be left, beside half of what was received, to merge and finish all of it in memory


class Shelf:
    """The received pieces of one operator.

    Parameters
    ----------
    ctx : RunContext
        Whose memory they are accounted to.
    in_parts : bool
        The operator can take a partition in parts (`bring`).

    Attributes
    ----------
    nbytes : int
        Memory that the pieces in memory keep.
    """

    def __init__(self, ctx: RunContext, in_parts: bool = False) -> None:
        self.ctx = ctx
        self.in_parts = in_parts
        self.nbytes = 0
        self._pieces: list[Partitioned] = []
        self._spool: Any = None
        self._spool_nbytes = 0

    def put(self, pieces: list[Partitioned], nbytes: int) -> None:
        """Take pieces, and over the account of the `nbytes` bytes that they keep."""
        if pieces:
            self._pieces += pieces
            self.nbytes += nbytes
        else:
            self.ctx.give(nbytes)

    def make_room(self, nbytes: int) -> None:
        """Spill if less than `nbytes` bytes are left."""
        if self._pieces and self.ctx.available() < nbytes:
            self.spill()

    def spill(self) -> None:
        """Write all that is in memory to scratch. Raises `StorageError`."""
        if not self._pieces:
            self._forget()
            return
        if self._spool is None:
            self._spool = self.ctx.new_spool()
        for pieces in self._segments():
            self._spool.append(pieces)
        self._forget()
        more = self._spool.memory_nbytes + self._spool.buffer_nbytes - self._spool_nbytes
        self.ctx.take(more, "the index of what lies on scratch")
        self._spool_nbytes += more

    def _segments(self) -> list[list[Partitioned]]:
        """The pieces in memory as they are to be written: those of one schema together (an operator may seal several kinds of state in
        turn), in segments that can be read one at a time where the operator does so (`bring`).
        """
        out: dict[Any, list[list[Partitioned]]] = {}
        sizes: dict[Any, int] = {}
        for piece in self._pieces:
            schema, nbytes = piece.batch.schema, piece.batch.nbytes if self.in_parts else 0
            groups = out.setdefault(schema, [])
            if not groups or (sizes[schema] + nbytes > self.ctx.limit_nbytes // SEGMENT_SHARE and self.in_parts):
                groups.append([])
                sizes[schema] = 0
            groups[-1].append(piece)
            sizes[schema] += nbytes
        return [g for groups in out.values() for g in groups]

    def end(self, operator: KeyedOperator) -> None:
        """All rows have come: merge what is in memory, if it fits, or else get ready to `bring` it."""
        wanted = self.nbytes // 2 + self.ctx.limit_nbytes // FINISH_SHARE
        if hasattr(operator, "finish_nbytes"):
            wanted = max(wanted, operator.finish_nbytes(self._pieces))
        if self._spool is not None or self.ctx.available() < wanted:
            self.spill()
            return
        pieces = self._pieces
        self._forget()
        for piece in pieces:
            operator.merge(piece)        # it accounts for what it keeps

    def _forget(self) -> None:
        self._pieces = []
        self.ctx.give(self.nbytes)
        self.nbytes = 0

    def bring(self, partition: int, operator: KeyedOperator) -> None:
        """Merge what of a partition lies on scratch.

        Raises
        ------
        MemoryTooSmall
            It does not fit in memory.
        StorageError
            It cannot be read, or is not what was written.
        """
        if self._spool is None:
            return
        nbytes = self._spool.nbytes_of(partition)
        if nbytes == 0:
            return
        bring = getattr(operator, "bring", None)
        if bring is not None and self.ctx.available() < BRING_FACTOR * nbytes:
            bring(partition, nbytes, lambda limit_nbytes: self._spool.read(partition, limit_nbytes))
            return
        self.ctx.take(nbytes, f"partition {partition} of {operator.name}, which must be in memory as a whole to be finished,")
        try:
            pieces = list(self._spool.read(partition))
        finally:
            self.ctx.give(nbytes)
        for piece in pieces:
            operator.merge(piece)

    def close(self) -> None:
        """Give all memory and scratch back. Never raises; may be called twice."""
        self.ctx.give(self.nbytes + self._spool_nbytes)
        self._pieces, self.nbytes, self._spool_nbytes = [], 0, 0
        if self._spool is not None:
            self._spool.close()
            self._spool = None
