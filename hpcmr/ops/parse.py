"""What the steps on strings share: their input as places in bytes, the columns they carry along, and numbers from text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.schema import BYTES, TEXT, ColumnType, Field, Schema
from hpcmr.errors import DataError, JobSpecError

Index = NDArray[np.int64]


class Places(NamedTuple):
    """Rows of a string column as the kernels take them; nulls are empty."""

    starts: Index
    ends: Index
    data: NDArray[np.uint8]
    text: bool


def places_of(batch: Batch, name: str) -> Places:
    """The rows of the string column `name`, contiguous."""
    column = batch[name]
    assert isinstance(column, BytesColumn)
    starts, ends = np.ascontiguousarray(column.starts), np.ascontiguousarray(column.ends)
    if column.valid is not None:
        ends = np.where(column.valid, ends, starts)
    return Places(starts, ends, np.ascontiguousarray(column.data), column.text)


def check_string(schema: Schema, name: str, step: str) -> Field:
    """The field of the string column that a step reads.

    Raises
    ------
    JobSpecError
        There is no such column, or it is no string.
    """
    field = schema[name]
    if not field.type.is_string:
        raise JobSpecError(f"{step} reads text, and the column {name!r} is {field.type}; name a column of text or bytes")
    return field


def output_schema(schema: Schema, made: Sequence[Field], keep: Sequence[str], step: str) -> Schema:
    """The columns that a step makes and then those that it carries along."""
    fields = (*made, *schema.select(keep))
    names = [f.name for f in fields]
    for name in names:
        if names.count(name) > 1:
            raise JobSpecError(f"{step}: two columns would be called {name!r}; give the new one another name or leave {name!r} out of keep")
    return Schema(fields)


def kept(batch: Batch, keep: Sequence[str], counts: Index) -> dict[str, Column]:
    """The columns `keep`, row i repeated ``counts[i]`` times."""
    if not keep:
        return {}
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return {name: batch[name].take(rows) for name in keep}


def parsed_type(name: str | None, text: bool, step: str) -> ColumnType:
    """The type that a field of text is read as; None: it stays what it is."""
    if name is None:
        return TEXT if text else BYTES
    kind = ColumnType.parse(name)
    if kind.is_string or (kind.is_fixed and not kind.shape and kind.np_dtype.kind in "iuf"):
        return kind
    raise JobSpecError(f"{step} reads fields as integers, floats, text or bytes, not as {name!r}")


def parse_column(column: BytesColumn, kind: ColumnType, what: str, records: Index) -> Column:
    """The strings as values of `kind`.

    Parameters
    ----------
    column : BytesColumn
        ``(n,)``; nulls stay nulls.
    kind : ColumnType
        As `parsed_type` gives it.
    what : str
        Readable name of the field, for messages.
    records : (n,) int64
        Number of each row's record in its split, for messages.

    Raises
    ------
    DataError
        A string is no such number, or does not fit.
    """
    if kind.is_string:
        return BytesColumn(column.starts, column.ends, column.data, kind == TEXT, column.valid)
    present = slice(None) if column.valid is None else np.flatnonzero(column.valid)
    starts, ends = np.ascontiguousarray(column.starts[present]), np.ascontiguousarray(column.ends[present])
    some = Places(starts, ends, np.ascontiguousarray(column.data), column.text)
    values, bad = _integers(some, kind) if kind.np_dtype.kind in "iu" else _floats(some, kind)
    if bad >= 0:
        raw = some.data[some.starts[bad]:some.ends[bad]].tobytes().decode("utf-8", "surrogateescape")
        record = int(records[present][bad])
        raise DataError(f"{what} is {raw[:80]!r} at record {record:,} of the split, which is no {kind}; correct the input, "
                        f"or read the field as text and convert it in a function of yours", record=record)
    if column.valid is None:
        return FixedColumn(values)
    whole = np.zeros(len(column), values.dtype)
    whole[present] = values
    return FixedColumn(whole, column.valid)


def _integers(rows: Places, kind: ColumnType) -> tuple[NDArray[np.generic], int]:
    from hpcmr.kernels.strings import parse_int64

    values = np.empty(len(rows.starts), np.int64)
    bad = parse_int64(rows.starts, rows.ends, rows.data, values)
    limits = np.iinfo(kind.np_dtype)
    if bad < 0:
        outside = np.flatnonzero((values < limits.min) | (values > min(limits.max, 2**63 - 1)))
        bad = int(outside[0]) if len(outside) else -1
    return values.astype(kind.np_dtype), bad


def _floats(rows: Places, kind: ColumnType) -> tuple[NDArray[np.generic], int]:
    from hpcmr.kernels.strings import parse_float64

    n = len(rows.starts)
    values, hard = np.empty(n), np.empty(n, np.int64)
    for i in hard[:parse_float64(rows.starts, rows.ends, rows.data, values, hard)].tolist():
        raw = rows.data[rows.starts[i]:rows.ends[i]].tobytes()
        try:
            values[i] = float(raw) if b"_" not in raw else float("no")
        except ValueError:
            return values, i
    with np.errstate(over="ignore"):
        return values.astype(kind.np_dtype), -1
