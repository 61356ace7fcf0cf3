"""Reading an output back: rows in logical order, whichever shards they lie in, with plain file calls.

The manifest tells where every array lies, so HDF5 is neither needed nor trusted here: what a damaged or made-up shard holds can be
wrong values, and nothing else; and before anything is used of an array of a shard, all of it is held against its digest.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, Index, ListColumn, Mask, concat_columns, empty_column
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import DataError, InputError
from hpcmr.store import files, paths
from hpcmr.store.arrays import OFFSETS, stored_dtype
from hpcmr.store.column import StoredColumn
from hpcmr.store.manifest import Manifest, Shard, shard_digest
from hpcmr.store.publish import read_manifest

OPEN_FILES_MAX = 32
BATCH_NBYTES = 1 << 20
VERIFY_NBYTES = 4 << 20

Room = Callable[[str, int], "files.Bytes"]
"""Gives memory for an array of that name and number of bytes."""


def fresh_memory(name: str, nbytes: int) -> files.Bytes:
    return np.empty(nbytes, np.uint8)


class ReusedMemory:
    """Memory that is given again for the next batch: fresh pages cost more than reading into them."""

    def __init__(self) -> None:
        self._blocks: dict[str, files.Bytes] = {}

    def __call__(self, name: str, nbytes: int) -> files.Bytes:
        block = self._blocks.get(name)
        if block is None or not nbytes <= len(block) <= 64 * max(nbytes, BATCH_NBYTES):
            block = self._blocks[name] = np.empty(max(nbytes + nbytes // 4, 4096), np.uint8)
        return block[:nbytes]


class StoredTable:
    """An output that is on disk. Nothing but the manifest is read before rows are asked for.

    ``table["a"]`` is a `StoredColumn` that reads what it is sliced for; ``len(table)`` is the number of rows; iterating gives the
    names of the columns.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    schema : Schema
    rows : int
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = Path(path)
        self.manifest = manifest
        self.schema: Schema = manifest.schema
        self.rows: int = manifest.rows
        cut = np.array(manifest.segments, np.int64).reshape(-1, 3)
        self._shard_of, self._first_of = cut[:, 0], cut[:, 1]
        self._starts = np.concatenate([[0], np.cumsum(cut[:, 2])]).astype(np.int64)
        self._places = [s.places() for s in manifest.shards]
        self._open: OrderedDict[int, int] = OrderedDict()
        self._compared: set[tuple[int, str]] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an output: check its manifest, and that every shard is there with its size.

        Raises
        ------
        InputError
            There is no output at `path`, or it is damaged.

        Notes
        -----
        Collective: no. Cost: the manifest is read, and each shard asked for its size.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            _check_size(folder / shard.name, shard)
        return cls(folder, manifest)

    # -- columns ------------------------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> tuple[str, ...]:
        return self.schema.names

    def keys(self) -> tuple[str, ...]:
        return self.columns

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.schema

    def __getitem__(self, name: str) -> StoredColumn:
        field = self.schema[name]
        return StoredColumn(field, self.rows, self.has_nulls(name), lambda start, stop: self.read(name, start, stop))

    def has_nulls(self, name: str) -> bool:
        valid = paths.array_name(name) + paths.VALID
        return any(valid in p for p in self._places)

    def content_nbytes(self, columns: Sequence[str] | None = None) -> int:
        """Bytes of the rows themselves; unlike the size of the files, the same however many shards hold them."""
        fields = self.schema if columns is None else self.schema.select(columns)
        return sum(self._content(paths.array_name(f.name), f.type, self.rows) for f in fields)

    def _content(self, name: str, kind: ColumnType, count: int) -> int:
        if kind.is_fixed:
            return count * kind.row_nbytes
        data = f"{name}/data"
        if kind.item is None:
            return 8 * count + self._array_nbytes(data)
        if kind.item.is_fixed:
            return 8 * count + self._array_nbytes(data)
        inner = (self._array_nbytes(f"{data}/offsets") - 8 * len(self._places)) // 8
        return 8 * count + self._content(data, kind.item, inner)

    def _array_nbytes(self, name: str) -> int:
        return sum(p.get(name, (0, 0))[1] for p in self._places)

    # -- rows ---------------------------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int, stop: int, room: Room = fresh_memory) -> Column:
        """Rows `start` to `stop` of one column, ``0 <= start <= stop <= rows``. Raises `DataError` if a shard is damaged."""
        field = self.schema[name]
        key = paths.array_name(field.name)
        runs = list(self._runs(start, stop))
        if not runs:
            return empty_column(field.type)
        if len(runs) == 1:
            return self._column(*runs[0], key, field.type, room)
        if field.type.is_fixed and not self.has_nulls(name):
            return FixedColumn(self._gather(runs, key, field.type, room))
        return concat_columns([self._column(*run, key, field.type, fresh_memory) for run in runs])

    def _gather(self, runs: list[tuple[int, int, int]], key: str, kind: ColumnType, room: Room) -> NDArray[Any]:
        """Values of several runs, read into one array."""
        dtype = stored_dtype(kind)
        item = dtype.itemsize * int(np.prod(kind.shape, dtype=np.int64))
        whole, at = room(key, sum(rows for _, _, rows in runs) * item), 0
        for shard, first, rows in runs:
            part = whole[at:at + rows * item]
            self._fill(shard, key, part, first * item)
            at += rows * item
        return _logical(whole.view(dtype).reshape(sum(rows for _, _, rows in runs), *kind.shape), kind)

    def read_batch(self, start: int, stop: int, columns: Sequence[str] | None = None, room: Room = fresh_memory) -> Batch:
        names = self.columns if columns is None else columns
        return Batch({n: self.read(n, start, stop, room) for n in names}, stop - start)

    def batches(self, columns: Sequence[str] | None = None, batch_rows: int | None = None, *, start: int = 0, stop: int | None = None,
                reuse: bool = False) -> Iterator[Batch]:
        """Batches in logical order, of `batch_rows` rows, else of about 1 MiB.

        Parameters
        ----------
        columns : sequence of str, optional
            All of them if not given.
        start, stop : int
            Rows to read.
        reuse : bool
            Batches may share memory: each is valid until the next one is asked for.

        Notes
        -----
        Where batches are cut depends on the rows alone, not on the shards that hold them. A batch holds more than its share only
        where a single row does.
        """
        names = self.schema.select(columns).names if columns is not None else self.columns
        stop = self.rows if stop is None else stop
        room: Room = ReusedMemory() if reuse else fresh_memory
        step = batch_rows or max(1, int(BATCH_NBYTES * self.rows / max(1, self.content_nbytes(names))))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            cuts = [first, last] if batch_rows else self._cuts(first, last, names)
            for a, b in itertools.pairwise(cuts):
                yield self.read_batch(a, b, names, room)

    def _cuts(self, start: int, stop: int, names: Sequence[str]) -> list[int]:
        """Cut a range of rows further where strings or lists are much longer than elsewhere."""
        varying = [(paths.array_name(f.name), f.type) for f in self.schema.select(names) if not f.type.is_fixed]
        if not varying:
            return [start, stop]
        cost = np.zeros(stop - start, np.float64)
        for name, kind in varying:
            cost += self._unit_nbytes(name, kind) * self._lengths(name, start, stop)
        blocks = np.floor(np.cumsum(cost) / (4 * BATCH_NBYTES))
        return [start, *(np.flatnonzero(np.diff(blocks)) + 1 + start).tolist(), stop]

    def _unit_nbytes(self, name: str, kind: ColumnType) -> float:
        """Bytes that one byte of a string, or one element of a list, stands for."""
        if kind.item is None:
            return 1.0
        if kind.item.is_fixed:
            return float(kind.item.row_nbytes)
        count = max(1, (self._array_nbytes(f"{name}/data/offsets") - 8 * len(self._places)) // 8)
        return self._content(f"{name}/data", kind.item, count) / count

    def _lengths(self, name: str, start: int, stop: int) -> Index:
        runs = [self._offsets(shard, name, first, rows, fresh_memory) for shard, first, rows in self._runs(start, stop)]
        return np.concatenate([np.diff(r) for r in runs])

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The pieces (shard, first row, rows) that make rows `start` to `stop`."""
        i = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            rows = min(stop, int(self._starts[i + 1])) - start
            yield int(self._shard_of[i]), int(self._first_of[i]) + start - int(self._starts[i]), rows
            start, i = start + rows, i + 1

    # -- arrays -------------------------------------------------------------------------------------------------------------------

    def _column(self, shard: int, first: int, rows: int, key: str, kind: ColumnType, room: Room) -> Column:
        valid = self._valid(shard, key, first, rows, room)
        if kind.is_fixed:
            values = self._values(shard, key, stored_dtype(kind), kind.shape, first, rows, room)
            return FixedColumn(_logical(values, kind), valid)
        offsets = self._offsets(shard, key, first, rows, room)
        begin, end = int(offsets[0]), int(offsets[-1])
        if begin:
            offsets -= begin
        if kind.item is None:
            data = self._values(shard, f"{key}/data", np.dtype(np.uint8), (), begin, end - begin, room)
            return BytesColumn.from_offsets(offsets, data, kind.kind == "text", valid)
        return ListColumn(offsets[:-1], offsets[1:], self._column(shard, begin, end - begin, f"{key}/data", kind.item, room), valid)

    def _valid(self, shard: int, key: str, first: int, rows: int, room: Room) -> Mask | None:
        name = key + paths.VALID
        if name not in self._places[shard]:
            return None
        return self._values(shard, name, np.dtype(np.uint8), (), first, rows, room).view(np.bool_)

    def _offsets(self, shard: int, key: str, first: int, rows: int, room: Room) -> Index:
        offsets: Index = self._values(shard, f"{key}/offsets", OFFSETS, (), first, rows + 1, room).astype(np.int64, copy=False)
        if int(offsets[0]) < 0 or bool((offsets[1:] < offsets[:-1]).any()):
            raise DataError(f"{self._name(shard)!r} is damaged: the offsets of {key!r} do not ascend; write the output again")
        return offsets

    def _values(self, shard: int, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], first: int, rows: int, room: Room) -> NDArray[Any]:
        item = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._check_place(shard, name, (first + rows) * item)      # before there is memory for it
        out = room(name, rows * item)
        self._fill(shard, name, out, first * item)
        return out.view(dtype).reshape(rows, *shape)

    def _check_place(self, shard: int, name: str, nbytes: int) -> None:
        size = self._places[shard].get(name, (0, 0))[1]
        if nbytes > size:
            raise DataError(f"{self._name(shard)!r} is damaged: {name!r} has {size:,} bytes where {nbytes:,} are needed; write the output again")

    def _fill(self, shard: int, name: str, out: files.Bytes, skip: int) -> None:
        """Read what lies `skip` bytes behind an array's beginning."""
        if len(out):
            self._check_place(shard, name, skip + len(out))
            if (shard, name) not in self._compared:
                self._compare(shard, name)
            self._read(shard, out, self._places[shard][name][0] + skip)

    def _compare(self, shard: int, name: str) -> None:
        """Before anything is used of an array, all of it is read and held against its digest. Raises `DataError`."""
        offset, nbytes, digest = next((o, n, d) for array, o, n, d in self.manifest.shards[shard].arrays if array == name)
        found = xxhash.xxh3_128()
        self._feed(shard, offset, nbytes, np.empty(min(nbytes, VERIFY_NBYTES), np.uint8), found)
        if found.hexdigest() != digest:
            raise DataError(f"{self._name(shard)!r} is damaged: the bytes of {name!r} are not those that were written; write the output again")
        self._compared.add((shard, name))

    def _name(self, shard: int) -> str:
        return str(self.path / self.manifest.shards[shard].name)

    def _read(self, shard: int, out: files.Bytes, offset: int) -> None:
        try:
            got = files.read_at(self._file(shard), out, offset)
        except OSError as error:
            raise DataError(f"{self._name(shard)!r} cannot be read: {error.strerror}") from None
        if got < len(out):
            raise DataError(f"{self._name(shard)!r} ends {len(out) - got:,} bytes early; it was cut since it was opened")

    def _file(self, shard: int) -> int:
        fd = self._open.pop(shard, -1)
        if fd < 0:
            fd = _check_size(self.path / self.manifest.shards[shard].name, self.manifest.shards[shard], keep=True)
            if len(self._open) >= OPEN_FILES_MAX:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard] = fd
        return fd

    # -- the rest -----------------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Read every byte and compare digests; raise `DataError` naming the first shard and array that differ."""
        for index in range(len(self.manifest.shards)):
            for what in self.damages(index):
                raise DataError(what)

    def damages(self, index: int) -> Iterator[str]:
        """Read every byte of a shard and tell what of it is not what was written: nothing, if it is whole. Does not raise."""
        try:
            yield from self._damages(index, self.manifest.shards[index])
        except (DataError, InputError) as error:
            yield str(error)

    def _damages(self, index: int, shard: Shard) -> Iterator[str]:
        block = np.empty(VERIFY_NBYTES, np.uint8)
        frame, at = xxhash.xxh3_128(), 0
        damaged = f"{self._name(index)!r} is damaged: the bytes "
        for name, offset, nbytes, digest in (*shard.arrays, ("", shard.nbytes, 0, xxhash.xxh3_128().hexdigest())):
            self._feed(index, at, offset - at, block, frame)
            found = xxhash.xxh3_128()
            self._feed(index, offset, nbytes, block, found)
            if found.hexdigest() != digest:
                yield f"{damaged}of {name!r} are not those that were written; write the output again"
            at = offset + nbytes
        if frame.hexdigest() != shard.frame or shard_digest(shard.frame, shard.arrays) != shard.digest:
            yield f"{damaged}around its columns are not those that were written; write the output again"

    def _feed(self, index: int, offset: int, nbytes: int, block: files.Bytes, into: Any) -> None:
        while nbytes:
            part = block[:min(nbytes, len(block))]
            self._read(index, part, offset)
            into.update(part)
            offset, nbytes = offset + len(part), nbytes - len(part)

    def close(self) -> None:
        """Close the files; they are opened again when rows are asked for."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", None) and os is not None:      # at the end of the interpreter modules may be gone
            self.close()

    def __repr__(self) -> str:
        columns = ", ".join(f"{f.name}: {f.type}" for f in self.schema)
        return f"<{type(self).__name__} {str(self.path)!r}: {self.rows:,} rows of {columns or 'no columns'}>"


def _logical(values: NDArray[Any], kind: ColumnType) -> NDArray[Any]:
    """Stored values as the column's type: dates from int64, and the machine's byte order."""
    return values.view(kind.np_dtype) if kind.np_dtype.kind in "mM" else values.astype(kind.np_dtype, copy=False)


def _check_size(path: Path, shard: Shard, keep: bool = False) -> int:
    """Open a shard and check that it is a plain file of the right size; return the descriptor if asked to keep it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        about = os.fstat(fd)
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} is missing: the manifest names it; copy the output as a whole, or write it again") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be opened: {error.strerror}") from None
    wrong = "is not a file" if not stat.S_ISREG(about.st_mode) else (
        f"has {about.st_size:,} bytes where the manifest says {shard.nbytes:,}" if about.st_size != shard.nbytes else None)
    if wrong or not keep:
        os.close(fd)
    if wrong:
        raise InputError(f"{str(path)!r} {wrong}; copy the output as a whole, or write it again")
    return fd
