"""All rows in memory: ``collect``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import of_pieces
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import Collective
from hpcmr.ops.keyed_rows import owned
from hpcmr.ops.outlet import OutletContext, Sealed

Pieces = list[tuple[int, Batch]]


class Collect:
    """The rows of all pieces, in order, as one `Batch`. An `Outlet`.

    Parameters
    ----------
    root : int, optional
        The one rank that is given the rows; None: every rank.
    """

    name = "collect"
    ascending = False

    def __init__(self, root: int | None = None) -> None:
        self.root = root
        self.pieces: dict[int, list[Batch]] = {}
        self.fresh: set[int] = set()         # pieces that no checkpoint has
        self.held = 0
        self.ctx: OutletContext | None = None

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name,)

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        self.ctx, self.schema, self.pieces, self.fresh, self.held = ctx, schema, {}, set(), 0

    def take(self, piece: int, batch: Batch) -> None:
        self._keep(piece, owned(batch))
        self.fresh.add(piece)

    def _keep(self, piece: int, mine: Batch) -> None:
        assert self.ctx is not None
        self.ctx.take(mine.nbytes, f"the rows that {self.name} gathers")
        self.held += mine.nbytes
        self.pieces.setdefault(piece, []).append(mine)

    def sealed(self) -> Sealed | None:
        """The rows of the pieces that came since the last cut; what is kept are views of them."""
        whole = of_pieces((piece, batch) for piece in self.fresh for batch in self.pieces[piece])
        for piece in self.fresh if whole is not None else ():
            self.pieces[piece] = [whole.part(piece)] if whole is not None else []
        self.fresh = set()
        return None if whole is None else Sealed({}, whole)

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        for piece, batch in rows:
            self._keep(piece, batch)

    def enough(self, piece: int) -> bool:
        return False

    def settle(self, together: Collective) -> None:
        """Who gets the rows needs room for those of all ranks as they come, and for the whole that is made of them."""
        assert self.ctx is not None
        total = sum(together.allgather(self.held))
        if together.rank == (self.root or 0) or self.root is None:
            need = 2 * total - self.held
            self.ctx.take(need, f"{self.name}, which brings {total:,} bytes of rows to {'every' if self.root is None else 'one'} rank,")
            self.ctx.give(need)

    def local(self) -> Pieces:
        """The rows of this rank; from here on they are the caller's, not the budget's."""
        found = [(piece, Batch.concat(batches)) for piece, batches in sorted(self.pieces.items())]
        Collect.abandon(self)
        return found

    def combine(self, payloads: list[Pieces]) -> Batch:
        found = sorted((p for payload in payloads for p in payload), key=lambda p: p[0])
        return Batch.concat([b for _, b in found]) if found else Batch.empty(self.schema)

    def abandon(self) -> None:
        if self.ctx is not None and self.held:
            self.ctx.give(self.held)
        self.pieces, self.fresh, self.held = {}, set(), 0
