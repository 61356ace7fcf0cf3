"""An output as one ordinary file for other programs, written in bounded memory to a temporary name and then renamed.

HDF5 never writes to the disk itself: on a full one it would lose data without a word and crash later. It writes to a `_Sink`, which
remembers the first error and lets HDF5 finish in peace.
"""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import BytesColumn, FixedColumn, ListColumn
from hpcmr.data.schema import ColumnType
from hpcmr.errors import Refused
from hpcmr.store import files, paths
from hpcmr.store.encode import plain_values, without_nulls
from hpcmr.store.reader import StoredTable
from hpcmr.store.texts import csv_bytes, csv_header

PAD_FACTOR = 16
PAD_NBYTES = 1 << 20
"""Strings are padded to a common width for NumPy, unless that takes more than 1 MiB and 16 times their bytes."""
_SAFE = "the file was not written, and an earlier one is as it was"


def export(table: StoredTable, file: str | os.PathLike[str], kind: str, *, replace: bool = False) -> list[str]:
    """Write all rows to `file`.

    Parameters
    ----------
    table : StoredTable
    file : str or path
    kind : {"h5", "csv", "tsv", "npz"}
    replace : bool
        Replace a file that is there.

    Returns
    -------
    list of str
        What the reader should know: columns that the format has no word for, and what became of them.

    Raises
    ------
    Refused
        `file` is there already.
    StorageError
        Writing fails; nothing is left behind.
    """
    target = Path(file)
    if os.path.lexists(target) and (target.is_dir() or not replace):
        raise Refused(f"{str(target)!r} is there already; choose another name, or remove it" + ("" if target.is_dir() else " (--force replaces it)"))
    temporary = paths.export_staging(target, secrets.token_hex(4))
    fd = files.open_new(temporary)
    try:
        try:
            with files.storing(target, safe=_SAFE):
                remarks = _WRITERS[kind](table, fd)
            files.sync_file(fd, temporary)
        finally:
            os.close(fd)
        with files.storing(target, "rename to", _SAFE):
            files.rename(temporary, target)
    except BaseException:
        files.remove_quietly(temporary)
        raise
    files.sync_folder(target.parent)
    return remarks


# -- text -------------------------------------------------------------------------------------------------------------------------


def _delimited(separator: str) -> Callable[[StoredTable, int], list[str]]:
    def write(table: StoredTable, fd: int) -> list[str]:
        with open(fd, "wb", closefd=False) as out:
            out.write(csv_header(table.columns, separator))
            for batch in table.batches(reuse=True):
                out.write(csv_bytes(batch, separator))
        return []

    return write


# -- arrays -----------------------------------------------------------------------------------------------------------------------


