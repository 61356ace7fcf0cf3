"""HDF5 files as rows: the data sets of a group, the fields of a compound data set, or one data set.

Rank 0 surveys the files and cuts them into ranges of rows; each rank reads the ranges that were dealt to it into buffers that it uses
again for each batch. Contiguous data sets are read with plain file calls, without HDF5::

    survey (rank 0)   files -> Layout of each -> splits (layout, first row, last row)
    read (any rank)   split -> fill buffers, many rows at a time, across small files -> Batch

What is found in a file is in `hdf5_survey`, in a process of its own if `hdf5_guard` is on; links and virtual data sets in `hdf5_links` and
`hdf5_nodes`, reading in `hdf5_read`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.schema import INT64, TEXT, Field, Schema
from hpcmr.data.source import BATCH_NBYTES, SPLIT_NBYTES, Split
from hpcmr.errors import InputError, JobSpecError
from hpcmr.io.files import PathLike, find_files
from hpcmr.io.hdf5_layout import Form, Layout
from hpcmr.io.hdf5_read import Handles, column_of_values, fill

BATCH_ROWS_MAX = 128 << 10
OPEN_NBYTES = 64 << 10
"""What opening a file costs, in bytes of reading: added to each file's size where small files are put together."""

Piece = tuple[Layout, int, int]


