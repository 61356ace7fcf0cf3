"""What every operation must be able to do; `run` drives nothing but these.

Three roles. A *step* turns a batch into a batch and keeps no state that crosses splits (map, filter, select). A *keyed
operator* takes batches in, holds state per partition and gives each partition back in key order (aggregate, group). An
*outlet* takes the finished pieces (write, collect, reduce).

A keyed operator lives through::

    open -> { consume* -> drain -> seal -> (exchange) -> merge }* -> finish(partition) for each one owned

`seal` takes all state out of the operator as one `Partitioned`; `merge` puts such state in, wherever and whenever it was
sealed. Seals and merges after every split, or only one at the end, give the same bits: exchange, spill and checkpoint are
all made of these two.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema


class Origin(NamedTuple):
    """Where the first row of a batch stands: split (global number of the piece of input) and row within what the split yields."""

    split: int
    row: int


class StageContext(Protocol):
    """What an operation may ask of the engine. Implemented by `hpcmr.run.stage`."""

    partitions: int          # number of partitions, a power of two
    seed: int

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
    """A narrow operation: batch in, batch out."""

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


@runtime_checkable
class KeyedOperator(Protocol):
    """A wide operation: state per partition."""

    name: str

    def fingerprint(self) -> tuple[Any, ...]: ...

    def bind(self, schema: Schema) -> Schema:
        """Check against the input schema and return the output schema."""

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
