"""Functions of the user's, in three speeds, and the errors that they cause.

- *kernel*: per row, compiled; ``f(row, emit)`` emits zero or more records, ``f(row)`` returns one (`hpcmr.ops.compiled`).
- *batch*: ``f(cols) -> dict of arrays``; NumPy arrays in and out.
- *plain*: any Python callable, called with one row at a time; slow and convenient.

This module knows how to call them and how to say what went wrong: name, line, record, and the user's own traceback.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn, column_of
from hpcmr.data.python_values import ValueTrouble, cast_batch, columns_of_rows, describe, rows_of
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import DataError, FunctionError, HpcmrError, JobSpecError
from hpcmr.ops.contract import Origin

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's and how it wants to be called.

    Parameters
    ----------
    kind : {"kernel", "batch", "plain"}
    fn : callable
    out : Schema, optional
        Declared columns of what it returns; None: found by running it on a sample.
    name : str
    where : str
        ``file:line`` of its definition.
    """

    kind: str
    fn: Callable[..., Any]
    out: Schema | None = None
    name: str = ""
    where: str = ""
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself: a decorated one stays usable and testable."""
        return self.fn(*args, **kwargs)

    @property
    def label(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name

    def fingerprint(self) -> tuple[Any, ...]:
        """What decides its result: the speed, the function (its code and captured values are digested by the plan), the types."""
        return (self.kind, self.fn, str(self.out.to_json()) if self.out is not None else None)

    def fail(self, message: str, record: int | None = None, trace: str | None = None) -> FunctionError:
        """The error to raise: what happened in this function and at which record of the split."""
        at = "" if record is None else f", at record {record:,} of the split"
        return FunctionError(f"{self.label}: {message}{at}", record=record, trace=trace or "")      # without: our own frames say nothing


def plain_function(fn: Callable[..., Any], out: Mapping[str, Any] | Schema | None = None) -> UserFunction:
    """A plain Python function, called once per row; a `UserFunction` is returned as it is (with `out` if that is given)."""
    if isinstance(fn, UserFunction):
        return fn if out is None else UserFunction(fn.kind, fn.fn, schema_of(out), fn.name, fn.where)
    return _make("plain", fn, out)


def batch_function(fn: Callable[..., Any], out: Mapping[str, Any] | Schema | None = None) -> UserFunction:
    """A function of columns: ``f(cols)`` gets a mapping of arrays and returns one."""
    return _make("batch", fn, out)


def kernel_function(fn: Callable[..., Any], out: Mapping[str, Any] | Schema | None = None) -> UserFunction:
    """A function to be compiled: ``f(row, emit)``, ``f(row)`` or, for a fold, ``f(a, b)``."""
    return _make("kernel", fn, out)


def _make(kind: str, fn: Callable[..., Any], out: Mapping[str, Any] | Schema | None) -> UserFunction:
    if not callable(fn):
        raise JobSpecError(f"expected a function, got {describe(fn)}")
    inner = getattr(fn, "py_func", fn)         # what numba.njit made is taken apart: it is compiled with our driver around it
    code = getattr(inspect.unwrap(inner), "__code__", None)
    where = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code is not None else ""
    name = getattr(fn, "__qualname__", type(fn).__name__).replace("<locals>.", "")
    return UserFunction(kind, inner if kind == "kernel" else fn, None if out is None else schema_of(out), name, where)


def schema_of(out: Mapping[str, Any] | Schema) -> Schema:
    """A schema from ``{"k": "int64", "pos": "float64[3]", "name": "text"}``; NumPy types are taken as well."""
    if isinstance(out, Schema):
        return out
    if not isinstance(out, Mapping) or not out:
        raise JobSpecError(f"out= is a dict of column names and types, for example {{'k': 'int64'}}; got {describe(out)}")
    return Schema.of({str(n): _type_of(t) for n, t in out.items()})


def _type_of(kind: Any) -> ColumnType:
    if isinstance(kind, ColumnType):
        return kind
    if kind in (str, bytes):
        return ColumnType("text" if kind is str else "bytes")
    if isinstance(kind, str):
        return ColumnType.parse({"int": "int64", "float": "float64", "str": "text"}.get(kind, kind))
    try:
        return ColumnType.fixed(kind)
    except (TypeError, DataError):
        raise JobSpecError(f"unknown column type {kind!r}; for example 'int64', 'float64[3]', 'S10', 'text', 'bytes', 'list<text>'") from None


# ---- calling and failing ---------------------------------------------------------------------------------------------------


def user_trace() -> str:
    """The traceback of the exception at hand without the frames of this package at its top."""
    text = traceback.TracebackException(*sys.exc_info())  # type: ignore[arg-type]
    frames = list(text.stack)
    first = next((i for i, f in enumerate(frames) if not f.filename.startswith(OURS)), len(frames) - 1)
    text.stack = traceback.StackSummary.from_list(frames[first:])
    return "".join(text.format()).rstrip("\n")


def raised(function: UserFunction, error: Exception, record: int | None) -> NoReturn:
    """Turn what the user's code raised into a `FunctionError`. To be called while `error` is handled."""
    if isinstance(error, HpcmrError):
        raise error
    text = str(error)
    raise function.fail(f"{type(error).__name__}{': ' + text if text else ''}", record, user_trace()) from error


