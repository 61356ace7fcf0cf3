"""Rows as plain Python values, and back: what the slow speed is made of.

A row of one column is the value itself, other rows are named tuples. Text is str (undecodable bytes escaped as
`surrogateescape` does), bytes are bytes, nulls are None, a row of a column with a shape is a NumPy array.

Tuples and dicts have no column type of their own. They are laid flat into columns whose names say how they are put together
again: a tuple in column ``value`` becomes ``value.0``, ``value.1``; a dict ``value.mass``, ``value.x``; a list of tuples gives
the lists ``value[].0``, ``value[].1``. What was returned as a tuple is a tuple again where plain Python sees the row next.
"""

from __future__ import annotations

import datetime
from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn, column_of_list
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import DataError

Row = Any


class ValueTrouble(Exception):
    """A value that does not fit, and the place of it among the values at hand. The caller says whose fault it is."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index
        self.message = message


# ---- columns to rows -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def row_type(names: tuple[str, ...]) -> Any:
    """Named tuple class of rows with these columns; names that are no identifiers are reached by position."""
    made = namedtuple("Row", names, rename=True)  # type: ignore[misc]
    made.__reduce__ = lambda row: (_row, (names, tuple(row)))  # type: ignore[method-assign,assignment,misc,arg-type]
    return made


def _row(names: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    """A row that comes from another rank: its class is made here."""
    return row_type(names)._make(values)


def values_of(column: Column) -> list[Any]:
    """Python values of a column: scalars, str, bytes, lists; dates as `numpy.datetime64`, shaped values as arrays."""
    if isinstance(column, FixedColumn) and (column.values.dtype.kind in "mM" or column.values.ndim > 1):
        values = list(column.values)
        return values if column.valid is None else [v if ok else None for v, ok in zip(values, column.valid.tolist(), strict=True)]
    return column.to_list()


def rows_of(batch: Batch) -> list[Row]:
    """The rows of a batch: values where there is one column, named tuples otherwise."""
    fields = _assembled({name: values_of(column) for name, column in batch.columns.items()})
    if len(fields) == 1:
        return next(iter(fields.values()))
    return list(map(row_type(tuple(fields))._make, zip(*fields.values(), strict=True))) if fields else [()] * batch.nrows


def _assembled(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Columns ``a.0``, ``a.1`` or ``a[].x`` put together under ``a``; the others as they are."""
    if not any("." in name for name in columns):
        return columns
    out: dict[str, list[Any]] = {}
    groups: dict[str, dict[str, list[Any]]] = {}
    for name, values in columns.items():
        head, dot, tail = name.partition(".")
        if dot and head and tail:
            groups.setdefault(head, {})[tail] = values
            out.setdefault(head.removesuffix("[]"), [])
        else:
            out[name] = values
    for head, parts in groups.items():
        name = head.removesuffix("[]")
        whole = _records(_assembled(parts)) if not head.endswith("[]") else _records_in_lists(parts)
        out[name] = whole
    return out


def _records(parts: dict[str, list[Any]]) -> list[Any]:
    rows = zip(*parts.values(), strict=True)
    if list(parts) == [str(i) for i in range(len(parts))]:
        return list(rows)
    return [dict(zip(parts, row, strict=True)) for row in rows]


def _records_in_lists(parts: dict[str, list[Any]]) -> list[Any]:
    return [_records(_assembled(dict(zip(parts, lists, strict=True)))) for lists in zip(*parts.values(), strict=True)]


# ---- rows to columns -------------------------------------------------------------------------------------------------------


def columns_of_rows(rows: Sequence[Any], declared: Schema | None = None) -> Batch:
    """Typed columns of what a function returned.

    A scalar is the column `value`, a tuple of two is `key` and `value`, a dict or a named tuple names its columns. With
    `declared` values are encoded as those types, in its order of columns, else types are found from the values.
    Raises `ValueTrouble` with the place of the first value that does not fit.
    """
    named = _named(rows, declared)
    out: dict[str, Column] = {}
    targets = {f.name: f.type for f in declared} if declared is not None else {}
    for name, values in named.items():
        _encode(name, values, targets, out)
    if declared is not None:
        _same_names(out, declared, rows)
        out = {name: out[name] for name in declared.names}
    return Batch(out, len(rows))


