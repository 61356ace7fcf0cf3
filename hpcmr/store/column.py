"""One column of a stored table: NumPy arrays, read where they are sliced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Column, FixedColumn, Index
from hpcmr.data.schema import ColumnType, Field
from hpcmr.errors import InputError

GAP_ROWS = 4096
"""Rows that are rather read than skipped, when single rows are asked for."""
BLOCK_ROWS = 1 << 20
"""Rows read at a time when a slice has a step."""

Reader = Callable[[int, int], Column]


class StoredColumn:
    """A column on disk, of shape ``(rows, *shape)``.

    ``column[i]``, ``column[a:b:c]`` (negative indices and steps too), ``column[mask]`` and ``column[[3, 1, 2]]`` read the rows they
    name and give a NumPy array: of the column's type, masked where the column has nulls; of Python str, bytes or lists (dtype
    object, nulls as None) for text, bytes and lists. Indices after the first one apply to the value of a row: ``column[:10, 0]``.

    Attributes
    ----------
    name : str
    type : ColumnType
    attrs : dict
        Attributes carried from the input, such as units.
    dtype : numpy.dtype
    shape : tuple of int
    """

    def __init__(self, field: Field, rows: int, nulls: bool, reader: Reader) -> None:
        self.name = field.name
        self.type: ColumnType = field.type
        self.attrs: dict[str, Any] = dict(field.attrs)
        self.dtype: np.dtype[Any] = field.type.np_dtype if field.type.is_fixed else np.dtype(object)
        self.shape: tuple[int, ...] = (rows, *field.type.shape)
        self._nulls = nulls
        self._reader = reader

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), GAP_ROWS):
            yield from self[start:start + GAP_ROWS]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"column {self.name!r} lies on disk: an array of it is always a copy")
        values = np.asarray(self[:])
        return values if dtype is None else values.astype(dtype)

    def __getitem__(self, index: Any) -> Any:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if isinstance(first, int | np.integer) and not isinstance(first, bool | np.bool_):
            return self._one(int(first))[rest] if rest else self._one(int(first))
        values = self._rows(first)
        return values[(slice(None), *rest)] if rest else values

    def _one(self, row: int) -> Any:
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"row {row} of column {self.name!r}, which has {len(self):,} rows")
        return self._values(self._reader(at, at + 1))[0]

    def _rows(self, index: Any) -> NDArray[Any]:
        if isinstance(index, tuple) or index is Ellipsis:
            index = slice(None)
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        chosen = np.asarray(index)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask of shape {chosen.shape} on column {self.name!r}, which has {len(self):,} rows")
            return self._take(np.flatnonzero(chosen))
        if chosen.size == 0:
            return self._slice(0, 0, 1)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
            raise IndexError(f"column {self.name!r} takes an integer, a slice, a mask or a list of row numbers, not {index!r}")
        rows = chosen.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"row {int(chosen[np.argmax((rows < 0) | (rows >= len(self)))])} of column {self.name!r}, which has {len(self):,} rows")
        return self._take(rows)

    def _slice(self, start: int, stop: int, step: int) -> NDArray[Any]:
        if step == 1 or stop == start:
            return self._values(self._reader(start, max(start, stop)))
        return self._take(np.arange(start, stop, step, dtype=np.int64))

    def _take(self, rows: Index) -> NDArray[Any]:
        """The rows `rows` in that order: neighbours are read together, in blocks."""
        order = np.unique(rows)
        if not len(order):
            return self._values(self._reader(0, 0))
        breaks = (np.diff(order) > GAP_ROWS) | (np.diff((order - order[0]) // BLOCK_ROWS) > 0)
        parts = []
        for group in np.split(order, np.flatnonzero(breaks) + 1):
            first = int(group[0])
            parts.append(self._values(self._reader(first, int(group[-1]) + 1).take(group - first)))
        values = parts[0] if len(parts) == 1 else (np.ma.concatenate(parts) if self._masked else np.concatenate(parts))  # type: ignore[no-untyped-call]
        return np.asanyarray(values[np.searchsorted(order, rows)])

    @property
    def _masked(self) -> bool:
        return self._nulls and self.type.is_fixed

    def _values(self, column: Column) -> NDArray[Any]:
        if isinstance(column, FixedColumn):
            if not self._masked:
                return column.values
            gaps = np.zeros(len(column), np.bool_) if column.valid is None else ~column.valid
            return np.ma.MaskedArray(column.values, np.broadcast_to(gaps.reshape(-1, *(1,) * (column.values.ndim - 1)), column.values.shape))
        out = np.empty(len(column), object)
        for i, value in enumerate(column.to_list()):
            out[i] = value
        return out

    def to_batch_column(self, start: int = 0, stop: int | None = None) -> Column:
        """Rows as hpcmr holds them in memory."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"rows {start} to {stop} of column {self.name!r}, which has {len(self):,} rows")
        return self._reader(start, stop)

    def __repr__(self) -> str:
        return f"<column {self.name!r}: {self.type}, {len(self):,} rows>"
