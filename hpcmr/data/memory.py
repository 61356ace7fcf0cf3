"""Memory for rows: arrays on small pages, and pages that are done with used again before their array is gone.

Memory that nobody has touched yet costs 0.3 to 2 s per GB on a virtual machine, more than most of what is done with it. Rows that have
been sorted or reduced are done with long before the array is that they came in. `release` takes their pages away, and the next
`small_pages` gets them: the kernel moves pages between addresses forty times faster than it finds and clears new ones
(512 MiB in stretches of 448 KiB: 0.015 s, against 0.16 s to 0.30 s).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DONTNEED, _POPULATE_WRITE = 4, 23
_MAYMOVE, _FIXED, _DONTUNMAP = 1, 2, 4
_WORTH_NBYTES = 1 << 15
_SMALL_NBYTES = 1 << 17
_STRETCH_NBYTES = 1 << 17         # shorter ones are not moved: each is an entry in the kernel's list of the process's mappings
_STRETCHES_MAX = 1 << 14          # of them in all arrays: a process may have 65,530 mappings
_POOL_NBYTES = 256 << 20          # of pages that wait for an array, at most
_POOL_SHARE = 16                  # of the memory that a rank may use, their part
_CHUNK_NBYTES = 1 << 21
_CUT_NBYTES = 1 << 13
_LINE_NBYTES = 64
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class _Kernel:
    """System calls that the standard library does not have; None where the system has no such call."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.madvise: Callable[[int, int, int], int] = library.madvise
        self.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)       # type: ignore[attr-defined]
        self.munmap: Callable[[int, int], int] = library.munmap
        self.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)                      # type: ignore[attr-defined]
        self.mremap: Callable[..., int | None] | None = None
        if sys.platform == "linux":
            self.mremap = library.mremap
            self.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)  # type: ignore[attr-defined]
            self.mremap.restype = ctypes.c_void_p                                      # type: ignore[attr-defined]

    def move(self, address: int, nbytes: int, flags: int, to: int | None = None) -> int | None:
        """Move pages; returns where they are now, or None: then they are where they were."""
        if self.mremap is None:
            return None
        found = self.mremap(address, nbytes, nbytes, _MAYMOVE | flags, to)
        return None if found in (None, 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1) else found


_kernel: _Kernel | None = None


def _system() -> _Kernel:
    global _kernel
    if _kernel is None:
        _kernel = _Kernel()
    return _kernel


class _Pool:
    """Pages that are done with, at addresses of their own, until an array needs them."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []
        self.nbytes = 0
        self.limit_nbytes = _POOL_NBYTES
        self.moved = 0              # stretches that lie in arrays
        self.lock = threading.RLock()       # an array may go while another is made

    def put(self, address: int, nbytes: int) -> bool:
        """Take whole pages out of an array, which reads zeros there from now on. False: they are where they were, or some of them."""
        if nbytes < _STRETCH_NBYTES or self.nbytes + nbytes > self.limit_nbytes or self.moved + len(self.stretches) >= _STRETCHES_MAX:
            return False
        with self.lock:
            return self._put(address, nbytes)

    def _put(self, address: int, nbytes: int) -> bool:
        found = _system().move(address, nbytes, _DONTUNMAP)
        if found is None:           # a stretch that was moved in several pieces cannot be moved as one; or an older kernel
            half = nbytes // 2 // mmap.PAGESIZE * mmap.PAGESIZE
            lower = self.put(address, half)
            return self.put(address + half, nbytes - half) and lower
        self.stretches.append((found, nbytes))
        self.nbytes += nbytes
        return True

    def fill(self, memory: mmap.mmap, address: int, nbytes: int) -> int:
        """Move pages to the beginning of a new mapping; returns how many bytes of it have got some."""
        with self.lock:
            at, count = self._fill(address, nbytes)
        if count:
            weakref.finalize(memory, self._gone, count).atexit = False
        return at

    def _fill(self, address: int, nbytes: int) -> tuple[int, int]:
        """Bytes filled, and stretches that went into them."""
        at = count = 0
        while self.stretches and at < nbytes:
            source, length = self.stretches.pop()
            part = min(length, nbytes - at)
            if _system().move(source, part, _FIXED, address + at) is None:
                self.stretches.append((source, length))
                break
            if part < length:
                self.stretches.append((source + part, length - part))
            self.nbytes -= part
            at += part
            count += 1
        self.moved += count
        return at, count

    def _gone(self, count: int) -> None:
        with self.lock:
            self.moved -= count

    def trim(self) -> None:
        with self.lock:
            self._trim()

    def _trim(self) -> None:
        for address, nbytes in self.stretches:
            _system().munmap(address, nbytes)
        self.stretches, self.nbytes = [], 0


_pool = _Pool()


def release(address: int, nbytes: int) -> None:
    """Give the whole pages of a stretch of private memory that nobody will read again to the next `small_pages` or `room`.

    For rows that results of about their size are made of. Later reads give zeros or what was there. Short stretches are left alone.
    """
    first, length = _whole_pages(address, nbytes)
    if length >= _WORTH_NBYTES and not _pool.put(first, length):
        _system().madvise(first, length, _DONTNEED)


def give_back(address: int, nbytes: int) -> None:
    """The same, back to the system: for memory that other things than results will need."""
    first, length = _whole_pages(address, nbytes)
    if length >= _WORTH_NBYTES:
        _system().madvise(first, length, _DONTNEED)


def _whole_pages(address: int, nbytes: int) -> tuple[int, int]:
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    return first, (address + nbytes) // page * page - first


def small_pages(n: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """n values, uninitialised, in memory of their own that is not asked to lie on huge pages, as NumPy asks from 4 MiB on.

    For what is read and written from front to back. On a virtual machine memory is found in small pieces where other programs have
    used it before, but huge pages mostly where nobody has, and that costs up to 2 s per GB. Pages that were released come first; the
    others are found in one call, which takes two thirds of the time of finding them one by one.
    """
    kind = np.dtype(dtype)
    nbytes = n * kind.itemsize
    if nbytes < _SMALL_NBYTES:
        return np.empty(n, kind)
    memory = mmap.mmap(-1, nbytes, flags=_FLAGS)
    out = np.frombuffer(memory, kind, n)
    address, whole = out.ctypes.data, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    got = _pool.fill(memory, address, whole) if _pool.stretches else 0
    if got < whole:
        _system().madvise(address + got, whole - got, _POPULATE_WRITE)
    return out


_chunk = np.empty(0, np.uint8)         # what `room` cuts from; it is kept by the arrays that were cut


def room(n: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """n values, uninitialised: as `small_pages`, for many arrays of some 10 KiB that are needed for about the same time."""
    global _chunk
    kind = np.dtype(dtype)
    nbytes = n * kind.itemsize
    if not _CUT_NBYTES <= nbytes <= _CHUNK_NBYTES // 4:
        return small_pages(n, kind)
    with _pool.lock:
        if nbytes > len(_chunk):
            _chunk = small_pages(_CHUNK_NBYTES)
        out, _chunk = _chunk[:nbytes].view(kind), _chunk[-(-nbytes // _LINE_NBYTES) * _LINE_NBYTES:]
    return out


def trim(limit_nbytes: int | None = None) -> None:
    """Give back what waits for an array. `limit_nbytes`: the memory that the process may use from now on, a part of which may wait."""
    if limit_nbytes is not None:
        _pool.limit_nbytes = min(_POOL_NBYTES, limit_nbytes // _POOL_SHARE)
    global _chunk
    _chunk = np.empty(0, np.uint8)
    _pool.trim()
