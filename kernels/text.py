"""Questions about strings: length in characters, parts, order, membership; and large letters.

Row i of a column is ``data[starts[i]:ends[i]]``, or row 0 for all i where its `step` is 0 (a constant). Patterns are uint8 arrays.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import load8, store8
from hpcmr.kernels.jit import helper, inner, kernel

_ROWS = "Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), Array(uint8, 1, 'C', readonly=True)"
_PATTERN = "Array(uint8, 1, 'C', readonly=True)"
_EACH = 0x0101010101010101
_TOP = np.uint64(0x80 * _EACH)
_LOW = np.uint64(0x7F * _EACH)
_FROM_A = np.uint64((0x80 - 97) * _EACH)
_BEHIND_Z = np.uint64((0x7F - 122) * _EACH)


@inner
def _sequence(data, i, hi):
    """Bytes of the UTF-8 character at i; 1 for a byte that begins none."""
    c = np.int64(data[i])
    if c < 0xC2 or c > 0xF4:
        return np.int64(1)
    n = np.int64(2 if c < 0xE0 else 3 if c < 0xF0 else 4)
    if i + n > hi:
        return np.int64(1)
    second = np.int64(data[i + 1])
    # Overlong forms, surrogates and what is beyond the last character are told by the second byte.
    low = 0xA0 if c == 0xE0 else 0x90 if c == 0xF0 else 0x80
    high = 0x9F if c == 0xED else 0x8F if c == 0xF4 else 0xBF
    if second < low or second > high:
        return np.int64(1)
    for j in range(2, n):
        if data[i + j] & 0xC0 != 0x80:
            return np.int64(1)
    return n


@kernel(f"void({_ROWS}, int64[::1])")
def text_lengths(starts, ends, data, out):
    """Characters of each row; a byte that is no UTF-8 counts as one, as Python's ``surrogateescape`` makes one of it."""
    for i in range(starts.size):
        at, hi = starts[i], ends[i]
        count = np.int64(0)
        while at < hi:
            if at + 8 <= hi and load8(data, at) & _TOP == np.uint64(0):
                at += 8
                count += 8
            elif data[at] < 0x80:
                at += 1
                count += 1
            else:
                at += _sequence(data, at, hi)
                count += 1
        out[i] = count


@kernel(f"void({_PATTERN}, int64, int64, uint8[::1])")
def upper_ascii(data, lo, hi, out):
    """``out[i - lo]`` is ``data[i]`` with a to z made large, lo <= i < hi; the mirror of `hpcmr.kernels.strings.lower_ascii`."""
    i = lo
    while i + 8 <= hi:
        x = load8(data, i)
        low = x & _LOW
        small = ((low + _FROM_A) ^ (low + _BEHIND_Z)) & ~x & _TOP
        store8(out, i - lo, x ^ (small >> np.uint64(2)))
        i += 8
    while i < hi:
        c = np.int64(data[i])
        out[i - lo] = np.uint8(c - 32 if 97 <= c <= 122 else c)
        i += 1


@helper
def _same(data, at, pattern):
    for j in range(pattern.size):
        if data[at + j] != pattern[j]:
            return False
    return True


@kernel(f"void({_ROWS}, {_PATTERN}, boolean[::1])")
def starts_with(starts, ends, data, pattern, out):
    for i in range(starts.size):
        out[i] = ends[i] - starts[i] >= pattern.size and _same(data, starts[i], pattern)


@kernel(f"void({_ROWS}, {_PATTERN}, boolean[::1])")
def ends_with(starts, ends, data, pattern, out):
    for i in range(starts.size):
        out[i] = ends[i] - starts[i] >= pattern.size and _same(data, ends[i] - pattern.size, pattern)


@kernel(f"void({_ROWS}, {_PATTERN}, boolean[::1])")
def contains(starts, ends, data, pattern, out):
    """Whether the pattern occurs in each row: its first byte is looked for, then the rest compared."""
    n = pattern.size
    if n == 0:
        out[:starts.size] = True
        return
    first = pattern[0]
    for i in range(starts.size):
        found = False
        for at in range(starts[i], ends[i] - n + 1):
            if data[at] == first and _same(data, at, pattern):
                found = True
                break
        out[i] = found


@inner
def _order(data_a, a, a_end, data_b, b, b_end):
    """-1, 0 or 1: how two strings compare, byte by byte."""
    shorter = min(a_end - a, b_end - b)
    for j in range(shorter):
        x, y = data_a[a + j], data_b[b + j]
        if x != y:
            return -1 if x < y else 1
    left = (a_end - a) - (b_end - b)
    return -1 if left < 0 else 1 if left > 0 else 0


@kernel(f"void({_ROWS}, int64, {_ROWS}, int64, int8[::1])")
def compare_strings(starts_a, ends_a, data_a, step_a, starts_b, ends_b, data_b, step_b, out):
    """How the strings of two columns compare: -1, 0 or 1."""
    for i in range(out.size):
        a, b = i * step_a, i * step_b
        out[i] = _order(data_a, starts_a[a], ends_a[a], data_b, starts_b[b], ends_b[b])


@kernel(f"void({_ROWS}, int64, {_ROWS}, int64, int8[::1])")
def equal_strings(starts_a, ends_a, data_a, step_a, starts_b, ends_b, data_b, step_b, out):
    """1 where the strings of two columns are equal, else 0."""
    for i in range(out.size):
        a, b = i * step_a, i * step_b
        n = ends_a[a] - starts_a[a]
        same = n == ends_b[b] - starts_b[b]
        j = np.int64(0)
        while same and j < n:
            same = data_a[starts_a[a] + j] == data_b[starts_b[b] + j]
            j += 1
        out[i] = 1 if same else 0


@kernel(f"void({_ROWS}, {_ROWS}, boolean[::1])")
def strings_in(starts, ends, data, table_starts, table_ends, table_data, out):
    """Whether each row is one of a table of strings that ascends."""
    for i in range(starts.size):
        low, high = 0, table_starts.size
        found = False
        while low < high and not found:
            middle = (low + high) >> 1
            order = _order(table_data, table_starts[middle], table_ends[middle], data, starts[i], ends[i])
            if order == 0:
                found = True
            elif order < 0:
                low = middle + 1
            else:
                high = middle
        out[i] = found
