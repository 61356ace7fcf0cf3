"""The manifest of an output: what it holds, in which files, in which order, and who wrote it.

A manifest is JSON in one form only: a line per key, keys in order, ASCII, and a last line with the digest of all that stands before
it. Every byte is therefore checked, and nothing that a manifest says is believed before it has been checked against limits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import HpcmrError, InputError
from hpcmr.store import paths
from hpcmr.store.arrays import FORMAT, OFFSETS, VERSION, stored_dtype

NBYTES_MAX = 128 << 20
"""A manifest larger than this is refused: JSON made to do harm takes twenty times its size in memory."""
DEPTH_MAX = 16
NUMBER_MAX = (1 << 63) - 1
COLUMNS_MAX = 1 << 16
COUNT_MAX = 1 << 60
DIGEST = "xxh3-128:"

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
    body = "{\n" + "".join(f"{json.dumps(k)}: {_compact(value[k])},\n" for k in _KEYS)
    return f'{body}"digest": "{DIGEST}{xxhash.xxh3_128_hexdigest(body.encode())}"\n}}\n'.encode()


def identity(made: Manifest) -> str:
    """A digest that tells one output from another, and from one that was written in its place."""
    return str(xxhash.xxh3_128_hexdigest(made.to_bytes()))


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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


class _Wrong(Exception):
    """Why a manifest is refused."""


def parse(content: bytes, where: str) -> Manifest:
    """Read and check a manifest's content; raise `InputError` with the reason if it is damaged, made up or of another version."""
    try:
        value = _load(content)
        return _checked(value, content)
    except _Wrong as wrong:
        raise InputError(f"{where} is not a usable manifest: {wrong}; write the output again, or fetch it again from where it came") from None


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > NBYTES_MAX:
        raise _Wrong(f"it has {len(content):,} bytes, more than {NBYTES_MAX:,}")
    if _depth(content) > DEPTH_MAX:
        raise _Wrong(f"it is nested more than {DEPTH_MAX} levels deep")
    try:
        value = json.loads(content.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_small_int)
    except UnicodeDecodeError as error:
        raise _Wrong(f"byte {error.start} is not ASCII") from None
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise _Wrong("it does not hold an object")
    return value


def _depth(content: bytes) -> int:
    """Deepest nesting, an upper bound: brackets inside strings count as well."""
    raw = np.frombuffer(content, np.uint8)
    steps = np.isin(raw, np.frombuffer(b"[{", np.uint8)).astype(np.int32) - np.isin(raw, np.frombuffer(b"]}", np.uint8))
    if b'"' not in content:
        return int(np.cumsum(steps).max(initial=0))
    # Strings are what lies between quotes that no backslash escapes; brackets in them are taken out.
    quotes = (raw == ord('"')) & ~_escaped(raw)
    inside = np.cumsum(quotes) % 2 == 1
    return int(np.cumsum(np.where(inside, 0, steps)).max(initial=0))


