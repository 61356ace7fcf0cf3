"""How the value of each aggregate comes out of finished states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Column, FixedColumn
from hpcmr.data.keys import LongStrings, decode_strings, fixed_strings
from hpcmr.data.memory import room
from hpcmr.data.schema import INT64, ColumnType, Field, Schema
from hpcmr.errors import DataError
from hpcmr.ops.accumulators import Agg, Program, components, input_of, needs


@dataclass
class States:
    """Finished states of a block of groups: ``words`` flat, `stride` words a group, and what they point at."""

    words: NDArray[np.uint64]
    stride: int
    count: int
    rows_at: int
    wide: NDArray[np.int64]
    used: NDArray[np.int64]
    long: LongStrings
    _seen: dict[int, NDArray[np.uint64]] = field(default_factory=dict)

    def has_nulls(self, nulls: int) -> bool:
        """Whether any group has a null; looked up once for all aggregates of a column."""
        if nulls not in self._seen:
            missing = self.word(self.base + nulls)
            self._seen[nulls] = missing if missing.any() else np.empty(0, np.uint64)
        return len(self._seen[nulls]) > 0

    def rows(self) -> NDArray[np.uint64]:
        """Rows of each group, side by side."""
        if -1 not in self._seen:
            self._seen[-1] = room(self.count, np.uint64)
            self._seen[-1][:] = self.word(self.rows_at)
        return self._seen[-1]

    def word(self, at: int) -> NDArray[np.uint64]:
        return self.words[:self.count * self.stride].reshape(self.count, self.stride)[:, at]

    @property
    def base(self) -> int:
        """First accumulator word."""
        return self.rows_at + 1


Final = Callable[[States], Column]


def result_field(agg: Agg, schema: Schema) -> Field:
    """Name, type and attributes of an aggregate's column."""
    if agg.column is None or agg.function == "count":
        return Field(agg.name, INT64)
    column = schema[agg.column]
    kind = column.type
    if agg.function in ("min", "max", "first", "last", "any", "all"):
        return Field(agg.name, kind, column.attrs)
    letter = kind.np_dtype.kind
    if agg.function == "sum":
        dtype = {"f": "float64", "c": "complex128", "u": "uint64"}.get(letter, "int64")
        return Field(agg.name, ColumnType.fixed(dtype, kind.shape), column.attrs)
    attrs = column.attrs if agg.function == "mean" else ()
    return Field(agg.name, ColumnType.fixed("complex128" if letter == "c" else "float64", kind.shape), attrs)


def final_of(agg: Agg, program: Program, schema: Schema) -> Final:
    """The function that turns finished states into an aggregate's column."""
    if agg.column is None:
        return lambda s: FixedColumn(s.rows().view(np.int64))
    kind = schema[agg.column].type
    nulls = program.nulls[agg.column]
    source = input_of(agg, kind)
    if agg.function == "count":
        return lambda s: FixedColumn(_counts(s, nulls).astype(np.int64))
    ops = needs(agg, source[1])
    result = result_field(agg, schema).type
    if source[1] == "s":
        at = program.places[ops[0], source, 0] + 1
        return lambda s: _strings(s, at, kind, nulls)
    if agg.function in ("first", "last"):
        at = program.places[ops[0], source, 0] + 1
        return lambda s: _masked(_values(s, at, kind), s, nulls)
    places = [tuple(program.places[op, source, c] for op in ops) for c in range(components(kind))]
    windows = [program.windows.get((source, c), -1) for c in range(components(kind))]
    part = {"sum": _sum, "mean": _mean, "var": _variance, "std": _variance}.get(agg.function, _extreme)

    def final(s: States) -> Column:
        parts = [part(s, agg, source[1], at, window, _counts(s, nulls), result) for at, window in zip(places, windows, strict=True)]
        return _masked(_assemble(parts, result), s, nulls)

    return final


def _counts(s: States, nulls: int) -> NDArray[np.uint64]:
    """Values of each group that are not null."""
    return s.rows() - s.word(s.base + nulls) if s.has_nulls(nulls) else s.rows()


def _masked(values: NDArray[Any], s: States, nulls: int) -> FixedColumn:
    return FixedColumn(values, _counts(s, nulls) > 0 if s.has_nulls(nulls) else None)


