"""Where the rows of an HDF5 file lie: what rank 0 finds out and every rank reads by.

Plain values only: a layout is part of a split, and is broadcast. Knows no h5py, so that a rank that reads contiguous data sets never
loads it.

::

    Layout (one file)
    |-- rows
    |-- sets: one for each data set
    |     |-- fields: the columns that come out of it (one; several where it is compound)
    |     `-- node: how to read rows a to b
    |           |-- Raw       bytes of a file, read as they are
    |           |-- Stored    through HDF5: chunked, compressed, of another type, strings
    |           `-- Virtual   mappings, each of some rows from a node of another file
    `-- constants: values of attributes, for each row the same
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hpcmr.data.schema import BYTES, TEXT, ColumnType, Field

STRING_NBYTES = 32
"""What a string of variable length is taken to hold where the file does not tell."""


class FileRef(NamedTuple):
    """A file as the survey saw it: another size or time later means that it was changed meanwhile."""

    path: str
    nbytes: int
    mtime_ns: int


class Form(NamedTuple):
    """How the values of a column are held while they are read.

    `kind` is ``fixed``, ``bool``, ``padded`` (text of a fixed width), ``text``, ``bytes`` (of any width) or ``list``; `dtype` the NumPy
    type of an element in native byte order; `shape` that of a row's value, the last axes of which, `inner`, are the element type's own.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()
    string_nbytes: int = STRING_NBYTES

    @property
    def type(self) -> ColumnType:
        """The column's logical type."""
        if self.kind in ("padded", "text"):
            return TEXT
        if self.kind == "bytes":
            return BYTES
        if self.kind == "list":
            return ColumnType("list", item=ColumnType.fixed(self.dtype))
        return ColumnType.fixed(self.dtype, self.shape)

    @property
    def is_object(self) -> bool:
        """Whether HDF5 hands out a Python object for each row."""
        return self.kind in ("text", "bytes", "list")

    @property
    def buffer(self) -> np.dtype[Any]:
        """Type of an element of the buffer that is read into."""
        return np.dtype(object) if self.is_object else np.dtype(self.dtype)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row, estimated for what is of variable width."""
        if self.is_object:
            return 16 + self.string_nbytes
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


Fields = tuple[tuple[str, Form], ...]


class Axis(NamedTuple):
    """Places along one axis: `blocks` blocks of `block` places, `stride` apart, the first at `start`. One block if they are contiguous."""

    start: int
    stride: int
    blocks: int
    block: int

    @classmethod
    def range(cls, start: int, length: int) -> Axis:
        return cls(start, max(1, length), 1, length)

    @property
    def size(self) -> int:
        return self.blocks * self.block

    @property
    def stop(self) -> int:
        """First place behind the last one."""
        return self.start + (self.blocks - 1) * self.stride + self.block if self.size else self.start

    def before(self, place: int) -> int:
        """How many of the places are smaller than `place`."""
        whole, rest = divmod(max(0, place - self.start), self.stride)
        return self.size if whole >= self.blocks else whole * self.block + min(rest, self.block)

    def places(self, first: int, last: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The places number `first` to ``last - 1``."""
        number = np.arange(first, last, dtype=np.int64)
        return self.start + number // self.block * self.stride + number % self.block


class Raw(NamedTuple):
    """Rows one behind the other in a file, in the bytes of the buffer's type, or with their order swapped."""

    file: FileRef
    name: str
    offset: int
    row_nbytes: int
    swap: bool


class Stored(NamedTuple):
    """A data set that HDF5 reads. `memory` is the form of its values, or the fields wanted of a compound one.

    `may_grow`: compressed, or of variable width; nothing in the headers tells how much memory reading it takes.
    """

    file: FileRef
    name: str
    memory: Form | Fields
    plugin: bool
    chunk_rows: int
    cache_nbytes: int
    may_grow: bool = False


class Mapping(NamedTuple):
    """Some rows of a virtual data set, from a selection of another one.

    `rows` are rows of the virtual data set, `rest` the places along its other axes (None: all); `chosen` are the places in the source, of
    which axis `axis` runs with the rows (-1: they make one row). `plain`: whole contiguous rows on both sides.
    """

    rows: Axis
    rest: tuple[Axis, ...] | None
    source: Node
    chosen: tuple[Axis, ...]
    axis: int
    plain: bool


class Virtual(NamedTuple):
    """A virtual data set, as its mappings."""

    file: FileRef
    name: str
    mappings: tuple[Mapping, ...]

    def between(self, start: int, stop: int) -> Virtual:
        """Only with the mappings that have rows from `start` to ``stop - 1``."""
        return self._replace(mappings=tuple(m for m in self.mappings if m.rows.start < stop and m.rows.stop > start))


Node = Raw | Stored | Virtual


def files_of(node: Node) -> Iterator[FileRef]:
    """The files that a node's rows come from, one perhaps several times."""
    if isinstance(node, Virtual):
        for mapping in node.mappings:
            yield from files_of(mapping.source)
    else:
        yield node.file


class DataSet(NamedTuple):
    """A data set and the columns that come out of it; `record` is the type that a compound one is read as."""

    node: Node
    fields: Fields
    record: np.dtype[Any] | None = None

    def between(self, start: int, stop: int) -> DataSet:
        return self._replace(node=self.node.between(start, stop)) if isinstance(self.node, Virtual) else self


class Layout(NamedTuple):
    """All columns of one file. `constants` are ``(column, value)``, a value is a string or an array of a row's shape."""

    path: str
    rows: int
    sets: tuple[DataSet, ...]
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def row_nbytes(self) -> int:
        return max(1, sum(form.row_nbytes for s in self.sets for _, form in s.fields))

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all files that the rows come from."""
        files = {self.path: 0}
        for s in self.sets:
            files.update((f.path, f.nbytes) for f in files_of(s.node))
        return sum(files.values())

    @property
    def chunk_rows(self) -> int:
        """Rows of the largest chunks, 1 where nothing is chunked."""
        return max((s.node.chunk_rows for s in self.sets if isinstance(s.node, Stored)), default=1)

    def between(self, start: int, stop: int) -> Layout:
        """What is needed to read rows `start` to ``stop - 1``; this layout itself where that is all of it."""
        sets = tuple(s.between(start, stop) for s in self.sets)
        return self if all(a is b for a, b in zip(sets, self.sets, strict=True)) else self._replace(sets=sets)


class Surveyed(NamedTuple):
    """What was found in one file: its layout, and its fields (with attributes)."""

    layout: Layout
    fields: tuple[Field, ...]
