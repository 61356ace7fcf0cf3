"""The right side of a join as an index that left rows are looked up in (see `hpcmr.kernels.join`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.data.keys import LongStrings, as_strings, as_words, encode_keys, intern_keys, word_count
from hpcmr.errors import DataError
from hpcmr.ops.join_keys import keys_layout, nulls, take_or_null, valid_keys
from hpcmr.ops.table import table_zeros

BUCKET_ROWS = 20               # entries of a bucket are at most so many on average: their starts then stay in the second-level cache
BLOCK_NBYTES = 4 << 20         # of a result in one piece
BLOCK_ROWS_MAX = 1 << 17
ROWS_MAX = (1 << 31) - 1
PACKED = (1, 2, 4, 8)          # bytes of values that lie in the entries
NOWHERE = np.zeros(0, np.uint8)


@dataclass
class Keys:
    """Keys as the kernels read them: a word in memory, or a hash and words that were made before."""

    address: int
    stride: int
    xor: int
    hashed: int
    valid: NDArray[np.uint8]
    words: NDArray[np.uint64]
    width: int                  # words that must be compared where hashes are equal
    keep: list[Any] = field(default_factory=list)

    @property
    def source(self) -> tuple[Any, ...]:
        return (self.address, self.stride, np.uint64(self.xor), self.hashed, self.valid)


class Index:
    """Right rows by key.

    Parameters
    ----------
    keys : Batch
        Their key columns, in the types that are compared (`key_batch`).
    values : Batch
        Columns that the result needs. Those of a fixed width up to eight bytes and without nulls are copied into the index.

    Raises
    ------
    DataError
        Over 2^31 rows.
    """

    def __init__(self, keys: Batch, values: Batch) -> None:
        from hpcmr.kernels import join as k

        if keys.nrows > ROWS_MAX:
            raise DataError(f"join: the right side has {keys.nrows:,} rows, more than the {ROWS_MAX:,} that can be given to every rank")
        self.layout = keys_layout([c.type for c in keys.columns.values()])
        self.long = LongStrings()
        self.n = keys.nrows
        found = self._keys(keys, intern=True)
        self._place(values, found.width)
        bits = max(1, (max(1, self.n) // BUCKET_ROWS).bit_length())
        self.shift = 64 - bits
        self.starts = table_zeros((1 << bits) // 2 + 2).view(np.int32)[:(1 << bits) + 2]
        self.tags = table_zeros(self.n // 8 + 10).view(np.uint8)
        self.entries = table_zeros((self.n + 1) * self.stride)
        k.count_buckets(*found.source, self.n, self.shift, self.starts)
        k.fill_entries(*found.source, self.n, self.shift, found.words, found.width, self._columns_in(values), self.starts, self.tags, self.entries,
                       self.stride)
        k.sort_buckets(self.starts, self.entries, self.stride)

    @property
    def nbytes(self) -> int:
        return int(self.starts.nbytes + self.tags.nbytes + self.entries.nbytes + self.long.nbytes) + self.rest.nbytes

    def _place(self, values: Batch, width: int) -> None:
        """Where each column lies in an entry: wide ones first, so that each is aligned; the row's number last, if a column is not packed."""
        self.places: dict[str, int] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        packed = {n: c.values for n, c in values.columns.items() if isinstance(c, FixedColumn) and _is_packed(c)}
        at = 8 * (1 + width)
        for name in sorted(packed, key=lambda n: -packed[n].dtype.itemsize):
            self.places[name], self.dtypes[name] = at, packed[name].dtype
            at += packed[name].dtype.itemsize
        self.rest = values.select([n for n in values.names if n not in packed]).compact()
        self.number = -1
        if self.rest.columns:
            self.number = -(-at // 4) * 4
            at = self.number + 4
        self.stride = -(-at // 8)

    def _columns_in(self, values: Batch) -> NDArray[np.int64]:
        rows: list[tuple[int, int, int]] = []
        for name, at in self.places.items():
            column = values[name]
            assert isinstance(column, FixedColumn)
            column.values = np.ascontiguousarray(column.values)
            rows.append((column.values.ctypes.data, column.values.dtype.itemsize, at))
        if self.number >= 0:
            rows.append((0, 0, self.number))
        return np.array(rows, np.int64).reshape(-1, 3)

    def _keys(self, keys: Batch, intern: bool) -> Keys:
        """Keys of right rows (`intern`), or of left ones, whose long strings need no place of their own."""
        mask = valid_keys(keys)
        valid = NOWHERE if mask is None else np.ascontiguousarray(mask).view(np.uint8)
        none = np.zeros(0, np.uint64)
        first = next(iter(keys.columns.values()))
        if len(keys.columns) == 1 and isinstance(first, FixedColumn) and first.values.dtype.kind in "iubmM":
            letter, values = as_words(np.ascontiguousarray(first.values))
            return Keys(values.ctypes.data, 8, 1 << 63 if letter == "i" else 0, 0, valid, none, 0, [values])
        bare = Batch({n: _without_nulls(c) for n, c in keys.columns.items()}, keys.nrows)
        encoded = encode_keys(bare, self.layout)
        words = encoded.words.reshape(-1)
        if encoded.long_count and intern:
            intern_keys(bare, self.layout, words, self.long)
        elif encoded.long_count:
            self._find_long(bare, words)
        width = self.layout.width if self.layout.width > 1 else 0
        return Keys(encoded.hashes.ctypes.data, 8, 0, 1, valid, words if width else none, width, [encoded])

    def _find_long(self, keys: Batch, words: NDArray[np.uint64]) -> None:
        from hpcmr.kernels.join import find_strings

        long = self.long
        for name, kind, at in zip(self.layout.names, self.layout.types, self.layout.places, strict=True):
            if word_count(kind) == 3:
                strings = as_strings(keys[name])
                find_strings(strings.starts, strings.ends, np.ascontiguousarray(strings.data), words, self.layout.width, at, long.slots, long.starts,
                             long.ends, long.hashes, long.data)


class Prober:
    """Looks left rows up and makes the joined rows, in memory that each block uses again.

    Parameters
    ----------
    index : Index
    how : {"inner", "left", "semi", "anti"}
    right_names : dict of str to str
        Columns of the index and what they are called in the result.
    block_nbytes : int
        About how large a block may become.
    """

    def __init__(self, index: Index, how: str, right_names: dict[str, str], block_nbytes: int = BLOCK_NBYTES) -> None:
        self.index, self.how, self.right_names, self.block_nbytes = index, how, right_names, block_nbytes
        self.buffers: dict[str, NDArray[Any]] = {}
        self.capacity = 0

    def blocks(self, batch: Batch, keys: Batch) -> Iterator[Batch]:
        """The result of some left rows, in their order."""
        from hpcmr.kernels import join as k

        index, n = self.index, batch.nrows
        found = index._keys(keys, intern=False)
        packed = {n: c for n, c in batch.columns.items() if isinstance(c, FixedColumn) and _is_gathered(c)}
        left = {n: np.ascontiguousarray(c.values) for n, c in packed.items()}
        masks = {n: np.ascontiguousarray(c.valid) for n, c in packed.items() if c.valid is not None}
        self._reserve(batch)
        into = self._left_columns(left, masks)
        taken = self._right_columns()
        how = {"inner": k.INNER, "left": k.LEFT, "semi": k.SEMI, "anti": k.ANTI}[self.how]
        state = np.array([0, -1], np.int64)
        while state[0] < n:
            m = k.probe(*found.source, n, index.shift, found.words, found.width, index.starts, index.tags, index.entries, index.stride, how, into,
                        taken, self.lefts, self.rights, state)
            if m:
                yield self._block(batch, left, masks, int(m))

    def _reserve(self, batch: Batch) -> None:
        """Arrays for the rows of a block, as many as went into the first batch or as `block_nbytes` takes."""
        if self.capacity:
            return
        widths = sum(c.type.row_nbytes for c in (*batch.columns.values(), *self.index.rest.columns.values()))
        widths += sum(d.itemsize for d in self.index.dtypes.values())
        self.capacity = max(64, min(self.block_nbytes // max(1, widths), BLOCK_ROWS_MAX))
        self.lefts, self.rights = np.empty(self.capacity, np.int32), np.empty(self.capacity, np.int32)

    def _buffer(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        if name not in self.buffers or self.buffers[name].dtype != dtype:
            self.buffers[name] = np.empty(self.capacity, dtype)
        return self.buffers[name]

    def _left_columns(self, left: dict[str, NDArray[Any]], masks: dict[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
        rows = [(v.ctypes.data, v.dtype.itemsize, self._buffer(f"l{n}", v.dtype).ctypes.data) for n, v in left.items()]
        rows += [(v.ctypes.data, 1, self._buffer(f"m{n}", v.dtype).ctypes.data) for n, v in masks.items()]
        return np.array(rows, np.int64).reshape(-1, 3)

    def _right_columns(self) -> NDArray[np.int64]:
        if self.how in ("semi", "anti"):
            return np.zeros((0, 3), np.int64)
        index = self.index
        rows = [(at, index.dtypes[n].itemsize, self._buffer(f"r{n}", index.dtypes[n]).ctypes.data) for n, at in index.places.items()]
        if index.number >= 0:
            rows.append((index.number, 4, self._buffer("#", np.dtype(np.int32)).ctypes.data))
        return np.array(rows, np.int64).reshape(-1, 3)

    def _block(self, batch: Batch, left: dict[str, NDArray[Any]], masks: dict[str, NDArray[np.bool_]], m: int) -> Batch:
        columns: dict[str, Column] = {}
        rows: NDArray[np.int64] | None = None
        for name, column in batch.columns.items():
            if name in left:
                columns[name] = FixedColumn(self.buffers[f"l{name}"][:m], self.buffers[f"m{name}"][:m] if name in masks else None)
            else:
                rows = self.lefts[:m].astype(np.int64) if rows is None else rows
                columns[name] = column.take(rows)
        if self.how not in ("semi", "anti"):
            self._add_right(columns, m)
        return Batch(columns, m)

    def _add_right(self, columns: dict[str, Column], m: int) -> None:
        index = self.index
        missing = self.rights[:m] < 0 if self.how == "left" else None
        valid = None if missing is None or not missing.any() else ~missing
        rows: NDArray[np.int64] | None = None
        for name, new in self.right_names.items():
            if name in index.places:
                columns[new] = FixedColumn(self.buffers[f"r{name}"][:m], valid)
                continue
            if rows is None:
                rows = self.buffers["#"][:m].astype(np.int64)
                if missing is not None:
                    rows[missing] = -1
            columns[new] = take_or_null(index.rest[name], rows) if index.n else nulls(index.rest[name].type, m)


def _is_gathered(column: FixedColumn) -> bool:
    return column.values.ndim == 1 and column.values.dtype.itemsize in PACKED


def _is_packed(column: FixedColumn) -> bool:
    return _is_gathered(column) and (column.valid is None or bool(column.valid.all()))


def _without_nulls(column: Column) -> Column:
    if column.valid is None:
        return column
    out = column.slice(0, len(column))
    out.valid = None
    return out


