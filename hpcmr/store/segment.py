"""Rows in partition order in a file of the shard format, digested in runs of partitions: what spill and checkpoints have in common.

::

    file      | frame | a: partition 0, 1, 2 ... | s/offsets: partition 0, 1, 2 ... | s/data: partition 0, 1, 2 ... |
    read(1)                          |---|                              |--|                              |---|

A file is written once, from front to back. What lies where, and the digest of each array in each run of partitions, is the *index*,
which whoever writes the file keeps: in memory, or as one more array of the file. A read is compared before anybody uses it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import StorageError
from hpcmr.store import files, paths
from hpcmr.store.arrays import ArraySpec, column_arrays
from hpcmr.store.layout import Layout, lay_out

BLOCK_NBYTES = 4 << 20
"""Bytes put together for one write, and digested between two reads."""

Index = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Views = Callable[[int, int], Iterable[Bytes]]
Source = tuple["Array", Views]


@dataclass
class Array:
    """One array of a segment: partition i has the entries ``cuts[i]`` to ``cuts[i + 1]``, of offsets one more."""

    spec: ArraySpec
    cuts: Index
    offset: int = 0

    def place(self, i: int, j: int) -> tuple[int, int]:
        """Offset in the file and bytes of the partitions i to j - 1."""
        first, stop = int(self.cuts[i]), int(self.cuts[j]) + (self.spec.role == "offsets")
        return self.offset + first * self.spec.item_nbytes, (stop - first) * self.spec.item_nbytes


@dataclass
class Segment:
    """A file and its index. `rows`: (partitions + 1,) first row of each; `bounds`: the partition at which each run begins, and their number;
    `digests`: (arrays, runs) xxh3-64.
    """

    path: Path
    schema: Schema
    first: int
    rows: Index
    bounds: Index
    arrays: list[Array]
    digests: NDArray[np.uint64]

    @property
    def count(self) -> int:
        """Number of partitions."""
        return len(self.rows) - 1

    def nbytes(self, i: int, j: int) -> int:
        """Bytes of the partitions i to j - 1."""
        return sum(a.place(i, j)[1] for a in self.arrays)

    def array(self, name: str) -> Array | None:
        return next((a for a in self.arrays if a.spec.name == name), None)


class Medium:
    """What is said of files that cannot be read, or hold other bytes than were written."""

    @contextlib.contextmanager
    def using(self, path: Path, what: str) -> Iterator[None]:
        """Turn an `OSError` of the body into a `StorageError`."""
        with files.storing(path, what):
            yield

    def damaged(self, path: Path, how: str) -> StorageError:
        raise NotImplementedError


# -- writing -----------------------------------------------------------------------------------------------------------------------


def plan(path: Path, parts: Sequence[Partitioned], run_nbytes: int) -> tuple[Segment, list[Source]]:
    """A segment for `parts`, which have one schema and cover the same partitions, and where its bytes come from.

    Runs have `run_nbytes` bytes or more; 0: a run for each partition.
    """
    schema, starts = parts[0].batch.schema, [p.starts for p in parts]
    sources: list[Source] = []
    for p in parts:
        p.batch.check(schema)
        assert p.first == parts[0].first and p.count == parts[0].count
    for f in schema:
        sources += _sources(list(column_arrays(paths.array_name(f.name), f.type)), [p.batch[f.name] for p in parts], starts)
    rows = np.sum(starts, axis=0)
    bounds = run_bounds([a for a, _ in sources], len(rows) - 1, run_nbytes)
    return Segment(path, schema, parts[0].first, rows, bounds, [a for a, _ in sources], np.zeros((len(sources), len(bounds) - 1), np.uint64)), sources


def run_bounds(arrays: Sequence[Array], count: int, run_nbytes: int) -> Index:
    """Cut partitions into runs of `run_nbytes` bytes or more, but for the last one."""
    if run_nbytes == 0 or count == 0:
        return np.arange(count + 1)
    ends = np.zeros(count + 1, np.int64)
    for a in arrays:
        ends += a.cuts * a.spec.item_nbytes
    bounds, at = [0], 0
    while at < count:
        at = min(count, max(at + 1, int(np.searchsorted(ends, ends[at] + run_nbytes))))
        bounds.append(at)
    return np.array(bounds, np.int64)


def write(fd: int, segment: Segment, sources: Sequence[Source], more: Sequence[tuple[ArraySpec, int]] = ()) -> Layout:
    """Write the frame and all arrays; fills in places and digests. Room is left for the arrays `more`. Raises `OSError`."""
    wanted = [(a.spec, int(a.cuts[-1]) + (a.spec.role == "offsets")) for a in segment.arrays]
    layout = lay_out(segment.schema, [*wanted, *more])
    for offset, raw in layout.frame:
        files.write_all(fd, [raw], offset)
    for k, (array, views) in enumerate(sources):
        if array.spec.name in layout.places:
            array.offset = layout.places[array.spec.name][0]
            _write_array(fd, array, views, segment.bounds, segment.digests[k])
    return layout


def _write_array(fd: int, array: Array, views: Views, bounds: Index, digests: NDArray[np.uint64]) -> None:
    """Run by run, digested as it passes, in writes of `BLOCK_NBYTES` and no copies in between."""
    offsets = array.spec.role == "offsets"
    before: Any = np.zeros(8, np.uint8)          # of offsets, the entry that a run shares with the one before
    waiting: list[Any] = [before] if offsets else []
    nbytes, at = 8 if offsets else 0, array.offset
    cuts = array.cuts[bounds]
    for r in np.flatnonzero(np.diff(cuts)).tolist():
        digest = xxhash.xxh3_64(before.data if offsets else b"")
        last = before
        for view in views(int(bounds[r]), int(bounds[r + 1])):
            for start in range(0, len(view), BLOCK_NBYTES):
                part = view[start:start + BLOCK_NBYTES]
                digest.update(part.data)
                waiting.append(part)
                nbytes += len(part)
                if nbytes >= BLOCK_NBYTES or len(waiting) >= files.PARTS_MAX:
                    files.write_all(fd, waiting, at)
                    waiting, nbytes, at = [], 0, at + nbytes
            last = view
        digests[r] = digest.intdigest()
        before = last[-8:] if offsets else before
    files.write_all(fd, waiting, at)


def _sources(specs: list[ArraySpec], columns: list[Column], starts: list[Index]) -> list[Source]:
    """The arrays of a column and, for each, what partitions have of it in all parts. `specs` are used up from the front."""
    spec = specs.pop(0)
    cuts = np.sum(starts, axis=0)
    first = columns[0]
    out: list[Source] = []
    if isinstance(first, FixedColumn):
        raw = [_rows_as_bytes(c.values) for c in columns]      # type: ignore[union-attr]
        out.append((Array(spec, cuts), _in_turn(raw, starts)))
    else:
        whole: list[Any] = [_without_gaps(c) for c in columns]
        ends = [_places(c, s) for c, s in zip(whole, starts, strict=True)]
        bases = [e - e[0] for e in ends]
        total = np.sum(bases, axis=0)
        out.append((Array(spec, cuts), _ends_in_turn(whole, starts, ends, total)))
        if isinstance(first, BytesColumn):
            out.append((Array(specs.pop(0), total), _in_turn([c.data for c in whole], ends)))
        else:
            children = [c.child.slice(int(e[0]), int(e[-1])) for c, e in zip(whole, ends, strict=True)]
            out += _sources(specs, children, bases)
    valid = specs.pop(0)
    if any(c.valid is not None for c in columns):
        masks = [np.ones(len(c), np.uint8) if c.valid is None else np.ascontiguousarray(c.valid).view(np.uint8) for c in columns]
        out.append((Array(valid, cuts), _in_turn(masks, starts)))
    return out


def _in_turn(raw: list[Any], starts: list[Index]) -> Views:
    """Of each partition what all parts have of it, one part after the other; of one part, all partitions at once."""
    def views(i: int, j: int) -> Iterator[Bytes]:
        for p, q in _steps(i, j, len(raw)):
            for r, s in zip(raw, starts, strict=True):
                if s[q] > s[p]:
                    yield r[s[p]:s[q]].reshape(-1)

    return views


def _steps(i: int, j: int, parts: int) -> Iterator[tuple[int, int]]:
    return iter([(i, j)]) if parts == 1 else ((p, p + 1) for p in range(i, j))


def _ends_in_turn(columns: list[Any], starts: list[Index], ends: list[Index], total: Index) -> Views:
    """Ends of the rows, counted from the beginning of the segment."""
    def views(i: int, j: int) -> Iterator[Bytes]:
        for p, q in _steps(i, j, len(columns)):
            base = int(total[p])
            for c, s, e in zip(columns, starts, ends, strict=True):
                a, b = int(s[p]), int(s[q])
                if b > a:
                    shift = base - int(e[p])
                    for start in range(a, b, BLOCK_NBYTES // 8):
                        yield files.as_bytes(c.ends[start:min(b, start + BLOCK_NBYTES // 8)] + shift)
                    base += int(e[q] - e[p])

    return views


def _rows_as_bytes(values: NDArray[Any]) -> Bytes:
    plain = np.ascontiguousarray(values)
    return plain.reshape(len(plain), -1).view(np.uint8) if plain.size else np.zeros((len(plain), 0), np.uint8)


def _without_gaps(column: Any) -> Any:
    return column if len(column) and bool((column.starts[1:] == column.ends[:-1]).all()) else column.compact() if len(column) else column


def _places(column: Any, rows: Index) -> Index:
    """Where rows begin in the data of a column without gaps; for the number of rows, where it ends."""
    n = len(column)
    return np.where(rows < n, column.starts[np.minimum(rows, n - 1)], column.ends[-1]) if n else np.zeros(len(rows), np.int64)


# -- and back ----------------------------------------------------------------------------------------------------------------------


def read(group: Sequence[tuple[Segment, int, int]], medium: Medium) -> tuple[Batch, int]:
    """The rows of the partitions i to j - 1 of segments (segment, i, j) of one schema, one behind the other, and the bytes read.

    i and j are bounds of runs. The memory is the caller's own. Raises `StorageError` unless every byte is as it was written.
    """
    schema = group[0][0].schema
    filled: dict[str, tuple[Any, Index]] = {}
    for spec in [s for f in schema for s in column_arrays(paths.array_name(f.name), f.type)]:
        found = _room(spec, group)
        if found is not None:
            filled[spec.name] = found
    nbytes = 0
    for k, (segment, i, j) in enumerate(group):
        nbytes += _read_segment(segment, i, j, k, filled, medium)
    nrows = sum(int(s.rows[j] - s.rows[i]) for s, i, j in group)
    return Batch({f.name: _column(paths.array_name(f.name), f.type, filled) for f in schema}, nrows), nbytes


def _read_segment(segment: Segment, i: int, j: int, k: int, filled: dict[str, tuple[Any, Index]], medium: Medium) -> int:
    with medium.using(segment.path, "read back"):
        fd = files.open_read(segment.path)
    nbytes = 0
    try:
        for n, array in enumerate(segment.arrays):
            out, cuts = filled[array.spec.name]
            a, b = int(cuts[k]), int(cuts[k + 1])
            if a == b:
                continue
            if array.spec.role != "offsets":
                nbytes += read_runs(fd, segment, n, i, j, files.as_bytes(out[a:b]), medium)
                continue
            last = int(out[a])
            nbytes += read_runs(fd, segment, n, i, j, files.as_bytes(out[a:b + 1]), medium)
            out[a:b + 1] += last - int(out[a])
    finally:
        os.close(fd)
    return nbytes


def read_runs(fd: int, segment: Segment, n: int, i: int, j: int, out: Bytes, medium: Medium) -> int:
    """Fill `out` with array `n` of the partitions i to j - 1, run by run, each compared while it is in the cache."""
    array, shared = segment.arrays[n], 8 if segment.arrays[n].spec.role == "offsets" else 0
    begin = array.place(i, i)[0]
    first, stop = np.searchsorted(segment.bounds, [i, j]).tolist()
    skip = 0
    for r in range(first, stop):
        p, q = int(segment.bounds[r]), int(segment.bounds[r + 1])
        at, nbytes = array.place(p, q)
        if array.cuts[q] == array.cuts[p] or nbytes == 0:
            continue
        digest = xxhash.xxh3_64(out[at - begin:at - begin + skip].data)
        for start in range(skip, nbytes, BLOCK_NBYTES):
            part = out[at - begin + start:at - begin + min(nbytes, start + BLOCK_NBYTES)]
            with medium.using(segment.path, "read back"):
                got = files.read_at(fd, part, at + start)
            if got != len(part):
                raise medium.damaged(segment.path, f"it ends at byte {at + start + got:,}, in the middle of what was written")
            digest.update(part.data)
        skip = shared          # the first offset of the next run was read as the last one of this
        if digest.intdigest() != int(segment.digests[n, r]):
            raise medium.damaged(segment.path, f"bytes {at:,} to {at + nbytes:,} (of {array.spec.name!r}) are not those that were written")
    return len(out)


def _room(spec: ArraySpec, group: Sequence[tuple[Segment, int, int]]) -> tuple[Any, Index] | None:
    """An array for what a group of segments has of one array, and where each segment's entries begin in it; None where no segment has it."""
    counts = [int(a.cuts[j] - a.cuts[i]) if (a := s.array(spec.name)) is not None else -1 for s, i, j in group]
    if max(counts) < 0:
        return None
    if min(counts) < 0:       # a mask that only some segments have: the others have none that is null
        level = spec.name.removesuffix(paths.VALID)
        counts = [int(a.cuts[j] - a.cuts[i]) for s, i, j in group if (a := s.array(level) or s.array(f"{level}/offsets")) is not None]
    cuts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=cuts[1:])
    n = int(cuts[-1])
    if spec.role == "valid":
        return np.ones(n, np.bool_), cuts
    if spec.role == "offsets":
        out = np.empty(n + 1, np.int64)
        out[0] = 0
        return out, cuts
    return np.empty((n, *spec.shape), spec.dtype), cuts


def _column(name: str, kind: ColumnType, filled: dict[str, tuple[Any, Index]]) -> Column:
    valid = filled[name + paths.VALID][0] if name + paths.VALID in filled else None
    if kind.is_fixed:
        return FixedColumn(filled[name][0].view(kind.np_dtype), valid)
    offsets = filled[f"{name}/offsets"][0]
    if kind.item is not None:
        return ListColumn(offsets[:-1], offsets[1:], _column(f"{name}/data", kind.item, filled), valid)
    return BytesColumn.from_offsets(offsets, filled[f"{name}/data"][0], kind.kind == "text", valid)
