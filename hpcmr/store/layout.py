"""Where the arrays lie in a shard, and what lies around them.

HDF5 is asked for nothing but the frame: a file is created in memory in which all arrays are laid out at once (contiguous,
allocated early, never filled) and what HDF5 would have written around them is kept. The arrays are written elsewhere, at the
places that HDF5 gave them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.data.schema import Schema
from hpcmr.store import paths
from hpcmr.store.arrays import FORMAT, VERSION, ArraySpec

if TYPE_CHECKING:
    import h5py

ALIGNMENT = 4096
LIBVER = ("v110", "v110")
"""The newest format that HDF5 1.10 reads: object headers and superblock carry checksums, as in later ones."""

class _Frame:
    """A file for HDF5 to write to: keeps what is written around the arrays, a few KiB, however large the file is said to be."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.end = 0
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0 if whence == 0 else self._at if whence == 1 else self.end)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self.writes.append((self._at, raw))
        self._at += len(raw)
        self.end = max(self.end, self._at)
        return len(raw)

    def readinto(self, out: Any) -> int:
        view = np.frombuffer(out, np.uint8)
        view[:] = self.bytes_at(self._at, len(view))
        self._at += len(view)
        return len(view)

    def read(self, nbytes: int) -> bytes:
        out = bytearray(nbytes)
        self.readinto(out)
        return bytes(out)

    def truncate(self, size: int | None = None) -> int:
        self.end = self._at if size is None else size
        return self.end

    def flush(self) -> None:
        """Nothing is held back."""

    def bytes_at(self, start: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        out = np.zeros(nbytes, np.uint8)
        for offset, raw in self.writes:
            a, b = max(start, offset), min(start + nbytes, offset + len(raw))
            if a < b:
                out[a - start:b - start] = np.frombuffer(raw, np.uint8)[a - offset:b - offset]
        return out


@dataclass
class Layout:
    """Where everything in a shard lies: `places` (offset and bytes of each array that has any), in the order of the file."""

    places: dict[str, tuple[int, int]]
    nbytes: int
    frame: list[tuple[int, bytes]]
    """What lies around the arrays: every other byte of the file, in order."""


def lay_out(schema: Schema, arrays: Sequence[tuple[ArraySpec, int]]) -> Layout:
    """Have HDF5 lay out arrays of the given lengths in this order, and keep what it writes around them.

    Parameters
    ----------
    arrays : sequence of (ArraySpec, int)
        Arrays and their number of entries.
    """
    import h5py  # here, and not above: a rank that writes nothing does without

    frame = _Frame()
    places: dict[str, tuple[int, int]] = {}
    with h5py.File(frame, "w", libver=LIBVER, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["schema"] = json.dumps([{"name": f.name, "type": str(f.type)} for f in schema])
        for spec, count in arrays:
            offset = _create(file, spec, count)
            if offset is not None:
                places[spec.name] = (offset, count * spec.item_nbytes)
        for spec, _ in arrays:
            _describe(file, spec)
    places = dict(sorted(places.items(), key=lambda item: item[1]))
    return Layout(places, frame.end, list(_around(frame, places)))


def _create(file: h5py.File, spec: ArraySpec, count: int) -> int | None:
    """Create one data set and return where its bytes lie; None where it has none."""
    import h5py

    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    space = h5py.h5s.create_simple((count, *spec.shape))
    data = h5py.h5d.create(file.id, spec.name.encode(), h5py.h5t.py_create(spec.dtype, logical=True), space, plist, links)
    offset = data.get_offset()
    return None if offset is None or count * spec.item_nbytes == 0 else int(offset)


def _describe(file: h5py.File, spec: ArraySpec) -> None:
    """Put the column's own attributes on its object, and its type where HDF5's types do not tell."""
    if spec.role not in ("values", "offsets"):
        return
    target = file[spec.name.removesuffix("/offsets") if spec.role == "offsets" else spec.name]
    if not spec.type.is_fixed or spec.type.np_dtype.kind in "mM":
        target.attrs["hpcmr_type"] = str(spec.type)
    for key, value in spec.field.attrs if spec.field is not None else ():
        set_attribute(target, str(key), value)


def set_attribute(target: Any, key: str, value: Any) -> None:
    """Carry one attribute along; the few kinds of value that HDF5 cannot take are carried as text."""
    try:
        target.attrs[key] = value
    except (TypeError, ValueError, UnicodeError):
        target.attrs[paths.array_name(key)] = np.bytes_(str(value).encode("utf-8", "surrogateescape").replace(b"\0", b"\\0"))


def _around(frame: _Frame, places: Mapping[str, tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for start, nbytes in [*places.values(), (frame.end, 0)]:
        if start > at:
            yield at, frame.bytes_at(at, start - at).tobytes()
        at = max(at, start + nbytes)
