"""Text files, line by line or in blocks of whole words.

A split is a range of bytes of one large file, or a run of whole small files; it is cut from sizes alone, nothing is read for it. A
record belongs to the split in which it starts. *Record* here is a line, or with ``whole_blocks`` a word: both end with a byte that
cannot be inside (a line feed; white space), and the reader needs to know nothing else.

::

    split 0            split 1            split 2
    |-- aaa\\n-- bbbbbb|bbbbb\\n-- ccc\\n-|- ddd\\n --|
    |<- read by 0 ------------->|<- 1 -------->|        a reader starts one byte early, skips the first record end,
                                                       and goes on to the first record end at or behind its last byte

Blocks are read into a buffer of their own, what is left of a record at its end is put in front of the next block::

    |.......... room ......[left over|  block, aligned, by preadv          | 64]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.schema import BYTES, INT64, TEXT, Field, Schema
from hpcmr.data.source import SPLIT_NBYTES, Split
from hpcmr.errors import DataError, JobSpecError
from hpcmr.io.files import FileInfo, PathLike, find_files

BLOCK_NBYTES = 1 << 20
"""Bytes read at a time: a block, the places of its words and what is made of them stay in a core's cache."""
TAIL_NBYTES = 4096
"""Bytes read behind a split's end at first, to end its last record."""
SMALL_FILE_NBYTES = 4096
"""What opening a file costs, in bytes of reading: added to each file's size where small files are put together."""
PAGE = 4096
PAD = 64
"""Bytes behind a block that a kernel may read."""
_LF = 10

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


class _Piece(NamedTuple):
    """A range of bytes of one file; `row` is the number of the first line that starts in it (0 where nobody asks)."""

    path: str
    start: int
    stop: int
    nbytes: int
    mtime_ns: int
    row: int


