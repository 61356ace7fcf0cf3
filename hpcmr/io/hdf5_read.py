"""Filling buffers with rows: raw bytes with plain file calls, everything else through HDF5's low-level read.

Files stay open from split to split, those that were used longest ago are closed. h5py is loaded when the first data set needs it.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.errors import DataError
from hpcmr.io.hdf5_guard import bounded
from hpcmr.io.hdf5_layout import Axis, FileRef, Form, Mapping, Node, Raw, Stored, Virtual

DESCRIPTORS_MAX = 64
FILES_MAX = 16
"""Open HDF5 files: each keeps chunks in memory."""

Values = NDArray[Any]


class Handles:
    """Files that are open for reading on this rank."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._files: OrderedDict[str, tuple[Any, dict[str, tuple[Any, Any]]]] = OrderedDict()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        while self._files:
            self._files.popitem()[1][0].close()

    def descriptor(self, file: FileRef, name: str) -> int:
        """A descriptor for each data set: the kernel then sees each column read from front to back, and reads ahead."""
        key = file.path, name
        fd = self._descriptors.pop(key, None)
        if fd is None:
            if len(self._descriptors) >= DESCRIPTORS_MAX:
                os.close(self._descriptors.popitem(last=False)[1])
            try:
                fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _gone(file, error) from None
            try:
                _check_same(file, os.fstat(fd))
            except DataError:
                os.close(fd)
                raise
        self._descriptors[key] = fd
        return fd

    def data_set(self, node: Stored) -> tuple[Any, Any]:
        """The data set and the type to read it as."""
        opened = self._files.pop(node.file.path, None)
        if opened is None:
            if len(self._files) >= FILES_MAX:
                self._files.popitem(last=False)[1][0].close()
            opened = _open(node), {}
        self._files[node.file.path] = opened
        key = repr((node.name, node.memory))
        if key not in opened[1]:
            opened[1][key] = _open_data_set(opened[0], node)
        return opened[1][key]


def _open(node: Stored) -> Any:
    import h5py

    if node.plugin:
        import hdf5plugin  # noqa: F401  (importing it registers its filters)
    try:
        _check_same(node.file, os.stat(node.file.path))
        return h5py.File(node.file.path, "r", locking=False)
    except OSError as error:
        raise _gone(node.file, error) from None


def _open_data_set(file: Any, node: Stored) -> tuple[Any, Any]:
    from h5py import h5d, h5p

    from hpcmr.io.hdf5_types import memory_type

    access = h5p.create(h5p.DATASET_ACCESS)
    if node.cache_nbytes:
        access.set_chunk_cache(12289, node.cache_nbytes, 1.0)
    try:
        return h5d.open(file.id, node.name.encode("utf-8", "surrogateescape"), access), memory_type(node.memory)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"the data set {node.name!r} of {node.file.path!r} cannot be opened: {error}") from None


def _check_same(file: FileRef, info: os.stat_result) -> None:
    if info.st_size != file.nbytes or info.st_mtime_ns != file.mtime_ns:
        sizes = f"it had {file.nbytes:,} bytes and has {info.st_size:,}"
        if info.st_size == file.nbytes:
            sizes = f"its {file.nbytes:,} bytes were written anew"
        raise DataError(f"{file.path!r} has changed since the job began: {sizes}; inputs must stay as they are while a job reads them")


