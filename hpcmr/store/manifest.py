"""The manifest of an output: what it holds, in which files, in which order, and who wrote it.

A manifest is JSON in one form only: a line per key, keys in order, ASCII, and a last line with the digest of all that stands before
it. Every byte is therefore checked, and nothing that a manifest says is believed before it has been checked against limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import HpcmrError, InputError
from hpcmr.store import paths, sealed
from hpcmr.store.arrays import FORMAT, OFFSETS, VERSION, stored_dtype
from hpcmr.store.sealed import COUNT_MAX, NUMBER_MAX, Wrong, hexadecimal, items, number

NBYTES_MAX = 128 << 20
"""A manifest larger than this is refused: JSON made to do harm takes twenty times its size in memory."""
DEPTH_MAX = 16
COLUMNS_MAX = 1 << 16

_KEYS = ("format", "version", "created", "writer", "inputs", "schema", "rows", "nbytes", "shards", "segments")


def shard_digest(frame: str, arrays: Sequence[Sequence[Any]]) -> str:
    """Digest of a shard from the digests of its parts: xxh3-128 over one line for the frame and one for each array, in file order."""
    lines = [f"frame {frame}\n", *(f"{offset} {nbytes} {digest}\n" for _, offset, nbytes, digest in arrays)]
    return str(xxhash.xxh3_128_hexdigest("".join(lines).encode()))


@dataclass(frozen=True)
class Shard:
    """One file. `arrays` are (name, offset, bytes, digest) in the order of the file, `frame` the digest of the bytes around them."""

    name: str
    rows: int
    nbytes: int
    digest: str
    frame: str
    arrays: tuple[tuple[str, int, int, str], ...]

    def places(self) -> dict[str, tuple[int, int]]:
        """Offset and bytes by array; empty arrays are not there."""
        return {name: (offset, nbytes) for name, offset, nbytes, _ in self.arrays}


@dataclass(frozen=True)
class Manifest:
    """An output: its schema, its files, and the order of its rows.

    `segments` are (shard, first row, rows) in logical order. `writer` and `inputs` are what the job said of itself.
    """

    schema: Schema
    shards: tuple[Shard, ...]
    segments: tuple[tuple[int, int, int], ...]
    writer: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    created: str = ""

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(s.nbytes for s in self.shards)

    def to_bytes(self) -> bytes:
        """The file's content."""
        value = {
            "format": FORMAT, "version": VERSION, "created": self.created, "writer": plain(self.writer), "inputs": plain(self.inputs),
            "schema": [{"name": f.name, "type": str(f.type), "attrs": {str(k): plain(v) for k, v in f.attrs}} for f in self.schema],
            "rows": self.rows, "nbytes": self.nbytes,
            "shards": [{"name": s.name, "rows": s.rows, "nbytes": s.nbytes, "digest": s.digest, "frame": s.frame,
                        "arrays": [list(a) for a in s.arrays]} for s in self.shards],
            "segments": [list(s) for s in self.segments],
        }
        return render(value)


def render(value: Mapping[str, Any]) -> bytes:
    """The one form of a manifest, closed by its digest."""
    return sealed.render(value, _KEYS)


def identity(made: Manifest) -> str:
    """A digest that tells one output from another, and from one that was written in its place."""
    return str(xxhash.xxh3_128_hexdigest(made.to_bytes()))


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy values as Python's, what JSON has no word for as an object with one key that starts with `$`."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist()) if value.dtype.kind in "biufSUO" else {"$text": str(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= NUMBER_MAX else {"$text": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": bytes(value).hex()}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(v) for v in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    return {"$text": str(value)}


def unplain(value: Any) -> Any:
    """Inverse of `plain`, up to tuples, arrays and what became text."""
    if isinstance(value, list):
        return [unplain(v) for v in value]
    if isinstance(value, dict):
        if len(value) == 1:
            (key, inner), = value.items()
            if key == "$float" and inner in ("nan", "inf", "-inf"):
                return float(inner)
            if key == "$bytes" and isinstance(inner, str):
                return bytes.fromhex(inner)
            if key == "$text" and isinstance(inner, str):
                return inner
        return {k: unplain(v) for k, v in value.items()}
    return value


