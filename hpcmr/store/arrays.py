"""How columns become arrays.

====================  =====================================================================================
column ``a`` of type  arrays
====================  =====================================================================================
fixed                 ``a`` ``(rows, *shape)``
bytes, text           ``a/offsets`` ``(rows + 1,) int64`` and ``a/data`` ``(bytes,) uint8``
list of T             ``a/offsets`` ``(rows + 1,) int64`` and ``a/data``: the elements, laid out as a column of type T
any, with nulls       beside it ``a%valid`` ``(rows,) bool``, only in shards that hold a null
====================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import DataError
from hpcmr.store import paths

FORMAT = "hpcmr-table"
VERSION = 1

OFFSETS = np.dtype("<i8")
BYTE = np.dtype("u1")
BOOL = np.dtype("?")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a shard.

    `role` is ``values``, ``offsets``, ``data`` or ``valid``; `depth` is 0 where the array has an entry per row, and more inside
    lists. `dtype` is as stored (little-endian; dates as int64), `shape` that of one entry.
    """

    name: str
    role: str
    depth: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    field: Field | None
    type: ColumnType

    @property
    def item_nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def by_row(self) -> bool:
        """Whether the number of rows alone tells its length."""
        return self.depth == 0 and self.role != "data"


def stored_dtype(kind: ColumnType) -> np.dtype[Any]:
    """The type in which a fixed column lies on disk."""
    dtype = kind.np_dtype
    if dtype.itemsize == 0:
        raise DataError(f"a column of type {kind} has no bytes and cannot be stored")
    return OFFSETS if dtype.kind in "mM" else dtype.newbyteorder("<")


def column_arrays(name: str, kind: ColumnType, depth: int = 0, field: Field | None = None) -> Iterator[ArraySpec]:
    """Arrays of one column, outermost first, each object followed by its `valid`."""
    if kind.is_fixed:
        yield ArraySpec(name, "values", depth, stored_dtype(kind), kind.shape, field, kind)
    else:
        yield ArraySpec(f"{name}/offsets", "offsets", depth, OFFSETS, (), field, kind)
        if kind.item is not None:
            yield from column_arrays(f"{name}/data", kind.item, depth + 1)
        else:
            yield ArraySpec(f"{name}/data", "data", depth, BYTE, (), None, kind)
    yield ArraySpec(name + paths.VALID, "valid", depth, BOOL, (), None, kind)


def schema_arrays(schema: Schema) -> list[ArraySpec]:
    """Arrays of all columns, in the order of the schema."""
    return [spec for f in schema for spec in column_arrays(paths.array_name(f.name), f.type, field=f)]
