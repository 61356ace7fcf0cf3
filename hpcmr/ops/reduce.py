"""All rows folded to one: ``reduce``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import of_pieces
from hpcmr.data.python_values import rows_of
from hpcmr.data.schema import Schema
from hpcmr.ops.collect import Pieces
from hpcmr.ops.fold import Fold
from hpcmr.ops.keyed_rows import owned
from hpcmr.ops.map import slow_notice
from hpcmr.ops.outlet import OutletContext, Sealed


class Reduce:
    """``f(a, b)`` over all rows: in the order of the rows within a piece, then over the pieces in their order. An `Outlet`.

    Parameters
    ----------
    function : callable or UserFunction
        See `hpcmr.ops.fold.Fold`.
    root : int, optional
        The one rank that is given the result; None: every rank.

    Notes
    -----
    The result is the value of a table of one column, else a named tuple; None of no rows.
    """

    name = "reduce"
    ascending = False

    def __init__(self, function: Callable[..., Any], root: int | None = None) -> None:
        self.fold = Fold(function)
        self.root = root
        self.done: dict[int, tuple[Batch, int]] = {}       # of each piece: what it is folded to so far, and its rows
        self.fresh: set[int] = set()                       # pieces that no checkpoint has

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.fold.function)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, *self.fold.fingerprint())

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        self.fold.bind(schema)
        self.fold.compile()
        self.done, self.fresh = {}, set()

    def take(self, piece: int, batch: Batch) -> None:
        before, count = self.done.get(piece, (None, 0))
        rows = batch if before is None else Batch.concat([before, batch])
        self.done[piece] = (owned(self._folded(rows, count - (before is not None))), count + batch.nrows)
        self.fresh.add(piece)

    def _folded(self, rows: Batch, record: int | None) -> Batch:
        return self.fold.run(rows, np.arange(rows.nrows), np.array([0, rows.nrows]), record)

    def sealed(self) -> Sealed | None:
        whole = of_pieces((piece, self.done[piece][0]) for piece in self.fresh)
        self.fresh = set()
        return None if whole is None else Sealed({}, whole)

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        for piece, batch in rows:
            before = self.done.get(piece)
            whole = batch if before is None else self._folded(Batch.concat([before[0], batch]), None)
            self.done[piece] = (owned(whole), 0)

    def enough(self, piece: int) -> bool:
        return False

    def local(self) -> Pieces:
        return [(piece, row) for piece, (row, _) in sorted(self.done.items())]

    def combine(self, payloads: list[Pieces]) -> Any:
        found = sorted((p for payload in payloads for p in payload), key=lambda p: p[0])
        if not found:
            return None
        return rows_of(self._folded(Batch.concat([row for _, row in found]), None))[0]

    def abandon(self) -> None:
        self.done, self.fresh = {}, set()