def _named(rows: Sequence[Any], declared: Schema | None) -> dict[str, list[Any]]:
    kind = _uniform(rows, "the function returned")
    first = rows[0]
    if first is None and kind is None:
        raise ValueTrouble(0, "returned None; return a value, a (key, value) tuple or a dict of columns")
    if kind == "dict":
        return _dict_columns(rows, "")
    if kind == "named tuple":
        return dict(zip(first._fields, map(list, zip(*rows, strict=True)), strict=True))
    if kind == "tuple":
        bad = next((i for i, r in enumerate(rows) if len(r) != 2), None)
        if bad is not None:
            raise ValueTrouble(bad, f"returned a tuple of {len(rows[bad])}; a tuple is (key, value), other columns are named by returning a dict")
        return {"key": [r[0] for r in rows], "value": [r[1] for r in rows]}
    names = [n for n in declared.names if "." not in n] if declared is not None else []
    return {names[0] if declared is not None and len(declared) == 1 and names else "value": list(rows)}


def _shape_of(value: Any) -> str | None:
    """What decides how a value is laid into columns."""
    if isinstance(value, tuple):
        return "named tuple" if hasattr(value, "_fields") else "tuple"
    if isinstance(value, dict):
        return "dict"
    if isinstance(value, list):
        return "list"
    return None


def _uniform(values: Sequence[Any], what: str) -> str | None:
    """The common shape of values; nulls go with scalars only."""
    types = set(map(type, values))
    shapes = {_shape_of(v) for v in _one_of_each(values, types)}
    if len(shapes) == 1:
        return shapes.pop()
    first = _shape_of(values[0])
    bad = next(i for i, v in enumerate(values) if _shape_of(v) != first)
    raise ValueTrouble(bad, f"{what} {describe(values[bad])} here and {describe(values[0])} {bad} records before")


def _one_of_each(values: Sequence[Any], types: set[type]) -> list[Any]:
    found: dict[type, Any] = {}
    for v in values:
        if type(v) not in found:
            found[type(v)] = v
            if len(found) == len(types):
                break
    return list(found.values())


def _dict_columns(rows: Sequence[Any], prefix: str) -> dict[str, list[Any]]:
    keys = list(rows[0])
    for i, r in enumerate(rows):
        if r.keys() != rows[0].keys():
            raise ValueTrouble(i, f"returned a dict with the keys {', '.join(map(repr, r)) or 'none'}, "
                                  f"before with {', '.join(map(repr, keys)) or 'none'}")
    for k in keys:
        if not isinstance(k, str) or not k:
            raise ValueTrouble(0, f"returned a dict with the key {k!r}; keys name columns and are str")
    if not keys:
        raise ValueTrouble(0, "returned an empty dict; a row has at least one column")
    return {prefix + k: [r[k] for r in rows] for k in keys}


def _encode(name: str, values: list[Any], targets: dict[str, ColumnType], out: dict[str, Column]) -> None:
    """Lay the values of one column flat into `out`."""
    if name in targets and targets[name].is_fixed and targets[name].shape:
        out[name] = encode_values(values, targets[name], name)
        return
    present = [v for v in values if v is not None]
    kind = _shape_of(present[0]) if present else None
    if kind in ("tuple", "named tuple", "dict"):
        _encode_records(name, values, kind, targets, out)
    elif kind == "list" and _shape_of(next((x for v in present if isinstance(v, list) for x in v), None)) in _RECORDS:
        _encode_record_lists(name, values, targets, out)
    else:
        out[name] = encode_values(values, targets.get(name), name)


_RECORDS = ("tuple", "named tuple", "dict")


def _encode_records(name: str, values: list[Any], kind: str, targets: dict[str, ColumnType], out: dict[str, Column]) -> None:
    for i, v in enumerate(values):
        if _shape_of(v) != kind:
            raise ValueTrouble(i, f"column {name!r} got {describe(v)}, before {describe(values[0])}")
    if kind == "dict":
        for key, column in _dict_columns(values, name + ".").items():
            _encode(key, column, targets, out)
        return
    width = len(values[0])
    bad = next((i for i, v in enumerate(values) if len(v) != width), None)
    if bad is not None:
        raise ValueTrouble(bad, f"column {name!r} got a tuple of {len(values[bad])}, before of {width}; values of any number are a list")
    if not width:
        raise ValueTrouble(0, f"column {name!r} got an empty tuple")
    labels = values[0]._fields if kind == "named tuple" else map(str, range(width))
    for j, label in enumerate(labels):
        _encode(f"{name}.{label}", [v[j] for v in values], targets, out)


