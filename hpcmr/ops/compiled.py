"""The compiled speed: kernels of the user's run over the rows of batches.

Arrays for what is emitted are kept between batches and grow to what the largest batch needed; what is given on is a view of
them that is good until the next batch, as everything that flows through a stage.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.keys import as_strings
from hpcmr.data.python_values import ValueTrouble, cast_batch
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import FunctionError, Refused
from hpcmr.kernels.rewrite import FLAG, NO_FIT_SHAPE, ROW, KernelTrouble
from hpcmr.kernels.rewrite import Column as KernelColumn
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import UserFunction, raised

SMALLEST = 1024


class KernelError(FunctionError, Refused):
    """A function that cannot be compiled; found before any work."""


def refuse(function: UserFunction, message: str, line: int | None = None) -> NoReturn:
    file = function.where.rpartition(":")[0]
    at = f"{file}:{line}" if line is not None else function.where
    shown = _source_line(function, line)
    raise KernelError(f"{function.name} ({at}) cannot be compiled: {message}"
                      + (f"\n    line {line}: {shown}\n" if shown else "; ")
                      + "drop the decorator to run it as plain Python, slower and with every type, or use @hpcmr.batch")


def _source_line(function: UserFunction, line: int | None) -> str:
    import linecache

    code = getattr(function.fn, "__code__", None)
    return linecache.getline(code.co_filename, line).strip() if code is not None and line is not None else ""


def readable(schema: Schema) -> tuple[Any, ...]:
    """Columns of a schema as a kernel sees them; lists cannot be read."""
    return tuple(KernelColumn(f.name, "bytes" if _is_bytes(f.type) else _kernel_dtype(f.type), f.type.shape)
                 for f in schema if f.type.kind != "list" and not (_is_bytes(f.type) and f.type.shape))


def _is_bytes(kind: ColumnType) -> bool:
    return kind.is_string or (kind.is_fixed and kind.np_dtype.kind == "S")


def _kernel_dtype(kind: ColumnType) -> str:
    return "float32" if kind.dtype == "float16" else kind.dtype      # Numba has no 16-bit floats on a processor


def _writable(function: UserFunction, schema: Schema) -> tuple[Any, ...]:
    for f in schema:
        if f.type.kind == "list" or (_is_bytes(f.type) and f.type.shape):
            refuse(function, f"a kernel cannot emit column {f.name!r} of type {f.type}")
    return readable(schema)


class KernelRunner:
    """A kernel compiled for the columns of `schema`.

    Parameters
    ----------
    function : UserFunction
    schema : Schema
        Columns going in.
    out : Schema
        Columns going out.
    """

    def __init__(self, function: UserFunction, schema: Schema, out: Schema) -> None:
        from hpcmr.kernels import emit

        self.function = function
        self.out = out
        # What the arrays hold; the cast to what was declared follows (fixed strings, 16-bit floats).
        self.held = Schema(tuple(Field(f.name, ColumnType("bytes") if _is_bytes(f.type) and f.type.is_fixed else f.type) for f in out))
        try:
            self.driver = emit.build(function.fn, readable(schema), _writable(function, out))
        except KernelTrouble as trouble:
            refuse(function, trouble.message, trouble.line)
        self.capacity = [SMALLEST] + [SMALLEST * 8 for c in self.driver.outputs if c.is_bytes]
        self.arrays: list[NDArray[Any]] = []
        self.state = np.zeros(2 + len(self.capacity), np.int64)
        self.need = np.zeros(len(self.capacity), np.int64)
        self._allocate([])

    def run(self, batch: Batch, origin: Origin) -> Batch:
        """What the kernel emits for the batch's rows: columns of `out`, valid until the next call."""
        inputs = self._inputs(batch, origin)
        self.state[:] = 0
        at = 0
        try:
            while (at := self.driver.run(at, batch.nrows, *inputs, *self.arrays, self.state, self.need)) < batch.nrows:
                if self.state[FLAG]:
                    self._does_not_fit(int(self.state[FLAG]), origin.row + at)
                self._grow()
        except Exception as error:
            raised(self.function, error, origin.row + int(self.state[ROW]))
        return self._emitted(origin)

    def _inputs(self, batch: Batch, origin: Origin) -> list[NDArray[Any]]:
        out: list[NDArray[Any]] = []
        for c in self.driver.inputs:
            column = batch[c.name]
            if column.valid is not None and not column.valid.all():
                raise self.function.fail(f"column {c.name!r} has nulls, which a kernel does not see; fill or filter them before",
                                         origin.row + int(np.argmin(column.valid)))
            if c.is_bytes:
                strings = as_strings(column)
                out += [np.ascontiguousarray(strings.starts), np.ascontiguousarray(strings.ends), np.ascontiguousarray(strings.data)]
            else:
                assert isinstance(column, FixedColumn)
                out.append(np.require(column.values, c.dtype, ["C", "A"]))
        return out

    def _allocate(self, old: list[NDArray[Any]]) -> None:
        """Arrays of `capacity`, with what is in the old ones kept."""
        sizes, slot = [], 0
        kinds: list[tuple[Any, tuple[int, ...]]] = []
        for c in self.driver.outputs:
            if c.is_bytes:
                slot += 1
                kinds += [(np.int64, ()), (np.uint8, ())]
                sizes += [self.capacity[0], self.capacity[slot]]
            else:
                kinds.append((c.dtype, c.shape))
                sizes.append(self.capacity[0])
        self.arrays = [np.empty((n, *shape), dtype) for n, (dtype, shape) in zip(sizes, kinds, strict=True)]
        for a, b in zip(old, self.arrays, strict=False):
            b[:len(a)] = a

    def _grow(self) -> None:
        self.capacity = [max(have, 2 * int(n)) if n > have else have for have, n in zip(self.capacity, self.need, strict=True)]
        self._allocate(self.arrays)

    def _emitted(self, origin: Origin) -> Batch:
        n, at = int(self.state[2]), 0
        columns: dict[str, Column] = {}
        for f, c in zip(self.held, self.driver.outputs, strict=True):
            if c.is_bytes:
                ends, data = self.arrays[at][:n], self.arrays[at + 1]
                starts = np.concatenate([np.zeros(min(n, 1), np.int64), ends[:-1]])
                columns[f.name] = BytesColumn(starts, ends, data, f.type.kind == "text")
                at += 2
            else:
                columns[f.name] = FixedColumn(self.arrays[at][:n])
                at += 1
        try:
            return cast_batch(Batch(columns, n), self.out, True)
        except ValueTrouble as trouble:
            raise self.function.fail(trouble.message, origin.row) from None

    def _does_not_fit(self, flag: int, record: int) -> NoReturn:
        f = self.out.fields[flag // 16]
        if flag % 16 == NO_FIT_SHAPE:
            raise self.function.fail(f"emitted an array of another shape for column {f.name!r}, which is {f.type}", record)
        raise self.function.fail(f"emitted an integer for column {f.name!r} that does not fit in {f.type}", record)


class KernelFold:
    """A compiled ``f(a, b)`` that folds the scalars of one column."""

    running = False

    def __init__(self, function: UserFunction, kind: ColumnType, name: str) -> None:
        from hpcmr.kernels import emit

        if not kind.is_fixed or kind.shape or kind.np_dtype.kind not in "biufc":
            refuse(function, f"a compiled fold takes one column of numbers, column {name!r} is {kind}")
        self.function = function
        self.kind = kind
        self.name = name
        self.dtype = _kernel_dtype(kind)
        try:
            self.driver = emit.build_fold(function.fn, self.dtype, self.running)
        except KernelTrouble as trouble:
            refuse(function, trouble.message, trouble.line)

    def _called(self, order: NDArray[np.int64], starts: NDArray[np.int64], values: NDArray[Any], out: NDArray[Any], slot: NDArray[Any],
                record: int | None) -> NDArray[Any]:
        state = np.zeros(4, np.int64)
        try:
            self.driver.run(order, starts, np.require(values, self.dtype, ["C", "A"]), out, slot, state)
        except Exception as error:
            raised(self.function, error, None if record is None else record + int(state[ROW]))
        if state[FLAG]:
            raise self.function.fail(f"gave an integer that does not fit in {self.kind}, the type of column {self.name!r}",
                                     None if record is None else record + int(state[ROW]))
        return out.astype(self.kind.np_dtype, copy=False)

    def run(self, values: NDArray[Any], order: NDArray[np.int64], starts: NDArray[np.int64], record: int | None) -> NDArray[Any]:
        """``f(...f(f(v0, v1), v2)...)`` of each group: rows ``order[starts[g]:starts[g + 1]]`` in that order."""
        return self._called(order, starts, values, np.empty(len(starts) - 1, self.dtype), np.empty(1, self.dtype), record)


class KernelScan(KernelFold):
    """A compiled ``f(a, b)`` along the scalars of one column."""

    running = True

    def along(self, before: Any, values: NDArray[Any], record: int | None) -> NDArray[Any]:
        """The value after each row; `before` is the one before the first, None where there is none."""
        slot = np.zeros(1, self.dtype)
        if before is not None:
            slot[0] = before
        starts = np.zeros(0 if before is None else 1, np.int64)
        return self._called(np.zeros(0, np.int64), starts, values, np.empty(len(values), self.dtype), slot, record)
