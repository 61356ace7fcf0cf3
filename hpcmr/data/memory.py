"""Memory that is done with, given back to the system before its array is gone."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

_DONTNEED = 4
_WORTH_NBYTES = 1 << 17
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
