"""Memory for rows: arrays on small pages, and memory that is done with given back to the system before its array is gone."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DONTNEED = 4
_WORTH_NBYTES = 1 << 15
_SMALL_NBYTES = 1 << 17
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
_madvise: Callable[[int, int, int], int] | None = None


def release(address: int, nbytes: int) -> None:
    """Give back the whole pages of a stretch of an array that nobody will read again; later reads give zeros or what was there.

    The next memory that is touched comes out of these pages: on a virtual machine that is many times cheaper than memory that was
    never touched. Short stretches are left alone.
    """
    global _madvise
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    length = (address + nbytes) // page * page - first
    if length < _WORTH_NBYTES:
        return
    if _madvise is None:
        call = ctypes.CDLL(None).madvise
        call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _madvise = call
    _madvise(first, length, _DONTNEED)


def small_pages(n: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """n values, zeros, in memory of their own that is not asked to lie on huge pages, as NumPy asks from 4 MiB on.

    For what is read and written from front to back. On a virtual machine memory is found in small pieces where other programs have
    used it before, but huge pages mostly where nobody has, and that costs up to 2 s per GB. `release` gives such pages back at once.
    All pages are found in one call, which takes two thirds of the time of finding them one by one.
    """
    kind = np.dtype(dtype)
    if n * kind.itemsize < _SMALL_NBYTES:
        return np.empty(n, kind)
    return np.frombuffer(mmap.mmap(-1, n * kind.itemsize, flags=_FLAGS), kind, n)
