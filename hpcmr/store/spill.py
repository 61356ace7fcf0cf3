"""Rows that do not fit in memory, on scratch: appended in partition order, read back a partition at a time.

Each append makes one *segment*, a file in the format of a shard: contiguous arrays at known offsets. Their digests are kept in
memory, one for each array and partition, so that whatever a read gives was compared before anybody uses it, and a partition can be
read alone. A segment is written once, from front to back, in blocks; nothing is synced, since no restart reads it::

    segment   | frame | a: partition 0, 1, 2 ... | s/offsets: partition 0, 1, 2 ... | s/data: partition 0, 1, 2 ... |
    read(1)                          |---|                              |--|                              |---|       of every segment
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
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
from hpcmr.store.scratch import Scratch, spilling

BLOCK_NBYTES = 4 << 20
"""Bytes put together for one write."""
SEGMENT_NBYTES = 4096
"""What Python keeps of a segment, about."""

Index = NDArray[np.int64]
Views = Callable[[int], list[files.Bytes]]


@dataclass
class _Array:
    """One array of a segment: partition i has the entries ``cuts[i]`` to ``cuts[i + 1]``, of offsets one more, and this digest."""

    spec: ArraySpec
    cuts: Index
    digests: NDArray[np.uint64]
    offset: int = 0

    def place(self, i: int) -> tuple[int, int]:
        """Offset in the file and bytes of partition i."""
        first, stop = int(self.cuts[i]), int(self.cuts[i + 1]) + (self.spec.role == "offsets")
        return self.offset + first * self.spec.item_nbytes, (stop - first) * self.spec.item_nbytes


@dataclass
class _Segment:
    path: Path
    schema: Schema
    first: int
    rows: Index                      # (partitions + 1,) first row of each
    arrays: dict[str, _Array]

    def index_of(self, partition: int) -> int:
        """Place of a partition that has rows here, else -1."""
        i = partition - self.first
        return i if 0 <= i < len(self.rows) - 1 and self.rows[i + 1] > self.rows[i] else -1

    def nbytes(self, i: int) -> int:
        return sum(a.place(i)[1] for a in self.arrays.values())

    @property
    def memory_nbytes(self) -> int:
        cuts = {id(a.cuts): a.cuts.nbytes for a in self.arrays.values()}
        return sum(cuts.values()) + sum(a.digests.nbytes for a in self.arrays.values()) + SEGMENT_NBYTES


class Spool:
    """Rows on scratch: by partition (`append`, `read`), or batch by batch (`put`, `get`, `drop`).

    Parameters
    ----------
    scratch : Scratch
        Whose folder the files lie in.

    Attributes
    ----------
    nbytes_written, nbytes_read : int
        Bytes of arrays so far.
    memory_nbytes : int
        What it remembers of its files: places and digests.

    Notes
    -----
    Collective: no. Cost: each byte is written once; memory for one block of `BLOCK_NBYTES`, and what is read.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.nbytes_written = self.nbytes_read = self.memory_nbytes = 0
        self._scratch = scratch
        self._segments: dict[int, _Segment] = {}
        self._block = np.empty(0, np.uint8)

    def __len__(self) -> int:
        """Number of segments."""
        return len(self._segments)

    @property
    def buffer_nbytes(self) -> int:
        return len(self._block)

    # -- in -----------------------------------------------------------------------------------------------------------------------

    def append(self, parts: Sequence[Partitioned]) -> int:
        """Write parts, which cover the same partitions, as one segment; returns its bytes. Their memory may be used again.

        Raises
        ------
        StorageError
            The disk is full or fails; nothing of the segment is left.
        """
        parts = [p for p in parts if p.batch.nrows]
        before = self.nbytes_written
        if parts:
            self._add(parts)
        return self.nbytes_written - before

    def put(self, batch: Batch) -> Any:
        """Write the rows of a batch; returns what `get` and `drop` want. Its memory may be used again. Raises `StorageError`."""
        return self._add([Partitioned(batch, np.array([0, batch.nrows], np.int64))])

    def _add(self, parts: Sequence[Partitioned]) -> _Segment:
        schema, starts = parts[0].batch.schema, [p.starts for p in parts]
        sources: list[tuple[_Array, Views]] = []
        for p in parts:
            p.batch.check(schema)
        for f in schema:
            sources += _sources(list(column_arrays(paths.array_name(f.name), f.type)), [p.batch[f.name] for p in parts], starts)
        rows = np.sum(starts, axis=0)
        number = self._scratch.next_number()
        segment = _Segment(self._scratch.folder() / paths.spill_name(number), schema, parts[0].first, rows, {a.spec.name: a for a, _ in sources})
        if len(self._block) == 0:
            self._block = np.empty(BLOCK_NBYTES, np.uint8)
        nbytes = self._write(segment, sources)
        self.nbytes_written += nbytes
        self._scratch.nbytes_written += nbytes
        self._segments[id(segment)] = segment
        self._scratch.files += 1
        self.memory_nbytes += segment.memory_nbytes
        return segment

    def _write(self, segment: _Segment, sources: list[tuple[_Array, Views]]) -> int:
        from hpcmr.store.layout import lay_out         # loads h5py

        layout = lay_out(segment.schema, [(a.spec, int(a.cuts[-1]) + (a.spec.role == "offsets")) for a, _ in sources])
        path, total = segment.path, 0
        fd = -1
        try:
            with spilling(path):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                for offset, raw in layout.frame:
                    _write_all(fd, raw, offset)
                for array, views in sources:
                    if array.spec.name in layout.places:
                        array.offset, nbytes = layout.places[array.spec.name]
                        self._write_array(fd, array, views)
                        total += nbytes
        except BaseException:
            files.remove_quietly(path)
            raise
        finally:
            if fd >= 0:
                os.close(fd)
        return total

    def _write_array(self, fd: int, array: _Array, views: Views) -> None:
        """Partition by partition, in blocks; each is digested as it passes."""
        block, used, at = self._block, 0, array.offset
        before = np.zeros(8, np.uint8)          # of offsets, the entry that a partition shares with the one before
        offsets = array.spec.role == "offsets"
        if offsets:
            block[:8], used = 0, 8
        for i in np.flatnonzero(np.diff(array.cuts)).tolist():
            digest = xxhash.xxh3_64(before.data if offsets else b"")
            for view in views(i):
                digest.update(view.data)
                if used + len(view) > len(block):
                    _write_all(fd, block[:used], at)
                    at, used = at + used, 0
                if len(view) > len(block) // 2:
                    _write_all(fd, view, at)
                    at += len(view)
                else:
                    block[used:used + len(view)] = view
                    used += len(view)
                if offsets:
                    before = view[-8:].copy()
            array.digests[i] = digest.intdigest()
        _write_all(fd, block[:used], at)

    # -- and back -----------------------------------------------------------------------------------------------------------------

    def nbytes_of(self, partition: int) -> int:
        """Bytes on disk of a partition's rows."""
        return sum(s.nbytes(i) for s in self._segments.values() if (i := s.index_of(partition)) >= 0)

    def read(self, partition: int, limit_nbytes: int = 1 << 62) -> Iterator[Partitioned]:
        """The rows of a partition in the order in which they were appended, in pieces of at most `limit_nbytes`, or of one segment.

        A piece has rows of one schema; segments may have several.

        Raises
        ------
        StorageError
            A file is missing, shorter, or holds other bytes than were written.
        """
        group: list[tuple[_Segment, int]] = []
        nbytes = 0
        for s in self._segments.values():
            i = s.index_of(partition)
            if i < 0:
                continue
            more = s.nbytes(i)
            if group and (nbytes + more > limit_nbytes or s.schema != group[0][0].schema):
                yield self._piece(partition, group)
                group, nbytes = [], 0
            group.append((s, i))
            nbytes += more
        if group:
            yield self._piece(partition, group)

    def get(self, handle: Any) -> Batch:
        """The rows that were put, in memory of their own. Raises `StorageError`, as `read` does."""
        return self._piece(handle.first, [(handle, 0)]).batch

    def _piece(self, partition: int, group: list[tuple[_Segment, int]]) -> Partitioned:
        schema = group[0][0].schema
        filled: dict[str, tuple[Any, Index]] = {}
        specs = [s for f in schema for s in column_arrays(paths.array_name(f.name), f.type)]
        for spec in specs:
            found = _room(spec, group)
            if found is not None:
                filled[spec.name] = found
        for k, (segment, i) in enumerate(group):
            self._read_segment(segment, i, k, filled)
        nrows = sum(int(s.rows[i + 1] - s.rows[i]) for s, i in group)
        batch = Batch({f.name: _column(paths.array_name(f.name), f.type, filled) for f in schema}, nrows)
        return Partitioned(batch, np.array([0, nrows], np.int64), partition)

    def _read_segment(self, segment: _Segment, i: int, k: int, filled: dict[str, tuple[Any, Index]]) -> None:
        with spilling(segment.path, "read back"):
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for name, array in segment.arrays.items():
                out, cuts = filled[name]
                a, b = int(cuts[k]), int(cuts[k + 1])
                if array.spec.role != "offsets":
                    self._read_into(fd, segment, array, i, files.as_bytes(out[a:b]))
                    continue
                last = int(out[a])
                self._read_into(fd, segment, array, i, files.as_bytes(out[a:b + 1]))
                out[a:b + 1] += last - int(out[a])
        finally:
            os.close(fd)

    def _read_into(self, fd: int, segment: _Segment, array: _Array, i: int, out: files.Bytes) -> None:
        at, nbytes = array.place(i)
        if array.cuts[i + 1] == array.cuts[i] or nbytes == 0:
            return
        assert nbytes == len(out)
        with spilling(segment.path, "read back"):
            got = files.read_at(fd, out, at)
        self.nbytes_read += got
        self._scratch.nbytes_read += got
        if got != nbytes:
            raise _damaged(segment.path, f"it ends at byte {at + got:,}, in the middle of what was written")
        if xxhash.xxh3_64_intdigest(out.data) != int(array.digests[i]):
            raise _damaged(segment.path, f"bytes {at:,} to {at + nbytes:,} (of {array.spec.name!r}) are not those that were written")

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def drop(self, handle: Any) -> None:
        """Remove what was put. Never raises; nothing happens if it is gone."""
        segment = self._segments.pop(id(handle), None)
        if segment is not None:
            self.memory_nbytes -= segment.memory_nbytes
            files.remove_quietly(segment.path)
            self._scratch.files -= 1
            self._scratch.tidy()

    def close(self) -> None:
        """Remove the files. Never raises; may be called twice."""
        for segment in list(self._segments.values()):
            self.drop(segment)
        self._block = np.empty(0, np.uint8)


