"""Values as plain JSON and batches, and back: what the result of an action becomes on disk. Nothing is pickled.

What JSON has a word for stands for itself; everything else is an object with one key that names its kind::

    None, True, 7, "text"              as they are                  {"int": "0x..."}    an integer beyond 64 bits
    {"float": "3ff8..."}               its eight bytes              {"complex": [...]}  two of these
    {"bytes": "..."}                   base64                       {"list": [...]}, {"tuple": [...]}, {"dict": [[key, value], ...]}
    {"row": [[names], [values]]}       a named tuple of a table     {"array": [dtype, shape, bytes or number of a part]}
    {"scalar": [dtype, bytes]}         a NumPy scalar               {"batch": [[name, column], ...]}, {"batch": number of a part}

Large arrays and batches are *parts*: batches that are stored beside the tree. Bits are kept: a NaN is the same NaN, -0.0 stays.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.python_values import row_type
from hpcmr.data.schema import ColumnType
from hpcmr.errors import DataError, HpcmrError, JobSpecError, StorageError

INLINE_NBYTES = 4096
"""Arrays and batches up to this size stand in the tree."""
INT_MAX = (1 << 63) - 1
DEPTH_MAX = 60

Tree = Any


class NoWord(Exception):
    """A value of a type that is not stored."""


def encode(value: Any, parts: list[Batch]) -> Tree:
    """`value` as plain JSON; what is large is appended to `parts`. Raises `NoWord` for types that are not kept."""
    return _encode(value, parts, 0)


def _encode(value: Any, parts: list[Batch], depth: int) -> Tree:
    if depth > DEPTH_MAX:
        raise NoWord(f"a value nested more than {DEPTH_MAX} levels deep")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) <= INT_MAX else {"int": hex(value)}
    if type(value) is float:
        return {"float": _bits(value)}
    if type(value) is complex:
        return {"complex": [_bits(value.real), _bits(value.imag)]}
    if type(value) in (bytes, bytearray):
        return {"bytes": _text(bytes(value))}
    if isinstance(value, Batch):
        return {"batch": _batch(value, parts)}
    if isinstance(value, np.generic):
        return {"scalar": [_dtype(value.dtype), _text(value.tobytes())]}
    if isinstance(value, np.ndarray) and type(value) is np.ndarray:
        return {"array": _array(value, parts)}
    return _nested(value, parts, depth)


def _nested(value: Any, parts: list[Batch], depth: int) -> Tree:
    def inner(items: Any) -> list[Tree]:
        return [_encode(v, parts, depth + 1) for v in items]

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = tuple(value._fields)
        if type(value) is not row_type(names):
            raise NoWord(f"a {type(value).__name__}")
        return {"row": [list(names), inner(value)]}
    if type(value) in (tuple, list):
        return {type(value).__name__: inner(value)}
    if type(value) is dict:
        return {"dict": [[*inner((k, v))] for k, v in value.items()]}
    raise NoWord(f"a {type(value).__name__}")


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _dtype(dtype: np.dtype[Any]) -> str:
    """Name of a dtype that columns have; arrays have others only by mistake."""
    try:
        return str(ColumnType.fixed(dtype))
    except HpcmrError:
        raise NoWord(f"an array of {dtype}") from None


def _array(value: NDArray[Any], parts: list[Batch]) -> list[Tree]:
    name, shape = _dtype(value.dtype), [int(n) for n in value.shape]
    plain = np.ascontiguousarray(value, np.dtype(name))
    if plain.nbytes <= INLINE_NBYTES or plain.dtype.itemsize == 0:
        return [name, shape, _text(plain.tobytes())]
    parts.append(Batch({"values": FixedColumn(plain.reshape(-1))}))
    return [name, shape, len(parts) - 1]


def _batch(batch: Batch, parts: list[Batch]) -> Tree:
    empty = any(f.type.is_fixed and f.type.np_dtype.itemsize * int(np.prod(f.type.shape)) == 0 for f in batch.schema)
    if batch.columns and batch.nbytes > INLINE_NBYTES and not empty:
        parts.append(batch)
        return len(parts) - 1
    return [[[name, _column(column)] for name, column in batch.columns.items()], batch.nrows]


def _column(column: Column) -> Tree:
    valid = None if column.valid is None else _text(np.packbits(column.valid).tobytes())
    if isinstance(column, FixedColumn):
        return ["fixed", str(column.type), len(column), _text(np.ascontiguousarray(column.values).tobytes()), valid]
    whole = column.compact()
    lengths = _text((whole.ends - whole.starts).tobytes())
    if isinstance(whole, ListColumn):
        return ["list", lengths, _column(whole.child), valid]
    assert isinstance(whole, BytesColumn)
    return ["text" if whole.text else "bytes", lengths, _text(whole.data.tobytes()), valid]


# ---- back ------------------------------------------------------------------------------------------------------------------


def decode(tree: Tree, part: Callable[[int], Batch]) -> Any:
    """The value of a tree; ``part(number)`` gives the batches beside it. Raises `StorageError` where it is not what `encode` makes."""
    try:
        return _decode(tree, part)
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, RecursionError, struct.error, DataError, JobSpecError) as error:
        raise StorageError(f"a stored result does not make sense ({type(error).__name__}: {error}); start over with --fresh") from None


def _decode(tree: Tree, part: Callable[[int], Batch]) -> Any:
    if not isinstance(tree, dict):
        if tree is None or isinstance(tree, bool | str | int):
            return tree
        raise ValueError(f"{tree!r:.60} stands where a value should")
    (kind, inner), = tree.items()
    if kind in ("tuple", "list"):
        made = [_decode(v, part) for v in inner]
        return tuple(made) if kind == "tuple" else made
    if kind == "dict":
        return {_decode(k, part): _decode(v, part) for k, v in inner}
    if kind == "row":
        return row_type(tuple(str(n) for n in inner[0]))._make(_decode(v, part) for v in inner[1])
    return _SIMPLE[kind](inner, part)


def _float(bits: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(bits))[0])


def _fixed(name: str) -> np.dtype[Any]:
    kind = ColumnType.parse(name)
    if not kind.is_fixed or kind.shape:
        raise ValueError(f"{name!r} is no dtype")
    return kind.np_dtype


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _array_of(inner: list[Any], part: Callable[[int], Batch]) -> NDArray[Any]:
    name, shape, data = inner
    if isinstance(data, int):
        column = part(data)["values"]
        assert isinstance(column, FixedColumn)
        return column.values.astype(_fixed(name), copy=False).reshape(shape)
    dtype = _fixed(name)
    return np.frombuffer(bytearray(_raw(data)), dtype).reshape(shape) if dtype.itemsize else np.zeros(shape, dtype)


def _batch_of(inner: Any, part: Callable[[int], Batch]) -> Batch:
    if isinstance(inner, int):
        return part(inner)
    columns, nrows = inner
    return Batch({str(name): _column_of(c, int(nrows)) for name, c in columns}, int(nrows))


def _column_of(tree: list[Any], n: int | None = None) -> Column:
    kind, *rest = tree
    if kind == "fixed":
        name, count, data, mask = rest
        made = ColumnType.parse(name)
        raw = np.frombuffer(bytearray(_raw(data)), made.np_dtype) if made.np_dtype.itemsize else np.zeros(0, made.np_dtype)
        values = raw.reshape(count, *made.shape) if raw.size else np.zeros((count, *made.shape), made.np_dtype)
        return _of_length(FixedColumn(values, _mask(mask, count)), n)
    lengths, data, mask = rest
    sizes = np.frombuffer(_raw(lengths), np.int64)
    if len(sizes) and int(sizes.min()) < 0:
        raise ValueError("a length is negative")
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    valid = _mask(mask, len(sizes))
    if kind == "list":
        return _of_length(ListColumn(offsets[:-1], offsets[1:], _column_of(data, int(offsets[-1])), valid), n)
    raw = np.frombuffer(bytearray(_raw(data)), np.uint8)
    if kind not in ("text", "bytes") or len(raw) != offsets[-1]:
        raise ValueError(f"a column of {kind!r:.20}")
    return _of_length(BytesColumn.from_offsets(offsets, raw, kind == "text", valid), n)


def _of_length(column: Column, n: int | None) -> Column:
    if n is not None and len(column) != n:
        raise ValueError(f"a column has {len(column):,} rows, not {n:,}")
    return column


def _mask(text: str | None, n: int) -> NDArray[np.bool_] | None:
    return None if text is None else np.unpackbits(np.frombuffer(_raw(text), np.uint8), count=n).astype(np.bool_)


_SIMPLE: dict[str, Callable[[Any, Callable[[int], Batch]], Any]] = {
    "int": lambda inner, part: int(inner, 16),
    "float": lambda inner, part: _float(inner),
    "complex": lambda inner, part: complex(_float(inner[0]), _float(inner[1])),
    "bytes": lambda inner, part: _raw(inner),
    "scalar": lambda inner, part: np.frombuffer(_raw(inner[1]), _fixed(inner[0]))[0],
    "array": _array_of,
    "batch": _batch_of,
}


def to_text(tree: Tree) -> str:
    """A tree in one line of ASCII."""
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)


def from_text(text: str) -> Tree:
    """Inverse of `to_text`. Raises `StorageError`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"a stored result is no JSON ({error}); start over with --fresh") from None
