"""Sums of float64 that are exact and rounded once, in any order.

A sum is three words of a state row: *window*, *lo*, *hi*. (lo, hi) is a 128-bit two's complement integer A, and the window
holds the base exponent g in its low bits: the sum is A * 2**(g - 1075). A value whose biased exponent e lies in g .. g + 42 is
added by one shift and one 128-bit add. Else the window moves, if that loses nothing; else the sum is spilled to a *wide* row of
70 digits of 32 bits held in int64, which spans the whole double range. Which of these happened never shows in the value: the
exact sum is the same, so order, ranks and merges do not matter.

Flags in the window make the fast test fail, so that special cases cost the common one nothing. NaN and infinities are flags and
are never added. 53 bits of mantissa, 42 of shift and 31 of count fit in 127.

Measured against a per-key two-bin sum (Demmel & Nguyen, "Parallel reproducible summation", 2015): as fast, and exact.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, add128, add_shifted, bits_float, clz, ctz, float_bits, fma
from hpcmr.kernels.jit import helper, inner
from hpcmr.kernels.opcodes import DIGITS

SPAN = 42                       # how far above the base exponent a value may lie
WIDE = U(1 << 59)               # lo is the number of a wide row
HAS_NAN = U(1 << 60)
HAS_PLUS = U(1 << 61)
HAS_MINUS = U(1 << 62)
SPECIAL = U(7 << 60)
BASE = U(0xFFFF)
BASE_MAX = 2004                 # 2047 - SPAN - 1: infinities and NaN never pass the fast test
MANTISSA = U((1 << 52) - 1)
IMPLICIT = U(1 << 52)
DIGIT = U(0xFFFFFFFF)



@helper
def bits128(lo, hi):
    """Bits of |A|."""
    if I(hi) < 0:
        lo = ~lo + U(1)
        hi = ~hi + (U(1) if lo == U(0) else U(0))
    return 128 - clz(hi) if hi != U(0) else 64 - clz(lo)


@helper
def shift_left(lo, hi, s):
    if s == 0:
        return lo, hi
    if s >= 64:
        return U(0), lo << U(s - 64)
    return lo << U(s), (hi << U(s)) | (lo >> U(64 - s))


@helper
def shift_right(lo, hi, s):
    h = I(hi)
    if s == 0:
        return lo, hi
    if s >= 64:
        return U(h >> I(min(s - 64, 63))), U(h >> I(63))
    return (lo >> U(s)) | (hi << U(64 - s)), U(h >> I(s))


@inner
def wide_deposit(wide, row, m, e):
    """Signed mantissa m with biased exponent e >= 1."""
    q = (e - 1) >> 5
    s = (e - 1) & 31
    a = U(-m if m < 0 else m)
    low = (a << U(s)) & DIGIT
    rest = (a >> U(32 - s)) if s else (a >> U(32))
    sign = I(-1) if m < 0 else I(1)
    wide[row, q] += sign * I(low)
    wide[row, q + 1] += sign * I(rest & DIGIT)
    wide[row, q + 2] += sign * I(rest >> U(32))


@inner
def wide_deposit128(wide, row, lo, hi, g):
    """A * 2**(g - 1075) for g >= 0."""
    sign = I(1)
    if I(hi) < 0:
        sign = I(-1)
        lo = ~lo + U(1)
        hi = ~hi + (U(1) if lo == U(0) else U(0))
    p = max(g, 1) - 1            # g = 0 stands for a sum that was never set: A is 0
    q = p >> 5
    s = U(p & 31)
    carry = U(0)
    for i in range(4):
        d = ((lo if i < 2 else hi) >> U(32 * (i & 1))) & DIGIT
        t = (d << s) | carry
        wide[row, q + i] += sign * I(t & DIGIT)
        carry = t >> U(32)
    wide[row, q + 4] += sign * I(carry)


@inner
def wide_normalise(wide, row):
    """Carry, so that each digit but the last lies in 0 .. 2^32 - 1; 2^31 more deposits fit then."""
    carry = I(0)
    for i in range(DIGITS - 1):
        t = wide[row, i] + carry
        wide[row, i] = t & I(0xFFFFFFFF)
        carry = t >> I(32)
    wide[row, DIGITS - 1] += carry


@inner
def spill(T, o, wide, used):
    """Move the sum at T[o:o+3] to wide row used[0], which the caller made sure is there."""
    r = used[0]
    used[0] = r + 1
    wide[r] = 0
    wide_deposit128(wide, r, T[o + 1], T[o + 2], I(T[o] & BASE))
    T[o] |= WIDE
    T[o + 1] = U(r)
    T[o + 2] = U(0)


@inner
def deposit(T, o, v, wide, used):
    """Add v to the sum at T[o:o+3]; every case. Needs one free wide row."""
    b = float_bits(v)
    e = I((b >> U(52)) & U(0x7FF))
    f = b & MANTISSA
    window = T[o]
    if e == 2047:
        T[o] = window | (HAS_NAN if f != U(0) else (HAS_MINUS if b >> U(63) != U(0) else HAS_PLUS))
        return
    if e == 0:
        if f == U(0):
            return
        e = I(1)
        m = I(f)
    else:
        m = I(f | IMPLICIT)
    if b >> U(63) != U(0):
        m = -m
    if window & WIDE != U(0):
        wide_deposit(wide, I(T[o + 1]), m, e)
        return
    lo = T[o + 1]
    hi = T[o + 2]
    g = I(window & BASE)
    if lo == U(0) and hi == U(0):
        g = min(max(I(1), e - 21), I(BASE_MAX))
    elif e < g:
        d = g - e
        size = bits128(lo, hi) + d
        if size > 96:
            spill(T, o, wide, used)
            wide_deposit(wide, I(T[o + 1]), m, e)
            return
        if size + 4 <= 96 and g - d > 4:            # a little room below
            d += 4
        g -= d
        lo, hi = shift_left(lo, hi, d)
    elif e - g > SPAN:
        d = e - g - SPAN
        zeros = ctz(lo) if lo != U(0) else 64 + ctz(hi)
        if zeros < d:
            spill(T, o, wide, used)
            wide_deposit(wide, I(T[o + 1]), m, e)
            return
        g += d
        lo, hi = shift_right(lo, hi, d)
    lo, hi = add_shifted(lo, hi, m, e - g)
    T[o] = (window & ~BASE) | U(g)
    T[o + 1] = lo
    T[o + 2] = hi


@inner
def merge_sum(T, o, E, q, wide, used):
    """Add the sum at E[q:q+3] to the one at T[o:o+3]; both index the same wide rows. Needs one free wide row."""
    w1 = T[o]
    w2 = E[q]
    special = (w1 | w2) & SPECIAL
    if (w1 | w2) & WIDE == U(0):
        g1 = I(w1 & BASE)
        g2 = I(w2 & BASE)
        l1 = T[o + 1]
        h1 = T[o + 2]
        l2 = E[q + 1]
        h2 = E[q + 2]
        fits = True
        g = g1
        if l1 == U(0) and h1 == U(0):
            g = g2
        elif l2 != U(0) or h2 != U(0):
            g = min(g1, g2)
            fits = bits128(l1, h1) + g1 - g <= 125 and bits128(l2, h2) + g2 - g <= 125
            if fits:
                l1, h1 = shift_left(l1, h1, g1 - g)
                l2, h2 = shift_left(l2, h2, g2 - g)
        if fits:
            l1, h1 = add128(l1, h1, l2, h2)
            T[o] = special | U(g)
            T[o + 1] = l1
            T[o + 2] = h1
            return
    if w1 & WIDE == U(0):
        spill(T, o, wide, used)
    r = I(T[o + 1])
    if w2 & WIDE != U(0):
        s = I(E[q + 1])
        wide_normalise(wide, r)
        wide_normalise(wide, s)
        for i in range(DIGITS):
            wide[r, i] += wide[s, i]
    else:
        wide_deposit128(wide, r, E[q + 1], E[q + 2], I(w2 & BASE))
    T[o] = T[o] | special


@inner
def round_to_double(hi, lo, sticky, g):
    """(hi, lo) * 2**(g - 1075), an unsigned 128-bit number, to nearest even. `sticky`: something non-zero lies below."""
    n = 128 - clz(hi) if hi != U(0) else 64 - clz(lo)
    m = lo
    e = g
    d = max(n - 53, 1 - g)               # bits to drop: those beyond 53, and those below the smallest subnormal
    if n == 0 or d > 128:
        return 0.0
    if d > 0:
        half = U(0)
        rest = sticky
        if d < 64:
            m = (lo >> U(d)) | (hi << U(64 - d))
            half = (lo >> U(d - 1)) & U(1)
            rest = rest or (lo & ((U(1) << U(d - 1)) - U(1))) != U(0)
        elif d == 64:
            m = hi
            half = lo >> U(63)
            rest = rest or (lo << U(1)) != U(0)
        else:
            m = hi >> U(d - 64) if d < 128 else U(0)
            half = (hi >> U(d - 65)) & U(1)
            rest = rest or (hi & ((U(1) << U(d - 65)) - U(1))) != U(0) or lo != U(0)
        e = g + d
        if half != U(0) and (rest or (m & U(1)) != U(0)):
            m += U(1)
            if m >> U(53) != U(0):
                m >>= U(1)
                e += 1
    if m == U(0):
        return 0.0
    z = min(53 - (64 - clz(m)), e - 1)
    if z > 0:
        m <<= U(z)
        e -= z
    if m >> U(52) == U(0):
        return bits_float(m)
    if e >= 2047:
        return np.inf
    return bits_float((m & MANTISSA) | (U(e) << U(52)))


@inner
def wide_value(wide, row):
    """Correctly rounded value of a wide row, which is normalised on the way."""
    wide_normalise(wide, row)
    sign = 1.0
    if wide[row, DIGITS - 1] < 0:
        sign = -1.0
        for i in range(DIGITS):
            wide[row, i] = -wide[row, i]
        wide_normalise(wide, row)
    top = DIGITS - 1
    while top >= 0 and wide[row, top] == 0:
        top -= 1
    value = 0.0
    if top >= 0:
        hi = U(wide[row, top])
        mid = U(wide[row, top - 1]) if top > 0 else U(0)
        low = U(wide[row, top - 2]) if top > 1 else U(0)
        third = U(wide[row, top - 3]) if top > 2 else U(0)
        sticky = False
        for i in range(top - 3):
            if wide[row, i] != 0:
                sticky = True
        value = round_to_double((hi << U(32)) | mid, (low << U(32)) | third, sticky, (top - 3) * 32 + 1)
    if sign < 0:
        for i in range(DIGITS):
            wide[row, i] = -wide[row, i]
        wide_normalise(wide, row)
    return sign * value


@helper
def special_value(window):
    f = window & SPECIAL
    if f & HAS_NAN != U(0) or f == HAS_PLUS | HAS_MINUS:
        return np.nan
    return np.inf if f & HAS_PLUS != U(0) else -np.inf


@inner
def sum_value(T, o, wide):
    """The sum at T[o:o+3], rounded once. A zero sum is +0.0."""
    window = T[o]
    if window & SPECIAL != U(0):
        return special_value(window)
    if window & WIDE != U(0):
        return wide_value(wide, I(T[o + 1])) + 0.0
    lo = T[o + 1]
    hi = T[o + 2]
    negative = I(hi) < 0
    if negative:
        lo = ~lo + U(1)
        hi = ~hi + (U(1) if lo == U(0) else U(0))
    v = round_to_double(hi, lo, False, I(window & BASE))
    return (-v if negative else v) + 0.0


@inner
def mean_value(T, o, wide, used, n):
    """The exact sum divided by n (1 to 2^48), rounded once. Needs one free wide row for a scratch."""
    window = T[o]
    if window & SPECIAL != U(0):
        return special_value(window)
    row = used[0]
    if window & WIDE != U(0):
        wide[row] = wide[I(T[o + 1])]
    else:
        wide[row] = 0
        wide_deposit128(wide, row, T[o + 1], T[o + 2], I(window & BASE))
    wide_normalise(wide, row)
    sign = 1.0
    if wide[row, DIGITS - 1] < 0:
        sign = -1.0
        for i in range(DIGITS):
            wide[row, i] = -wide[row, i]
        wide_normalise(wide, row)
    top = DIGITS - 1
    while top >= 0 and wide[row, top] == 0:
        top -= 1
    if top < 0:
        return 0.0
    # Long division, 16 bits at a time: a remainder below 2^48 and 16 more bits fit in 64. Twelve 16-bit digits behind the first
    # non-zero digit of the quotient are more than enough; what remains is the sticky bit.
    rem = U(0)
    hi = U(0)
    lo = U(0)
    place = 2 * top + 1                  # of the 16-bit digit being brought down; below 0 zeros are brought down
    taken = 0
    while taken < 8:
        d = U(0)
        if place >= 0:
            d = (U(wide[row, place >> 1]) >> U(16 * (place & 1))) & U(0xFFFF)
        rem = (rem << U(16)) | d
        q = rem // n
        rem -= q * n
        if taken > 0 or q != U(0):
            hi = (hi << U(16)) | (lo >> U(48))
            lo = (lo << U(16)) | q
            taken += 1
        place -= 1
    sticky = rem != U(0)
    p = place
    while p >= 0 and not sticky:
        sticky = (U(wide[row, p >> 1]) >> U(16 * (p & 1))) & U(0xFFFF) != U(0)
        p -= 1
    return sign * round_to_double(hi, lo, sticky, (place + 1) * 16 + 1) + 0.0


@helper
def deposit_product(T, o, x, y, wide, used):
    """Add x * y exactly: the rounded product and its error."""
    p = x * y
    deposit(T, o, p, wide, used)
    deposit(T, o, fma(x, y, -p), wide, used)


@inner
def variance_value(T, s, q, wide, used, n, ddof):
    """Variance from the exact sum at T[s:s+3] and the exact sum of squares at T[q:q+3]; both are used up.

    With m the mean as a double, the sum of (x - m)^2 is S2 - 2 m S1 + n m^2. S1 is taken in three doubles, every product is
    deposited with its error, and so is -r^2 / n, with r = S1 - n m what m lacks of the true mean. The result is rounded at the
    end. NaN for n <= ddof. Needs three free wide rows.
    """
    if I(n) <= ddof:
        return np.nan
    if (T[s] | T[q]) & SPECIAL != U(0):
        return np.nan
    m = mean_value(T, s, wide, used, n)
    first = sum_value(T, s, wide)
    squares = sum_value(T, q, wide)
    if not np.isfinite(first) or not np.isfinite(squares):
        return np.inf
    nf = np.float64(n)
    p = nf * m
    r = (first - p) - fma(nf, m, -p)
    rest = first
    for i in range(3):
        deposit(T, s, -rest, wide, used)
        deposit_product(T, q, -2.0 * m, rest, wide, used)
        rest = sum_value(T, s, wide)
        r += rest if i == 0 else 0.0
        if rest == 0.0:
            break
    p = m * m
    deposit_product(T, q, nf, p, wide, used)
    deposit_product(T, q, nf, fma(m, m, -p), wide, used)
    deposit(T, q, -(r * r / nf), wide, used)
    return max(sum_value(T, q, wide), 0.0) / (nf - np.float64(ddof))