def _damaged(path: Path, how: str) -> StorageError:
    return StorageError(f"scratch {str(path)!r} is damaged: {how}; a disk, its controller or the memory of this node is failing, or somebody "
                        "changed the file: run again with --scratch on another disk or on another node")


def _write_all(fd: int, data: Any, offset: int) -> None:
    """Plain writes; errors are named by the caller."""
    left = memoryview(data)
    while len(left):
        done = os.pwrite(fd, left, offset)
        if done <= 0:
            raise OSError(5, "the system wrote nothing")
        left, offset = left[done:], offset + done


def _sources(specs: list[ArraySpec], columns: list[Column], starts: list[Index]) -> list[tuple[_Array, Views]]:
    """The arrays of a column and, for each, what a partition has of it in all pieces. `specs` are used up from the front."""
    spec = specs.pop(0)
    cuts = np.sum(starts, axis=0)
    first = columns[0]
    out: list[tuple[_Array, Views]] = []
    if isinstance(first, FixedColumn):
        raw = [_rows_as_bytes(c.values) for c in columns]      # type: ignore[union-attr]
        out.append((_array(spec, cuts), lambda i: [r[s[i]:s[i + 1]].reshape(-1) for r, s in zip(raw, starts, strict=True) if s[i + 1] > s[i]]))
    else:
        whole: list[Any] = [_without_gaps(c) for c in columns]
        ends = [_places(c, s) for c, s in zip(whole, starts, strict=True)]
        bases = [e - e[0] for e in ends]
        total = np.sum(bases, axis=0)
        out.append((_array(spec, cuts), lambda i: _offsets(whole, starts, ends, int(total[i]), i)))
        if isinstance(first, BytesColumn):
            datas = [c.data for c in whole]
            out.append((_array(specs.pop(0), total), lambda i: [d[e[i]:e[i + 1]] for d, e in zip(datas, ends, strict=True) if e[i + 1] > e[i]]))
        else:
            children = [c.child.slice(int(e[0]), int(e[-1])) for c, e in zip(whole, ends, strict=True)]
            out += _sources(specs, children, bases)
    valid = specs.pop(0)
    if any(c.valid is not None for c in columns):
        masks = [np.ones(len(c), np.uint8) if c.valid is None else np.ascontiguousarray(c.valid).view(np.uint8) for c in columns]
        out.append((_array(valid, cuts), lambda i: [m[s[i]:s[i + 1]] for m, s in zip(masks, starts, strict=True) if s[i + 1] > s[i]]))
    return out


