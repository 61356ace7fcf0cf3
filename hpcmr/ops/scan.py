"""A running value along the rows, in the order of the input: ``scan``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.python_values import ValueTrouble, values_like
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.compiled import KernelScan
from hpcmr.ops.functions import UserFunction, plain_function, raised
from hpcmr.ops.map import slow_notice
from hpcmr.ops.ordered import Ordered
from hpcmr.ops.running_sum import NOTHING, RunningSum, Total

OPS = ("sum", "min", "max")
Numbers = NDArray[Any]


def scan_of(column: str, op: str | Callable[..., Any], new: str) -> Ordered:
    """The step of ``scan(column, op, name=new)``."""
    if callable(op):
        return FunctionScan(column, op, new)
    if op not in OPS:
        raise JobSpecError(f"scan: there is no {op!r}; there are {', '.join(OPS)}, or a function f(a, b)")
    return SumScan(column, new) if op == "sum" else ExtremeScan(column, op, new)


class _Scan(Ordered):
    """What all scans have in common.

    Parameters
    ----------
    column : str
        Whose values are run along. A null stays null and is passed over.
    new : str
        Name of the column with the running values.
    """

    name = "scan"
    op = ""
    kinds = "biuf"

    def __init__(self, column: str, new: str) -> None:
        super().__init__(new)
        self.column = column

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.op, self.column, self.new)

    def new_type(self, schema: Schema) -> ColumnType:
        kind = schema[self.column].type
        if not kind.is_fixed or kind.shape or kind.np_dtype.kind not in self.kinds:
            raise JobSpecError(f"scan({self.column!r}, {self.op!r}) needs a column of numbers, and this one is {kind}")
        self.kind = kind
        return kind

    def values(self, batch: Batch) -> FixedColumn:
        column = batch[self.column]
        assert isinstance(column, FixedColumn)
        return column


class SumScan(_Scan):
    """Running sums. Of floats each one is the exact sum of all values so far, rounded once to float64; of integers one that does not fit in
    64 bits is an error. A `SurveyStep`."""

    op = "sum"

    def import_kernels(self) -> None:
        from hpcmr.kernels import scan  # noqa: F401

    def new_type(self, schema: Schema) -> ColumnType:
        letter = super().new_type(schema).np_dtype.kind
        self.float = letter == "f"
        return ColumnType.fixed("float64" if self.float else "uint64" if letter == "u" else "int64")

    def fresh(self) -> RunningSum | int:
        return RunningSum() if self.float else 0

    def summed(self, summary: Any, batch: Batch) -> Any:
        column = self.values(batch)
        if self.float:
            summary.add(column.values.astype(np.float64, copy=False), column.valid)
            return summary
        return summary + exact_total(column.values if column.valid is None else column.values[column.valid])

    def packed(self, summary: Any) -> Total | int:
        return summary.total() if self.float else summary

    def carried(self, summaries: list[Any]) -> list[Any]:
        if self.float:
            return list(accumulate(summaries, Total.plus, initial=NOTHING))[:-1]
        return list(accumulate(summaries, initial=0))[:-1]

    def kept(self, carry: Any) -> Any:
        return tuple(carry) if self.float else carry

    def taken_back(self, kept: Any) -> Any:
        return Total(*kept) if self.float else kept

    def begin(self, carry: Any) -> Any:
        if self.float:
            return RunningSum(carry or NOTHING)
        return carry or 0

    def advance(self, state: Any, batch: Batch) -> tuple[FixedColumn, Any]:
        column = self.values(batch)
        if self.float:
            return FixedColumn(state.prefixes(column.values.astype(np.float64, copy=False), column.valid), column.valid), state
        dtype = self.out.np_dtype
        values = column.values.astype(dtype)
        if column.valid is not None:
            values[~column.valid] = 0
        found = np.cumsum(values, dtype=dtype)
        with np.errstate(over="ignore"):
            found += dtype.type(state)
        before = np.concatenate([np.array([state], dtype), found[:-1]])
        bad = found < before if dtype.kind == "u" else ((before ^ found) & (values ^ found)) < 0
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"scan({self.column!r}, 'sum'): the running sum is {int(before[row]) + int(values[row])}, "
                            f"which does not fit in {self.out}; scan a float64 column", record=self.row + row)
        return FixedColumn(found, column.valid), int(found[-1])


def exact_total(values: Numbers) -> int:
    """Sum of integers or bools as a Python integer."""
    if values.dtype.itemsize < 8:
        return int(values.sum(dtype=np.int64))
    low = values & values.dtype.type(0xFFFFFFFF)
    return (int((values >> values.dtype.type(32)).sum()) << 32) + int(low.sum())


class ExtremeScan(_Scan):
    """Running least or greatest values, of the column's type. NaN stays NaN from where it comes on; a zero is +0.0. A `SurveyStep`."""

    def __init__(self, column: str, op: str, new: str) -> None:
        super().__init__(column, new)
        self.op = op
        self.ufunc = np.minimum if op == "min" else np.maximum

    def fresh(self) -> None:
        return None

    def summed(self, summary: Any, batch: Batch) -> Any:
        column = self.values(batch)
        values = column.values if column.valid is None else column.values[column.valid]
        if not len(values):
            return summary
        found = self.ufunc.reduce(values)
        return found if summary is None else self.ufunc(summary, found)

    def carried(self, summaries: list[Any]) -> list[Any]:
        return list(accumulate([None, *summaries], lambda a, b: b if a is None else a if b is None else self.ufunc(a, b)))[:-1]

    def begin(self, carry: Any) -> Any:
        return carry

    def advance(self, state: Any, batch: Batch) -> tuple[FixedColumn, Any]:
        column = self.values(batch)
        values = column.values
        if column.valid is not None:
            values = np.where(column.valid, values, _neutral(values.dtype, self.op))
        found = self.ufunc.accumulate(values)
        if state is not None:
            found = self.ufunc(found, state)
        if found.dtype.kind == "f":
            found = found + found.dtype.type(0)
        seen = state is not None or column.valid is None or bool(column.valid.any())
        return FixedColumn(found, column.valid), found[-1] if seen else None