def call_rows(function: UserFunction, rows: Iterable[Any], first_record: int) -> list[Any]:
    """Results of the function for each row, in order; records count from `first_record`."""
    fn = function.fn
    results: list[Any] = []
    append = results.append
    try:
        for row in rows:
            append(fn(row))
    except Exception as error:
        raised(function, error, first_record + len(results))
    return results


def encoded(function: UserFunction, rows: list[Any], schema: Schema | None, records: Callable[[int], int]) -> Batch:
    """Typed columns of returned rows; `records` gives the record of the i-th of them."""
    try:
        batch = columns_of_rows(rows, function.out)
        return batch if schema is None else cast_batch(batch, schema, function.out is not None)
    except ValueTrouble as trouble:
        raise function.fail(trouble.message, records(trouble.index)) from None


# ---- plain -----------------------------------------------------------------------------------------------------------------


def map_plain(function: UserFunction, batch: Batch, origin: Origin, schema: Schema | None) -> Batch:
    """One row per row."""
    results = call_rows(function, rows_of(batch), origin.row)
    return encoded(function, results, schema, lambda i: origin.row + i)


def flat_map_plain(function: UserFunction, batch: Batch, origin: Origin, schema: Schema | None) -> Batch | None:
    """Rows of each row's iterable, in order; None if there is none and the schema is not known."""
    fn = function.fn
    results: list[Any] = []
    ends: list[int] = []
    try:
        for row in rows_of(batch):
            found = fn(row)
            if isinstance(found, str | bytes | dict) or not isinstance(found, Iterable):
                raise function.fail(f"returned {describe(found)}; a flat_map function returns or yields rows: an iterable such as a list",
                                    origin.row + len(ends))
            results.extend(found)
            ends.append(len(results))
    except Exception as error:
        raised(function, error, origin.row + len(ends))
    if not results:
        return None if schema is None else Batch.empty(schema)
    return encoded(function, results, schema, lambda i: origin.row + int(np.searchsorted(ends, i, side="right")))


def mask_plain(function: UserFunction, batch: Batch, origin: Origin) -> NDArray[np.bool_]:
    """Truth of the predicate for each row."""
    results = call_rows(function, rows_of(batch), origin.row)
    for i, keep in enumerate(results):
        if not isinstance(keep, bool | np.bool_ | int):
            raise function.fail(f"a predicate returns True or False, this one returned {describe(keep)}", origin.row + i)
    return np.array(results, np.bool_)


# ---- batch -----------------------------------------------------------------------------------------------------------------


