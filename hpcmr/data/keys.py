"""Key columns as words: what a table is probed with, what rows are sorted by, and how a key comes back.

A key column that has nulls takes one more word in front of its own: 0 where the row has a value, 1 where it is null. So nulls are
one group and come last. Whether a column has nulls is found in the rows (`KeyLayout.for_batches`), and the *hash* does not depend on it:
a null is hashed as words of zeros, the word in front is not hashed. Rows of a key meet in one partition whatever layout they were given.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.memory import room
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import DataError, JobSpecError

Words = NDArray[np.uint64]
STRING_WORDS = 3
INLINE_NBYTES = 23
LONG = np.uint64(255)           # what the last byte of a string's words is where the string is longer than that


@dataclass(frozen=True)
class KeyLayout:
    """Where each key column lies in a row of words.

    Attributes
    ----------
    names : tuple of str
    types : tuple of ColumnType
    places : tuple of int
        First word of each column's value; that of a nullable column lies behind its null word.
    width : int
        Words of a key.
    nullable : tuple of bool
        Columns that have a null word.
    """

    names: tuple[str, ...]
    types: tuple[ColumnType, ...]
    places: tuple[int, ...]
    width: int
    nullable: tuple[bool, ...]

    @classmethod
    def of(cls, schema: Schema, names: tuple[str, ...], nullable: Collection[str] = ()) -> KeyLayout:
        """The layout of some columns, of which those in `nullable` may have nulls."""
        types = tuple(schema[n].type for n in names)
        places, at = [], 0
        for name, kind in zip(names, types, strict=True):
            if kind.kind == "list" or kind.shape or (kind.is_fixed and kind.np_dtype.kind == "c"):
                raise JobSpecError(f"column {name!r} of type {kind} cannot be a key; keys are integers, floats, bool, dates, bytes and text")
            at += name in nullable
            places.append(at)
            at += word_count(kind)
        return cls(names, types, tuple(places), at, tuple(n in nullable for n in names))

    def for_batches(self, *batches: Batch) -> KeyLayout:
        """This layout, or one with null words where the key columns of any of the batches have nulls.

        Words of two layouts cannot be compared; all batches whose words are must be named here. Hashes are the same in any.
        """
        found = {n for b in batches for n in self.names if has_nulls(b[n])} | {n for n, null in zip(self.names, self.nullable, strict=True) if null}
        return self if len(found) == sum(self.nullable) else self.with_nullable(found)

    def with_nullable(self, names: Collection[str]) -> KeyLayout:
        """The same columns, with a null word for each of `names` and no other."""
        schema = Schema.of(zip(self.names, self.types, strict=True))
        return KeyLayout.of(schema, self.names, names)

    @property
    def has_strings(self) -> bool:
        return any(word_count(t) == STRING_WORDS for t in self.types)

    @property
    def string_ends(self) -> NDArray[np.int64]:
        """(width,) int64: 1 for each word that ends a string."""
        out = np.zeros(self.width, np.int64)
        for t, at in zip(self.types, self.places, strict=True):
            if word_count(t) == STRING_WORDS:
                out[at + 2] = 1
        return out


@dataclass
class KeyWords:
    """``words (n, width) uint64`` that order as the keys do, ``hashes (n,) uint64``, and how many rows hold a string over 23 bytes."""

    words: Words
    hashes: Words
    long_count: int


def word_count(kind: ColumnType) -> int:
    return STRING_WORDS if kind.is_string or (kind.is_fixed and kind.np_dtype.kind == "S") else 1


def has_nulls(column: Column) -> bool:
    return column.valid is not None and not bool(column.valid.all())


def as_strings(column: Column) -> BytesColumn:
    """Strings of a column, fixed ones without the NULs at their end."""
    if isinstance(column, BytesColumn):
        return column
    from hpcmr.kernels.keys import trimmed_lengths

    assert isinstance(column, FixedColumn)
    values = np.ascontiguousarray(column.values)
    n, size = len(values), values.dtype.itemsize
    rows = values.view(np.uint8).reshape(n, size)
    lengths = np.empty(n, np.int64)
    trimmed_lengths(rows, lengths)
    starts = np.arange(n, dtype=np.int64) * size
    return BytesColumn(starts, starts + lengths, rows.reshape(-1), False, column.valid)


def as_words(values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Numbers widened to 64 bits, and the letter of their kind: i, u or f."""
    kind = values.dtype.kind
    if kind in "mM":
        return "i", values.view(np.int64)
    if kind == "b":
        return "u", values.astype(np.uint64)
    if kind == "i":
        return "i", values.astype(np.int64, copy=False)
    if kind == "u":
        return "u", values.astype(np.uint64, copy=False)
    return "f", values.astype(np.float64, copy=False)


