"""One shard while it is written: columns go to their places in the file as they come, in bounded memory.

How many rows a shard will hold is known beforehand where it is one of several: as many as make `nbytes` bytes. The arrays that
have an entry per row are laid out for that number, the others behind them with room to spare, and every batch is written to where
it belongs. A shard that ends earlier (the last one of a rank), or that has several columns of strings, has arrays moved together
when it is closed; nothing else is written twice::

    while it is written   | frame | a ........ room | b ........ room | s/offsets .... room | s/data ............ (a hole)
    when it is closed     | frame | a ........| b ........| s/offsets ....| s/data ............|

Each array is digested as it passes; the digest of a shard is made of these and that of the frame.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hpcmr.data.schema import Schema
from hpcmr.store import files, paths
from hpcmr.store.arrays import ArraySpec, schema_arrays
from hpcmr.store.encode import Addition
from hpcmr.store.layout import Layout, lay_out
from hpcmr.store.manifest import shard_digest

BUFFER_NBYTES = 256 << 10
"""Small additions are put together to this many bytes per array before they are written."""
ROOM = 9 / 8
"""Rows are planned for this many times the bytes wanted: strings that get shorter must not end a shard before it is large enough."""


class Region:
    """One array of a shard being written: a buffer, a place in the file, a running digest."""

    __slots__ = ("_buffer", "_buffered", "base", "count", "digest", "place", "spec", "started", "written")

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self.place = 0
        self.written = 0
        self.count = 0                          # entries of the level this array belongs to, which for a `valid` may be unwritten
        self.base = 0                           # offsets: the last one written
        self.started = spec.role != "valid"     # a `valid` starts at the first null
        self.digest = xxhash.xxh3_128()
        self._buffer = np.empty(0, np.uint8)
        self._buffered = 0

    @property
    def nbytes(self) -> int:
        return self.written + self._buffered

    @property
    def entries(self) -> int:
        """Length of the array."""
        return self.nbytes // self.spec.item_nbytes if self.spec.item_nbytes else self.count

    def hold(self, data: files.Bytes) -> bool:
        """Take `data` into the buffer if it has room for it."""
        end = self._buffered + len(data)
        if end > BUFFER_NBYTES:
            return False
        if end > len(self._buffer):
            larger = np.empty(min(BUFFER_NBYTES, max(4096, 2 * end)), np.uint8)
            larger[:self._buffered] = self._buffer[:self._buffered]
            self._buffer = larger
        self._buffer[self._buffered:end] = data
        self._buffered = end
        return True

    def flush(self, fd: int, path: Path, data: files.Bytes | None = None) -> None:
        """Write the buffer, and `data` behind it."""
        parts = [self._buffer[:self._buffered], *([] if data is None else [data])]
        files.write_at(fd, parts, self.place + self.written, path)
        for part in parts:
            self.digest.update(part.data)
            self.written += len(part)
        self._buffered = 0


class ShardWriter:
    """Writes one shard.

    Parameters
    ----------
    path : Path
        Name that the shard gets when it is complete; until then it is `paths.unfinished(path)`.
    schema : Schema
    nbytes : int
        Bytes at which the shard is full.
    mode : int
        Of the file.
    """

    def __init__(self, path: Path, schema: Schema, nbytes: int, mode: int = 0o600) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._nbytes_full = nbytes
        self._regions = [Region(spec) for spec in schema_arrays(schema)]
        self._row_nbytes = sum(r.spec.item_nbytes for r in self._regions if r.spec.by_row and r.started)
        self._all_by_row = all(r.spec.by_row for r in self._regions)
        self._planned = False
        self._rows_planned = 0
        self._spare_nbytes = 0
        self._order = self._regions
        self._temporary = paths.unfinished(path)
        self._fd = files.open_new(self._temporary, mode)
        for region in self._regions:
            if region.spec.role == "offsets":
                region.hold(np.zeros(8, np.uint8))

    # -- filling ------------------------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Number of rows to add at most in the next step, so that the shard can end where it was planned to."""
        if self._all_by_row and self._row_nbytes:
            return max(0, self._rows_full() - self.rows)
        return self._rows_planned - self.rows if self._planned and self.rows < self._rows_planned else 1 << 62

    def _rows_full(self) -> int:
        return -(-self._nbytes_full // self._row_nbytes)

    @property
    def nbytes(self) -> int:
        return sum(r.nbytes for r in self._regions)

    def full(self) -> bool:
        """Whether nothing should be added."""
        if self._all_by_row:
            return bool(self._row_nbytes) and self.rows >= self._rows_full()
        nbytes = self.nbytes
        return nbytes >= self._nbytes_full and (self.rows == self._rows_planned or nbytes >= self._nbytes_full * ROOM * ROOM)

    def append(self, additions: Sequence[Addition], rows: int) -> None:
        """Add what `encode` made of `rows` rows, not more than `room()`."""
        sizes = [self._nbytes_after(r, a) for r, a in zip(self._regions, additions, strict=True)]
        if any(n > (self._room_nbytes(r) if self._planned else BUFFER_NBYTES) for r, n in zip(self._regions, sizes, strict=True)):
            self._plan(self.rows + rows, sum(sizes))
        for region, addition in zip(self._regions, additions, strict=True):
            self._add(region, addition)
        self.rows += rows

    def _add(self, region: Region, addition: Addition) -> None:
        role, values = region.spec.role, addition.values
        if role == "valid":
            self._add_valid(region, addition)
            return
        assert values is not None
        if role == "offsets":
            values = values + region.base
            region.base = int(values[-1]) if len(values) else region.base
        region.count += addition.entries
        self._put(region, files.as_bytes(values))

    def _add_valid(self, region: Region, addition: Addition) -> None:
        if addition.values is not None and not region.started:
            region.started = True
            for start in range(0, region.count, files.MOVE_NBYTES):
                self._put(region, np.ones(min(files.MOVE_NBYTES, region.count - start), np.uint8))
        region.count += addition.entries
        if region.started:
            mask = np.ones(addition.entries, np.uint8) if addition.values is None else files.as_bytes(addition.values)
            self._put(region, mask)

    def _put(self, region: Region, data: files.Bytes) -> None:
        if not region.hold(data):
            region.flush(self._fd, self._temporary, data)

    # -- places -------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _nbytes_after(region: Region, addition: Addition) -> int:
        if not region.started:
            return 0 if addition.values is None else region.count + addition.entries
        return region.nbytes + addition.entries * region.spec.item_nbytes

    def _room_nbytes(self, region: Region) -> int:
        """Bytes that the plan gives to an array."""
        spec = region.spec
        if spec.by_row:
            return (self._rows_planned + (spec.role == "offsets")) * spec.item_nbytes
        return self._spare_nbytes

    def _plan(self, rows: int, nbytes: int) -> None:
        """Decide for how many rows to lay the arrays out, now that `rows` make `nbytes`, and move what was written before.

        The first plan is made when a first buffer is full; another one if strings turn out much shorter or a record much longer.
        """
        if self._all_by_row:
            self._rows_planned = self._rows_full()
        else:
            self._rows_planned = max(int(self._nbytes_full * ROOM * rows / max(1, nbytes)), rows)
        if not self._planned:
            self._order = sorted(self._regions, key=lambda r: (r.spec.role == "valid", not r.spec.by_row, 0 if r.spec.by_row else -r.nbytes))
        self._spare_nbytes = 2 * max(self._nbytes_full, nbytes)
        self._planned = True
        self._move(lay_out(self._schema, [(r.spec, self._room_nbytes(r) // max(1, r.spec.item_nbytes)) for r in self._order]))

    def _move(self, layout: Layout) -> None:
        """Give every array its place in `layout`, and move there what was written of it."""
        targets = [(r, layout.places[r.spec.name][0]) for r in self._order if r.spec.name in layout.places]
        # Up from the last one, then down from the first one: no array then overwrites one that is still to be moved. That holds
        # because both layouts have the same order; HDF5 puts only tiny arrays elsewhere, and these are in their buffers still.
        for upward in (True, False):
            for region, target in reversed(targets) if upward else targets:
                if (target > region.place) == upward:
                    if region.written and target != region.place:
                        files.move_bytes(self._fd, region.place, target, region.written, self._temporary)
                    region.place = target

    # -- ending -------------------------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Put the arrays together and the frame around them; return what a manifest says of the shard. Not durable before `commit`."""
        present = [r for r in self._order if r.started]
        layout = lay_out(self._schema, [(r.spec, r.entries) for r in present])
        self._move(layout)
        for region in present:
            region.flush(self._fd, self._temporary)
        frame = xxhash.xxh3_128()
        for offset, raw in layout.frame:
            files.write_at(self._fd, [raw], offset, self._temporary)
            frame.update(raw)
        with files.storing(self._temporary):
            files.truncate(self._fd, layout.nbytes)
        by_name = {r.spec.name: r for r in present}
        arrays = [[name, offset, nbytes, by_name[name].digest.hexdigest()] for name, (offset, nbytes) in layout.places.items()]
        return {"rows": self.rows, "nbytes": layout.nbytes, "frame": frame.hexdigest(), "arrays": arrays,
                "digest": shard_digest(frame.hexdigest(), arrays)}

    def commit(self) -> None:
        """Make the file durable and give it its name. May be called from a thread of its own."""
        try:
            files.sync_file(self._fd, self._temporary)
        finally:
            self._close()
        with files.storing(self.path):
            files.rename(self._temporary, self.path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def abandon(self) -> None:
        """Remove whatever there is of the shard."""
        self._close()
        files.remove_quietly(self._temporary)
        files.remove_quietly(self.path)
