"""What every operation must be able to do; `run` drives nothing but these.

Four roles. A *step* turns a batch into a batch and keeps no state that crosses splits (map, filter, select). A *keyed
operator* takes batches in, holds state per partition and gives each partition back in key order (aggregate, group, sort). A
*pair operator* does that with two tables (join). An *outlet* takes the finished pieces (write, collect, reduce).

A keyed operator lives through::

    open -> { consume* -> drain -> seal -> (exchange) -> merge }* -> finish(partition) for each one owned

`seal` takes all state out of the operator as one `Partitioned`; `merge` puts such state in, wherever and whenever it was
sealed. Seals and merges after every split, or only one at the end, give the same bits: exchange, spill and checkpoint are
all made of these two.

An operator may do more; what it has of the following is used (see `Surveying`):

- ``survey = True`` and `observe`: all rows come by once before they are consumed.
- `settle`: one collective call, when all rows have been observed (`survey`), or before the last seal (else).
- `weights`: bytes that this rank expects in each partition; asked after `settle` of a surveying operator, to cut owners by.
- `pending`: after a seal, whether there is more to seal. Seals can then be bounded in bytes.
- `bring`: a partition that does not fit in memory, in parts.
- `finish_blocks`: a partition as several batches, in place of `finish`.
- `finish_nbytes`: what it takes to finish the largest partition of parts; where that is not left, they go to scratch first.
- `partitioned_by`: key columns of the result by whose hash (`hpcmr.data.keys`) its partitions are cut; None of others. A later
  operator that has it too, and whose `keys` are the same, then finds all rows at their owners, and nothing travels.
- `settled` and `resettle`: what `settle` made of the first pass, as rows that a checkpoint keeps. A run that continues gives them to
  a fresh operator in place of the first pass. Without the two the first pass is done again, and the second from its beginning.

What was sealed can also come from a checkpoint, written by another run on another number of ranks: `merge` gets it like any other.
The engine never lets an operator write into arrays of a checkpoint that is still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema


class Collective(Protocol):
    """The ranks, as `settle` sees them. Every rank makes the same calls in the same order."""

    rank: int
    size: int

    def allgather(self, obj: Any) -> list[Any]:
        """The objects of all ranks, in rank order: small ones, they are pickled."""

    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]:
        """Element-wise ``sum``, ``min`` or ``max`` over ranks of int64, uint64 or float64; a new array."""

    def allgather_batch(self, batch: Batch) -> Batch:
        """The rows of all ranks, in rank order, on every rank. All have the same columns."""

    def exscan(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        """Element-wise sum over the ranks below this one; zeros on rank 0."""


class Spool(Protocol):
    """Node-local scratch: batches put away, and got back by what `put` returned. Where it is full, `StorageError`."""

    def put(self, batch: Batch) -> Any:
        """Write the rows; their memory may be used again afterwards."""

    def get(self, handle: Any) -> Batch:
        """Read them, in memory of their own. May be called again and again. Raises `DataError` if they are damaged."""

    def drop(self, handle: Any) -> None:
        """They are not needed any more."""


class Origin(NamedTuple):
    """Where the first row of a batch stands: split (global number of the piece of input) and row within what the split yields."""

    split: int
    row: int


class StageContext(Protocol):
    """What an operation may ask of the engine. Implemented by `hpcmr.run.context`.

    Attributes
    ----------
    partitions : int
        Number of partitions, a power of two.
    seed : int
    spool : Spool or None
        Node-local scratch; None where rows must stay in memory.
    """

    partitions: int
    seed: int
    spool: Spool | None

    def take(self, nbytes: int, what: str) -> None:
        """Account `nbytes` to this rank's memory budget, or raise `MemoryTooSmall` naming `what`."""

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""

    def available(self) -> int:
        """Bytes of the budget that are free."""

    def count(self, name: str, n: int) -> None:
        """Add `n` to the stage's counter `name`."""

    def log(self, message: str, once: str | None = None) -> None:
        """Say something once per job (on rank 0)."""


@runtime_checkable
class Step(Protocol):
    """A narrow operation: batch in, batch out.

    A step may have ``repeatable = True``: run twice it gives the same and costs little (no function of the user's). Rows behind
    such steps are read again where an operator wants to see them twice; else they are kept.
    It may have ``apply_blocks(batch, origin) -> Iterator[Batch]``, which is then used in place of `apply`: the result of a batch in
    pieces of a bounded size, each of which may lie in the memory of the one before.
    It may have ``carries(names) -> names or None``: what the columns `names` are called behind it if their values are unchanged
    (rows may be missing), None if they are not all there.
    """

    name: str

    def fingerprint(self) -> tuple[Any, ...]:
        """Plain values that identify what this step does; two steps with equal fingerprints give equal results."""

    def bind(self, schema: Schema) -> Schema | None:
        """Check against the input schema; return the output schema, or None where only a sample can tell."""

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        """Output schema from running on a sample; None if the sample yielded no row."""

    def fix(self, schema: Schema) -> None:
        """Take the agreed output schema; later batches are cast to it safely or fail."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        """The batch's result. Never called on zero rows. Raises `FunctionError` with the record for user code."""