def _assemble(parts: list[NDArray[Any]], kind: ColumnType) -> NDArray[Any]:
    """Component results side by side, in the shape of a row's value."""
    n = len(parts[0])
    if len(parts) == 1 and not kind.shape:
        return np.ascontiguousarray(parts[0].astype(kind.np_dtype, copy=False))
    whole = np.stack(parts, axis=1)
    if kind.np_dtype.kind == "c":
        whole = np.ascontiguousarray(whole, np.float64).view(np.complex128)
    return np.ascontiguousarray(whole.reshape((n, *kind.shape)).astype(kind.np_dtype, copy=False))


def _sum(s: States, agg: Agg, letter: str, at: tuple[int, ...], window: int, counts: NDArray[np.uint64], kind: ColumnType) -> NDArray[Any]:
    from hpcmr.kernels.finish import final_int_sum, final_sum

    if letter == "f":
        out = room(s.count, np.float64)
        final_sum(s.words, s.base + at[0], s.stride, s.count, s.wide, out)
        return out
    whole = room(s.count, np.int64)
    signed = kind.np_dtype.kind == "i" and letter == "i"
    bad = final_int_sum(s.words, s.base + at[0], s.stride, s.count, signed, whole)
    if bad < 0 and letter == "u" and kind.np_dtype.kind == "i" and (whole < 0).any():
        bad = int(np.argmax(whole < 0))
    if bad >= 0:
        low, high = (int(s.words[bad * s.stride + s.base + at[0] + i]) for i in (0, 1))
        total = low + (high << 64) - ((1 << 128) if signed and high >> 63 else 0)
        raise DataError(f"sum({agg.column!r}) of a group is {total}, which does not fit in {kind}; sum it as float64", record=bad)
    return whole.view(np.uint64) if kind.np_dtype.kind == "u" else whole


def _mean(s: States, agg: Agg, letter: str, at: tuple[int, ...], window: int, counts: NDArray[np.uint64], kind: ColumnType) -> NDArray[Any]:
    from hpcmr.kernels.finish import final_mean, final_mean_int

    out = room(s.count, np.float64)
    (final_mean if letter == "f" else final_mean_int)(s.words, s.base + at[0], s.stride, s.count, counts, s.wide, s.used, out)
    return out


def _variance(s: States, agg: Agg, letter: str, at: tuple[int, ...], window: int, counts: NDArray[np.uint64], kind: ColumnType) -> NDArray[Any]:
    from hpcmr.kernels.finish import final_variance

    out = room(s.count, np.float64)
    ddof = int(agg.option("ddof", 1))
    final_variance(s.words, s.base + at[0], s.base + at[1], s.stride, s.count, counts, ddof, s.wide, s.used, out, agg.function == "std")
    return out


def _extreme(s: States, agg: Agg, letter: str, at: tuple[int, ...], window: int, counts: NDArray[np.uint64], kind: ColumnType) -> NDArray[Any]:
    from hpcmr.kernels.finish import final_extreme, final_words

    if letter == "f":
        out = room(s.count, np.float64)
        final_extreme(s.words, s.base + at[0], s.base + window if window >= 0 else -1, s.stride, s.count, out)
        return out
    raw = room(s.count, np.uint64)
    final_words(s.words, s.base + at[0], s.stride, s.count, raw)
    return raw.view(kind.np_dtype) if kind.np_dtype.kind in "mM" else raw.view(np.int64) if letter == "i" else raw


def _values(s: States, at: int, kind: ColumnType) -> NDArray[Any]:
    raw = s.words[:s.count * s.stride].reshape(s.count, s.stride)[:, s.base + at:s.base + at + components(kind)].copy()
    wide = {"f": "float64", "c": "complex128", "i": "int64", "m": kind.dtype, "M": kind.dtype}.get(kind.np_dtype.kind, "uint64")
    return np.ascontiguousarray(raw.view(wide).reshape((s.count, *kind.shape)).astype(kind.np_dtype, copy=False))


def _strings(s: States, at: int, kind: ColumnType, nulls: int) -> Column:
    strings = decode_strings(s.words, s.stride, s.base + at, s.count, s.long, kind.kind == "text")
    strings.valid = _counts(s, nulls) > 0 if s.has_nulls(nulls) else None
    return fixed_strings(strings, kind) if kind.is_fixed else strings