def parse(content: bytes, where: str) -> Manifest:
    """Read and check a manifest's content; raise `InputError` with the reason if it is damaged, made up or of another version."""
    try:
        value = _load(content)
        return _checked(value, content)
    except Wrong as wrong:
        raise InputError(f"{where} is not a usable manifest: {wrong}; write the output again, or fetch it again from where it came") from None


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > NBYTES_MAX:
        raise Wrong(f"it has {len(content):,} bytes, more than {NBYTES_MAX:,}")
    return sealed.load(content, DEPTH_MAX)


def _checked(value: dict[str, Any], content: bytes) -> Manifest:
    if value.get("format") != FORMAT:
        raise Wrong(f"its format is {str(value.get('format'))[:60]!r}, not {FORMAT!r}")
    if value.get("version") != VERSION:
        raise Wrong(f"its version is {str(value.get('version'))[:60]}, and this hpcmr reads version {VERSION}")
    if set(value) != {*_KEYS, "digest"}:
        raise Wrong("its keys are " + ", ".join(sorted(map(repr, value)))[:300])
    if render(value) != content:
        raise Wrong("its digest does not match: it was changed after it was written")
    schema = _schema(value["schema"])
    shards = tuple(_shard(s, schema, i) for i, s in enumerate(items(value["shards"], "shards")))
    if len({s.name for s in shards}) != len(shards):
        raise Wrong("two shards have one name")
    segments = _segments(value["segments"], shards)
    made = Manifest(schema, shards, segments, unplain(_of(value["writer"], dict, "writer")), unplain(items(value["inputs"], "inputs")),
                    _of(value["created"], str, "created"))
    for key, is_ in (("rows", made.rows), ("nbytes", made.nbytes)):
        if number(value[key], key) != is_:
            raise Wrong(f"{key} is {value[key]}, while the shards make {is_}")
    return made


