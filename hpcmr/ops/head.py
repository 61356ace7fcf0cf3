"""The first rows: ``head``."""

from __future__ import annotations

from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.collect import Collect, Pieces
from hpcmr.ops.outlet import OutletContext


class Head(Collect):
    """The first `n` rows in order, as one `Batch`; a rank reads no further once it has so many. An `Outlet`.

    Parameters
    ----------
    n : int
    root : int, optional
        The one rank that is given the rows; None: every rank.
    """

    name = "head"
    ascending = True        # else n rows of late pieces would not say that earlier ones have none

    def __init__(self, n: int, root: int | None = None) -> None:
        super().__init__(root)
        self.n = n
        self.rows = 0

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.n)

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        super().open(ctx, schema)
        self.rows = 0

    def take(self, piece: int, batch: Batch) -> None:
        wanted = min(batch.nrows, self.n - self.rows)
        if wanted > 0:
            super().take(piece, batch.slice(0, wanted))
            self.rows += wanted

    def enough(self, piece: int) -> bool:
        return self.rows >= self.n

    def combine(self, payloads: list[Pieces]) -> Batch:
        return super().combine(payloads).slice(0, self.n)
