"""Shards of checkpoints: rows in partition order, durable, and read back a range of partitions at a time by whoever needs them.

A file of pieces is a segment (`hpcmr.store.segment`) that carries its index as one more array, ``%index``, and opens in any HDF5. What
a generation keeps of it is a `PieceInfo`: place, size and digest of the index. So the chain is closed: the journal's entry is digested,
it has the digest of the index, and this has the digests of every array in every run of partitions, and of the frame around them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import DamagedCheckpoint, HpcmrError, StorageError
from hpcmr.store import files, paths, sealed, segment
from hpcmr.store.arrays import BYTE, ArraySpec, column_arrays
from hpcmr.store.journal import SAFE
from hpcmr.store.segment import Array, Segment

RUN_NBYTES = 1 << 20
"""Bytes, of all arrays together, that are digested together, or one partition if that is more."""
INDEX_NBYTES_MAX = 1 << 30
INDEX = "%index"
_INDEX_SPEC = ArraySpec(INDEX, "data", 0, BYTE, (), None, ColumnType.fixed("uint8"))
_KEYS = {"file", "nbytes", "rows", "first", "count", "at", "digest"}
_HEADER = ("schema", "first", "count", "rows", "runs", "frame", "cuts", "arrays")

PieceInfo = dict[str, Any]
"""What a generation keeps of a file of pieces, plain values for JSON: ``file`` (relative to the run directory), ``nbytes``, ``rows``, ``first``
and ``count`` (its partitions), ``at`` (offset and bytes of the index) and ``digest`` (of the index)."""


class InRunDir(segment.Medium):
    """Files of a run directory."""

    @contextlib.contextmanager
    def using(self, path: Path, what: str) -> Iterator[None]:
        """What a device has lost is damage as well."""
        try:
            with files.storing(path, what, SAFE):
                yield
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in LOST:
                raise self.damaged(path, f"it cannot be read ({error.__cause__.strerror})") from error.__cause__
            raise

    def damaged(self, path: Path, how: str) -> StorageError:
        return DamagedCheckpoint(f"checkpoint {str(path)!r} is damaged: {how}; start the job again: it goes on from an older checkpoint, or anew",
                                 file=f"{path.parent.name}/{path.name}")


LOST = (errno.ENOENT, errno.EIO, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.EBADMSG)
MEDIUM = InRunDir()


def write_pieces(run_dir: Path, file: str, parts: Sequence[Partitioned]) -> PieceInfo:
    """Write parts to one new file. It is durable when this returns, once `sync_names` was called as well.

    Parameters
    ----------
    run_dir : Path
    file : str
        Of `paths.piece_file` or `paths.result_file`: no other file has it.
    parts : sequence of Partitioned
        One or more, of one schema, that cover the same partitions. They must not change until this returns. Of each partition the rows
        of all parts come back in this order.

    Returns
    -------
    PieceInfo

    Raises
    ------
    StorageError
        The disk is full or fails; nothing of the file is left.

    Notes
    -----
    Collective: no; in any thread. Cost: each byte is digested and written once, from where it lies.
    """
    assert paths.is_run_file(file), file
    path = Path(run_dir) / file
    draft = paths.unfinished(path)
    made, sources = segment.plan(path, parts, RUN_NBYTES)
    size = _index_nbytes(made)
    try:
        files.make_folder(path.parent, safe=SAFE)
        with files.storing(path, "write", SAFE):
            fd = files.create(draft)
            try:
                layout = segment.write(fd, made, sources, [(_INDEX_SPEC, size)])
                index = _index_bytes(made, _frame_digest(layout.frame), size)
                files.write_all(fd, [index], layout.places[INDEX][0])
                files.truncate(fd, layout.nbytes)
                files.sync(fd)
            finally:
                os.close(fd)
            files.rename(draft, path)
    except BaseException:
        files.remove_quietly(draft)
        raise
    return {"file": file, "nbytes": layout.nbytes, "rows": int(made.rows[-1]), "first": made.first, "count": made.count,
            "at": [layout.places[INDEX][0], size], "digest": xxhash.xxh3_128_hexdigest(index)}


def sync_names(run_dir: Path) -> None:
    """Make the names of all files of `write_pieces` durable: once, before their generation is committed."""
    for folder in paths.run_folders(Path(run_dir)):
        if folder.exists():
            files.sync_folder(folder, SAFE)


class PieceFile:
    """A file of pieces, to be read a range of partitions at a time. Its index is read and compared when this is made.

    Parameters
    ----------
    run_dir : Path
    info : PieceInfo

    Attributes
    ----------
    schema : Schema
    first, count, rows : int
        Its partitions are `first` to ``first + count - 1``.

    Raises
    ------
    StorageError
        The file is missing, shorter, or its index is not the one that was written.

    Notes
    -----
    Collective: no; in any thread. No file stays open.
    """

    def __init__(self, run_dir: Path, info: PieceInfo) -> None:
        self.path, self.info = Path(run_dir) / checked_info(info)["file"], info
        at, size = info["at"]
        with MEDIUM.using(self.path, "read back"):
            fd = files.open_read(self.path)
        try:
            if os.fstat(fd).st_size != info["nbytes"]:
                raise MEDIUM.damaged(self.path, f"it has {os.fstat(fd).st_size:,} bytes; {info['nbytes']:,} were written")
            raw = np.empty(size, np.uint8)
            with MEDIUM.using(self.path, "read back"):
                files.read_at(fd, raw, at)
        finally:
            os.close(fd)
        if xxhash.xxh3_128_hexdigest(raw.data) != info["digest"]:
            raise MEDIUM.damaged(self.path, "its index is not the one that was written")
        try:
            self._segment, self._frame = _index_parsed(raw.tobytes(), self.path, info)
        except (sealed.Wrong, HpcmrError, ValueError, TypeError, OverflowError, SyntaxError, RecursionError) as wrong:
            raise MEDIUM.damaged(self.path, f"its index makes no sense ({wrong})") from None
        self.schema, self.first, self.count, self.rows = self._segment.schema, self._segment.first, self._segment.count, info["rows"]

    def rows_of(self, first: int, last: int) -> int:
        """Rows of the partitions `first` to ``last - 1``."""
        i, j = self._clip(first, last)
        return int(self._segment.rows[j] - self._segment.rows[i])

    def counts(self, first: int, last: int) -> NDArray[np.int64]:
        """Rows of each of the partitions `first` to ``last - 1``, which are all in this file."""
        i, j = self._clip(first, last)
        return np.diff(self._segment.rows[i:j + 1])

    def nbytes_of(self, first: int, last: int) -> int:
        """Bytes of the arrays of the partitions `first` to ``last - 1``. A read takes up to `RUN_NBYTES` more at either end."""
        i, j = self._clip(first, last)
        return self._segment.nbytes(i, j) if j > i else 0

    def _clip(self, first: int, last: int) -> tuple[int, int]:
        i, j = (min(max(p - self.first, 0), self.count) for p in (first, last))
        return i, max(i, j)

    def read(self, first: int, last: int) -> Partitioned:
        """The rows of the partitions `first` to ``last - 1``, as far as they are in this file, in memory of their own.

        Raises
        ------
        StorageError
            The file is missing, shorter, or holds other bytes than were written.
        """
        i, j = self._clip(first, last)
        made = self._segment
        p = int(made.bounds[np.searchsorted(made.bounds, i, side="right") - 1])
        q = int(made.bounds[np.searchsorted(made.bounds, j)])
        batch, _ = segment.read([(made, p, q)], MEDIUM)
        if (p, q) != (i, j):
            batch = batch.slice(int(made.rows[i] - made.rows[p]), int(made.rows[j] - made.rows[p]))
        return Partitioned(batch, made.rows[i:j + 1] - made.rows[i], self.first + i)

    def verify(self) -> None:
        """Read every byte of the file, the frame included. Raises `StorageError`. Memory for one block."""
        with MEDIUM.using(self.path, "read back"):
            fd = files.open_read(self.path)
        try:
            self._verify_frame(fd)
            for n, array in enumerate(self._segment.arrays):
                self._verify_array(fd, n, array)
        finally:
            os.close(fd)

    def _verify_frame(self, fd: int) -> None:
        digest, at = xxhash.xxh3_128(), 0
        inside = [(a.place(0, self.count)) for a in self._segment.arrays if a.place(0, self.count)[1]]
        for start, nbytes in [*sorted([*inside, tuple(self.info["at"])]), (self.info["nbytes"], 0)]:
            with MEDIUM.using(self.path, "read back"):
                for _, raw in _blocks(fd, at, start):
                    digest.update(raw)
            at = max(at, start + nbytes)
        if digest.hexdigest() != self._frame:
            raise MEDIUM.damaged(self.path, "the bytes around its arrays are not those that were written")

    def _verify_array(self, fd: int, n: int, array: Array) -> None:
        made = self._segment
        if array.spec.role == "offsets" and not array.cuts[-1]:
            with MEDIUM.using(self.path, "read back"):
                if any(bytes(raw) != bytes(8) for _, raw in _blocks(fd, array.offset, array.offset + 8)):
                    raise MEDIUM.damaged(self.path, f"the first offset of {array.spec.name!r} is not the one that was written")
        block = np.empty(0, np.uint8)
        for p, q in zip(made.bounds[:-1].tolist(), made.bounds[1:].tolist(), strict=True):
            nbytes = array.place(p, q)[1]
            if len(block) < nbytes:
                block = np.empty(nbytes, np.uint8)
            segment.read_runs(fd, made, n, p, q, block[:nbytes], MEDIUM)


def checked_info(info: Any) -> PieceInfo:
    """`info` if it is a `PieceInfo` that makes sense. Raises `StorageError`."""
    try:
        if set(sealed.mapping(info, "a piece")) != _KEYS or not paths.is_run_file(sealed.text(info["file"], "its file", 200)):
            raise sealed.Wrong(f"it is described by {str(info)[:100]}")
        nbytes = sealed.number(info["nbytes"], "its bytes")
        sealed.number(info["rows"], "its rows")
        sealed.number(info["first"], "its first partition")
        sealed.number(info["count"], "its number of partitions")
        at, size = (sealed.number(n, "the place of its index", nbytes) for n in sealed.items(info["at"], "the place of its index"))
        if at + size > nbytes or size > INDEX_NBYTES_MAX:
            raise sealed.Wrong(f"its index lies at {at}, {size} bytes")
        sealed.hexadecimal(info["digest"], "its digest")
    except (sealed.Wrong, ValueError) as wrong:
        raise StorageError(f"a generation names a file of pieces that makes no sense: {wrong}; start the job again: it goes on from an older "
                           "checkpoint, or anew") from None
    made: PieceInfo = info
    return made


def infos_in(body: Any) -> Iterator[PieceInfo]:
    """Every `PieceInfo` of a generation, wherever in its body it stands."""
    left = [body]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if set(value) == _KEYS:
                yield dict(value)
            else:
                left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def fault_of(run_dir: Path, body: Any, deep: bool = False) -> str | None:
    """What is wrong with the files that a generation names; None: nothing. For `Journal.newest_generation`.

    With `deep` every byte is read; else sizes and indices, and what is damaged elsewhere is found when it is read.
    """
    try:
        for info in infos_in(body):
            piece = PieceFile(run_dir, info)
            if deep:
                piece.verify()
    except HpcmrError as error:
        return str(error)
    return None


# -- the index ---------------------------------------------------------------------------------------------------------------------


def _blocks(fd: int, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    block = np.empty(min(max(0, stop - start), segment.BLOCK_NBYTES), np.uint8)
    for at in range(start, stop, segment.BLOCK_NBYTES):
        part = block[:min(stop - at, len(block))]
        yield at, part[:files.read_at(fd, part, at)].data


def _frame_digest(frame: Sequence[tuple[int, bytes]]) -> str:
    digest = xxhash.xxh3_128()
    for _, raw in frame:
        digest.update(raw)
    return digest.hexdigest()


def _levels(made: Segment) -> list[NDArray[np.int64]]:
    """The different `cuts` of a segment's arrays; the rows are the first ones."""
    found: list[NDArray[np.int64]] = [made.rows]
    for a in made.arrays:
        if not any(a.cuts is c or np.array_equal(a.cuts, c) for c in found):
            found.append(a.cuts)
    return found


