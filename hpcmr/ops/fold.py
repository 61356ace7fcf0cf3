"""Values folded two at a time by a function of the user's, ``f(a, b)``: of each group, in order.

The order is promised: ``f(f(f(v0, v1), v2), v3)``. A fold of floats is then the same on any number of ranks, although it is not
the exact sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.python_values import ValueTrouble, rows_of, values_like
from hpcmr.data.schema import Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.compiled import KernelFold, refuse
from hpcmr.ops.functions import UserFunction, plain_function, raised
from hpcmr.ops.keyed_rows import Index


class Fold:
    """A fold of the rows of `schema`.

    Parameters
    ----------
    function : callable or UserFunction
        Plain: ``f(a, b)`` of two values, or of named tuples where there are several columns; returns the same kind of thing.
        Kernel: ``f(a, b)`` of the numbers of one column; integers wrap at 64 bits, as compiled code does.
    """

    def __init__(self, function: Callable[..., Any] | UserFunction) -> None:
        self.function = plain_function(function)
        if self.function.kind == "batch":
            raise JobSpecError(f"{self.function.label}: a fold f(a, b) is a plain function or a kernel; "
                               "for columns at a time use group_by(...).agg(...)")
        self.kernel: KernelFold | None = None
        self.schema: Schema | None = None

    def fingerprint(self) -> tuple[Any, ...]:
        return self.function.fingerprint()

    def bind(self, schema: Schema) -> None:
        if self.function.kind == "kernel" and len(schema) != 1:
            refuse(self.function, f"a compiled fold takes one column of numbers, here are {', '.join(schema.names) or 'none'}")
        self.schema, self.kernel = schema, None

    def compile(self) -> None:
        if self.function.kind == "kernel" and self.kernel is None:
            assert self.schema is not None
            only = self.schema.fields[0]
            self.kernel = KernelFold(self.function, only.type, only.name)

    def run(self, rows: Batch, order: Index, starts: Index, record: int | None = None) -> Batch:
        """One row for each group ``order[starts[g]:starts[g + 1]]``; `record` is that of row 0, where rows are records of one split."""
        assert self.schema is not None
        if self.function.kind == "kernel":
            return self._compiled(rows, order, starts, record)
        sizes = np.diff(starts)
        several = np.flatnonzero(sizes > 1)
        firsts = rows.take(order[starts[:-1]])
        if not len(several):
            return firsts
        folded = self._plain(rows, order, starts, several, record)
        if len(several) == len(sizes):
            return folded
        # Groups of one row stay as they are; the others stand behind them until they are put in their places.
        place = np.arange(len(sizes))
        place[several] = len(sizes) + np.arange(len(several))
        return Batch.concat([firsts, folded]).take(place)

    def _plain(self, rows: Batch, order: Index, starts: Index, several: Index, record: int | None) -> Batch:
        assert self.schema is not None
        lengths = np.diff(starts)[several]
        ends = np.cumsum(lengths)
        picked = order[np.arange(int(ends[-1])) + np.repeat(starts[:-1][several] - (ends - lengths), lengths)]
        values = rows_of(rows.take(picked))
        results: list[Any] = []
        fn, at = self._stepped(values[0]), 0
        try:
            for a, b in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
                total = values[a]
                for at in range(a + 1, b):
                    total = fn(total, values[at])
                results.append(total)
        except Exception as error:
            raised(self.function, error, None if record is None else record + int(picked[at]))
        try:
            return values_like(results, self.schema)
        except ValueTrouble as trouble:
            raise self.function.fail(f"{trouble.message} (a fold returns what it takes)",
                                     None if record is None else record + int(picked[ends[trouble.index] - 1])) from None

    def _stepped(self, like: Any) -> Callable[[Any, Any], Any]:
        """The function; where a row is a named tuple, what it returns as a tuple or dict is one again when it is called next."""
        fn = self.function.fn
        kind: Any = type(like)
        if not hasattr(kind, "_fields"):
            return fn

        def step(a: Any, b: Any) -> Any:
            found = fn(a, b)
            if isinstance(found, dict) and found.keys() == set(kind._fields):
                return kind(**found)
            return kind._make(found) if type(found) is tuple and len(found) == len(kind._fields) else found
        return step

    def _compiled(self, rows: Batch, order: Index, starts: Index, record: int | None) -> Batch:
        self.compile()
        assert self.kernel is not None
        name = self.kernel.name
        column = rows[name]
        assert isinstance(column, FixedColumn)
        if column.valid is not None and not column.valid.all():
            bad = int(np.argmin(column.valid))
            raise self.function.fail(f"column {name!r} has nulls, which a kernel does not see; fill or filter them before",
                                     None if record is None else record + bad)
        return Batch({name: FixedColumn(self.kernel.run(column.values, order, starts, record))})
