"""Lines in a buffer: 64 bytes at a time become a mask of line ends, walked by counting trailing zeros."""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import byte_mask, ctz, popcount, space_mask
from hpcmr.kernels.jit import helper, kernel

_LF = np.uint8(10)
_CR = np.uint8(13)
_ONE = np.uint64(1)


@helper
def newline_bits(data, pos, hi):
    """Bit i: ``data[pos + i]`` is a line feed, for pos + i < hi. Reads no byte at or beyond ``data.size``."""
    if pos + 64 <= data.size:
        m = byte_mask(data, pos, _LF)
        return m if pos + 64 <= hi else m & ((_ONE << np.uint64(hi - pos)) - _ONE)
    m = np.uint64(0)
    for i in range(min(np.int64(64), hi - pos)):
        m |= np.uint64(data[pos + i] == _LF) << np.uint64(i)
    return m


@kernel("int64(uint8[::1], int64, int64, int64[::1], int64[::1])")
def find_lines(data, lo, hi, starts, ends):
    """Lines of ``data[lo:hi]`` without their ends (LF, or CR LF; a CR at `hi` counts as one) -> starts, ends. Returns their number.

    starts, ends: as many int64 as there are bytes, and one. The last line may lack its end; nothing behind the last end is no line.
    """
    n = 0
    start = lo
    pos = lo
    while pos < hi:
        m = newline_bits(data, pos, hi)
        while m:
            end = pos + ctz(m)
            m &= m - _ONE
            starts[n] = start
            ends[n] = end - 1 if end > start and data[end - 1] == _CR else end
            n += 1
            start = end + 1
        pos += 64
    if start < hi:
        starts[n] = start
        ends[n] = hi - 1 if data[hi - 1] == _CR else hi
        n += 1
    return n


@kernel("int64(uint8[::1], int64, int64)")
def count_newlines(data, lo, hi):
    """Number of line feeds in ``data[lo:hi]``."""
    n = 0
    pos = lo
    while pos < hi:
        n += popcount(newline_bits(data, pos, hi))
        pos += 64
    return n


@helper
def _ends_record(c, spaces):
    return c == _LF or (spaces and (c == np.uint8(32) or np.uint8(c - np.uint8(9)) < np.uint8(5)))


@kernel("int64(uint8[::1], int64, int64, boolean)")
def first_end(data, lo, hi, spaces):
    """First place in ``data[lo:hi]`` that ends a record: a line feed, or with `spaces` any white space; -1 if there is none."""
    pos = lo
    while pos + 64 <= hi:
        m = space_mask(data, pos) if spaces else byte_mask(data, pos, _LF)
        if m:
            return pos + ctz(m)
        pos += 64
    while pos < hi:
        if _ends_record(data[pos], spaces):
            return pos
        pos += 1
    return -1


@kernel("int64(uint8[::1], int64, int64, boolean)")
def last_end(data, lo, hi, spaces):
    """Last place in ``data[lo:hi]`` that ends a record, as in `first_end`; -1 if there is none."""
    pos = hi - 1
    while pos >= lo:
        if _ends_record(data[pos], spaces):
            return pos
        pos -= 1
    return -1