def _encode_record_lists(name: str, values: list[Any], targets: dict[str, ColumnType], out: dict[str, Column]) -> None:
    _uniform(values, f"column {name!r} got")
    lengths = np.array([len(v) for v in values], np.int64)
    ends = np.cumsum(lengths)
    inner: dict[str, Column] = {}
    items = {k: t.item for k, t in targets.items() if t.kind == "list" and t.item is not None}
    try:
        _encode(name + "[]", [x for v in values for x in v], items, inner)
    except ValueTrouble as trouble:
        raise ValueTrouble(int(np.searchsorted(ends, trouble.index, side="right")), trouble.message) from None
    for key, child in inner.items():
        out[key] = ListColumn(ends - lengths, ends, child)


def _same_names(found: dict[str, Column], declared: Schema, rows: Sequence[Any]) -> None:
    if set(found) != set(declared.names):
        raise ValueTrouble(0, f"returned {describe(rows[0])}, which makes the columns {', '.join(map(repr, found))}; "
                              f"expected {', '.join(map(repr, declared.names))}")


def columns_of_values(values: list[Any], name: str, declared: Schema | None = None) -> Batch:
    """Columns of values that are not rows: the column `name`, with tuples laid flat (`name.0`), or the columns that dicts name."""
    targets = {f.name: f.type for f in declared} if declared is not None else {}
    if declared is not None and len(declared) == 1 and "." not in declared.names[0]:
        name = declared.names[0]
    parts = _dict_columns(values, "") if _uniform(values, "the function returned") == "dict" else {name: values}
    out: dict[str, Column] = {}
    for part, items in parts.items():
        _encode(part, items, targets, out)
    if declared is not None:
        _same_names(out, declared, values)
    return Batch(out, len(values))


def values_like(values: list[Any], schema: Schema) -> Batch:
    """Columns of `schema` from values as `rows_of` shows its rows: the value, or tuples, named tuples or dicts of them."""
    targets = {f.name: f.type for f in schema}
    fields = list(_assembled({n: [] for n in schema.names}))
    parts: dict[str, list[Any]] = {fields[0]: values}
    if len(fields) > 1:
        for i, v in enumerate(values):
            if not (isinstance(v, tuple) and len(v) == len(fields)) and not (isinstance(v, dict) and v.keys() == set(fields)):
                raise ValueTrouble(i, f"returned {describe(v)}; expected a tuple or a dict of {', '.join(fields)}")
        parts = {f: [v[f] if isinstance(v, dict) else v[j] for v in values] for j, f in enumerate(fields)}
    out: dict[str, Column] = {}
    for name, items in parts.items():
        _encode(name, items, targets, out)
    return cast_batch(Batch(out, len(values)), schema, True)


# ---- values of one column --------------------------------------------------------------------------------------------------


def encode_values(values: list[Any], target: ColumnType | None, name: str) -> Column:
    """The column of Python values: of `target` if given (ints are checked for range), else of the type that the values have."""
    if target is None:
        return _found(values, name)
    kinds = set(map(type, values))
    if target.is_fixed and not target.shape and target.np_dtype.kind in "iu" and kinds <= {int}:
        try:
            return FixedColumn(np.array(values, target.np_dtype))
        except OverflowError:
            limits = np.iinfo(target.np_dtype)
            bad = next(i for i, v in enumerate(values) if not limits.min <= v <= limits.max)
            raise ValueTrouble(bad, f"column {name!r}: {values[bad]} does not fit in {target}") from None
    return cast(_found(values, name), target, name)


def _found(values: list[Any], name: str) -> Column:
    kinds = set(map(type, values)) - {type(None)}
    groups = {_group_of(k) for k in kinds}
    if len(groups) > 1:
        first = next(i for i, v in enumerate(values) if v is not None)
        expected = _group(values[first])
        bad = next(i for i, v in enumerate(values) if v is not None and _group(v) != expected)
        raise ValueTrouble(bad, f"column {name!r} got {describe(values[bad])}, {bad - first} records before it got {describe(values[first])}; "
                                "the values of a column are of one type")
    group = groups.pop() if groups else "nothing"
    valid = np.array([v is not None for v in values], np.bool_) if any(v is None for v in values) else None
    if group == "date":
        return _dates(values, valid)
    if group == "duration":
        return FixedColumn(np.array([np.timedelta64("NaT") if v is None else v for v in values], "timedelta64"), valid)
    if group == "complex":
        return FixedColumn(np.array([0 if v is None else v for v in values], np.complex128), valid)
    if group == "array":
        return _stacked(values, name)
    if group == "number":
        return _numbers(values, valid, name)
    if group == "list":
        return _lists(values, valid, name)
    if group.startswith("object "):
        bad = next(i for i, v in enumerate(values) if v is not None)
        raise ValueTrouble(bad, f"column {name!r} got {describe(values[bad])}; a column holds bool, int, float, complex, str, bytes, dates, "
                                "arrays, and tuples, dicts or lists of these")
    try:
        return column_of_list(values)
    except DataError as error:
        raise ValueTrouble(0, f"column {name!r}: {error}") from None