class TextSource:
    """Lines of text files as rows.

    Parameters
    ----------
    paths : str, path or sequence of these
        Files, folders and globs, as `hpcmr.io.files.find_files` takes them.
    encoding : "utf-8" or None
        ``"utf-8"``: the column is text (bytes that are no UTF-8 are carried along unharmed). None: it is bytes.
    file : str, optional
        Name of a further text column with the path of the row's file, as it was named or found.
    row : str, optional
        Name of a further int64 column with the line's number in its file, from 0. Costs one more pass over files that are larger
        than a split.
    whole_blocks : bool
        A row is a block of many lines, cut at white space, never inside a word: for a step that looks at words only.
    split_nbytes, block_nbytes : int
        Bytes of a split and of a read; results do not depend on the second one.

    Notes
    -----
    The column is called ``line``. Lines end with LF or CR LF, the last one may lack its end; empty lines are rows.
    """

    name = "text"

    def __init__(self, paths: PathLike | Sequence[PathLike], encoding: str | None = "utf-8", *, file: str | None = None, row: str | None = None,
                 whole_blocks: bool = False, split_nbytes: int = SPLIT_NBYTES, block_nbytes: int = BLOCK_NBYTES) -> None:
        if encoding is not None and encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            raise JobSpecError(f"unknown encoding {encoding!r}; text is read as 'utf-8', or as bytes with encoding=None")
        if whole_blocks and row is not None:
            raise JobSpecError("row= numbers lines, and whole_blocks=True yields none")
        names = [n for n in ("line", file, row) if n is not None]
        if len(set(names)) < len(names):
            raise JobSpecError(f"two columns of one name among {', '.join(map(repr, names))}; choose others for file= and row=")
        self.paths = [os.fspath(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        self.text = encoding is not None
        self.file = file
        self.row = row
        self.whole_blocks = whole_blocks
        self.split_nbytes = split_nbytes
        self.block_nbytes = block_nbytes
        self._spare: _Blocks | None = None

    def in_blocks(self) -> TextSource:
        """The same input in blocks of whole words, if it can be: line numbers need lines."""
        if self.row is not None or self.whole_blocks:
            return self
        return TextSource(self.paths, "utf-8" if self.text else None, file=self.file, whole_blocks=True,
                          split_nbytes=self.split_nbytes, block_nbytes=self.block_nbytes)

    def fingerprint(self) -> tuple[Any, ...]:
        return ("text", tuple(self.paths), self.text, self.file, self.row, self.whole_blocks, self.split_nbytes)

    def survey(self) -> tuple[Schema, list[Split]]:
        """Find the files and cut splits from their sizes.

        Returns
        -------
        Schema, list of Split

        Raises
        ------
        InputError
            No file, or one that may not be read.

        Notes
        -----
        Collective: no, rank 0 only. Cost: a ``stat`` per file; with `row` one pass over the large files.
        """
        fields = [Field("line", TEXT if self.text else BYTES)]
        fields += [Field(self.file, TEXT)] if self.file else []
        fields += [Field(self.row, INT64)] if self.row else []
        return Schema(tuple(fields)), self._cut(find_files(self.paths, "text"))

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        """Nothing to keep: a split holds all that its reader needs."""

    def close(self) -> None:
        self._spare = None

    def _cut(self, files: list[FileInfo]) -> list[Split]:
        splits: list[Split] = []
        group: list[FileInfo] = []
        weight = 0
        for info in files:
            if info.nbytes == 0:
                continue
            cost = info.nbytes + SMALL_FILE_NBYTES
            if group and weight + cost > self.split_nbytes:
                splits.append(_split_of_files(len(splits), group))
                group, weight = [], 0
            if info.nbytes > self.split_nbytes:
                splits.extend(self._split_of_ranges(len(splits), info))
            else:
                group.append(info)
                weight += cost
        return [*splits, _split_of_files(len(splits), group)] if group else splits

    def _split_of_ranges(self, first: int, info: FileInfo) -> list[Split]:
        """A large file in ranges of equal size, which begin at whole pages where they are large enough."""
        count = -(-info.nbytes // self.split_nbytes)
        unit = PAGE if self.split_nbytes >= 4 * PAGE else 1
        cuts = [info.nbytes * i // count // unit * unit for i in range(count)] + [info.nbytes]
        rows = self._lines_before(info, cuts) if self.row else [0] * count
        ranges = enumerate(pairwise(cuts))
        return [Split(first + i, b - a, f"{info.path}[{a}:{b}]", ("range", *info, a, b, rows[i])) for i, (a, b) in ranges]

    def _lines_before(self, info: FileInfo, cuts: list[int]) -> list[int]:
        """Number of the first line that starts in each range: of the line feeds before the byte in front of it, and that one."""
        from hpcmr.kernels.lines import count_newlines

        counts = [0]
        blocks = _Blocks(self.block_nbytes)
        with _Opened(info.path, info.nbytes, info.mtime_ns) as opened:
            for a, b in pairwise(cuts[:-1]):
                n = 0
                for pos in range(a, b, self.block_nbytes):
                    want = min(self.block_nbytes, b - pos)
                    opened.read_exactly(blocks.view[:want], pos)
                    n += count_newlines(blocks.data, 0, want)
                counts.append(counts[-1] + n)
            # A range that begins inside a line starts with the next one.
            for i, a in enumerate(cuts[1:-1], 1):
                opened.read_exactly(blocks.view[:1], a - 1)
                counts[i] += int(blocks.data[0] != _LF)
        return counts

    def read(self, split: Split) -> Iterator[Batch]:
        """Batches of whole lines (or of blocks of whole words), views on a buffer that the next batch overwrites.

        Raises
        ------
        DataError
            A file changed, vanished, cannot be read or is shorter than its size says.
        """
        blocks, self._spare = self._spare or _Blocks(self.block_nbytes), None
        blocks.shrink()
        if split.part[0] == "range":
            yield from self._read_range(_Piece(split.part[1], split.part[4], split.part[5], split.part[2], split.part[3], split.part[6]), blocks)
        else:
            yield from self._read_files(_unpack(split.part), blocks)
        self._spare = blocks

    def _read_range(self, piece: _Piece, blocks: _Blocks) -> Iterator[Batch]:
        row = piece.row
        for lo, hi in blocks.records(piece, spaces=self.whole_blocks):
            batch = self._batch(blocks, lo, hi, [piece.path], np.array([lo], np.int64), np.array([row], np.int64))
            row += batch.nrows
            yield batch

    def _read_files(self, files: Iterator[FileInfo], blocks: _Blocks) -> Iterator[Batch]:
        """Small files, one behind the other in one block; each is given the line end that its last line may lack."""
        paths: list[str] = []
        starts: list[int] = []
        fill = 0

        def flush() -> Iterator[Batch]:
            if paths:
                yield self._batch(blocks, 0, fill, paths, np.array(starts, np.int64), np.zeros(len(paths), np.int64))

        for info in files:
            if fill + info.nbytes + 1 > self.block_nbytes:
                yield from flush()
                paths, starts, fill = [], [], 0
            if info.nbytes + 1 > self.block_nbytes:
                yield from self._read_range(_Piece(info.path, 0, info.nbytes, info.nbytes, info.mtime_ns, 0), blocks)
                continue
            _read_small(info, blocks.view[fill:fill + info.nbytes + 1])
            paths.append(info.path)
            starts.append(fill)
            fill += info.nbytes
            if blocks.data[fill - 1] != _LF:
                blocks.data[fill] = _LF
                fill += 1
        yield from flush()

    def _batch(self, blocks: _Blocks, lo: int, hi: int, paths: list[str], firsts: Index, rows: Index) -> Batch:
        """The batch of ``data[lo:hi]``, which holds pieces of the files `paths` that begin at `firsts` with line number `rows`."""
        if self.whole_blocks:
            starts, ends = (firsts, np.append(firsts[1:], hi)) if self.file else (np.array([lo], np.int64), np.array([hi], np.int64))
            counts = np.ones(len(starts), np.int64)
        else:
            starts, ends = blocks.lines(lo, hi)
            counts = np.diff(np.append(np.searchsorted(starts, firsts), len(starts))) if self.file or self.row else firsts
        columns: dict[str, Column] = {"line": BytesColumn(starts, ends, blocks.data, self.text)}
        if self.file:
            names = BytesColumn.from_list(paths, text=True)
            columns[self.file] = names if len(counts) == len(starts) and self.whole_blocks else names.take(np.repeat(np.arange(len(paths)), counts))
        if self.row:
            before = np.cumsum(counts) - counts
            columns[self.row] = FixedColumn(np.arange(len(starts), dtype=np.int64) + np.repeat(rows - before, counts))
        return Batch(columns)


class _Blocks:
    """The buffer that is read into: room for what is left over, an aligned block, padding; and the places of its lines."""

    def __init__(self, block_nbytes: int) -> None:
        self.block = block_nbytes
        self._allocate(2 * block_nbytes)
        self.base = -(-block_nbytes // PAGE) * PAGE     # where a block is read to when something may be left over before it

    def _allocate(self, nbytes: int) -> None:
        raw = np.empty(nbytes + 2 * PAGE + PAD, np.uint8)
        skip = -raw.ctypes.data % PAGE
        self.data: Bytes = raw[skip:]
        self.view = self.data.data
        self.room = len(self.data) - PAD
        self.starts: Index = np.empty(0, np.int64)
        self.ends: Index = np.empty(0, np.int64)

    def shrink(self) -> None:
        """Give back what one very long line needed."""
        if self.room > 8 * self.block + 4 * PAGE:
            self._allocate(2 * self.block)

    def _grow(self, used: int) -> None:
        old = self.data
        try:
            self._allocate(2 * len(old))
        except MemoryError:
            raise DataError(f"a line or word of more than {used:,} bytes does not fit in memory") from None
        self.data[:used] = old[:used]

    def lines(self, lo: int, hi: int) -> tuple[Index, Index]:
        """Starts and ends of the lines of ``data[lo:hi]``; overwritten by the next call."""
        from hpcmr.kernels.lines import find_lines

        if len(self.starts) < hi - lo + 1:
            self.starts, self.ends = np.empty(hi - lo + 1, np.int64), np.empty(hi - lo + 1, np.int64)
        n = find_lines(self.data, lo, hi, self.starts, self.ends)
        return self.starts[:n], self.ends[:n]

    def records(self, piece: _Piece, spaces: bool) -> Iterator[tuple[int, int]]:
        """Ranges of the buffer, each full of whole records, which together are those that start in the piece."""
        from hpcmr.kernels.lines import first_end, last_end

        last = piece.stop - 1                       # the piece is done at the first record end at or behind this byte
        skipping = piece.start > 0
        pos = max(0, piece.start - 1)
        lo = fill = self.base                       # data[lo:fill] is a record that has begun
        step = TAIL_NBYTES
        with _Opened(piece.path, piece.nbytes, piece.mtime_ns) as opened:
            while pos < piece.nbytes:
                if pos > last:
                    want = step = min(2 * step, self.block)
                else:
                    want = min(self.block - pos % PAGE if self.block > PAGE else self.block, last + TAIL_NBYTES - pos)
                want = min(want, piece.nbytes - pos)
                if fill + want > self.room:
                    self._grow(fill)
                got = opened.read(self.view[fill:fill + want], pos)
                begin, fill = fill, fill + got
                if skipping:
                    end = first_end(self.data, begin, min(fill, begin + last - pos), spaces)
                    if end < 0 and pos + got >= last:
                        return                      # no record starts here
                    if end < 0:
                        pos, lo, fill = pos + got, self.base, self.base
                        continue
                    lo, skipping = end + 1, False
                stop_at = max(begin, begin + last - pos)
                pos += got
                if pos > last:
                    end = first_end(self.data, max(stop_at, lo), fill, spaces)
                    if end >= 0 or pos == piece.nbytes:
                        end = fill if end < 0 else end + 1
                        if end > lo:
                            yield lo, end
                        return
                else:
                    end = last_end(self.data, max(begin, lo), fill, spaces)
                    if end >= 0:
                        yield lo, end + 1
                        lo, fill = self._carry(end + 1, fill)

    def _carry(self, lo: int, hi: int) -> tuple[int, int]:
        """Put the left-over ``data[lo:hi]``, shorter than a block, in front of the place of the next block."""
        n = hi - lo
        self.data[self.base - n:self.base] = self.data[lo:hi]
        return self.base - n, self.base


class _Opened:
    """A file that is open and is still the one that was surveyed."""

    def __init__(self, path: str, nbytes: int, mtime_ns: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self.mtime_ns = mtime_ns

    def __enter__(self) -> _Opened:
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _gone(self.path, error) from None
        info = os.fstat(self.fd)
        if info.st_size != self.nbytes or info.st_mtime_ns != self.mtime_ns:
            os.close(self.fd)
            raise _changed(self.path, self.nbytes, info.st_size)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, target: memoryview, pos: int) -> int:
        """Read some bytes from `pos` on, at least one."""
        try:
            got = os.preadv(self.fd, [target], pos)
        except OSError as error:
            raise DataError(f"{self.path!r} cannot be read at byte {pos:,}: {error.strerror}") from None
        if got == 0:
            raise DataError(f"{self.path!r} ends at byte {pos:,}, it had {self.nbytes:,} bytes when the job began: it was truncated while being read")
        return got

    def read_exactly(self, target: memoryview, pos: int) -> None:
        done = 0
        while done < len(target):
            done += self.read(target[done:], pos + done)


def _read_small(info: FileInfo, target: memoryview) -> None:
    """Read a whole file into `target`, which has one byte more than the file had: no ``fstat`` is needed to see that it grew."""
    try:
        fd = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _gone(info.path, error) from None
    try:
        got = os.preadv(fd, [target], 0)
        while 0 < got < info.nbytes:
            more = os.preadv(fd, [target[got:]], got)
            if more == 0:
                break
            got += more
    except OSError as error:
        raise DataError(f"{info.path!r} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    if got != info.nbytes:
        raise _changed(info.path, info.nbytes, os.stat(info.path).st_size if os.path.exists(info.path) else got)


def _gone(path: str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path!r} was there when the job began and has vanished; inputs must stay as they are while a job reads them")
    return DataError(f"{path!r} cannot be opened: {error.strerror}")


def _changed(path: str, before: int, now: int) -> DataError:
    sizes = f"it had {before:,} bytes and has {now:,}" if before != now else f"its {now:,} bytes were written anew"
    return DataError(f"{path!r} has changed since the job began: {sizes}; inputs must stay as they are while a job reads them")


def _split_of_files(index: int, files: list[FileInfo]) -> Split:
    """A run of whole files. 100,000 of them are broadcast: one string and two packed arrays are made and read faster than tuples."""
    where = files[0].path if len(files) == 1 else f"{files[0].path} ... {files[-1].path} ({len(files):,} files)"
    sizes = np.array([f.nbytes for f in files], "<i8")
    times = np.array([f.mtime_ns for f in files], "<i8")
    return Split(index, int(sizes.sum()), where, ("files", "\0".join(f.path for f in files), sizes.tobytes(), times.tobytes()))


def _unpack(part: tuple[Any, ...]) -> Iterator[FileInfo]:
    sizes, times = np.frombuffer(part[2], "<i8").tolist(), np.frombuffer(part[3], "<i8").tolist()
    return map(FileInfo, part[1].split("\0"), sizes, times)