def encode_keys(batch: Batch, layout: KeyLayout, scratch: KeyWords | None = None) -> KeyWords:
    """Key words and hashes of a batch's rows.

    Parameters
    ----------
    batch : Batch
    layout : KeyLayout
    scratch : KeyWords, optional
        Arrays to be used again where they are large enough.

    Returns
    -------
    KeyWords
        Views on `scratch` where it was used. Cost: one pass over each key column.
    """
    from hpcmr.kernels import keys as k

    n, width = batch.nrows, layout.width
    if scratch is None or len(scratch.hashes) < n:
        scratch = KeyWords(np.empty((n, width), np.uint64), np.empty(n, np.uint64), 0)
    words, hashes = scratch.words[:n], scratch.hashes[:n]
    flat = scratch.words.reshape(-1)
    hashes[:] = 0
    long_count = 0
    encoders = {"i": k.encode_signed, "u": k.encode_unsigned, "f": k.encode_float}
    for name, kind, at, nullable in zip(layout.names, layout.types, layout.places, layout.nullable, strict=True):
        column = batch[name]
        nulls = has_nulls(column)
        if nulls and not nullable:
            row = int(np.argmin(column.valid))  # type: ignore[arg-type]
            raise DataError(f"key column {name!r} is null in row {row} of the batch; fill or filter nulls before this", record=row)
        before = hashes.copy() if nulls else hashes
        if word_count(kind) == STRING_WORDS:
            strings = as_strings(column)
            long_count += k.encode_strings(strings.starts, strings.ends, np.ascontiguousarray(strings.data), flat, width, at, hashes)
        else:
            assert isinstance(column, FixedColumn)
            letter, values = as_words(column.values)
            encoders[letter](values, flat, width, at, hashes)
        if nulls:
            assert column.valid is not None
            k.encode_nulls(np.ascontiguousarray(column.valid), flat, width, at, word_count(kind), before, hashes)
        elif nullable:
            words[:, at - 1] = 0
    return KeyWords(words, hashes, long_count)


def intern_keys(batch: Batch, layout: KeyLayout, words: Words, long: LongStrings) -> None:
    """Give the long strings of encoded key words (flat, ``layout.width`` words a row) their numbers in `long`."""
    for name, kind, at in zip(layout.names, layout.types, layout.places, strict=True):
        if word_count(kind) == STRING_WORDS:
            long.intern(as_strings(batch[name]), words, layout.width, at)


