"""The rows that a rank made stay on it: how a library call gives back what it has computed."""

from __future__ import annotations

from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.ops.collect import Collect


class Keep(Collect):
    """This rank's rows, in order, as one `Batch`; those of all ranks, in rank order, are the result. An `Outlet`.

    Attributes
    ----------
    rows : Batch
        After the run.
    """

    name = "keep"

    def __init__(self) -> None:
        super().__init__()
        self.rows = Batch({})

    def local(self) -> Any:
        found = [b for _, batches in sorted(self.pieces.items()) for b in batches]
        self.rows = Batch.concat(found) if found else Batch.empty(self.schema)
        self.abandon()
        return None

    def combine(self, payloads: list[Any]) -> Any:
        """Nothing is brought together."""
        return None