def _gone(file: FileRef, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{file.path!r} was there when the job began and has vanished; inputs must stay as they are while a job reads them")
    return DataError(f"{file.path!r} cannot be opened: {error.strerror or error}")


def fill(handles: Handles, node: Node, start: int, stop: int, out: Values) -> None:
    """Read rows `start` to ``stop - 1`` into `out` ``(stop - start, *shape)``, contiguous and of the node's buffer type.

    Raises
    ------
    DataError
        A file changed, vanished or cannot be read.
    """
    if out.size == 0:
        return
    if isinstance(node, Raw):
        _fill_raw(handles, node, start, out)
    elif isinstance(node, Stored):
        _read(handles, node, (Axis.range(start, stop - start),), out, len(_outer(node, out)) - 1)
    else:
        _fill_virtual(handles, node, start, stop, out)


def _fill_raw(handles: Handles, node: Raw, start: int, out: Values) -> None:
    fd, pos = handles.descriptor(node.file, node.name), node.offset + start * node.row_nbytes
    view = out.reshape(-1).view(np.uint8).data
    while len(view):
        try:
            got = os.preadv(fd, [view], pos)
        except OSError as error:
            raise DataError(f"{node.file.path!r} cannot be read at byte {pos:,}: {error.strerror}") from None
        if got == 0:
            raise DataError(f"{node.file.path!r} ends at byte {pos:,}, inside the data set {node.name!r}: it was truncated while being read")
        view, pos = view[got:], pos + got
    if node.swap:
        out.byteswap(inplace=True)


def _outer(node: Stored, out: Values) -> tuple[int, ...]:
    """Shape of `out` without the axes that belong to the element type."""
    inner = len(node.memory.inner) if isinstance(node.memory, Form) else 0
    return out.shape[:out.ndim - inner]


def _read(handles: Handles, node: Stored, chosen: tuple[Axis, ...], out: Values, more: int = 0) -> None:
    """Read the places `chosen` along the first axes, and all along `more` others, in their order."""
    from h5py import h5s

    data, kind = handles.data_set(node)
    shape = data.shape
    axes = chosen + tuple(Axis.range(0, n) for n in shape[len(shape) - more:] if more)
    space = data.get_space()
    space.select_hyperslab(*(tuple(a[i] for a in axes) for i in (0, 2, 1, 3)))
    try:
        with bounded(node.cache_nbytes) if node.may_grow else contextlib.nullcontext():
            data.read(h5s.create_simple(_outer(node, out)), space, out, kind)
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = "it takes more memory than its size lets expect" if isinstance(error, MemoryError) else str(error)
        raise DataError(f"the data set {node.name!r} of {node.file.path!r} cannot be read from row {axes[0].start:,} on: {reason}; "
                        "the file is damaged, copy or write it again") from None


def _fill_virtual(handles: Handles, node: Virtual, start: int, stop: int, out: Values) -> None:
    filled = 0
    for m in node.mappings:
        if m.rows.start >= stop:
            break
        first, last = m.rows.before(start), m.rows.before(stop)
        if first == last:
            continue
        if m.plain:
            at, begin = m.rows.start + first - start, m.chosen[0].start + first
            fill(handles, m.source, begin, begin + last - first, out[at:at + last - first])
            filled += out[at:at + last - first].size
        else:
            filled += _fill_part(handles, m, first, last, start, out)
    if filled != out.size:
        raise DataError(f"rows {start:,} to {stop - 1:,} of the virtual data set {node.name!r} of {node.file.path!r} do not come from "
                        "one source each; map each row to one")


def _fill_part(handles: Handles, m: Mapping, first: int, last: int, start: int, out: Values) -> int:
    """Rows number `first` to ``last - 1`` of a mapping whose rows are apart, or of whose rows only a part comes from here."""
    chosen = list(m.chosen)
    numbers = None
    if m.axis >= 0:
        a = chosen[m.axis]
        places = a.places(first, last)
        if a.blocks == 1:
            chosen[m.axis] = Axis.range(int(places[0]), last - first)
        elif a.block == 1:
            chosen[m.axis] = Axis(int(places[0]), a.stride, last - first, 1)
        else:       # part of a row of blocks: all between the first and the last, and then the ones wanted
            chosen[m.axis] = Axis.range(int(places[0]), int(places[-1] - places[0]) + 1)
            numbers = places - places[0]
    assert isinstance(m.source, Stored)
    inner = out.shape[len(_outer(m.source, out)):]
    got = np.empty((*(a.size for a in chosen), *inner), out.dtype)
    _read(handles, m.source, tuple(chosen), got)
    if numbers is not None:
        got = got.take(numbers, axis=m.axis)
    rest = [range_of(a) for a in m.rest] if m.rest is not None else [np.arange(n) for n in _outer(m.source, out)[1:]]
    rows = m.rows.places(first, last) - start
    out[np.ix_(rows, *rest)] = got.reshape((len(rows), *(len(r) for r in rest), *inner))
    return int(got.size)


def range_of(axis: Axis) -> NDArray[np.int64]:
    return axis.places(0, axis.size)


def column_of_values(form: Form, values: Values) -> Column:
    """The column of what was read into a buffer; a view on it where it can be."""
    if form.kind == "bool":
        # HDF5 has no bool: anything but 0 counts as true, and becomes the 1 that NumPy expects.
        return FixedColumn(np.not_equal(values.view(np.uint8), 0, out=values))
    if form.kind == "padded":
        return _padded(values)
    if form.kind == "list":
        items = values.tolist()
        ends = np.cumsum(np.fromiter(map(len, items), np.int64, len(items)))
        child = np.concatenate(items).astype(form.dtype, copy=False) if items else np.zeros(0, form.dtype)
        return ListColumn(np.concatenate([ends[:1] * 0, ends[:-1]]), ends, FixedColumn(child))
    if form.is_object:
        return _strings(values.tolist(), form.kind == "text")
    return FixedColumn(values)


def _strings(items: list[Any], text: bool) -> BytesColumn:
    raw = [v if isinstance(v, bytes) else v.encode("utf-8", "surrogateescape") if isinstance(v, str) else b"" for v in items]
    offsets = np.zeros(len(raw) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)), out=offsets[1:])
    return BytesColumn.from_offsets(offsets, np.frombuffer(b"".join(raw), np.uint8), text)


def _padded(values: Values) -> BytesColumn:
    """Text of a fixed width, without the NULs behind it; a view."""
    width = values.dtype.itemsize
    data = values.view(np.uint8)
    used = data.reshape(-1, width)[:, ::-1] != 0
    lengths = np.where(used.any(axis=1), width - used.argmax(axis=1), 0)
    starts = np.arange(len(values), dtype=np.int64) * width
    return BytesColumn(starts, starts + lengths, data, text=True)
