"""What takes the rows that a plan ends in: write, collect, reduce, head.

An outlet lives through::

    rank 0:     begin                                                         combine(payloads of all ranks)
    all ranks:         open -> { take(piece, batch)* } for each piece -> local                              -> result

An outlet may have ``settle(together)`` (`hpcmr.ops.contract.Collective`): it is called on all ranks together, right before `local`.

A *piece* is a split (its index) or a partition (its number). Piece order, and row order within a piece, is the order of the
result. All batches of a piece come to one rank, one behind the other, before the next piece begins. On a rank the pieces come in
ascending order where `ascending` is True, else in any order: work that is dealt again may bring an earlier piece after a later one.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import StageContext


class OutletContext(StageContext, Protocol):
    """What an outlet may ask of the engine beyond what every operation may.

    Attributes
    ----------
    rank, size : int
    attempt : str
        Name for temporary files of this attempt: the same on all ranks, never used twice.
    provenance : dict
        Plain values for the manifest: ``job``, ``fingerprint``, ``inputs``, ``hpcmr``.
    """

    rank: int
    size: int
    attempt: str
    provenance: dict[str, Any]


@runtime_checkable
class Outlet(Protocol):
    """The end of a plan.

    Attributes
    ----------
    name : str
    root : int or None
        The one rank that is given the result (the others get None); None: every rank.
    ascending : bool
        Whether pieces must come in ascending order on each rank. It costs some balance.
    """

    name: str
    root: int | None
    ascending: bool

    def fingerprint(self) -> tuple[Any, ...]:
        """Plain values that identify what this outlet makes."""

    def begin(self, ctx: OutletContext) -> Any:
        """On rank 0, before any rank opens and before any row is read: refuse (output exists), make a temporary folder.

        Returns None, or the result if it is there already: then nothing is run.
        """

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        """On every rank: check `schema` (it carries the attributes of columns) and take the first memory."""

    def take(self, piece: int, batch: Batch) -> None:
        """Take rows. The batch's memory may be used again after the call: copy what is kept. Never called on zero rows."""

    def enough(self, piece: int) -> bool:
        """Whether no further row of `piece`, nor of any later one, can change the result: they are then not read. Asked between batches."""

    def local(self) -> Any:
        """End of this rank's rows: close files, and return what rank 0 needs, as plain values or compact batches (it is pickled)."""

    def combine(self, payloads: list[Any]) -> Any:
        """On rank 0: the result, from the payloads of all ranks in rank order. Publishes what is written. It is broadcast (see `root`)."""

    def abandon(self) -> None:
        """After an error, on every rank, whatever was called before: remove temporary files, give memory back. Must not raise."""
