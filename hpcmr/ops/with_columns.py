"""Columns added or replaced: ``with_columns``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, column_of_list
from hpcmr.data.python_values import ValueTrouble, cast, describe, encode_values, rows_of
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.compiled import KernelRunner, refuse
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import UserFunction, call_rows, plain_function, returned_column, run_batch
from hpcmr.ops.map import slow_notice


class WithColumns:
    """The columns of the row and, in place of or behind them, new ones.

    Parameters
    ----------
    columns : mapping of str to callable, UserFunction or constant
        Plain: gets a row, returns the value. Batch: gets columns, returns one array of as many rows. Kernel: ``f(row)`` with one
        column in `out`. Anything that cannot be called is a constant. All of them see the columns that come in.
    """

    name = "with_columns"

    def __init__(self, columns: Mapping[str, Callable[..., Any] | Any]) -> None:
        if not columns:
            raise JobSpecError("with_columns needs at least one column")
        self.functions: dict[str, UserFunction] = {}
        self.constants: dict[str, Column] = {}
        self.given = dict(columns)
        for name, value in columns.items():
            if callable(value):
                self.functions[name] = plain_function(value)
            else:
                self.constants[name] = _constant(name, value)
        self.types: dict[str, ColumnType] = {}
        self.schema_in: Schema | None = None
        self.runners: dict[str, KernelRunner] = {}

    @property
    def notice(self) -> str | None:
        found = (slow_notice(self.name, f) for f in self.functions.values())
        return next((n for n in found if n is not None), None)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, tuple((n, self.functions[n].fingerprint() if n in self.functions else (type(v).__name__, repr(v)))
                                 for n, v in self.given.items()))

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return None if set(names) & (set(self.functions) | set(self.constants)) else names

    def bind(self, schema: Schema) -> Schema | None:
        self.schema_in, self.runners = schema, {}
        self.types = {n: c.type for n, c in self.constants.items()}
        for name, function in self.functions.items():
            if function.out is not None:
                if len(function.out) != 1:
                    raise JobSpecError(f"with_columns: {function.label} makes column {name!r} and declares {len(function.out)} columns in out=; "
                                       "declare one")
                self.types[name] = function.out.fields[0].type
            elif function.kind == "kernel":
                refuse(function, f"it does not say what it makes; write @hpcmr.kernel(out={{{name!r}: 'float64'}})")
        return self._schema() if len(self.types) == len(self.given) else None

    def _schema(self) -> Schema:
        assert self.schema_in is not None
        out = self.schema_in
        for name in self.given:
            out = out.with_field(Field(name, self.types[name]))
        return out

    def compile(self) -> None:
        for name, function in self.functions.items():
            if function.kind == "kernel" and name not in self.runners:
                assert self.schema_in is not None and function.out is not None
                self.runners[name] = KernelRunner(function, self.schema_in, function.out)

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        found = self.apply(sample, origin)
        self.types = {n: found[n].type for n in self.given}
        return self._schema()

    def fix(self, schema: Schema) -> None:
        self.types = {n: schema[n].type for n in self.given}

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        columns = dict(batch.columns)
        for name in self.given:
            columns[name] = self._column(name, batch, origin)
        return Batch(columns, batch.nrows)

    def _column(self, name: str, batch: Batch, origin: Origin) -> Column:
        if name in self.constants:
            return _repeated(self.constants[name], batch.nrows)
        function, target = self.functions[name], self.types.get(name)
        if function.kind == "kernel":
            return self._from_kernel(name, function, batch, origin)
        try:
            if function.kind == "plain":
                values = call_rows(function, rows_of(batch), origin.row)
                column = encode_values(values, target if function.out is not None else None, name)
            else:
                column = returned_column(function, name, run_batch(function, batch, origin), origin)
                if len(column) != batch.nrows:
                    raise function.fail(f"returned {len(column):,} rows for column {name!r}, expected {batch.nrows:,}", origin.row)
            return column if target is None else cast(column, target, name, function.out is not None)
        except ValueTrouble as trouble:
            raise function.fail(trouble.message, origin.row + trouble.index) from None

    def _from_kernel(self, name: str, function: UserFunction, batch: Batch, origin: Origin) -> Column:
        self.compile()
        found = self.runners[name].run(batch, origin)
        if found.nrows != batch.nrows:
            raise function.fail(f"emitted {found.nrows:,} values for {batch.nrows:,} rows; a kernel of with_columns is f(row) and returns one",
                                origin.row)
        return next(iter(found.columns.values()))


def _constant(name: str, value: Any) -> Column:
    try:
        if isinstance(value, np.ndarray | list | tuple | dict) or value is None:
            raise DataError("a constant is one number, bool, date, str or bytes")
        if isinstance(value, np.generic) and not isinstance(value, np.str_ | np.bytes_):
            return FixedColumn(np.array([value]))
        return column_of_list([value])
    except DataError as error:
        raise JobSpecError(f"with_columns: column {name!r} got {describe(value)}: {error}; for an array per row give a function") from None


def _repeated(one: Column, n: int) -> Column:
    """A column of one row n times; strings are views of the same bytes."""
    if isinstance(one, FixedColumn):
        return FixedColumn(np.repeat(one.values, n, axis=0))
    assert isinstance(one, BytesColumn)
    return one.take(np.zeros(n, np.int64))
