"""Rows that do not fit in memory, on scratch: appended in partition order, read back a partition at a time.

Each append makes one *segment* (`hpcmr.store.segment`). Its index is kept in memory, with a digest for each array and partition, so that
whatever a read gives was compared before anybody uses it, and a partition can be read alone. Nothing is synced, since no restart reads it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.store import files, paths, segment
from hpcmr.store.scratch import Scratch, spilling
from hpcmr.store.segment import Segment

SEGMENT_NBYTES = 4096
"""What Python keeps of a segment, about."""


class OnScratch(segment.Medium):
    """Files of this process alone."""

    @contextlib.contextmanager
    def using(self, path: Path, what: str) -> Iterator[None]:
        with spilling(path, what):
            yield

    def damaged(self, path: Path, how: str) -> StorageError:
        return StorageError(f"scratch {str(path)!r} is damaged: {how}; a disk, its controller or the memory of this node is failing, or somebody "
                            "changed the file: run again with --scratch on another disk or on another node")


MEDIUM = OnScratch()


def _memory_nbytes(made: Segment) -> int:
    cuts = {id(a.cuts): a.cuts.nbytes for a in made.arrays}
    return sum(cuts.values()) + made.bounds.nbytes + made.digests.nbytes + SEGMENT_NBYTES


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
    buffer_nbytes : int
        What a write needs besides, at most.

    Notes
    -----
    Collective: no. Cost: each byte is written once; memory for one block of `segment.BLOCK_NBYTES`, and what is read.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.nbytes_written = self.nbytes_read = self.memory_nbytes = self.buffer_nbytes = 0
        self._scratch = scratch
        self._segments: dict[int, Segment] = {}

    def __len__(self) -> int:
        """Number of segments."""
        return len(self._segments)

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

    def _add(self, parts: Sequence[Partitioned]) -> Segment:
        path = self._scratch.folder() / paths.spill_name(self._scratch.next_number())
        made, sources = segment.plan(path, parts, run_nbytes=0)
        self._write(made, sources)
        nbytes = made.nbytes(0, made.count)
        self.nbytes_written += nbytes
        self._scratch.nbytes_written += nbytes
        self._segments[id(made)] = made
        self._scratch.files += 1
        self.memory_nbytes += _memory_nbytes(made)
        self.buffer_nbytes = segment.BLOCK_NBYTES
        return made

    def _write(self, made: Segment, sources: Sequence[segment.Source]) -> None:
        try:
            with MEDIUM.using(made.path, "write"):
                fd = files.create(made.path)
                try:
                    segment.write(fd, made, sources)
                finally:
                    os.close(fd)        # some file systems tell here that the disk was full
        except BaseException:
            files.remove_quietly(made.path)
            self._scratch.tidy()
            raise

    # -- and back -----------------------------------------------------------------------------------------------------------------

    def nbytes_of(self, partition: int) -> int:
        """Bytes on disk of a partition's rows."""
        return sum(s.nbytes(i, i + 1) for s in self._segments.values() if (i := _index_of(s, partition)) >= 0)

    def read(self, partition: int, limit_nbytes: int = 1 << 62) -> Iterator[Partitioned]:
        """The rows of a partition in the order in which they were appended, in pieces of at most `limit_nbytes`, or of one segment.

        A piece has rows of one schema; segments may have several.

        Raises
        ------
        StorageError
            A file is missing, shorter, or holds other bytes than were written.
        """
        group: list[Segment] = []
        nbytes = 0
        for s in self._segments.values():
            i = _index_of(s, partition)
            if i < 0:
                continue
            more = s.nbytes(i, i + 1)
            if group and (nbytes + more > limit_nbytes or s.schema != group[0].schema):
                yield self._piece(partition, group)
                group, nbytes = [], 0
            group.append(s)
            nbytes += more
        if group:
            yield self._piece(partition, group)

    def handles(self) -> list[Any]:
        """Of all segments that `append` made, in order."""
        return list(self._segments.values())

    def copy(self, handle: Any, limit_nbytes: int) -> Iterator[Partitioned]:
        """The rows of one segment, in ranges of partitions of about `limit_nbytes` bytes, or of one partition. In any thread."""
        first = 0
        while first < handle.count:
            last = first + 1
            while last < handle.count and handle.nbytes(first, last + 1) <= limit_nbytes:
                last += 1
            batch, _ = segment.read([(handle, first, last)], MEDIUM)
            if batch.nrows:
                yield Partitioned(batch, handle.rows[first:last + 1] - handle.rows[first], handle.first + first)
            first = last

    def get(self, handle: Any) -> Batch:
        """The rows that were put, in memory of their own. Raises `StorageError`, as `read` does."""
        return self._piece(handle.first, [handle]).batch

    def _piece(self, partition: int, group: list[Segment]) -> Partitioned:
        batch, nbytes = segment.read([(s, partition - s.first, partition - s.first + 1) for s in group], MEDIUM)
        self.nbytes_read += nbytes
        self._scratch.nbytes_read += nbytes
        return Partitioned(batch, np.array([0, batch.nrows], np.int64), partition)

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def drop(self, handle: Any) -> None:
        """Remove what was put. Never raises; nothing happens if it is gone."""
        made = self._segments.pop(id(handle), None)
        if made is not None:
            self.memory_nbytes -= _memory_nbytes(made)
            files.remove_quietly(made.path)
            self._scratch.files -= 1
            self._scratch.tidy()

    def close(self) -> None:
        """Remove the files. Never raises; may be called twice."""
        for made in list(self._segments.values()):
            self.drop(made)
        self.buffer_nbytes = 0


def _index_of(made: Segment, partition: int) -> int:
    """Place of a partition that has rows in a segment, else -1."""
    i = partition - made.first
    return i if 0 <= i < made.count and made.rows[i + 1] > made.rows[i] else -1
