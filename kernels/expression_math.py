"""What compiled expressions call: operations for which the machine's own are not defined everywhere, or not as NumPy defines them."""

from __future__ import annotations

import math

import numpy as np

from hpcmr.kernels.jit import inner

NAT = np.int64(-(1 << 63))


@inner
def floordiv_i(a, b):
    """``a // b`` of int64, 0 where b is 0. The quotient of the smallest number and -1 wraps around; the machine would stop."""
    if b == 0:
        return np.int64(0)
    if b == -1:
        return np.int64(-a)
    q = np.int64(a // b)
    return q


@inner
def mod_i(a, b):
    """``a % b`` of int64 with the sign of b; 0 where b is 0."""
    if b == 0 or b == -1:
        return np.int64(0)
    return np.int64(a % b)


@inner
def floordiv_u(a, b):
    return np.uint64(0) if b == 0 else np.uint64(a // b)


@inner
def mod_u(a, b):
    return np.uint64(0) if b == 0 else np.uint64(a % b)


@inner
def power_i(a, b):
    """``a ** b`` of int64 modulo 2^64; 0 where b is negative."""
    if b < 0:
        return np.int64(0)
    out = np.int64(1)
    base = np.int64(a)
    left = np.int64(b)
    while left:
        if left & 1:
            out = np.int64(out * base)
        base = np.int64(base * base)
        left >>= 1
    return out


@inner
def power_u(a, b):
    out = np.uint64(1)
    base = np.uint64(a)
    left = np.uint64(b)
    while left != np.uint64(0):
        if left & np.uint64(1):
            out = np.uint64(out * base)
        base = np.uint64(base * base)
        left = left >> np.uint64(1)
    return out


@inner
def mod_f(a, b):
    """``a % b`` with the sign of b, NaN where b is 0; a zero has the sign of b."""
    r = np.fmod(a, b)
    if r != 0.0:
        return r + b if (b < 0.0) != (r < 0.0) else r
    return math.copysign(0.0, b) if b != 0.0 else r


@inner
def floordiv_f(a, b):
    """The largest whole number not above a / b; a / b where b is 0."""
    if b == 0.0:
        return a / b
    r = np.fmod(a, b)
    q = (a - r) / b
    if r != 0.0 and (b < 0.0) != (r < 0.0):
        q -= 1.0
    if q == 0.0:
        return math.copysign(0.0, a / b)
    whole = np.floor(q)
    return whole + 1.0 if q - whole > 0.5 else whole


@inner
def mixed_eq(a, b):
    """Comparisons of an int64 a with a uint64 b, by value."""
    return a >= 0 and np.uint64(a) == b


@inner
def mixed_ne(a, b):
    return a < 0 or np.uint64(a) != b


@inner
def mixed_lt(a, b):
    return a < 0 or np.uint64(a) < b


@inner
def mixed_le(a, b):
    return a < 0 or np.uint64(a) <= b


@inner
def mixed_gt(a, b):
    return a >= 0 and np.uint64(a) > b


@inner
def mixed_ge(a, b):
    return a >= 0 and np.uint64(a) >= b


@inner
def round_to(x, scale):
    """x rounded to multiples of 1 / scale, halves to even; what is too large to have such places stays."""
    y = x * scale
    return np.rint(y) / scale if abs(y) < 4503599627370496.0 else x


@inner
def date_scale(x, factor, divisor):
    """A date in another unit, rounded down; NaT stays."""
    if x == NAT:
        return x
    return np.int64(x * factor) if divisor == 1 else floordiv_i(x, divisor)


@inner
def date_add(a, b):
    return NAT if a == NAT or b == NAT else np.int64(a + b)


@inner
def date_sub(a, b):
    return NAT if a == NAT or b == NAT else np.int64(a - b)


@inner
def date_neg(a):
    return np.int64(-a)


@inner
def is_in(x, table):
    """Whether x is in a table that ascends; NaN is in none."""
    low = np.int64(0)
    high = np.int64(table.size)
    while low < high:
        middle = (low + high) >> 1
        if table[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low < table.size and table[low] == x
