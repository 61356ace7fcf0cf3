"""Columns as the arrays of a shard: what a batch adds to each of them.

The null rows of what is stored are zero, or empty: equal tables then have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, Index, ListColumn, Mask
from hpcmr.data.schema import Schema


class Addition(NamedTuple):
    """What one batch adds to one array.

    `values` are the new entries; for offsets, the ends counted from the first new entry; for `valid`, None where all are.
    """

    entries: int
    values: NDArray[Any] | None


def encode(batch: Batch, schema: Schema) -> list[Addition]:
    """Additions to the arrays of `schema_arrays(schema)`, in their order. Copies only what is not contiguous yet."""
    return [addition for name in schema.names for addition in _encode(batch[name])]


def _encode(column: Column) -> Iterator[Addition]:
    n = len(column)
    valid = None if column.valid is None or bool(column.valid.all()) else column.valid
    if isinstance(column, FixedColumn):
        yield Addition(n, plain_values(column.values, valid))
    else:
        plain = without_nulls(column, valid).compact()
        ends = plain.ends if n == 0 or int(plain.starts[0]) == 0 else plain.ends - plain.starts[0]
        yield Addition(n, ends)
        if isinstance(plain, BytesColumn):
            yield Addition(len(plain.data), plain.data)
        else:
            assert isinstance(plain, ListColumn)
            yield from _encode(plain.child)
    yield Addition(n, valid)


def plain_values(values: NDArray[Any], valid: Mask | None) -> NDArray[Any]:
    out = values.view(np.int64) if values.dtype.kind in "mM" else values
    out = out.astype(out.dtype.newbyteorder("<"), copy=False)
    if valid is None:
        return out
    return np.where(valid.reshape(-1, *(1,) * (out.ndim - 1)), out, np.zeros(1, out.dtype))


def without_nulls(column: BytesColumn | ListColumn, valid: Mask | None) -> BytesColumn | ListColumn:
    if valid is None:
        return column
    ends: Index = np.where(valid, column.ends, column.starts)
    if isinstance(column, BytesColumn):
        return BytesColumn(column.starts, ends, column.data, column.text)
    return ListColumn(column.starts, ends, column.child)