def _of(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise Wrong(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _schema(value: Any) -> Schema:
    columns = items(value, "schema")
    if len(columns) > COLUMNS_MAX:
        raise Wrong(f"it has {len(columns):,} columns, more than {COLUMNS_MAX:,}")
    fields = [_field(i) for i in columns]
    if len({f.name for f in fields}) != len(fields):
        raise Wrong("two columns have one name")
    return Schema(tuple(fields))


def _field(item: Any) -> Field:
    if not isinstance(item, dict) or set(item) != {"name", "type", "attrs"}:
        raise Wrong(f"a column is described by {str(item)[:100]}")
    name, text, attrs = _of(item["name"], str, "a column's name"), _of(item["type"], str, "a column's type"), _of(item["attrs"], dict, "attrs")
    try:
        kind = ColumnType.parse(text)
        inner = kind
        while inner.item is not None:
            inner = inner.item
        if str(kind) != text or (inner.is_fixed and not 0 < inner.row_nbytes <= 1 << 40 and 0 not in inner.shape):
            raise ValueError
    except (HpcmrError, ValueError, TypeError, RecursionError, OverflowError, SyntaxError):
        raise Wrong(f"column {name[:60]!r} has the unknown type {text[:60]!r}") from None
    return Field(name, kind, tuple(sorted(unplain(attrs).items())))


def _shard(item: Any, schema: Schema, index: int) -> Shard:
    what = f"shard {index}"
    if not isinstance(item, dict) or set(item) != {"name", "rows", "nbytes", "digest", "frame", "arrays"}:
        raise Wrong(f"{what} is described by {str(item)[:100]}")
    name = _of(item["name"], str, f"the name of {what}")
    if not paths.is_part_name(name):
        raise Wrong(f"{what} has the name {name[:60]!r}; names look like {paths.part_name(0)!r}")
    rows, nbytes = number(item["rows"], f"rows of {what}"), number(item["nbytes"], f"nbytes of {what}")
    arrays = _arrays(item["arrays"], nbytes, what)
    _check_lengths(schema, rows, {a[0]: a[2] for a in arrays}, what)
    shard = Shard(name, rows, nbytes, hexadecimal(item["digest"], f"digest of {what}"), hexadecimal(item["frame"], f"frame of {what}"), arrays)
    if shard_digest(shard.frame, arrays) != shard.digest:
        raise Wrong(f"the digest of {what} is not that of its parts")
    return shard


def _arrays(value: Any, nbytes_file: int, what: str) -> tuple[tuple[str, int, int, str], ...]:
    out, end = [], 0
    for item in items(value, f"arrays of {what}"):
        if len(items(item, f"an array of {what}")) != 4:
            raise Wrong(f"an array of {what} is described by {str(item)[:100]}")
        name = _of(item[0], str, f"the name of an array of {what}")
        offset, nbytes = number(item[1], f"an offset in {what}"), number(item[2], f"nbytes in {what}")
        if offset < end or offset + nbytes > nbytes_file or nbytes == 0:
            raise Wrong(f"array {name[:60]!r} of {what} lies at {offset}, {nbytes} bytes, which overlaps others or the file's end")
        end = offset + nbytes
        out.append((name, offset, nbytes, hexadecimal(item[3], f"a digest in {what}")))
    if len({a[0] for a in out}) != len(out):
        raise Wrong(f"two arrays of {what} have one name")
    return tuple(out)


def _check_lengths(schema: Schema, rows: int, nbytes: dict[str, int], what: str) -> None:
    """Every array has the length that the schema and the rows ask for, and there is no other array."""
    left = dict(nbytes)
    for f in schema:
        _check_column(paths.array_name(f.name), f.type, rows, left, what)
    if left:
        raise Wrong(f"{what} holds an array {next(iter(left))[:60]!r} that belongs to no column")


def _check_column(name: str, kind: ColumnType, count: int | None, left: dict[str, int], what: str) -> None:
    """Check a column's arrays and take them out of `left`; `count` is None for the elements of lists, whose number they tell themselves."""
    first, extra = (name, 0) if kind.is_fixed else (f"{name}/offsets", 1)
    item = kind.row_nbytes // kind.np_dtype.itemsize * stored_dtype(kind).itemsize if kind.is_fixed else OFFSETS.itemsize
    have, nested = left.pop(first, 0), count is None
    if count is None:
        count = max(0, have // item - extra) if item else 0
    if have != (count + extra) * item:
        raise Wrong(f"array {first[:60]!r} of {what} has {have:,} bytes; {count:,} entries need {(count + extra) * item:,}")
    if kind.item is not None:
        _check_column(f"{name}/data", kind.item, None, left, what)
    elif not kind.is_fixed:
        left.pop(f"{name}/data", 0)
    valid = left.pop(name + paths.VALID, 0)
    untold = nested and not item            # elements without bytes: only the offsets in the file know how many
    if valid not in (0, count) and not untold:
        raise Wrong(f"array {name[:60]!r} of {what} tells of {valid:,} entries which are null, but has {count:,}")


def _segments(value: Any, shards: tuple[Shard, ...]) -> tuple[tuple[int, int, int], ...]:
    """Segments that cover every row of every shard exactly once."""
    listed = items(value, "segments")
    if not all(isinstance(s, list) and len(s) == 3 and all(type(n) is int for n in s) for s in listed):
        raise Wrong("segments are not all [shard, first row, rows]")
    cut = np.array(listed, np.int64).reshape(-1, 3)
    order = np.lexsort((cut[:, 1], cut[:, 0]))
    which, first, rows = cut[order].T
    sizes = np.array([s.rows for s in shards], np.int64)
    if len(cut) and (cut.min() < 0 or cut.max() > COUNT_MAX or which[-1] >= len(shards) or rows.min() == 0):
        raise Wrong("a segment names a shard that is not there, or has no rows")
    ends = first + rows
    starts_shard = np.concatenate([[True], which[1:] != which[:-1]]) if len(cut) else np.zeros(0, np.bool_)
    expected = np.where(starts_shard, 0, np.concatenate([[0], ends[:-1]])[:len(cut)])
    last = np.concatenate([starts_shard[1:], [True]]) if len(cut) else starts_shard
    full = np.zeros(len(shards), np.int64)
    full[which[last]] = ends[last]
    if (first != expected).any() or (full != sizes).any():
        raise Wrong("the segments do not cover every row of the shards exactly once")
    return tuple((int(a), int(b), int(c)) for a, b, c in listed)