def _header(made: Segment, frame: str) -> bytes:
    levels = _levels(made)
    value = {"schema": [[f.name, str(f.type)] for f in made.schema], "first": made.first, "count": made.count, "rows": int(made.rows[-1]),
             "runs": len(made.bounds) - 1, "frame": frame, "cuts": len(levels),
             "arrays": [[a.spec.name, a.offset, next(i for i, c in enumerate(levels) if np.array_equal(a.cuts, c))] for a in made.arrays]}
    return json.dumps({k: value[k] for k in _HEADER}, separators=(",", ":")).encode()


def _index_nbytes(made: Segment) -> int:
    """Room for the index: places are not known yet, so that their digits are counted as if they were many."""
    header = len(_header(made, "0" * 32)) + 20 * len(made.arrays)
    numbers = (made.count + 1) * len(_levels(made)) + len(made.bounds) + made.digests.size
    return 8 * (1 + -(-header // 8) + numbers)


def _index_bytes(made: Segment, frame: str, size: int) -> bytes:
    """The length of the header, the header, padding, and then all numbers, 8 bytes each: cuts, bounds of runs, digests."""
    numbers = [*_levels(made), made.bounds, made.digests.reshape(-1)]
    raw = b"".join(np.ascontiguousarray(n).astype(n.dtype.newbyteorder("<"), copy=False).tobytes() for n in numbers)
    header = _header(made, frame)
    return len(header).to_bytes(8, "little") + header.ljust(size - 8 - len(raw)) + raw


def _index_parsed(raw: bytes, path: Path, info: PieceInfo) -> tuple[Segment, str]:
    """Inverse; nothing that it says is believed before it was held against the file's size."""
    value = sealed.load(raw[8:8 + int.from_bytes(raw[:8], "little")])
    if tuple(value) != _HEADER:
        raise sealed.Wrong("its keys are " + ", ".join(map(repr, value))[:200])
    count, runs, levels = (sealed.number(value[k], k, INDEX_NBYTES_MAX) for k in ("count", "runs", "cuts"))
    if (value["first"], count, value["rows"]) != (info["first"], info["count"], info["rows"]):
        raise sealed.Wrong("it tells of other partitions or rows than the generation")
    items = sealed.items(value["arrays"], "arrays")
    nbytes = 8 * ((count + 1) * levels + runs + 1 + len(items) * runs)
    if nbytes > len(raw) or levels < 1:
        raise sealed.Wrong("it is too short for what it tells of")
    numbers = np.frombuffer(raw[len(raw) - nbytes:], "<i8").astype(np.int64, copy=False)
    cuts = numbers[:(count + 1) * levels].reshape(levels, count + 1)
    bounds = numbers[cuts.size:cuts.size + runs + 1]
    digests = numbers[cuts.size + runs + 1:].view(np.uint64).reshape(len(items), runs)
    for c, most in ((bounds, count), *((c, info["nbytes"]) for c in cuts[1:]), (cuts[0], info["rows"])):
        if c[0] != 0 or (np.diff(c) < 0).any() or c[-1] > most:
            raise sealed.Wrong("its numbers do not ascend from 0")
    if bounds[-1] != count or cuts[0, -1] != info["rows"]:
        raise sealed.Wrong("its numbers do not cover all partitions")
    schema = Schema(tuple(Field(sealed.text(n, "a name"), ColumnType.parse(sealed.text(t, "a type", 1000))) for n, t in value["schema"]))
    arrays = _arrays_parsed(schema, items, cuts, info)
    return Segment(path, schema, info["first"], cuts[0], bounds, arrays, digests), sealed.hexadecimal(value["frame"], "the frame's digest")


def _arrays_parsed(schema: Schema, items: list[Any], cuts: NDArray[np.int64], info: PieceInfo) -> list[Array]:
    """The arrays that the schema asks for, in its order, each inside the file."""
    wanted = [s for f in schema for s in column_arrays(paths.array_name(f.name), f.type)]
    named = {name: (offset, level) for name, offset, level in items}
    if [s.name for s in wanted if s.name in named] != [name for name, _, _ in items] or any(s.role != "valid" for s in wanted if s.name not in named):
        raise sealed.Wrong("its arrays are not those of its columns")
    arrays = []
    for spec in wanted:
        if spec.name in named:
            offset, level = (sealed.number(n, "a place") for n in named[spec.name])
            if level >= len(cuts) or (spec.by_row and level):
                raise sealed.Wrong("an array has other numbers than its rows")
            array = Array(spec, cuts[level], offset)
            if sum(array.place(0, len(cuts[0]) - 1)) > info["nbytes"]:
                raise sealed.Wrong("an array ends behind the end of the file")
            arrays.append(array)
    return arrays
