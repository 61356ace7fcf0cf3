"""Columns to sort by: where each lies in a row of words, and the order of a batch's rows.

The words order as the rows should: numbers, then NaN, then nulls, in both directions; -0.0 and 0.0 are equal; bytes and text by bytes.
See `hpcmr.kernels.sort_keys` for how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.keys import STRING_WORDS, as_strings, as_words, has_nulls
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import JobSpecError

Words = NDArray[np.uint64]
Index = NDArray[np.int64]
ALL_ONES = (1 << 64) - 1
INSIDE = -2


@dataclass(frozen=True)
class SortField:
    """One column's place in the words.

    Attributes
    ----------
    name : str
    type : ColumnType
    descending : bool
    null_bit : int
        The bit that tells nulls; -1 where there are none.
    bit, bits : int
        The bits of the value.
    """

    name: str
    type: ColumnType
    descending: bool
    null_bit: int
    bit: int
    bits: int

    @property
    def is_string(self) -> bool:
        return is_string_like(self.type)

    @property
    def count(self) -> int:
        """Words of a string."""
        return self.bits >> 6

    @property
    def inline_nbytes(self) -> int:
        """The longest string that lies in its words completely."""
        return 8 * self.count - 1

    @property
    def turn(self) -> int:
        return (1 << min(64, self.bits)) - 1 if self.descending else 0

    @property
    def bias(self) -> int:
        """What makes the least integer 0."""
        return 1 << (self.bits - 1) if self.type.np_dtype.kind in "imM" else 0

    @property
    def decodes(self) -> bool:
        """Whether the words tell the value exactly, so that it need not be kept beside them."""
        return not self.is_string and self.type.np_dtype.kind in "biumM" and self.null_bit < 0


def is_string_like(kind: ColumnType) -> bool:
    """Text, bytes, fixed strings, and rows of bytes ``uint8[n]``."""
    return kind.is_string or (kind.is_fixed and (kind.np_dtype.kind == "S" or (kind.dtype == "uint8" and len(kind.shape) == 1)))


@dataclass(frozen=True)
class SortLayout:
    """The fields of all columns to sort by, first column first.

    Attributes
    ----------
    fields : tuple of SortField
    width : int
        Words of a row.
    """

    fields: tuple[SortField, ...]
    width: int

    @classmethod
    def of(cls, schema: Schema, names: Sequence[str], descending: bool | Sequence[bool] = False, nullable: Collection[str] = (),
           lengths: Mapping[str, int] | None = None) -> SortLayout:
        """The layout for some columns.

        Parameters
        ----------
        schema : Schema
        names : sequence of str
        descending : bool or sequence of bool
            For all columns, or for each.
        nullable : collection of str
            Columns that may have nulls (see `nulls_in`). A batch with nulls in others must not be encoded.
        lengths : dict of str to int, optional
            The longest strings, where they are known: fewer words are then enough.

        Raises
        ------
        JobSpecError
            A column is missing or cannot be sorted by, or `descending` does not fit.
        """
        turned = directions(names, descending)
        fields, at = [], 0
        for name, down in zip(names, turned, strict=True):
            kind = schema[name].type
            bits = _bits_of(name, kind, (lengths or {}).get(name))
            null_bit = -1
            if name in nullable:
                null_bit, at = at, at + 1
            if is_string_like(kind):
                at = -(-at // 64) * 64
            fields.append(SortField(name, kind, down, null_bit, at, bits))
            at += bits
        return cls(tuple(fields), max(1, -(-at // 64)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    @property
    def single(self) -> SortField | None:
        """The field, where it is one integer of 64 bits without nulls: then its word is the value, turned, and nothing is encoded."""
        field = self.fields[0]
        return field if len(self.fields) == 1 and field.decodes and field.bits == 64 else None


def directions(names: Sequence[str], descending: bool | Sequence[bool]) -> tuple[bool, ...]:
    """Whether each column is descending. Raises `JobSpecError` where the numbers do not match."""
    if isinstance(descending, bool | np.bool_):
        return (bool(descending),) * len(names)
    if not isinstance(descending, list | tuple) or not all(isinstance(d, bool | np.bool_) for d in descending):
        raise JobSpecError(f"descending = {descending!r}: True or False, or a list of these, one for each column")
    if len(descending) != len(names):
        raise JobSpecError(f"descending has {len(descending)} values for {len(names)} columns to sort by; give one for each, or one for all")
    return tuple(bool(d) for d in descending)


def _bits_of(name: str, kind: ColumnType, longest: int | None) -> int:
    if is_string_like(kind):
        if kind.is_fixed:
            longest = kind.row_nbytes
        return 64 * (STRING_WORDS if longest is None else min(STRING_WORDS, max(1, -(-(longest + 1) // 8))))
    if kind.kind == "list" or kind.shape or kind.np_dtype.kind == "c":
        raise JobSpecError(f"column {name!r} of type {kind} cannot be sorted by; integers, floats, bool, dates, bytes, text and uint8[n] can")
    if kind.np_dtype.kind == "f":
        return 64
    return 1 if kind.np_dtype.kind == "b" else 8 * kind.np_dtype.itemsize


def nulls_in(batch: Batch, names: Sequence[str]) -> set[str]:
    """The columns that have nulls."""
    return {n for n in names if has_nulls(batch[n])}


def strings_of(column: Column) -> BytesColumn:
    """A column of strings, of fixed strings without the NULs at their end, or of rows of bytes, as views."""
    if isinstance(column, FixedColumn) and column.values.dtype.kind != "S":
        rows = np.ascontiguousarray(column.values)
        starts = np.arange(len(rows), dtype=np.int64) * rows.shape[1]
        return BytesColumn(starts, starts + rows.shape[1], rows.reshape(-1), False, column.valid)
    strings = as_strings(column)
    if not strings.data.flags.c_contiguous:
        strings = BytesColumn(strings.starts, strings.ends, np.ascontiguousarray(strings.data), strings.text, strings.valid)
    return strings


def encode_sort_keys(batch: Batch, layout: SortLayout, out: Words | None = None) -> Words:
    """Words of a batch's rows.

    Parameters
    ----------
    batch : Batch
    layout : SortLayout
    out : (m, width) uint64, optional
        Memory to use where it has at least as many rows.

    Returns
    -------
    (n, width) uint64
        Rows order as their words, but for strings that are longer than their words (`order_of` knows them).
    """
    from hpcmr.kernels import sort_keys as k

    n = batch.nrows
    words = np.empty((n, layout.width), np.uint64) if out is None or len(out) < n else out[:n]
    words[:] = 0
    flat = words.reshape(-1)
    for f in layout.fields:
        column = batch[f.name]
        if f.is_string:
            s = strings_of(column)
            k.put_strings(s.starts, s.ends, s.data, flat, layout.width, f.bit >> 6, f.count, np.uint64(ALL_ONES if f.descending else 0))
        else:
            assert isinstance(column, FixedColumn)
            letter, values = as_words(column.values)
            if letter == "f":
                k.put_floats(values, flat, layout.width, f.bit, f.descending)
            else:
                k.put_integers(values, flat, layout.width, f.bit, f.bits, np.uint64(f.bias), np.uint64(f.turn))
        if f.null_bit >= 0 and column.valid is not None:
            k.put_nulls(column.valid, flat, layout.width, f.null_bit, f.bit, f.bits, f.is_string and f.descending)
    return words


def tails_of(layout: SortLayout, strings: Mapping[str, BytesColumn], slot: int = -1, inside: Mapping[str, int] | None = None) -> NDArray[np.int64]:
    """Where the bytes behind the words lie: ``(t, 8) int64``, for `hpcmr.kernels.sort_keys.order_rows`.

    Parameters
    ----------
    layout : SortLayout
    strings : dict of str to BytesColumn
        The columns with strings longer than their words; to be kept while this is used.
    slot : int
        Where a row's number in them is found, see `order_rows`.
    inside : dict of str to int, optional
        Columns of a fixed width that lie in the rows themselves, and how many bytes behind the words.
    """
    inside = inside or {}
    rows = []
    for f in layout.fields:
        last = (f.bit >> 6) + f.count - 1
        if f.name in strings:
            s = strings[f.name]
            assert s.starts.strides == s.ends.strides or len(s) < 2
            rows.append([last, int(f.descending), f.inline_nbytes, slot, s.starts.ctypes.data, s.ends.ctypes.data, s.data.ctypes.data,
                         s.starts.strides[0]])
        elif f.name in inside:
            rows.append([last, int(f.descending), f.inline_nbytes, INSIDE, 0, f.type.row_nbytes, inside[f.name], 0])
    return np.array(rows, np.int64).reshape(-1, 8)


def long_strings(batch: Batch, layout: SortLayout) -> dict[str, BytesColumn]:
    """The columns that have strings longer than their words."""
    out = {}
    for f in layout.fields:
        if f.is_string and not (f.type.is_fixed and f.type.row_nbytes <= f.inline_nbytes):
            s = strings_of(batch[f.name])
            if len(s) and int((s.ends - s.starts).max()) > f.inline_nbytes:
                out[f.name] = s
    return out


class Sorter:
    """Orders rows by their words, in memory that is used again."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self._kept.values())

    def buffer(self, name: str, n: int, dtype: Any = np.uint64) -> NDArray[Any]:
        """At least n values, uninitialised."""
        found = self._kept.get(name)
        if found is None or len(found) < n or found.dtype != dtype:
            found = self._kept[name] = np.empty(max(n + n // 8, 64), dtype)
        return found

    def pairs(self, n: int) -> Words:
        """Where the pairs to be sorted are put."""
        return self.buffer("pairs", 2 * n + 2)

    def sort(self, n: int, width: int, tails: NDArray[np.int64], base: int = 0, stride: int = 1) -> Words:
        """The n pairs (first word, address of the row's words), in order: flat ``(2 n,) uint64``; stable."""
        from hpcmr.kernels.sort import COUNTS, SMALL, sort_pairs
        from hpcmr.kernels.sort_keys import order_rows

        given, out = self.pairs(n), self.buffer("sorted", 2 * n + 2)
        small, counts = self.buffer("small", 2 * SMALL), self.buffer("counts", COUNTS, np.int64)
        sort_pairs(given, n, out, small, counts)
        if width > 1 or len(tails):
            order_rows(out, n, width, tails, base, stride, given, small, counts, self.buffer("starts", n + 2, np.int64))
        return out[:2 * n]


def order_of(batch: Batch, layout: SortLayout, origin: NDArray[Any] | None = None, words: Words | None = None) -> Index:
    """The order of a batch's rows: ``batch.take(order_of(batch, layout))`` is sorted.

    Parameters
    ----------
    batch : Batch
    layout : SortLayout
        Made with the columns of this batch that have nulls: `nulls_in`.
    origin : (n,) uint64 or int64, optional
        What orders equal rows; without it they stay as they are.
    words : (n, width) uint64, optional
        What `encode_sort_keys` made of the batch.
    """
    n = batch.nrows
    if words is None:
        words = encode_sort_keys(batch, layout)
    words = np.ascontiguousarray(words)
    before = np.arange(n, dtype=np.int64)
    if origin is not None and not bool((origin[1:] >= origin[:-1]).all()):
        before = np.argsort(origin, kind="stable").astype(np.int64)
    base, stride = words.ctypes.data, 8 * layout.width
    sorter = Sorter()
    pairs = sorter.pairs(n)[:2 * n].reshape(n, 2)
    pairs[:, 0] = words[before, 0]
    pairs[:, 1] = base + stride * before
    strings = long_strings(batch, layout)
    found = sorter.sort(n, layout.width, tails_of(layout, strings), base, stride)
    return ((found[1::2].view(np.int64) - base) // stride).astype(np.int64, copy=False)