class Columns(Mapping[str, Any]):
    """What a batch function gets: columns by name, as ``cols["x"]`` or ``cols.x``.

    Columns of fixed width are read-only arrays ``(n, *shape)`` (masked arrays where there are nulls); strings are a
    `BytesColumn` (`to_list`, `len`, or `starts`, `ends`, `data`), lists a `ListColumn`.
    """

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __getitem__(self, name: str) -> Any:
        if name not in self._batch.columns:
            self._batch.schema[name]            # raises, with the nearest name
        return array_of(self._batch[name])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.columns)

    def __len__(self) -> int:
        return len(self._batch.columns)

    @property
    def nrows(self) -> int:
        """Number of rows of this batch; ``len(cols)`` is the number of columns, as of any mapping."""
        return self._batch.nrows


def array_of(column: Column) -> Any:
    """A column as a batch function sees it. Read-only: the buffer may be the user's own array, or be used again."""
    if not isinstance(column, FixedColumn):
        return column
    values = column.values.view()
    values.flags.writeable = False
    return values if column.valid is None else np.ma.MaskedArray(values, ~_spread(column.valid, values))


def _spread(valid: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.broadcast_to(valid.reshape(-1, *(1,) * (values.ndim - 1)), values.shape)


def run_batch(function: UserFunction, batch: Batch, origin: Origin) -> Any:
    try:
        return function.fn(Columns(batch))
    except Exception as error:
        raised(function, error, origin.row)


def map_batch(function: UserFunction, batch: Batch, origin: Origin, schema: Schema | None, same_rows: bool) -> Batch:
    """Columns that a batch function returned; with `same_rows` they must have a row for each row of the batch."""
    columns = _returned_columns(function, run_batch(function, batch, origin), origin)
    lengths = {n: len(c) for n, c in columns.items()}
    if same_rows and set(lengths.values()) != {batch.nrows}:
        raise function.fail(f"returned {_lengths(lengths)} for a batch of {batch.nrows:,} rows; map returns one row per row, "
                            "flat_map and filter may change their number", origin.row)
    if len(set(lengths.values())) > 1:
        raise function.fail(f"returned columns of unequal length: {_lengths(lengths)}", origin.row)
    try:
        out = Batch(columns)
        target = schema if schema is not None else function.out
        return out if target is None else cast_batch(out, target, function.out is not None)
    except ValueTrouble as trouble:
        raise function.fail(trouble.message, origin.row + trouble.index if same_rows else origin.row) from None


def _lengths(lengths: dict[str, int]) -> str:
    return ", ".join(f"{n:,} rows in column {name!r}" for name, n in lengths.items())


def _returned_columns(function: UserFunction, found: Any, origin: Origin) -> dict[str, Column]:
    if isinstance(found, tuple) and len(found) == 2 and not hasattr(found, "_fields"):
        found = {"key": found[0], "value": found[1]}
    elif isinstance(found, np.ndarray | BytesColumn | ListColumn | FixedColumn):
        found = {"value": found}
    if isinstance(found, Columns):
        found = dict(found._batch.columns)
    if not isinstance(found, Mapping) or not found:
        raise function.fail(f"returned {describe(found)}; a batch function returns a dict of arrays, or one array", origin.row)
    return {str(n): returned_column(function, str(n), values, origin) for n, values in found.items()}


def returned_column(function: UserFunction, name: str, values: Any, origin: Origin) -> Column:
    if not isinstance(values, np.ndarray | list | BytesColumn | ListColumn | FixedColumn) or getattr(values, "ndim", 1) == 0:
        raise function.fail(f"returned {describe(values)} for column {name!r}; expected an array with one row per record "
                            "(for one value in all rows: np.full(cols.nrows, value))", origin.row)
    try:
        return column_of(values)
    except (DataError, TypeError, ValueError) as error:
        raise function.fail(f"column {name!r}: {error}", origin.row) from None


def mask_batch(function: UserFunction, batch: Batch, origin: Origin) -> NDArray[np.bool_]:
    found = run_batch(function, batch, origin)
    if not isinstance(found, np.ndarray) or found.dtype != np.bool_ or found.shape != (batch.nrows,):
        raise function.fail(f"returned {describe(found)}; a batch predicate returns a bool array of shape ({batch.nrows},)", origin.row)
    return np.ma.filled(found, False) if isinstance(found, np.ma.MaskedArray) else found
