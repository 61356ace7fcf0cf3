"""Receive buffers that are used again: memory that was never touched costs several times its copy.

A buffer is free once nothing but the pool refers to it. The reference count tells: every array that was handed out, and every
view made of it, refers to the buffer as its base.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.memory import small_pages

_UNUSED = 3        # references to a free buffer: the pool's list, the loop variable, getrefcount's argument


class Buffers:
    """A pool of byte buffers.

    Parameters
    ----------
    limit_nbytes : int
        Bytes the pool may hold for later; what is over is given back to the system. 0 keeps nothing.
    """

    def __init__(self, limit_nbytes: int = 0) -> None:
        self.limit_nbytes = limit_nbytes
        self._kept: list[NDArray[np.uint8]] = []

    def take(self, n: int, dtype: Any = np.uint8, shape: tuple[int, ...] = ()) -> NDArray[Any]:
        """An uninitialised array ``(n, *shape)`` of `dtype`; its memory comes back by itself when the last view is gone."""
        kind = np.dtype(dtype)
        items = n * int(np.prod(shape, dtype=np.int64))
        nbytes = items * kind.itemsize
        if nbytes == 0 or self.limit_nbytes == 0:
            return small_pages(items, kind).reshape((n, *shape))
        return self._bytes(nbytes)[:nbytes].view(kind).reshape((n, *shape))

    def _bytes(self, nbytes: int) -> NDArray[np.uint8]:
        best: NDArray[np.uint8] | None = None
        for buffer in self._kept:
            if sys.getrefcount(buffer) <= _UNUSED and nbytes <= len(buffer) and (best is None or len(buffer) < len(best)):
                best = buffer
        if best is not None and len(best) <= 4 * nbytes + (1 << 20):
            return best
        fresh = small_pages(nbytes)
        if self.nbytes + nbytes > self.limit_nbytes:
            self.clear()
        if self.nbytes + nbytes <= self.limit_nbytes:
            self._kept.append(fresh)
        return fresh

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers that the pool knows, in use or not."""
        return sum(len(b) for b in self._kept)

    def clear(self) -> None:
        """Forget the buffers that nobody uses."""
        used = []
        for buffer in self._kept:
            if sys.getrefcount(buffer) > _UNUSED:
                used.append(buffer)
        self._kept = used