class Hdf5Source:
    """Rows of HDF5 files.

    Parameters
    ----------
    paths : str, path or sequence of these
        Files, folders and globs, as `hpcmr.io.files.find_files` takes them. All files have the same columns.
    group : str
        A group of data sets of equal length (of their first axis), a compound data set, or a single data set.
    columns : sequence of str, optional
        Columns to read, in this order. Default: all, in the order of creation if the file keeps it, else by name.
    file : str, optional
        Name of a further text column with the path of the row's file.
    row : str, optional
        Name of a further int64 column with the number of the row in its file, from 0.
    attrs : mapping of str to str, optional
        Further columns from attributes: ``{"z": "/Header@Redshift"}``.
    follow : sequence of str, optional
        Folders that links, virtual data sets and external storage may lead to, beside the folder of the file that names them.
    split_nbytes, batch_nbytes : int
        Bytes of a split and of a batch; results do not depend on the second one.

    Notes
    -----
    Columns come out as: bool, integers (enumerations too), floats and complex as they are, in native byte order; strings in ASCII as
    bytes, in UTF-8 as text; lists of numbers as lists. Attributes of data sets that are the same in all files are carried along.
    """

    name = "hdf5"

    def __init__(self, paths: PathLike | Sequence[PathLike], group: str = "/", columns: Sequence[str] | None = None, *, file: str | None = None,
                 row: str | None = None, attrs: Mapping[str, str] | None = None, follow: Sequence[PathLike] = (), split_nbytes: int = SPLIT_NBYTES,
                 batch_nbytes: int = BATCH_NBYTES) -> None:
        self.paths = [os.fspath(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        self.group = group
        self.columns = None if columns is None else _names(columns)
        self.file = file
        self.row = row
        self.attrs = dict(attrs or {})
        self.follow = [os.fspath(f) for f in ([follow] if isinstance(follow, str | os.PathLike) else follow)]
        self.split_nbytes = split_nbytes
        self.batch_nbytes = batch_nbytes
        _check_distinct([*(self.columns or ()), *(n for n in (file, row) if n is not None), *self.attrs])
        for name, where in self.attrs.items():
            if "@" not in where or where.endswith("@"):
                raise JobSpecError(f"attrs: {name!r} is taken from {where!r}, which has no attribute behind an @; for example '/Header@Redshift'")
        self._schema: Schema | None = None
        self._handles = Handles()
        self._spare: _Buffers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": None, "_spare": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handles=Handles())

    def fingerprint(self) -> tuple[Any, ...]:
        columns = None if self.columns is None else tuple(self.columns)
        return ("hdf5", tuple(self.paths), self.group, columns, self.file, self.row, tuple(self.attrs.items()), tuple(self.follow), self.split_nbytes)

    def survey(self) -> tuple[Schema, list[Split]]:
        """Find the files, check that their columns agree, and cut splits of rows.

        Returns
        -------
        Schema, list of Split

        Raises
        ------
        InputError
            No file; one that is no HDF5 file, is damaged or lacks what was asked for; columns of unequal length, of a type that no
            column has, or that differ from file to file; a link that leads nowhere, or outside.

        Notes
        -----
        Collective: no, rank 0 only. Cost: opens each file once and reads its headers.
        """
        from hpcmr.io.hdf5_guard import survey_files

        _check_not_ours(self.paths)
        layouts, merged, first = [], None, ""
        infos = find_files(self.paths, "hdf5")
        for info, found in zip(infos, survey_files(infos, self.group, self.columns, self.attrs, self.follow), strict=True):
            layouts.append(found.layout)
            if merged is None:
                merged, first = found.fields, info.path
            else:
                merged = agreed((first, merged), (info.path, found.fields))
        assert merged is not None
        data = [f for f in merged if f.name not in self.attrs]
        fields = [*data, *([Field(self.file, TEXT)] if self.file else []), *([Field(self.row, INT64)] if self.row else []),
                  *(f for f in merged if f.name in self.attrs)]
        _check_distinct([f.name for f in fields])
        return Schema(tuple(fields)), self._cut(layouts)

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        """Keep the order of the columns; a split holds all else that its reader needs."""
        self._schema = schema

    def close(self) -> None:
        self._handles.close()
        self._spare = None

    def _cut(self, layouts: list[Layout]) -> list[Split]:
        """Ranges of about `split_nbytes`; files that are smaller share one."""
        splits: list[Split] = []
        group: list[Piece] = []
        weight = 0
        for layout in layouts:
            nbytes = layout.rows * layout.row_nbytes
            if group and weight + nbytes + OPEN_NBYTES > self.split_nbytes:
                splits.append(_split(len(splits), group))
                group, weight = [], 0
            if nbytes > self.split_nbytes:
                splits.extend([_split(i, [piece]) for i, piece in enumerate(self._ranges(layout), len(splits))])
            elif layout.rows:
                group.append((layout, 0, layout.rows))
                weight += nbytes + OPEN_NBYTES
        return [*splits, _split(len(splits), group)] if group else splits

    def _ranges(self, layout: Layout) -> Iterator[Piece]:
        """Ranges of equal size that begin at a row of chunks where there are chunks: none is read twice."""
        n, unit = layout.rows, layout.chunk_rows
        count = min(n, -(-n * layout.row_nbytes // self.split_nbytes))
        cuts = sorted({n * i // count // unit * unit for i in range(count)})
        for a, b in zip(cuts, [*cuts[1:], n], strict=True):
            yield layout.between(a, b), a, b

    def read(self, split: Split) -> Iterator[Batch]:
        """Batches of rows, in buffers that the next batch overwrites.

        Raises
        ------
        DataError
            A file changed, vanished or cannot be read.
        """
        assert self._schema is not None, "adopt() comes before read()"
        pieces: tuple[Piece, ...] = split.part
        rows = self._batch_rows(split, pieces)
        buffers, self._spare = self._spare, None
        if buffers is None or not buffers.serves(pieces[0][0], rows):
            buffers = _Buffers(pieces[0][0], rows)
        for layout, start, stop in pieces:
            while start < stop:
                n = min(rows - buffers.rows, stop - start)
                buffers.add(self._handles, layout, start, start + n)
                start += n
                if buffers.rows == rows:
                    yield self._batch(buffers)
        if buffers.rows:
            yield self._batch(buffers)
        self._spare = buffers

    def _batch_rows(self, split: Split, pieces: tuple[Piece, ...]) -> int:
        total = sum(b - a for _, a, b in pieces)
        rows = min(BATCH_ROWS_MAX, max(1, self.batch_nbytes * total // max(1, split.nbytes)))
        unit = pieces[0][0].chunk_rows
        if 1 < unit <= 2 * rows:
            rows = max(1, round(rows / unit)) * unit
        return rows

    def _batch(self, buffers: _Buffers) -> Batch:
        assert self._schema is not None
        columns: dict[str, Column] = buffers.columns()
        counts = [b - a for _, a, b in buffers.pieces]
        if self.file:
            columns[self.file] = _repeated([p.path for p, _, _ in buffers.pieces], counts)
        if self.row:
            columns[self.row] = FixedColumn(np.concatenate([np.arange(a, b, dtype=np.int64) for _, a, b in buffers.pieces]))
        for i, name in enumerate(self.attrs):
            columns[name] = _repeated([p.constants[i][1] for p, _, _ in buffers.pieces], counts)
        buffers.clear()
        return Batch({f.name: columns[f.name] for f in self._schema})


class _Buffers:
    """Memory of one batch: an array for each column, the records of compound data sets, and which rows are in it."""

    def __init__(self, layout: Layout, rows: int) -> None:
        self.room = rows
        self.forms = [(name, _plain(form)) for s in layout.sets for name, form in s.fields]
        self.arrays: dict[str, NDArray[Any]] = {name: np.empty((rows, *form.shape), form.buffer) for name, form in self.forms}
        self.records: dict[str, NDArray[Any]] = {}
        self.clear()

    def serves(self, layout: Layout, rows: int) -> bool:
        return rows == self.room and [(n, _plain(f)) for s in layout.sets for n, f in s.fields] == self.forms

    def clear(self) -> None:
        self.rows = 0
        self.pieces: list[Piece] = []

    def add(self, handles: Handles, layout: Layout, start: int, stop: int) -> None:
        """Read rows `start` to ``stop - 1`` of a file behind those that are there."""
        if self.rows == 0:
            for name, form in self.forms:
                if form.is_object:      # the objects of the last batch may still be there
                    self.arrays[name] = np.empty(self.room, object)
        at, end = self.rows, self.rows + stop - start
        for s in layout.sets:
            if s.record is None:
                fill(handles, s.node, start, stop, self.arrays[s.fields[0][0]][at:end])
                continue
            records = self._records(s.record)[:stop - start]
            fill(handles, s.node, start, stop, records)
            for name, form in s.fields:
                taken = records[name]
                self.arrays[name][at:end] = taken.view(np.uint8) != 0 if form.kind == "bool" else taken
        self.rows = end
        self.pieces.append((layout, start, stop))

    def _records(self, kind: np.dtype[Any]) -> NDArray[Any]:
        key = repr(kind)
        if key not in self.records or kind.hasobject:
            self.records = {**self.records, key: np.empty(self.room, kind)}
        return self.records[key]

    def columns(self) -> dict[str, Column]:
        return {name: column_of_values(form, self.arrays[name][:self.rows]) for name, form in self.forms}


def _plain(form: Form) -> Form:
    """Without what differs from file to file and does not matter for a buffer."""
    return form._replace(string_nbytes=0, inner=())


def _repeated(values: list[Any], counts: list[int]) -> Column:
    if isinstance(values[0], str):
        return BytesColumn.from_list(values, text=True).take(np.repeat(np.arange(len(values)), counts))
    return FixedColumn(np.repeat(np.stack(values), counts, axis=0))


def _split(index: int, pieces: list[Piece]) -> Split:
    nbytes = sum((b - a) * p.row_nbytes for p, a, b in pieces)
    (first, a, b), last = pieces[0], pieces[-1][0]
    where = f"{first.path}[{a}:{b}]" if len(pieces) == 1 else f"{first.path} ... {last.path} ({len(pieces):,} files)"
    return Split(index, nbytes, where, tuple(pieces))


def _names(columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str):
        raise JobSpecError(f"columns={columns!r} is one string; give a list: columns=[{columns!r}]")
    if not columns:
        raise JobSpecError("columns=[] names no column; leave it out to read all")
    return list(columns)


def _check_distinct(names: Sequence[str]) -> None:
    twice = {n for n in names if list(names).count(n) > 1}
    if twice:
        raise JobSpecError(f"two columns are called {', '.join(map(repr, sorted(twice)))}; "
                           "choose other names for file=, row= and attrs=, and name a column once")


def _check_not_ours(paths: Sequence[PathLike]) -> None:
    """A result of ours is read by its manifest: its files taken by themselves would come in another order."""
    for path in paths:
        manifest = os.path.join(os.path.expanduser(os.fsdecode(path)), "manifest.json")
        if os.path.isfile(manifest):
            with open(manifest, "rb") as file:
                if b"hpcmr-table" in file.read(4096):
                    raise InputError(f"{os.fsdecode(path)!r} is a result of hpcmr; open it with hpcmr.open(path).to_table()")


def agreed(first: tuple[str, tuple[Field, ...]], other: tuple[str, tuple[Field, ...]]) -> tuple[Field, ...]:
    """Fields of two files as one: the same names and types, and the attributes on which both agree. Raises `InputError` naming both files."""
    ours, theirs = Schema(first[1]), Schema(other[1])
    both = f"{first[0]!r} and {other[0]!r} do not have the same columns: "
    advice = "; read them apart, or name columns that agree with columns=[...]"
    for schema, where, against in ((ours, first[0], theirs), (theirs, other[0], ours)):
        alone = [n for n in schema.names if n not in against]
        if alone:
            raise InputError(f"{both}{', '.join(map(repr, alone))} {'is' if len(alone) == 1 else 'are'} only in {where!r}{advice}")
    merged = []
    for field in ours:
        match = theirs[field.name]
        if match.type != field.type:
            raise InputError(f"{both}{field.name!r} is {field.type} in {first[0]!r} and {match.type} in {other[0]!r}{advice}")
        same = dict(match.attrs)
        merged.append(field if field.attrs == match.attrs else
                      Field(field.name, field.type, tuple((k, v) for k, v in field.attrs if k in same and same[k] == v)))
    return tuple(merged)
