"""Strings as views: copying them together, lower case, numbers out of digits.

Row i of a column is ``data[starts[i]:ends[i]]``; starts and ends are ``(n,) int64``, data is ``(nbytes,) uint8`` and may be read-only.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import load8, store8
from hpcmr.kernels.jit import helper, kernel

_BYTES = ("uint8[::1]", "Array(uint8, 1, 'C', readonly=True)")
_EXACT_POWERS = np.array([10.0 ** p for p in range(23)])     # the powers of ten that float64 holds exactly
_MANTISSA_MAX = np.uint64(1 << 53)
_EACH = 0x0101010101010101
_LOW = np.uint64(0x7F * _EACH)
_TOP = np.uint64(0x80 * _EACH)
_FROM_A = np.uint64((0x80 - 65) * _EACH)
_BEHIND_Z = np.uint64((0x7F - 90) * _EACH)


@kernel(*(f"void(int64[::1], int64[::1], {b}, int64[::1], uint8[::1])" for b in _BYTES))
def gather_bytes(starts, ends, data, offsets, out):
    """Copy row i to ``out[offsets[i]:]``; offsets ``(n + 1,)`` ascending, rows do not overlap in `out`.

    Eight bytes at a time: what is written beyond a row is overwritten by the next one, hence the ascending order. Nothing is
    written at or beyond ``offsets[n]``.
    """
    source_last = data.size - 8
    target_last = offsets[starts.size] - 8
    for i in range(starts.size):
        a = starts[i]
        n = ends[i] - a
        t = offsets[i]
        stop = min(a + n, source_last + 1, target_last + 1 + a - t)    # eight bytes may be moved from each place below
        j = a
        while j < stop:
            store8(out, t + (j - a), load8(data, j))
            j += 8
        while j < a + n:
            out[t + (j - a)] = data[j]
            j += 1


@kernel(*(f"void({b}, int64, int64, uint8[::1])" for b in _BYTES))
def lower_ascii(data, lo, hi, out):
    """``out[i - lo]`` is ``data[i]`` with A to Z made small, lo <= i < hi; out has ``hi - lo`` bytes or more.

    Eight bytes at a time: with the top bit put aside, adding 63 carries into it from A on, adding 37 from behind Z on.
    """
    i = lo
    while i + 8 <= hi:
        x = load8(data, i)
        low = x & _LOW
        upper = ((low + _FROM_A) ^ (low + _BEHIND_Z)) & ~x & _TOP
        store8(out, i - lo, x | (upper >> np.uint64(2)))
        i += 8
    while i < hi:
        c = np.int64(data[i])
        out[i - lo] = np.uint8(c + 32 if 65 <= c <= 90 else c)
        i += 1


@helper
def _trimmed(data, j, e):
    """The row without blanks and tabs around it, and what is left after its sign: (first, end, 1 if negative)."""
    while j < e and (data[j] == 32 or data[j] == 9):
        j += 1
    while e > j and (data[e - 1] == 32 or data[e - 1] == 9):
        e -= 1
    negative = j < e and data[j] == 45
    return j + (1 if negative or (j < e and data[j] == 43) else 0), e, negative


@kernel(*(f"int64(int64[::1], int64[::1], {b}, int64[::1])" for b in _BYTES))
def parse_int64(starts, ends, data, out):
    """Whole numbers: an optional sign and digits, blanks around them. Returns the first row that is none, or does not fit, else -1."""
    for i in range(starts.size):
        j, e, negative = _trimmed(data, starts[i], ends[i])
        if j == e:
            return i
        limit = np.uint64(1) << np.uint64(63) if negative else (np.uint64(1) << np.uint64(63)) - np.uint64(1)
        x = np.uint64(0)
        while j < e:
            d = np.uint64(data[j]) - np.uint64(48)
            if d > np.uint64(9) or x > (limit - d) // np.uint64(10):
                return i
            x = x * np.uint64(10) + d
            j += 1
        out[i] = np.int64(np.uint64(0) - x) if negative else np.int64(x)
    return -1


@helper
def _decimal(data, j, e):
    """Digits with an optional point and exponent: (digits read as one integer, power of ten, 1 if it is a number of at most 19 digits)."""
    x = np.uint64(0)
    power = 0
    digits = 0
    point = False
    good = False
    while j < e:
        c = np.int64(data[j])
        if c == 46 and not point:
            point = True
        elif 48 <= c <= 57 and digits < 19:
            x = x * np.uint64(10) + np.uint64(c - 48)
            digits += 1 if x > 0 else 0
            power -= 1 if point else 0
            good = True
        else:
            break
        j += 1
    if good and j < e and (data[j] | 32) == 101:
        j += 1
        down = j < e and data[j] == 45
        if j < e and (data[j] == 45 or data[j] == 43):
            j += 1
        good = j < e
        written = 0
        while j < e and 48 <= data[j] <= 57 and written < 10000:
            written = 10 * written + (np.int64(data[j]) - 48)
            j += 1
        power += -written if down else written
    return x, power, good and j == e


@kernel(*(f"int64(int64[::1], int64[::1], {b}, float64[::1], int64[::1])" for b in _BYTES))
def parse_float64(starts, ends, data, out, hard):
    """Decimal numbers that a single correctly rounded operation gives; rows that need more care go to `hard` ``(n,)``.

    Returns the number of hard rows. Up to 2^53 times or over an exact power of ten rounds once, so the bits are those of a full
    conversion (Clinger 1990); anything else, words like ``nan`` and what is no number at all included, is for the caller.
    """
    count = 0
    for i in range(starts.size):
        j, e, negative = _trimmed(data, starts[i], ends[i])
        x, power, fits = _decimal(data, j, e)
        if fits and x <= _MANTISSA_MAX and -22 <= power <= 22:
            value = float(x) / _EXACT_POWERS[-power] if power < 0 else float(x) * _EXACT_POWERS[power]
            out[i] = -value if negative else value
        else:
            hard[count] = i
            count += 1
    return count
