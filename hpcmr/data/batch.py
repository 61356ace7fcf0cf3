"""Columns and batches: equal-length columns that travel together.

A column of strings is *views into bytes*: row i is ``data[starts[i]:ends[i]]``. A column read from ``offsets`` is the case
``starts = offsets[:-1], ends = offsets[1:]``; words found in a block of text are views on that block, and nothing is copied
until a column must stand on its own (`compact`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.schema import BYTES, TEXT, ColumnType, Field, Schema
from hpcmr.errors import DataError

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


class FixedColumn:
    """Values of a fixed width: ``values (n, *shape)``, ``valid (n,) bool`` or None where all are valid."""

    __slots__ = ("valid", "values")

    def __init__(self, values: NDArray[Any], valid: Mask | None = None) -> None:
        self.values = values
        self.valid = valid

    def __len__(self) -> int:
        return len(self.values)

    @property
    def type(self) -> ColumnType:
        return ColumnType.fixed(self.values.dtype, self.values.shape[1:])

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes) + (0 if self.valid is None else int(self.valid.nbytes))

    def slice(self, start: int, stop: int) -> FixedColumn:
        return FixedColumn(self.values[start:stop], None if self.valid is None else self.valid[start:stop])

    def take(self, rows: Index) -> FixedColumn:
        return FixedColumn(self.values[rows], None if self.valid is None else self.valid[rows])

    def compact(self) -> FixedColumn:
        return FixedColumn(np.ascontiguousarray(self.values), self.valid)

    def to_list(self) -> list[Any]:
        return _with_nulls(self.values.tolist(), self.valid)


class BytesColumn:
    """Strings as views: row i is ``data[starts[i]:ends[i]]``; `text` tells bytes from text (UTF-8, not checked)."""

    __slots__ = ("data", "ends", "starts", "text", "valid")

    def __init__(self, starts: Index, ends: Index, data: NDArray[np.uint8], text: bool, valid: Mask | None = None) -> None:
        self.starts = starts
        self.ends = ends
        self.data = data
        self.text = text
        self.valid = valid

    @classmethod
    def from_offsets(cls, offsets: Index, data: NDArray[np.uint8], text: bool, valid: Mask | None = None) -> BytesColumn:
        return cls(offsets[:-1], offsets[1:], data, text, valid)

    @classmethod
    def from_list(cls, values: Sequence[bytes | str | None], text: bool) -> BytesColumn:
        raw = [b"" if v is None else v.encode("utf-8", "surrogateescape") if isinstance(v, str) else bytes(v) for v in values]
        offsets = np.zeros(len(raw) + 1, np.int64)
        np.cumsum([len(r) for r in raw], out=offsets[1:])
        valid = np.array([v is not None for v in values], np.bool_) if any(v is None for v in values) else None
        return cls.from_offsets(offsets, np.frombuffer(b"".join(raw), np.uint8), text, valid)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def type(self) -> ColumnType:
        return TEXT if self.text else BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' own data and of their places, not of the buffer that they are views on."""
        return int((self.ends - self.starts).sum()) + 16 * len(self)

    def slice(self, start: int, stop: int) -> BytesColumn:
        valid = None if self.valid is None else self.valid[start:stop]
        return BytesColumn(self.starts[start:stop], self.ends[start:stop], self.data, self.text, valid)

    def take(self, rows: Index) -> BytesColumn:
        return BytesColumn(self.starts[rows], self.ends[rows], self.data, self.text, None if self.valid is None else self.valid[rows])

    def offsets(self) -> Index:
        """Offsets ``(n + 1,) int64`` of the compact form, from 0."""
        out = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.ends - self.starts, out=out[1:])
        return out

    def compact(self) -> BytesColumn:
        """The same rows, in order and without gaps in a buffer of their own."""
        n = len(self)
        if n == 0:
            return BytesColumn(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8), self.text, self.valid)
        if bool((self.starts[1:] == self.ends[:-1]).all()):
            first = int(self.starts[0])
            data = self.data[first:int(self.ends[-1])]
            return BytesColumn(self.starts - first, self.ends - first, data, self.text, self.valid)
        from hpcmr.kernels.strings import gather_bytes

        offsets = self.offsets()
        data = np.empty(int(offsets[-1]), np.uint8)
        gather_bytes(np.ascontiguousarray(self.starts), np.ascontiguousarray(self.ends), self.data, offsets, data)
        return BytesColumn.from_offsets(offsets, data, self.text, self.valid)

    def to_list(self) -> list[Any]:
        whole = self.compact()
        raw = whole.data.tobytes()
        rows = [raw[a:b] for a, b in zip(whole.starts.tolist(), whole.ends.tolist(), strict=True)]
        return _with_nulls([r.decode("utf-8", "surrogateescape") for r in rows] if self.text else rows, self.valid)