class SurveyStep(Step, Protocol):
    """A step whose result for a row depends on other rows; it is narrow all the same, and rows stay where they are.

    All rows that it will be applied to are shown to it first, with the same origins (in the same batches or others), on this rank or on
    another one. `bind` comes before. Rows are read again for the second pass where that is cheap, else kept on the rank; where `holds`
    is there and True, they are kept.
    """

    survey: bool

    def observe(self, batch: Batch, origin: Origin) -> None:
        """First pass over the rows. Copy what is kept."""

    def settle(self, together: Collective) -> None:
        """Once, on all ranks together, between the passes.

        A step may have ``settled() -> Batch or None`` and ``resettle(batch)`` too, as an operator may (see `Surveying`).
        """


@runtime_checkable
class KeyedOperator(Protocol):
    """A wide operation: state per partition."""

    name: str

    def fingerprint(self) -> tuple[Any, ...]: ...

    def bind(self, schema: Schema) -> Schema | None:
        """Check against the input schema; return the output schema, or None where only a sample can tell (`infer` and `fix`, as for steps)."""

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        """Take the first memory. `estimate` is a sample of the input to choose a strategy from; results never depend on it."""

    def consume(self, batch: Batch, origin: Origin) -> int | None:
        """Take rows in. Returns how many where that is not the batch's: an operator may absorb the step before it (``absorb``)."""

    def pressure(self) -> float:
        """How badly state wants to be sealed and exchanged: 0 not at all, 1 or more now. Asked between batches and splits."""

    def drain(self) -> None:
        """Flush what is buffered inside, so that a seal holds everything consumed."""

    def seal(self) -> Partitioned:
        """Take all state out, in partition order; the operator is empty afterwards."""

    def merge(self, part: Partitioned) -> None:
        """Put sealed state in, for the partitions that this rank owns."""

    def finish(self, partition: int) -> Batch:
        """Result of one partition, rows in key order; its state is released. May be called once per partition."""

    def close(self) -> None:
        """Give all memory back."""


class Surveying(Protocol):
    """What a keyed operator may have beyond `KeyedOperator`; each of these alone, too."""

    survey: bool
    partitioned_by: tuple[str, ...] | None

    def observe(self, batch: Batch, origin: Origin) -> None:
        """First pass over the rows that `consume` will get, in the same batches or others, with the same origins. Copy what is kept."""

    def settle(self, together: Collective) -> None:
        """Once, on all ranks together. Results may depend on what is agreed here only as far as that depends on the data alone."""

    def settled(self) -> Batch | None:
        """After `settle` (or `resettle`), on every rank: all that it made of the first pass, the same on every rank and from the data
        alone; None: it cannot be kept. The batch may have any columns and must not be changed later.
        """

    def resettle(self, found: Batch) -> None:
        """In place of `observe` and `settle`, after `bind` and `open`: take what `settled` gave, on another number of ranks perhaps.
        `weights` and all that the second pass needs must work afterwards. Not collective.
        """

    def weights(self) -> NDArray[np.int64] | None:
        """``(partitions,)`` bytes of this rank's rows by partition; None: by what the first round seals. An array on all ranks, or on none."""

    def pending(self) -> bool:
        """After a `seal`: there is more to seal. All ranks do further rounds until nobody has any."""

    def bring(self, partition: int, nbytes: int, read: Callable[[int], Iterable[Partitioned]]) -> None:
        """In place of `merge`, right before `finish`, for a partition of which `nbytes` bytes lie on scratch and would not fit in memory:
        ``read(limit_nbytes)`` gives them in parts.
        """

    def finish_blocks(self, partition: int) -> Iterator[Batch]:
        """Result of one partition in several batches; each may lie in the memory of the one before."""


@runtime_checkable
class PairOperator(Protocol):
    """A wide operation on two tables.

    The right side is held on the ranks first; then `choose` decides from its measured size. ``"broadcast"``: every rank gets all
    right rows, in the order of their origin, and `probe` makes a step of them that the left rows go through. ``"shuffle"``::

        open -> settle -> left:  { consume* -> drain -> seal -> (exchange) -> merge }*
                       -> right: { the same }*  ->  finish(partition), or finish_blocks, for each one owned

    with `left` and `right` as the operators of the two sides. They have the same partitions and owners. Their ``keys``, `observe`,
    `weights` (the sum of both is taken) and `pending` are used as those of a `KeyedOperator`; ``survey``, ``partitioned_by``, `settle`,
    `settled`, `resettle`, `bind`, `open`, `finish` or `finish_blocks`, and `close` are those of the pair. `settle` is called once, after both
    sides were observed, or before the first round if there is no ``survey``.

    Attributes
    ----------
    name : str
    left, right : KeyedOperator
        There after `bind`; without `bind`, `fingerprint` and `finish` of their own.
    rule : str
        What decides between the two ways, and the order that results: for `explain`.
    """

    name: str
    left: Any
    right: Any

    @property
    def rule(self) -> str: ...

    def fingerprint(self) -> tuple[Any, ...]: ...

    def bind(self, left: Schema, right: Schema) -> Schema:
        """Check the columns of both sides and return those of the result."""

    def choose(self, nbytes_global: int, rows_global: int) -> tuple[str, str]:
        """``"broadcast"`` or ``"shuffle"``, and the reason in words, from the size of the right side over all ranks."""

    def probe(self, right: Batch) -> Step:
        """The step that joins left rows with `right`. Its `bind` gives the schema of the result.

        It may have ``tail(together) -> Batch``: called once, when all ranks have put all left rows through (`Collective`); each rank
        returns the rows that are to follow, the same on all ranks (right rows without a partner).
        """

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        """Take the first memory, for both sides."""

    def finish(self, partition: int) -> Batch:
        """Result of one partition; the state of both sides is released."""

    def close(self) -> None:
        """Give all memory back."""
