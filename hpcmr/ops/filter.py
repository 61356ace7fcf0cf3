"""Rows for which a predicate holds: ``filter``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.ops.compiled import KernelRunner
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import UserFunction, mask_batch, mask_plain, plain_function
from hpcmr.ops.map import slow_notice

KEEP = Schema.of({"keep": ColumnType.fixed("bool")})


class Filter:
    """The rows for which the predicate is true, in order; columns and attributes stay.

    Parameters
    ----------
    predicate : callable or UserFunction
        Plain: gets a row, returns a bool. Batch: gets columns, returns a bool array ``(n,)``. Kernel: ``f(row)`` returns a bool.
    """

    name = "filter"

    def __init__(self, predicate: Callable[..., Any]) -> None:
        self.function: UserFunction = plain_function(predicate)
        self.schema_in: Schema | None = None
        self.runner: KernelRunner | None = None

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.function)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, *self.function.fingerprint())

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return names

    def bind(self, schema: Schema) -> Schema:
        self.schema_in, self.runner = schema, None
        return schema

    def compile(self) -> None:
        if self.function.kind == "kernel" and self.runner is None:
            assert self.schema_in is not None
            self.runner = KernelRunner(self.function, self.schema_in, KEEP)

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        return self.schema_in if self.schema_in is not None else sample.schema

    def fix(self, schema: Schema) -> None:
        self.schema_in = schema

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        mask = self._mask(batch, origin)
        return batch if mask.all() else batch.take(np.flatnonzero(mask))

    def _mask(self, batch: Batch, origin: Origin) -> NDArray[np.bool_]:
        if self.function.kind == "batch":
            return mask_batch(self.function, batch, origin)
        if self.function.kind == "plain":
            return mask_plain(self.function, batch, origin)
        self.compile()
        assert self.runner is not None
        found = self.runner.run(batch, origin)
        if found.nrows != batch.nrows:
            raise self.function.fail(f"emitted {found.nrows:,} times for {batch.nrows:,} rows; a predicate kernel is f(row) and returns a bool",
                                     origin.row)
        keep = found["keep"]
        assert isinstance(keep, FixedColumn)
        return keep.values