_GROUPS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("bool", (bool, np.bool_)), ("duration", (datetime.timedelta, np.timedelta64)), ("number", (int, float, np.integer, np.floating)),
    ("complex", (complex, np.complexfloating)), ("str", (str,)), ("bytes", (bytes, bytearray, memoryview)),
    ("date", (datetime.date, np.datetime64)), ("list", (list,)), ("array", (np.ndarray,)))


@lru_cache(maxsize=1024)
def _group_of(kind: type) -> str:
    """Types of one group make one column."""
    for group, members in _GROUPS:
        if issubclass(kind, members):
            return group
    return f"object {kind.__name__}"


def _dates(values: list[Any], valid: NDArray[np.bool_] | None) -> Column:
    """Dates in their own unit: days, microseconds of `datetime`, or what `numpy.datetime64` values have in common."""
    found = np.array([np.datetime64("NaT") if v is None else np.datetime64(v) for v in values])
    return FixedColumn(found if found.dtype != np.dtype("datetime64") else found.astype("datetime64[ns]"), valid)


def _group(value: object) -> str:
    return _group_of(type(value))  # type: ignore[arg-type]


def _numbers(values: list[Any], valid: NDArray[np.bool_] | None, name: str) -> Column:
    """Integers and floats: int64, uint64 where only that holds them, float64 where there is a float among them."""
    if any(isinstance(v, float | np.floating) for v in _one_of_each(values, set(map(type, values)))):
        return FixedColumn(np.array([0.0 if v is None else _float(v, i, name) for i, v in enumerate(values)], np.float64), valid)
    whole = [0 if v is None else int(v) for v in values]
    for dtype in (np.int64, np.uint64):
        try:
            return FixedColumn(np.array(whole, dtype), valid)
        except OverflowError:
            continue
    bad = max(range(len(whole)), key=lambda i: abs(whole[i]))
    raise ValueTrouble(bad, f"column {name!r}: the integer {whole[bad]} and those around it do not fit in 64 bits")


def _float(value: Any, index: int, name: str) -> float:
    try:
        out = float(value)
    except OverflowError:
        raise ValueTrouble(index, f"column {name!r}: the integer {value} is too large for a float") from None
    if out != value and out == out:
        raise ValueTrouble(index, f"column {name!r} holds floats and the integer {value}, which a float64 cannot hold exactly")
    return out


def _stacked(values: list[Any], name: str) -> Column:
    first = values[0]
    for i, v in enumerate(values):
        if v is None or v.shape != first.shape:
            raise ValueTrouble(i, f"column {name!r} got {describe(v)}, before {describe(first)}; arrays of a column have one shape")
    whole = np.stack(values)
    if whole.dtype.kind not in "biufcSmM":
        raise ValueTrouble(0, f"column {name!r} got an array of dtype {whole.dtype}; arrays hold numbers, bool or dates")
    return FixedColumn(whole)


def _lists(values: list[Any], valid: NDArray[np.bool_] | None, name: str) -> Column:
    lengths = np.array([0 if v is None else len(v) for v in values], np.int64)
    ends = np.cumsum(lengths)
    try:
        child = _found([x for v in values if v is not None for x in v], name)
    except ValueTrouble as trouble:
        raise ValueTrouble(int(np.searchsorted(ends, trouble.index, side="right")), trouble.message) from None
    return ListColumn(ends - lengths, ends, child, valid)


