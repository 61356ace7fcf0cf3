"""An aggregate of the user's: a function of arrays, the values of a group's rows, that gives one number. Compiled, or plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Column, FixedColumn
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import HpcmrError, JobSpecError
from hpcmr.ops.functions import UserFunction, plain_function, raised

Index = NDArray[np.int64]


class GroupFunction:
    """``f(x, w)`` of the arrays of some columns, called once for each group.

    Parameters
    ----------
    function : callable or UserFunction
        `@kernel` functions are compiled; others are called with NumPy arrays (lists of text or bytes).
    columns : tuple of str
    out : ColumnType
        A number or bool.
    """

    def __init__(self, function: Callable[..., Any] | UserFunction, columns: tuple[str, ...], out: ColumnType) -> None:
        self.function = plain_function(function)
        self.columns, self.out = columns, out
        if not out.is_fixed or out.shape or out.np_dtype.kind not in "biufc":
            raise JobSpecError(f"apply({self.function.label}, out='{out}'): the result of a function of a group is a number or bool")
        self.schema: Schema | None = None
        self.driver: Any = None

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.columns, str(self.out), *self.function.fingerprint())

    def bind(self, schema: Schema) -> None:
        self.schema, self.driver = schema.select(self.columns), None
        if self.function.kind == "kernel":
            from hpcmr.ops.compiled import refuse

            for f in self.schema:
                if not f.type.is_fixed or f.type.np_dtype.kind not in "biufc" or f.type.dtype == "float16":
                    refuse(self.function, f"a compiled function of a group takes numbers, column {f.name!r} is {f.type}")

    def compile(self) -> None:
        """Compile a kernel, or load it from the cache. Raises `KernelError`."""
        if self.function.kind != "kernel" or self.driver is not None:
            return
        from hpcmr.kernels.emit import build_group
        from hpcmr.kernels.rewrite import Column as KernelColumn
        from hpcmr.kernels.rewrite import KernelTrouble
        from hpcmr.ops.compiled import refuse

        assert self.schema is not None
        try:
            self.driver = build_group(self.function.fn, tuple(KernelColumn(f.name, f.type.dtype, f.type.shape) for f in self.schema), self.out.dtype)
        except KernelTrouble as trouble:
            refuse(self.function, trouble.message, trouble.line)

    def run(self, columns: Sequence[Column], starts: Index) -> FixedColumn:
        """The function of rows ``starts[g]`` to ``starts[g + 1]``, for each group; null for one without rows."""
        out = np.zeros(len(starts) - 1, self.out.np_dtype)
        if self.function.kind == "kernel":
            self._compiled(columns, starts, out)
        else:
            self._plain(columns, starts, out)
        found = starts[1:] > starts[:-1]
        return FixedColumn(out, None if found.all() else found)

    def _compiled(self, columns: Sequence[Column], starts: Index, out: NDArray[Any]) -> None:
        from hpcmr.kernels.rewrite import FLAG

        self.compile()
        state = np.zeros(4, np.int64)
        values = [np.require(c.values, c.values.dtype, ["C", "A"]) for c in columns]  # type: ignore[union-attr]
        try:
            self.driver.run(np.ascontiguousarray(starts), *values, out, state)
        except Exception as error:
            raised(self.function, error, None)
        if state[FLAG]:
            raise self.function.fail(f"gave an integer that does not fit in {self.out}")

    def _plain(self, columns: Sequence[Column], starts: Index, out: NDArray[Any]) -> None:
        values = [_readonly(c.values) if isinstance(c, FixedColumn) else c.to_list() for c in columns]
        bounds = starts.tolist()
        try:
            for g, (a, b) in enumerate(pairwise(bounds)):
                if a < b:
                    out[g] = self.function.fn(*(v[a:b] for v in values))
        except HpcmrError:
            raise
        except Exception as error:
            raised(self.function, error, None)


def _readonly(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view
