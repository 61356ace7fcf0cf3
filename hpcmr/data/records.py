"""Rows packed into records: the words of a key, then all other columns of fixed width; what has no fixed width stays beside them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn, empty_column
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.data.sort_keys import SortField, SortLayout

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class RecordField:
    """A column in a record: `width` bytes from byte `offset` on; its validity is the byte at `valid`, -1 if it has no nulls."""

    name: str
    type: ColumnType
    offset: int
    width: int
    valid: int


@dataclass(frozen=True)
class RecordLayout:
    """What a record holds.

    Attributes
    ----------
    keys : SortLayout
        Its words come first. Columns that they tell exactly are not kept again.
    fields : tuple of RecordField
    apart : tuple of str
        Columns of bytes, text and lists.
    slot : int
        Byte of a word for the row's number in the columns apart; -1 where there are none.
    words : int
        Words of a record.
    """

    keys: SortLayout
    fields: tuple[RecordField, ...]
    apart: tuple[str, ...]
    slot: int
    words: int

    @classmethod
    def of(cls, schema: Schema, keys: SortLayout, nullable: Collection[str], hidden: Collection[str] = ()) -> RecordLayout:
        """The layout for the columns of `schema`; of those in `hidden` only the words are kept, unless these need the strings behind them."""
        told = {f.name for f in keys.fields if f.decodes} | set(hidden)
        kept = [f for f in schema if f.name not in told]
        apart = tuple(f.name for f in kept if not f.type.is_fixed)
        slot = 8 * keys.width if apart else -1
        at = 8 * (keys.width + bool(apart))
        fields = []
        fixed = [f for f in kept if f.type.is_fixed]
        for f in sorted(fixed, key=lambda f: (f.type.row_nbytes & 7 != 0, -(f.type.row_nbytes & -f.type.row_nbytes))):
            fields.append((f.name, f.type, at, f.type.row_nbytes))
            at += f.type.row_nbytes
        whole = []
        for name, kind, offset, width in fields:
            valid = -1
            if name in nullable:
                valid, at = at, at + 1
            whole.append(RecordField(name, kind, offset, width, valid))
        return cls(keys, tuple(whole), apart, slot, -(-at // 8))

    def put(self, batch: Batch, words: Words | None, records: Words) -> None:
        """Write the rows of a batch to `records` ``(n, words) uint64``. `words`: of its keys; None where `keys.single` is one."""
        from hpcmr.kernels.sort_rows import put_column

        n, stride = batch.nrows, 8 * self.words
        out = records.reshape(-1).view(np.uint8)
        single = self.keys.single
        if words is None:
            assert single is not None
            put_column(_bytes_of(batch[single.name]), 8, n, np.uint64(self.turn), out, 0, stride)
        else:
            put_column(words.reshape(-1).view(np.uint8), 8 * self.keys.width, n, np.uint64(0), out, 0, stride)
        for f in self.fields:
            column = batch[f.name]
            put_column(_bytes_of(column), f.width, n, np.uint64(0), out, f.offset, stride)
            if f.valid >= 0:
                mask = np.ones(n, np.bool_) if column.valid is None else np.ascontiguousarray(column.valid)
                put_column(mask.view(np.uint8), 1, n, np.uint64(0), out, f.valid, stride)

    @property
    def turn(self) -> int:
        """What turns values of `keys.single` into words, and back."""
        single = self.keys.single
        return 0 if single is None else single.bias ^ single.turn

    @property
    def in_pairs(self) -> bool:
        """Whether a record is the value of its only key and at most one word more, so that sorted pairs are the rows."""
        return self.keys.single is not None and self.words <= 2 and not self.apart

    def take(self, addresses: Words, n: int, base: int = 0) -> dict[str, Column]:
        """Columns of fixed width of n records. Their addresses are every second of `addresses`, from the second on.

        `base` is added to the offsets of columns other than keys; see `in_pairs`.
        """
        from hpcmr.kernels.sort_rows import take_column

        out: dict[str, Column] = {}
        for f in self.fields:
            values = np.empty((n, *f.type.shape), f.type.np_dtype)
            take_column(addresses, 1, 2, f.offset, f.width, values.reshape(-1).view(np.uint8))
            valid = None
            if f.valid >= 0:
                valid = np.empty(n, np.bool_)
                take_column(addresses, 1, 2, f.valid, 1, valid.view(np.uint8))
            out[f.name] = FixedColumn(values, valid)
        for key in self.keys.fields:
            if key.decodes:
                out[key.name] = _decoded(key, addresses, n)
        return out


def _decoded(key: SortField, addresses: Words, n: int) -> FixedColumn:
    from hpcmr.kernels.sort_keys import get_integers

    raw = np.empty(n, np.int64)
    get_integers(addresses, 1, key.bit, key.bits, 2, np.uint64(key.bias), np.uint64(key.turn), raw)
    return FixedColumn(of_integers(raw, key.type))


def of_integers(raw: NDArray[Any], kind: ColumnType) -> NDArray[Any]:
    """The low bits of 64-bit words as values of a type."""
    dtype = kind.np_dtype
    return raw.view(dtype) if dtype.itemsize == 8 else raw.astype(f"i{dtype.itemsize}").view(dtype)


def _bytes_of(column: Column) -> NDArray[np.uint8]:
    assert isinstance(column, FixedColumn)
    return np.ascontiguousarray(column.values).reshape(-1).view(np.uint8) if len(column) else np.zeros(0, np.uint8)


def one_empty(kind: ColumnType) -> Column:
    """One empty string, or list."""
    at = np.zeros(1, np.int64)
    if kind.kind == "list":
        assert kind.item is not None
        return ListColumn(at, at, empty_column(kind.item))
    return BytesColumn(at, at, np.zeros(0, np.uint8), kind.kind == "text")
