"""What takes the rows that a plan ends in: write, collect, reduce, head.

An outlet lives through::

    rank 0:     begin                                                         combine(payloads of all ranks)
    all ranks:         open -> { take(piece, batch)* } for each piece -> local                              -> result

An outlet may have ``settle(together)`` (`hpcmr.ops.contract.Collective`): it is called on all ranks together, right before `local`.

An outlet may have `sealed` and `restore` (`Restarting`): what it took before a cut of the job is then kept in a checkpoint, and a run
that continues does not read those pieces again. Without them the last stage of an action begins anew.

A *piece* is a split (its index) or a partition (its number). Piece order, and row order within a piece, is the order of the
result. All batches of a piece come to one rank, one behind the other, before the next piece begins. On a rank the pieces come in
ascending order where `ascending` is True, else in any order: work that is dealt again may bring an earlier piece after a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
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
    journal : Journal or None
        `hpcmr.store.journal.Journal` of the run, on rank 0 of a job on the command line.
    """

    rank: int
    size: int
    attempt: str
    provenance: dict[str, Any]

    @property
    def journal(self) -> Any: ...


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


class Sealed(NamedTuple):
    """What an outlet took on this rank since the last cut, in the form in which a checkpoint keeps it.

    Attributes
    ----------
    told : dict
        Small plain values, as JSON has them: for example the names of files that hold the rows. Empty: nothing.
    rows : Partitioned or None
        Rows by piece (``first`` is the lowest piece number). They are written by a thread: they must not be changed any more.
    finish : callable or None
        What is left to do until `told` holds (flush files): called once, by that thread, without arguments. May raise `StorageError`.
    """

    told: dict[str, Any]
    rows: Partitioned | None = None
    finish: Callable[[], None] | None = None


class Restarting(Protocol):
    """What an outlet may have so that its stage can be continued."""

    def sealed(self) -> Sealed | None:
        """At a cut: all ranks are between two pieces. What came since the last `sealed`; None if nothing did. Not collective."""

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        """After `open`, before any `take`, on every rank: what earlier runs sealed.

        Each of the `told` comes to one rank; each piece of `rows` comes to one rank too, ascending, in batches whose memory is the
        outlet's. Neither says anything about pieces that this rank gets afterwards, which may be lower. Not collective. What is
        restored is part of all later checkpoints as it is: `sealed` does not give it again.
        """
