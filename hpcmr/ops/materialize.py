"""Nothing is wanted of the rows but that they are kept: the outlet behind a `persist` that is run for its own sake."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.outlet import OutletContext


class Materialize:
    """Reads nothing of what was kept. An `Outlet`."""

    name = "materialize"
    root = None
    ascending = False

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name,)

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        """Takes no memory."""

    def take(self, piece: int, batch: Batch) -> None:
        raise AssertionError("a materialized table is not read")

    def enough(self, piece: int) -> bool:
        return True

    def sealed(self) -> None:
        """Nothing was taken; the rows are kept with their table."""

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        """Nothing was taken."""

    def local(self) -> None:
        """Nothing to tell."""

    def combine(self, payloads: list[Any]) -> None:
        """Nothing to make."""

    def abandon(self) -> None:
        """Nothing to give back."""