class ListColumn:
    """Lists as views: row i is ``child[starts[i]:ends[i]]``."""

    __slots__ = ("child", "ends", "starts", "valid")

    def __init__(self, starts: Index, ends: Index, child: Column, valid: Mask | None = None) -> None:
        self.starts = starts
        self.ends = ends
        self.child = child
        self.valid = valid

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def type(self) -> ColumnType:
        return ColumnType("list", item=self.child.type)

    @property
    def nbytes(self) -> int:
        return self.child.nbytes + 16 * len(self)

    def slice(self, start: int, stop: int) -> ListColumn:
        return ListColumn(self.starts[start:stop], self.ends[start:stop], self.child, None if self.valid is None else self.valid[start:stop])

    def take(self, rows: Index) -> ListColumn:
        return ListColumn(self.starts[rows], self.ends[rows], self.child, None if self.valid is None else self.valid[rows])

    def offsets(self) -> Index:
        out = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.ends - self.starts, out=out[1:])
        return out

    def compact(self) -> ListColumn:
        offsets = self.offsets()
        lengths = np.diff(offsets)
        rows = np.arange(int(offsets[-1]), dtype=np.int64) + np.repeat(self.starts - offsets[:-1], lengths)
        return ListColumn(offsets[:-1], offsets[1:], self.child.take(rows).compact(), self.valid)

    def to_list(self) -> list[Any]:
        whole = self.compact()
        items = whole.child.to_list()
        return _with_nulls([items[a:b] for a, b in zip(whole.starts.tolist(), whole.ends.tolist(), strict=True)], self.valid)


Column = FixedColumn | BytesColumn | ListColumn


def _with_nulls(values: list[Any], valid: Mask | None) -> list[Any]:
    return values if valid is None else [v if ok else None for v, ok in zip(values, valid.tolist(), strict=True)]


def empty_column(kind: ColumnType) -> Column:
    none = np.zeros(0, np.int64)
    if kind.is_fixed:
        return FixedColumn(np.zeros((0, *kind.shape), kind.np_dtype))
    if kind.kind == "list":
        assert kind.item is not None
        return ListColumn(none, none, empty_column(kind.item))
    return BytesColumn(none, none, np.zeros(0, np.uint8), kind.kind == "text")


def concat_columns(columns: Sequence[Column]) -> Column:
    """One column after the other, of one type, in buffers of their own."""
    if len(columns) == 1:
        return columns[0]
    valid = None
    if any(c.valid is not None for c in columns):
        valid = np.concatenate([np.ones(len(c), np.bool_) if c.valid is None else c.valid for c in columns])
    first = columns[0]
    if isinstance(first, FixedColumn):
        return FixedColumn(np.concatenate([c.values for c in columns]), valid)  # type: ignore[union-attr]
    whole = [c.compact() for c in columns]
    lengths = [len(c.data) if isinstance(c, BytesColumn) else len(c.child) for c in whole]  # type: ignore[union-attr]
    base = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = np.concatenate([c.starts + b for c, b in zip(whole, base[:-1], strict=True)])  # type: ignore[union-attr]
    ends = np.concatenate([c.ends + b for c, b in zip(whole, base[:-1], strict=True)])  # type: ignore[union-attr]
    if isinstance(first, BytesColumn):
        return BytesColumn(starts, ends, np.concatenate([c.data for c in whole]), first.text, valid)  # type: ignore[union-attr]
    return ListColumn(starts, ends, concat_columns([c.child for c in whole]), valid)  # type: ignore[union-attr]


def column_of(values: Any) -> Column:
    """The column of an array, or of a list of Python scalars, strings, bytes or lists of these.

    NumPy strings become text; masked arrays carry their mask as nulls; objects must all be str, bytes, bool, int, float or lists of these.
    """
    if isinstance(values, FixedColumn | BytesColumn | ListColumn):
        return values
    if isinstance(values, np.ma.MaskedArray):
        inner = column_of(np.asarray(values.data))
        inner.valid = ~np.ma.getmaskarray(values)
        return inner
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        if values.ndim == 0:
            raise DataError("a column needs at least one axis, this value is a scalar")
        if values.dtype.kind not in "mM" and values.dtype.byteorder not in "=|" and not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        ColumnType.fixed(values.dtype)
        return FixedColumn(values)
    items = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return column_of_list(items)