class _Array(NamedTuple):
    """One array to write: its shape, and its parts in order. `strings` tells that the parts are lists of bytes, of text if `text`."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    parts: Iterator[Any]
    strings: bool = False
    text: bool = False
    type: ColumnType | None = None


class _Facts(NamedTuple):
    """What decides how a column of strings can be written."""

    width: int          # of the longest one: characters of text, bytes
    nbytes: int
    nul_inside: bool
    nul_at_end: bool


def _facts(table: StoredTable, name: str) -> _Facts:
    width = nbytes = 0
    inside = at_end = False
    for batch in table.batches([name], reuse=True):
        column = batch[name]
        assert isinstance(column, BytesColumn)
        whole = without_nulls(column, column.valid).compact()
        assert isinstance(whole, BytesColumn)
        nbytes += len(whole.data)
        inside = inside or bool((whole.data == 0).any())
        ends = whole.ends[whole.ends > whole.starts]
        at_end = at_end or bool((whole.data[ends - 1] == 0).any())
        width = max(width, max(map(len, whole.to_list()), default=0))
    return _Facts(width, nbytes, inside, at_end)


class _Plan:
    """The arrays that a table becomes, with names that are free."""

    def __init__(self, table: StoredTable, whole_strings: Callable[[ColumnType, _Facts], bool]) -> None:
        self.table = table
        self.remarks: list[str] = []
        self._whole = whole_strings
        self._taken = {paths.array_name(n) for n in table.columns}

    def arrays(self) -> Iterator[_Array]:
        for f in self.table.schema:
            name = paths.array_name(f.name)
            yield from self._column(f.name, name, f.type)
            if self.table.has_nulls(f.name):
                yield _Array(self._free(f"{name}.valid"), np.dtype(np.bool_), (self.table.rows,), self._each(f.name, _validity))

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _each(self, column: str, part: Callable[[Any], Any]) -> Iterator[Any]:
        return (part(batch[column]) for batch in self.table.batches([column], reuse=True))

    def _column(self, column: str, name: str, kind: ColumnType) -> Iterator[_Array]:
        if kind.is_fixed:
            values = self._each(column, lambda c: plain_values(c.values, c.valid))
            yield _Array(name, kind.np_dtype, (self.table.rows, *kind.shape), values, type=kind)
        elif kind.is_string and self._whole(kind, facts := _facts(self.table, column)):
            dtype = np.dtype(f"{'U' if kind.kind == 'text' else 'S'}{max(1, facts.width)}")
            yield _Array(name, dtype, (self.table.rows,), self._each(column, _strings), True, kind.kind == "text", kind)
        else:
            what = "lists" if kind.kind == "list" else "strings that end in NUL bytes, hold some, or differ much in length"
            self.remarks.append(f"column {column!r} has {what}: written as {name + '.offsets'!r} and {name + '.data'!r}")
            yield from self._parts(column, name, kind, ())

    def _parts(self, column: str, name: str, kind: ColumnType, at: tuple[int, ...]) -> Iterator[_Array]:
        """A column of variable width as arrays, outermost first; `at` tells how deep in lists."""
        if kind.is_fixed:
            yield _Array(name, kind.np_dtype, (self._count(column, at), *kind.shape),
                         self._each(column, lambda c: plain_values(_inner(c, at).values, _inner(c, at).valid)), type=kind)
            return
        yield _Array(self._free(f"{name}.offsets"), np.dtype(np.int64), (self._count(column, at) + 1,), self._offsets(column, at))
        if kind.item is None:
            total = sum(self._each(column, lambda c: len(_inner(c, at).data)))
            yield _Array(self._free(f"{name}.data"), np.dtype(np.uint8), (total,), self._each(column, lambda c: _inner(c, at).data), type=kind)
        else:
            inner = self._free(f"{name}.data") if kind.item.is_fixed else f"{name}.data"
            yield from self._parts(column, inner, kind.item, (*at, 0))

    def _count(self, column: str, at: tuple[int, ...]) -> int:
        return sum(self._each(column, lambda c: len(_inner(c, at)))) if at else self.table.rows

    def _offsets(self, column: str, at: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
        yield np.zeros(1, np.int64)
        total = 0
        for ends in self._each(column, lambda c: _inner(c, at).offsets()[1:]):
            yield ends + total
            total += int(ends[-1]) if len(ends) else 0


def _inner(column: Any, at: tuple[int, ...]) -> Any:
    """The compact column at a depth, without what nulls would hold."""
    whole = column
    for _ in at:
        assert isinstance(whole, ListColumn)
        lists = without_nulls(whole, whole.valid).compact()
        assert isinstance(lists, ListColumn)
        whole = lists.child
    return whole.compact() if isinstance(whole, FixedColumn) else without_nulls(whole, whole.valid).compact()


def _validity(column: Any) -> NDArray[np.bool_]:
    return np.ones(len(column), np.bool_) if column.valid is None else column.valid


def _strings(column: BytesColumn) -> list[bytes]:
    whole = without_nulls(column, column.valid).compact()
    assert isinstance(whole, BytesColumn)
    return BytesColumn(whole.starts, whole.ends, whole.data, text=False).to_list()


# -- npz --------------------------------------------------------------------------------------------------------------------------


def _write_npz(table: StoredTable, fd: int) -> list[str]:
    def fits(kind: ColumnType, facts: _Facts) -> bool:
        padded = table.rows * facts.width * (4 if kind.kind == "text" else 1)
        return not facts.nul_at_end and (padded <= PAD_NBYTES or padded <= PAD_FACTOR * facts.nbytes)

    plan = _Plan(table, fits)
    with open(fd, "wb", closefd=False) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for array in plan.arrays():
            with archive.open(zipfile.ZipInfo(f"{array.name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_2_0(member, header)
                for part in array.parts:
                    member.write(files.as_bytes(_padded(part, array) if array.strings else part).data)
    return plan.remarks


def _padded(values: list[bytes], array: _Array) -> NDArray[Any]:
    return np.array([v.decode("utf-8", "surrogateescape") for v in values] if array.text else values, array.dtype)


# -- HDF5 -------------------------------------------------------------------------------------------------------------------------


class _Sink:
    """A file for HDF5 to write to, that never fails: the first error is kept for us."""

    def __init__(self, fd: int) -> None:
        self.error: OSError | None = None
        self._fd = fd
        self._at = 0
        self._end = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0 if whence == 0 else self._at if whence == 1 else self._end)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += files.retried(os.pwrite, self._fd, view[done:], self._at + done)
        except OSError as error:
            self.error = error
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def readinto(self, out: Any) -> int:
        view = np.frombuffer(out, np.uint8)
        view[:] = 0
        try:
            files.read_at(self._fd, view, self._at)
        except OSError as error:
            self.error = self.error or error
        self._at += len(view)
        return len(view)

    def read(self, nbytes: int) -> bytes:
        out = bytearray(nbytes)
        self.readinto(out)
        return bytes(out)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        try:
            files.truncate(self._fd, self._end)
        except OSError as error:
            self.error = self.error or error
        return self._end

    def flush(self) -> None:
        """Nothing is held back."""


class _SinkFailed(Exception):
    """The sink has an error; HDF5 need not go on."""


def _write_h5(table: StoredTable, fd: int) -> list[str]:
    import h5py

    from hpcmr.store.layout import LIBVER

    sink = _Sink(fd)
    plan = _Plan(table, lambda kind, facts: not facts.nul_inside)
    attrs = {paths.array_name(f.name): f.attrs for f in table.schema}
    try:
        with h5py.File(sink, "w", libver=LIBVER, track_order=True) as file:
            for array in plan.arrays():
                _write_dataset(file, array, sink, dict(attrs.get(array.name, ())))
    except _SinkFailed:
        pass
    if sink.error is not None:
        raise sink.error
    return plan.remarks


def _write_dataset(file: Any, array: _Array, sink: _Sink, attrs: dict[str, Any]) -> None:
    import h5py

    from hpcmr.store.layout import set_attribute

    dates = array.dtype.kind in "mM"
    dtype = h5py.string_dtype("utf-8" if array.text else "ascii") if array.strings else np.dtype(np.int64) if dates else array.dtype
    data = file.create_dataset(array.name, array.shape, dtype, track_times=False)
    if dates or (array.type is not None and array.type.is_string and not array.strings):
        data.attrs["hpcmr_type"] = str(array.type)
    for key, value in attrs.items():
        set_attribute(data, str(key), value)
    at = 0
    for part in array.parts:
        if len(part):
            data[at:at + len(part)] = np.array(part, object) if array.strings else part.view(np.int64) if dates else part
        at += len(part)
        if sink.error is not None:
            raise _SinkFailed


_WRITERS: dict[str, Callable[[StoredTable, int], list[str]]] = {
    "h5": _write_h5, "csv": _delimited(","), "tsv": _delimited("\t"), "npz": _write_npz,
}
KINDS = tuple(_WRITERS)
