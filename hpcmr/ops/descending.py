"""Keys from the last to the first: any keyed operator with the rows of each partition turned round."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import KeyedOperator, Origin, StageContext


class Descending:
    """`operator`, whose partitions come in descending order of the key. All else is the operator's own.

    Parameters
    ----------
    operator : KeyedOperator
    """

    def __init__(self, operator: KeyedOperator) -> None:
        self.operator = operator
        self.name = operator.name

    def __copy__(self) -> Descending:
        return Descending(copy.copy(self.operator))

    def __getattr__(self, name: str) -> Any:
        """What is not part of the contract, such as notices and compiling, is asked of the operator."""
        if name.startswith("__") or name == "operator":
            raise AttributeError(name)
        return getattr(self.operator, name)

    def fingerprint(self) -> tuple[Any, ...]:
        return ("descending", self.operator.name, self.operator.fingerprint())

    def bind(self, schema: Schema) -> Schema:
        return self.operator.bind(schema)

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.operator.open(ctx, estimate)

    def consume(self, batch: Batch, origin: Origin) -> None:
        self.operator.consume(batch, origin)

    def pressure(self) -> float:
        return self.operator.pressure()

    def drain(self) -> None:
        self.operator.drain()

    def seal(self) -> Partitioned:
        return self.operator.seal()

    def merge(self, part: Partitioned) -> None:
        self.operator.merge(part)

    def finish(self, partition: int) -> Batch:
        found = self.operator.finish(partition)
        return found.take(np.arange(found.nrows - 1, -1, -1, dtype=np.int64))

    def close(self) -> None:
        self.operator.close()