def describe(value: Any) -> str:
    """A value and its type for a message: ``a str ('abc')``."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0] in "aeiou" else "a"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    text = repr(value)
    return f"{article} {name} ({text if len(text) <= 60 else text[:57] + '...'})"


# ---- safe casts ------------------------------------------------------------------------------------------------------------


def cast(column: Column, target: ColumnType, name: str, declared: bool = True) -> Column:
    """`column` as `target`, or `ValueTrouble` with the first row that does not fit.

    Integers go to any integer type that holds them, integers and floats to floats; a float type narrower than the values is
    taken only if it was declared (it rounds); text and bytes are never guessed into one another. A column of nulls, or of
    empty lists, fits any type.
    """
    if column.type == target:
        return column
    if isinstance(column, FixedColumn) and column.valid is not None and not column.valid.any():
        return _nulls(target, len(column))
    if isinstance(column, ListColumn) and target.kind == "list" and target.item is not None:
        return _cast_list(column, target.item, name, declared)
    if isinstance(column, BytesColumn) and target.is_fixed and target.np_dtype.kind == "S" and not target.shape:
        return _fixed_width(column, target, name)
    if not isinstance(column, FixedColumn) or not target.is_fixed or column.values.shape[1:] != target.shape:
        raise ValueTrouble(0, _mismatch(column, target, name))
    return FixedColumn(_cast_values(column, target, name, declared), column.valid)


def _mismatch(column: Column, target: ColumnType, name: str) -> str:
    return f"column {name!r} is {column.type} here, expected {target}; declare its type with out={{{name!r}: ...}} or return one type"


def _nulls(target: ColumnType, n: int) -> Column:
    none, zeros = np.zeros(n, np.bool_), np.zeros(n, np.int64)
    if target.is_fixed:
        return FixedColumn(np.zeros((n, *target.shape), target.np_dtype), none)
    if target.kind == "list":
        assert target.item is not None
        return ListColumn(zeros, zeros, _nulls(target.item, 0), none)
    return BytesColumn(zeros, zeros, np.zeros(0, np.uint8), target.kind == "text", none)


def _cast_list(column: ListColumn, item: ColumnType, name: str, declared: bool) -> Column:
    whole = column.compact()
    try:
        child = cast(whole.child, item, name, declared) if len(whole.child) else _nulls(item, 0)
    except ValueTrouble as trouble:
        raise ValueTrouble(int(np.searchsorted(whole.ends, trouble.index, side="right")), trouble.message) from None
    if not len(whole.child) and isinstance(child, FixedColumn | BytesColumn | ListColumn):
        child.valid = None
    return ListColumn(whole.starts, whole.ends, child, column.valid)


def _fixed_width(column: BytesColumn, target: ColumnType, name: str) -> Column:
    width = target.np_dtype.itemsize
    lengths = column.ends - column.starts
    if len(column) and int(lengths.max()) > width:
        bad = int(np.argmax(lengths > width))
        raise ValueTrouble(bad, f"column {name!r}: a string of {int(lengths[bad])} bytes does not fit in {target}")
    raw = BytesColumn(column.starts, column.ends, column.data, False).to_list()
    return FixedColumn(np.array(raw, target.np_dtype), column.valid)


def _cast_values(column: FixedColumn, target: ColumnType, name: str, declared: bool) -> NDArray[Any]:
    values, dtype = column.values, target.np_dtype
    a, b = values.dtype.kind, dtype.kind
    if a == b == "S" or (a == b and a in "mM"):
        allowed = np.can_cast(values.dtype, dtype, "safe")
    else:
        allowed = f"{a}{b}" in _DECLARED or (not declared and np.can_cast(values.dtype, dtype, "safe"))
    if not allowed:
        raise ValueTrouble(0, _mismatch(column, target, name))
    if not declared and b in "fc" and a in "fc" and not np.can_cast(values.dtype, dtype, "safe"):
        raise ValueTrouble(0, _mismatch(column, target, name))
    with np.errstate(all="ignore"):
        out = values.astype(dtype)
        if a in "iu" and (b in "iu" or not declared):
            _exact(values, out, column, target, name)
    return out


_DECLARED = {"ii", "iu", "ui", "uu", "if", "uf", "ic", "uc", "ff", "fc", "cc"}


def _exact(values: NDArray[Any], out: NDArray[Any], column: FixedColumn, target: ColumnType, name: str) -> None:
    """Integers must come back; a change of sign shows beside the value, a float at the edge of 64 bits must not wrap."""
    real = out.real
    same = (real.astype(values.dtype) == values) & ((real < 0) == (values < 0))
    if out.dtype.kind in "fc" and values.dtype.itemsize == 8:
        same &= np.abs(real) < (2.0 ** 64 if values.dtype.kind == "u" else 2.0 ** 63)
    if column.valid is not None:
        same |= ~column.valid.reshape(-1, *(1,) * (values.ndim - 1))
    if not same.all():
        bad = int(np.argmin(same.reshape(len(same), -1).all(axis=1)))
        raise ValueTrouble(bad, f"column {name!r}: {values[bad]} does not fit in {target} without a change")


def cast_batch(batch: Batch, schema: Schema, declared: bool) -> Batch:
    """`batch` with the columns and types of `schema`, cast safely; `ValueTrouble` where that cannot be."""
    if batch.schema == schema:
        return batch
    if set(batch.names) != set(schema.names):
        raise ValueTrouble(0, f"returned the columns {', '.join(map(repr, batch.names))}; expected {', '.join(map(repr, schema.names))}")
    return Batch({f.name: cast(batch[f.name], f.type, f.name, declared) for f in schema}, batch.nrows)