def _neutral(dtype: np.dtype[Any], op: str) -> Any:
    if dtype.kind == "f":
        return dtype.type(np.inf if op == "min" else -np.inf)
    if dtype.kind == "b":
        return op == "min"
    return np.iinfo(dtype).max if op == "min" else np.iinfo(dtype).min


class FunctionScan(_Scan):
    """Running values of a function ``f(a, b)`` of the user's, of the column's type. A `SurveyStep`.

    It must be associative: what came before a part is folded from the totals of the parts before it. Where it rounds, the result
    depends on the splits, and so on the data alone, but for arrays of which a split lies on two ranks.

    Parameters
    ----------
    column : str
    function : callable or UserFunction
        Plain or a kernel.
    new : str
    """

    repeatable = False

    def __init__(self, column: str, function: Callable[..., Any], new: str) -> None:
        super().__init__(column, new)
        self.function: UserFunction = plain_function(function)
        self.op = self.function.name
        if self.function.kind == "batch":
            raise JobSpecError(f"{self.function.label}: a scan takes f(a, b), a plain function or a kernel")
        self.kernel: KernelScan | None = None

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.function)

    def fingerprint(self) -> tuple[Any, ...]:
        return (*super().fingerprint(), self.function.fingerprint())

    def new_type(self, schema: Schema) -> ColumnType:
        self.kernel = None
        return super().new_type(schema)

    def compile(self) -> None:
        if self.function.kind == "kernel" and self.kernel is None:
            self.kernel = KernelScan(self.function, self.kind, self.column)

    def fresh(self) -> None:
        return None

    def summed(self, summary: Any, batch: Batch) -> Any:
        return self._run(summary, batch)[1]

    def carried(self, summaries: list[Any]) -> list[Any]:
        found: list[Any] = []
        total = None
        for summary in summaries:
            found.append(total)
            if summary is not None:
                total = summary if total is None else self._along(total, np.array([summary], self.kind.np_dtype))[-1]
        return found

    def begin(self, carry: Any) -> Any:
        return carry

    def advance(self, state: Any, batch: Batch) -> tuple[FixedColumn, Any]:
        return self._run(state, batch)

    def _run(self, state: Any, batch: Batch) -> tuple[FixedColumn, Any]:
        column = self.values(batch)
        if column.valid is None:
            found = self._along(state, column.values)
            return FixedColumn(found), found[-1]
        values = np.zeros_like(column.values)
        rows = np.flatnonzero(column.valid)
        if len(rows):
            values[rows] = self._along(state, column.values[rows])
            state = values[rows[-1]]
        return FixedColumn(values, column.valid), state

    def _along(self, state: Any, values: Numbers) -> Numbers:
        """The running values; state is the one before the first, None where there is none."""
        if self.function.kind == "kernel":
            self.compile()
            assert self.kernel is not None
            return self.kernel.along(state, values, self.row)
        before = [] if state is None else [state.item()]
        found: list[Any] = []
        try:
            found.extend(accumulate([*before, *values.tolist()], self.function.fn))
        except Exception as error:
            raised(self.function, error, self.row)
        try:
            column = values_like(found[len(before):], Schema((Field(self.column, self.kind),)))[self.column]
        except ValueTrouble as trouble:
            raise self.function.fail(f"{trouble.message} (a scan returns what it takes)", self.row + trouble.index) from None
        assert isinstance(column, FixedColumn)
        return column.values