class LongStrings:
    """Strings of over 23 bytes, each kept once and known by a number, which stands in the last word of its key."""

    def __init__(self) -> None:
        self.count = 0
        self.slots = np.zeros(64, np.int64)
        self.starts = np.zeros(32, np.int64)
        self.ends = np.zeros(32, np.int64)
        self.hashes = np.zeros(32, np.uint64)
        self.data = np.zeros(1024, np.uint8)

    @property
    def used(self) -> int:
        return int(self.ends[self.count - 1]) if self.count else 0

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + self.starts.nbytes * 3 + self.data.nbytes

    def column(self) -> BytesColumn:
        return BytesColumn(self.starts[:self.count], self.ends[:self.count], self.data, False)

    def intern(self, strings: BytesColumn, words: Words, width: int, at: int) -> None:
        """Number the long strings of a column whose words lie at ``at .. at+2`` of rows of `width` words (flat)."""
        from hpcmr.kernels.keys import intern_strings

        lengths = strings.ends - strings.starts
        lengths = lengths[lengths > INLINE_NBYTES]
        self._reserve(len(lengths), int(lengths.sum()))
        self.count = intern_strings(strings.starts, strings.ends, np.ascontiguousarray(strings.data), words, width, at, self.slots, self.starts,
                                    self.ends, self.hashes, self.data, self.count, self.used)

    def _reserve(self, rows: int, nbytes: int) -> None:
        need = self.count + rows
        if need > len(self.starts):
            size = 1 << need.bit_length()
            self.starts, self.ends = np.resize(self.starts, size), np.resize(self.ends, size)
            self.hashes = np.resize(self.hashes, size)
        if 2 * need > len(self.slots):
            self.slots = np.zeros(4 << need.bit_length(), np.int64)
            places = (self.hashes[:self.count] >> np.uint64(20)).astype(np.int64) & (len(self.slots) - 1)
            for number, j in enumerate(places.tolist()):
                while self.slots[j]:
                    j = (j + 1) & (len(self.slots) - 1)
                self.slots[j] = number + 1
        if self.used + nbytes > len(self.data):
            grown = np.zeros(1 << (self.used + nbytes).bit_length(), np.uint8)
            grown[:self.used] = self.data[:self.used]
            self.data = grown


def decode_keys(words: Words, stride: int, layout: KeyLayout, long: LongStrings) -> dict[str, Column]:
    """All key columns of rows of interned words: flat, `stride` words a row, the key's first."""
    out = {}
    for name, kind, at, nullable in zip(layout.names, layout.types, layout.places, layout.nullable, strict=True):
        out[name] = decode_key(words, stride, at, kind, long)
        if nullable and words[at - 1::stride].any():
            out[name].valid = words[at - 1::stride] == 0
    return out


def decode_key(words: Words, width: int, at: int, kind: ColumnType, long: LongStrings) -> Column:
    """The key column of rows of interned words (flat, `width` words a row)."""
    from hpcmr.kernels import keys as k

    n = len(words) // width
    if word_count(kind) == STRING_WORDS:
        strings = decode_strings(words, width, at, n, long, kind.kind == "text")
        return fixed_strings(strings, kind) if kind.is_fixed else strings
    dtype = kind.np_dtype
    if dtype.kind == "f":
        out = room(n, np.float64)
        k.decode_float(words, width, at, n, out)
        return FixedColumn(out.astype(dtype, copy=False))
    raw = room(n, np.uint64)
    if dtype.kind in "imM":
        raw = np.bitwise_xor(words[at::width], np.uint64(1 << 63), out=raw).view(np.int64)
    else:
        raw[:] = words[at::width]
    return FixedColumn(raw.view(dtype) if dtype.kind in "mM" else raw.astype(dtype, copy=False))


def decode_strings(words: Words, width: int, at: int, n: int, long: LongStrings, text: bool) -> BytesColumn:
    from hpcmr.kernels import keys as k

    offsets = np.zeros(n + 1, np.int64)
    k.decoded_lengths(words, width, at, n, long.starts, long.ends, offsets)
    data = np.empty(int(offsets[-1]), np.uint8)
    k.decode_strings(words, width, at, n, long.starts, long.ends, long.data, offsets, data)
    return BytesColumn.from_offsets(offsets, data, text)


def fixed_strings(strings: BytesColumn, kind: ColumnType) -> FixedColumn:
    """Strings padded with NULs to the fixed width of `kind`."""
    from hpcmr.kernels.keys import pad_strings

    out = np.zeros((len(strings), kind.np_dtype.itemsize), np.uint8)
    pad_strings(strings.starts, strings.ends, strings.data, out)
    return FixedColumn(out.reshape(-1).view(kind.np_dtype))