def column_of_list(items: list[Any]) -> Column:
    """Typed column of Python values; None is a null. Raises `DataError` where types do not go together."""
    kinds = {type(v) for v in items if v is not None}
    if not kinds:
        return FixedColumn(np.zeros(len(items)), np.zeros(len(items), np.bool_) if items else None)
    if kinds <= {str, np.str_}:
        return BytesColumn.from_list(items, text=True)
    if kinds <= {bytes, np.bytes_, bytearray, memoryview}:
        return BytesColumn.from_list(items, text=False)
    valid = np.array([v is not None for v in items], np.bool_) if any(v is None for v in items) else None
    if kinds <= {list}:
        lengths = np.array([0 if v is None else len(v) for v in items], np.int64)
        ends = np.cumsum(lengths)
        return ListColumn(ends - lengths, ends, column_of_list([x for v in items if v is not None for x in v]), valid)
    if all(issubclass(k, bool | np.bool_) for k in kinds):
        return FixedColumn(np.array([bool(v) for v in items], np.bool_), valid)
    if all(issubclass(k, int | np.integer) and not issubclass(k, bool) for k in kinds):
        try:
            return FixedColumn(np.array([0 if v is None else int(v) for v in items], np.int64), valid)
        except OverflowError:
            big = max((v for v in items if v is not None), key=abs)
            raise DataError(f"the integer {big} does not fit in 64 bits") from None
    if all(issubclass(k, int | float | np.integer | np.floating) and not issubclass(k, bool) for k in kinds):
        return FixedColumn(np.array([0.0 if v is None else float(v) for v in items], np.float64), valid)
    if all(issubclass(k, np.ndarray) for k in kinds):
        return FixedColumn(np.stack(items))
    raise DataError(f"values of types {', '.join(sorted(k.__name__ for k in kinds))} do not make one column; "
                    "a column holds bool, int, float, str, bytes or lists of one of these")


class Batch:
    """Equal-length columns by name.

    Parameters
    ----------
    columns : mapping of str to Column
    nrows : int, optional
        Needed only where there is no column.
    """

    __slots__ = ("columns", "nrows")

    def __init__(self, columns: Mapping[str, Column], nrows: int | None = None) -> None:
        self.columns: dict[str, Column] = dict(columns)
        lengths = {len(c) for c in self.columns.values()}
        if len(lengths) > 1:
            raise DataError("columns of unequal length: " + ", ".join(f"{n} has {len(c):,} rows" for n, c in self.columns.items()))
        self.nrows = lengths.pop() if lengths else int(nrows or 0)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Batch:
        """A batch of arrays or lists, each turned into a column by `column_of`."""
        return cls({n: column_of(v) for n, v in values.items()})

    @classmethod
    def empty(cls, schema: Schema) -> Batch:
        return cls({f.name: empty_column(f.type) for f in schema})

    def __len__(self) -> int:
        return self.nrows

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def schema(self) -> Schema:
        return Schema(tuple(Field(n, c.type) for n, c in self.columns.items()))

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for c in self.columns.values())

    def _each(self, change: Callable[[Column], Column], nrows: int) -> Batch:
        return Batch({n: change(c) for n, c in self.columns.items()}, nrows)

    def slice(self, start: int, stop: int) -> Batch:
        start, stop = min(start, self.nrows), min(stop, self.nrows)
        return self._each(lambda c: c.slice(start, stop), stop - start)

    def take(self, rows: Index) -> Batch:
        return self._each(lambda c: c.take(rows), len(rows))

    def compact(self) -> Batch:
        return self._each(lambda c: c.compact(), self.nrows)

    def select(self, names: Iterable[str]) -> Batch:
        return Batch({n: self.columns[n] for n in names}, self.nrows)

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """All rows, in the order of the batches, which must have the same columns."""
        if len(batches) == 1:
            return batches[0]
        return Batch({n: concat_columns([b.columns[n] for b in batches]) for n in batches[0].columns}, sum(b.nrows for b in batches))

    def to_pydict(self) -> dict[str, list[Any]]:
        """Python values by column: text as str (undecodable bytes escaped as `surrogateescape` does), nulls as None."""
        return {n: c.to_list() for n, c in self.columns.items()}

    def check(self, schema: Schema) -> None:
        """Raise `DataError` unless this batch has the columns and types of `schema`."""
        if self.schema != schema:
            raise DataError(f"a batch with columns {', '.join(f'{f.name}: {f.type}' for f in self.schema)} was expected to have "
                            f"{', '.join(f'{f.name}: {f.type}' for f in schema)}")