def _escaped(raw: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Bytes that stand behind an odd run of backslashes."""
    index = np.arange(len(raw))
    last_other = np.maximum.accumulate(np.where(raw != ord("\\"), index, -1))
    run_before = np.concatenate([[0], (index - last_other)[:-1]]) if len(raw) else index
    return np.asarray(run_before % 2 == 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _small_int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > NUMBER_MAX:
        raise ValueError(f"the number {text[:24]} does not fit in 64 bits")
    return int(text)


def _checked(value: dict[str, Any], content: bytes) -> Manifest:
    if value.get("format") != FORMAT:
        raise _Wrong(f"its format is {str(value.get('format'))[:60]!r}, not {FORMAT!r}")
    if value.get("version") != VERSION:
        raise _Wrong(f"its version is {str(value.get('version'))[:60]}, and this hpcmr reads version {VERSION}")
    if set(value) != {*_KEYS, "digest"}:
        raise _Wrong("its keys are " + ", ".join(sorted(map(repr, value)))[:300])
    if render(value) != content:
        raise _Wrong("its digest does not match: it was changed after it was written")
    schema = _schema(value["schema"])
    shards = tuple(_shard(s, schema, i) for i, s in enumerate(_list(value["shards"], "shards")))
    if len({s.name for s in shards}) != len(shards):
        raise _Wrong("two shards have one name")
    segments = _segments(value["segments"], shards)
    made = Manifest(schema, shards, segments, unplain(_of(value["writer"], dict, "writer")), unplain(_list(value["inputs"], "inputs")),
                    _of(value["created"], str, "created"))
    for key, is_ in (("rows", made.rows), ("nbytes", made.nbytes)):
        if _number(value[key], key) != is_:
            raise _Wrong(f"{key} is {value[key]}, while the shards make {is_}")
    return made


def _of(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise _Wrong(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    items: list[Any] = _of(value, list, what)
    return items


def _number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= COUNT_MAX:
        raise _Wrong(f"{what} is {str(value)[:60]}, not a count")
    return value


def _hex(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) != 32 or set(value) - set("0123456789abcdef"):
        raise _Wrong(f"{what} is {str(value)[:60]!r}, not 32 hexadecimal digits")
    return value


def _schema(value: Any) -> Schema:
    items = _list(value, "schema")
    if len(items) > COLUMNS_MAX:
        raise _Wrong(f"it has {len(items):,} columns, more than {COLUMNS_MAX:,}")
    fields = [_field(i) for i in items]
    if len({f.name for f in fields}) != len(fields):
        raise _Wrong("two columns have one name")
    return Schema(tuple(fields))


def _field(item: Any) -> Field:
    if not isinstance(item, dict) or set(item) != {"name", "type", "attrs"}:
        raise _Wrong(f"a column is described by {str(item)[:100]}")
    name, text, attrs = _of(item["name"], str, "a column's name"), _of(item["type"], str, "a column's type"), _of(item["attrs"], dict, "attrs")
    try:
        kind = ColumnType.parse(text)
        inner = kind
        while inner.item is not None:
            inner = inner.item
        if str(kind) != text or (inner.is_fixed and not 0 < inner.row_nbytes <= 1 << 40 and 0 not in inner.shape):
            raise ValueError
    except (HpcmrError, ValueError, TypeError, RecursionError, OverflowError, SyntaxError):
        raise _Wrong(f"column {name[:60]!r} has the unknown type {text[:60]!r}") from None
    return Field(name, kind, tuple(sorted(unplain(attrs).items())))


def _shard(item: Any, schema: Schema, index: int) -> Shard:
    what = f"shard {index}"
    if not isinstance(item, dict) or set(item) != {"name", "rows", "nbytes", "digest", "frame", "arrays"}:
        raise _Wrong(f"{what} is described by {str(item)[:100]}")
    name = _of(item["name"], str, f"the name of {what}")
    if not paths.is_part_name(name):
        raise _Wrong(f"{what} has the name {name[:60]!r}; names look like {paths.part_name(0)!r}")
    rows, nbytes = _number(item["rows"], f"rows of {what}"), _number(item["nbytes"], f"nbytes of {what}")
    arrays = _arrays(item["arrays"], nbytes, what)
    _check_lengths(schema, rows, {a[0]: a[2] for a in arrays}, what)
    shard = Shard(name, rows, nbytes, _hex(item["digest"], f"digest of {what}"), _hex(item["frame"], f"frame of {what}"), arrays)
    if shard_digest(shard.frame, arrays) != shard.digest:
        raise _Wrong(f"the digest of {what} is not that of its parts")
    return shard


def _arrays(value: Any, nbytes_file: int, what: str) -> tuple[tuple[str, int, int, str], ...]:
    out, end = [], 0
    for item in _list(value, f"arrays of {what}"):
        if len(_list(item, f"an array of {what}")) != 4:
            raise _Wrong(f"an array of {what} is described by {str(item)[:100]}")
        name = _of(item[0], str, f"the name of an array of {what}")
        offset, nbytes = _number(item[1], f"an offset in {what}"), _number(item[2], f"nbytes in {what}")
        if offset < end or offset + nbytes > nbytes_file or nbytes == 0:
            raise _Wrong(f"array {name[:60]!r} of {what} lies at {offset}, {nbytes} bytes, which overlaps others or the file's end")
        end = offset + nbytes
        out.append((name, offset, nbytes, _hex(item[3], f"a digest in {what}")))
    if len({a[0] for a in out}) != len(out):
        raise _Wrong(f"two arrays of {what} have one name")
    return tuple(out)


def _check_lengths(schema: Schema, rows: int, nbytes: dict[str, int], what: str) -> None:
    """Every array has the length that the schema and the rows ask for, and there is no other array."""
    left = dict(nbytes)
    for f in schema:
        _check_column(paths.array_name(f.name), f.type, rows, left, what)
    if left:
        raise _Wrong(f"{what} holds an array {next(iter(left))[:60]!r} that belongs to no column")


def _check_column(name: str, kind: ColumnType, count: int | None, left: dict[str, int], what: str) -> None:
    """Check a column's arrays and take them out of `left`; `count` is None for the elements of lists, whose number they tell themselves."""
    first, extra = (name, 0) if kind.is_fixed else (f"{name}/offsets", 1)
    item = kind.row_nbytes // kind.np_dtype.itemsize * stored_dtype(kind).itemsize if kind.is_fixed else OFFSETS.itemsize
    have, nested = left.pop(first, 0), count is None
    if count is None:
        count = max(0, have // item - extra) if item else 0
    if have != (count + extra) * item:
        raise _Wrong(f"array {first[:60]!r} of {what} has {have:,} bytes; {count:,} entries need {(count + extra) * item:,}")
    if kind.item is not None:
        _check_column(f"{name}/data", kind.item, None, left, what)
    elif not kind.is_fixed:
        left.pop(f"{name}/data", 0)
    valid = left.pop(name + paths.VALID, 0)
    untold = nested and not item            # elements without bytes: only the offsets in the file know how many
    if valid not in (0, count) and not untold:
        raise _Wrong(f"array {name[:60]!r} of {what} tells of {valid:,} entries which are null, but has {count:,}")


def _segments(value: Any, shards: tuple[Shard, ...]) -> tuple[tuple[int, int, int], ...]:
    """Segments that cover every row of every shard exactly once."""
    items = _list(value, "segments")
    if not all(isinstance(s, list) and len(s) == 3 and all(type(n) is int for n in s) for s in items):
        raise _Wrong("segments are not all [shard, first row, rows]")
    cut = np.array(items, np.int64).reshape(-1, 3)
    order = np.lexsort((cut[:, 1], cut[:, 0]))
    which, first, rows = cut[order].T
    sizes = np.array([s.rows for s in shards], np.int64)
    if len(cut) and (cut.min() < 0 or cut.max() > COUNT_MAX or which[-1] >= len(shards) or rows.min() == 0):
        raise _Wrong("a segment names a shard that is not there, or has no rows")
    ends = first + rows
    starts_shard = np.concatenate([[True], which[1:] != which[:-1]]) if len(cut) else np.zeros(0, np.bool_)
    expected = np.where(starts_shard, 0, np.concatenate([[0], ends[:-1]])[:len(cut)])
    last = np.concatenate([starts_shard[1:], [True]]) if len(cut) else starts_shard
    full = np.zeros(len(shards), np.int64)
    full[which[last]] = ends[last]
    if (first != expected).any() or (full != sizes).any():
        raise _Wrong("the segments do not cover every row of the shards exactly once")
    return tuple((int(a), int(b), int(c)) for a, b, c in items)
