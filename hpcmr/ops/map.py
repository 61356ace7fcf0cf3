"""One row per row: ``map``; and what every step that runs a function of the user's has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.compiled import KernelRunner, refuse
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import UserFunction, map_batch, map_plain, plain_function


class Map:
    """Each row becomes the row that the function makes of it.

    Parameters
    ----------
    function : callable or UserFunction
        Plain: gets a row, returns a value, a (key, value) tuple or a dict. Batch: gets columns, returns as many rows. A kernel
        with `emit` may emit zero or more records for a row, here as in `flat_map`.
    out : dict of str to type, optional
        Columns that it returns; without it they are found by running it on the first rows.

    Notes
    -----
    Lives through ``bind -> (infer -> fix) -> compile -> apply*``.
    """

    name = "map"

    def __init__(self, function: Callable[..., Any], out: Mapping[str, Any] | Schema | None = None) -> None:
        self.function: UserFunction = plain_function(function, out)
        self.schema_in: Schema | None = None
        self.schema: Schema | None = None
        self.runner: KernelRunner | None = None

    @property
    def notice(self) -> str | None:
        """What to say once in the log: that this is the slow speed."""
        return slow_notice(self.name, self.function)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, *self.function.fingerprint())

    def bind(self, schema: Schema) -> Schema | None:
        if self.function.kind == "kernel" and self.function.out is None:
            refuse(self.function, "it does not say what it makes; write @hpcmr.kernel(out={'k': 'int64', ...})")
        self.schema_in, self.schema, self.runner = schema, self.function.out, None
        return self.schema

    def compile(self) -> None:
        """Compile a kernel, or load it from the cache; nothing for the other speeds. Raises `KernelError`."""
        if self.function.kind == "kernel" and self.runner is None:
            assert self.schema_in is not None and self.schema is not None
            self.runner = KernelRunner(self.function, self.schema_in, self.schema)

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        if self.schema is not None:
            return self.schema
        found = self._run(sample, origin)
        return found.schema if found is not None and found.nrows else None

    def fix(self, schema: Schema) -> None:
        self.schema = schema

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        found = self._run(batch, origin)
        assert found is not None, "a step's schema is fixed before it is applied"
        return found

    def _run(self, batch: Batch, origin: Origin) -> Batch | None:
        if self.function.kind == "kernel":
            self.compile()
            assert self.runner is not None
            return self.runner.run(batch, origin)
        if self.function.kind == "batch":
            return map_batch(self.function, batch, origin, self.schema, same_rows=True)
        return map_plain(self.function, batch, origin, self.schema)


def slow_notice(step: str, function: UserFunction) -> str | None:
    if function.kind != "plain":
        return None
    return (f"{step} calls {function.label} in Python for every row, which is the slow speed; "
            "@hpcmr.batch or @hpcmr.kernel make it some hundred times faster")