def _array(spec: ArraySpec, cuts: Index) -> _Array:
    return _Array(spec, cuts, np.zeros(len(cuts) - 1, np.uint64))


def _rows_as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    plain = np.ascontiguousarray(values)
    return plain.reshape(len(plain), -1).view(np.uint8) if plain.size else np.zeros((len(plain), 0), np.uint8)


def _without_gaps(column: Any) -> Any:
    return column if len(column) and bool((column.starts[1:] == column.ends[:-1]).all()) else column.compact() if len(column) else column


def _places(column: Any, rows: Index) -> Index:
    """Where rows begin in the data of a column without gaps; for the number of rows, where it ends."""
    n = len(column)
    return np.where(rows < n, column.starts[np.minimum(rows, n - 1)], column.ends[-1]) if n else np.zeros(len(rows), np.int64)


def _offsets(columns: list[Any], starts: list[Index], ends: list[Index], base: int, i: int) -> list[files.Bytes]:
    """Ends of a partition's rows, counted from the beginning of the segment."""
    out = []
    for c, s, e in zip(columns, starts, ends, strict=True):
        a, b = int(s[i]), int(s[i + 1])
        if b > a:
            out.append(files.as_bytes(c.ends[a:b] + (base - int(e[i]))))
            base += int(e[i + 1] - e[i])
    return out


def _room(spec: ArraySpec, group: list[tuple[_Segment, int]]) -> tuple[Any, Index] | None:
    """An array for what a group of segments has of one array, and where each segment's entries begin in it; None where no segment has it."""
    counts = [int(a.cuts[i + 1] - a.cuts[i]) if (a := s.arrays.get(spec.name)) is not None else -1 for s, i in group]
    if max(counts) < 0:
        return None
    if min(counts) < 0:       # a mask that only some segments have: the others have none that is null
        level = spec.name.removesuffix(paths.VALID)
        counts = [int((a := s.arrays.get(level) or s.arrays[f"{level}/offsets"]).cuts[i + 1] - a.cuts[i]) for s, i in group]
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
