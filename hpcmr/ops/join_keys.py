"""What the two sides of a join must agree on: the types of their keys, and the names of the columns that result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn, empty_column
from hpcmr.data.keys import KeyLayout, as_strings, fixed_strings
from hpcmr.data.schema import BYTES, ColumnType, Field, Schema
from hpcmr.errors import JobSpecError

HOWS = ("inner", "left", "right", "outer", "semi", "anti")


@dataclass(frozen=True)
class Columns:
    """The columns of a join, once both sides are known.

    Attributes
    ----------
    key_types : tuple of ColumnType
        Types that the keys of both sides are compared in.
    key_fields : tuple of Field
        The key columns of the result, which are the left ones.
    right_names : dict of str to str
        What the other columns of the right side are called in the result; empty for semi and anti.
    schema : Schema
    """

    key_types: tuple[ColumnType, ...]
    key_fields: tuple[Field, ...]
    right_names: dict[str, str]
    schema: Schema

    @classmethod
    def of(cls, left: Schema, right: Schema, left_on: tuple[str, ...], right_on: tuple[str, ...], how: str) -> Columns:
        """Raises `JobSpecError`: a column is not there, keys that cannot be compared, two columns of one name."""
        for schema, on, side in ((left, left_on, "left"), (right, right_on, "right")):
            for name in on:
                if name not in schema:
                    raise JobSpecError(f"join: the {side} side has no column {name!r}; it has {', '.join(map(repr, schema.names)) or 'none'}")
        types = tuple(common_type(left[a].type, right[b].type, a, b) for a, b in zip(left_on, right_on, strict=True))
        keys = tuple(Field(a, t if how in ("right", "outer") else left[a].type, left[a].attrs) for a, t in zip(left_on, types, strict=True))
        KeyLayout.of(Schema.of(zip(left_on, types, strict=True)), left_on)      # refuses what cannot be a key
        names: dict[str, str] = {}
        fields = {f.name: f for f in left} | {f.name: f for f in keys}
        for f in right if how not in ("semi", "anti") else ():
            if f.name in right_on:
                continue
            name = f"{f.name}_right" if f.name in left else f.name
            if name in fields:
                raise JobSpecError(f"join: column {f.name!r} of the right side would be called {name!r}, and there is such a column already; "
                                   "rename one of them before")
            names[f.name] = name
            fields[name] = Field(name, f.type, f.attrs)
        return cls(types, keys, names, Schema(tuple(fields.values())))


def common_type(left: ColumnType, right: ColumnType, left_name: str, right_name: str) -> ColumnType:
    """The type in which values of both can be compared exactly. Raises `JobSpecError` where there is none."""
    if left == right:
        return left
    if _bytes_like(left) and _bytes_like(right):
        if left.is_fixed and right.is_fixed:
            return max(left, right, key=lambda t: t.np_dtype.itemsize)
        return BYTES
    if left.is_fixed and right.is_fixed and not left.shape and not right.shape:
        a, b = left.np_dtype, right.np_dtype
        if a.kind in "iuf" and b.kind in "iuf":
            both = np.promote_types(a, b)
            # NumPy takes float64 to be good enough for any integer; above 2^53 it is not.
            if np.can_cast(a, both, "safe") and np.can_cast(b, both, "safe") and not (both.kind == "f" and max(_int_bits(a), _int_bits(b)) > 32):
                return ColumnType.fixed(both)
    raise JobSpecError(f"join: key {left_name!r} of the left side is {left} and {right_name!r} of the right side is {right}; no type holds "
                       "the values of both exactly, cast one of them before, for example with_columns(x=mr.col('x').cast('int64'))")


def _bytes_like(kind: ColumnType) -> bool:
    return kind == BYTES or (kind.is_fixed and kind.np_dtype.kind == "S" and not kind.shape)


def _int_bits(dtype: np.dtype[np.generic]) -> int:
    return 8 * dtype.itemsize if dtype.kind in "iu" else 0


def as_type(column: Column, kind: ColumnType) -> Column:
    """The column in another type that holds its values: one that `common_type` found, or back from there."""
    if column.type == kind:
        return column
    if kind == BYTES:
        return as_strings(column)
    if isinstance(column, BytesColumn):
        whole = column.compact()
        made = fixed_strings(BytesColumn(np.ascontiguousarray(whole.starts), np.ascontiguousarray(whole.ends), whole.data, False), kind)
        return FixedColumn(made.values, column.valid)
    assert isinstance(column, FixedColumn)
    return FixedColumn(column.values.astype(kind.np_dtype), column.valid)


def key_batch(batch: Batch, names: Sequence[str], types: Sequence[ColumnType]) -> Batch:
    """The key columns in the types that they are compared in, called 0, 1, ... on both sides."""
    return Batch({str(i): as_type(batch[n], t) for i, (n, t) in enumerate(zip(names, types, strict=True))}, batch.nrows)


def keys_layout(types: Sequence[ColumnType]) -> KeyLayout:
    names = tuple(str(i) for i in range(len(types)))
    return KeyLayout.of(Schema.of(zip(names, types, strict=True)), names)


def valid_keys(keys: Batch) -> NDArray[np.bool_] | None:
    """(n,) bool: rows whose key has no null; None where there is no null at all."""
    masks = [c.valid for c in keys.columns.values() if c.valid is not None]
    if not masks or all(bool(m.all()) for m in masks):
        return None
    return np.logical_and.reduce(masks)


def take_or_null(column: Column, rows: NDArray[np.int64]) -> Column:
    """Rows of a column; null where the row is negative."""
    missing = rows < 0
    if not missing.any():
        return column.take(rows)
    if not len(column):
        return nulls(column.type, len(rows))
    found = column.take(np.maximum(rows, 0))
    valid = ~missing if found.valid is None else found.valid & ~missing
    if isinstance(found, FixedColumn):
        found.values[missing] = found.values.dtype.type()       # what lies under a null is the same on every run
        return FixedColumn(found.values, valid)
    ends = np.where(missing, found.starts, found.ends)
    if isinstance(found, ListColumn):
        return ListColumn(found.starts, ends, found.child, valid)
    return BytesColumn(found.starts, ends, found.data, found.text, valid)


def nulls(kind: ColumnType, n: int) -> Column:
    """n nulls of a type."""
    valid, nowhere = np.zeros(n, np.bool_), np.zeros(n, np.int64)
    if kind.is_fixed:
        return FixedColumn(np.zeros((n, *kind.shape), kind.np_dtype), valid)
    empty = empty_column(kind)
    if isinstance(empty, ListColumn):
        return ListColumn(nowhere, nowhere, empty.child, valid)
    assert isinstance(empty, BytesColumn)
    return BytesColumn(nowhere, nowhere, empty.data, empty.text, valid)
