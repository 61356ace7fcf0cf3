"""Running sums of floats, each of them the exact sum of all values so far, rounded once."""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, add_shifted, float_bits
from hpcmr.kernels.exact_sum import BASE, IMPLICIT, MANTISSA, SPAN, SPECIAL, WIDE, deposit, round_to_double, sum_value
from hpcmr.kernels.jit import kernel

_RO = "Array(float64, 1, 'A', readonly=True)"
_VALID = "Array(boolean, 1, 'A', readonly=True)"


@kernel(f"void({_RO}, {_VALID}, float64[::1], uint64[::1], int64[:, ::1], int64[::1])")
def prefix_sums(values, valid, out, T, wide, used):
    """Sums of what T held and the values up to each row. `valid`: rows that count, all where it is empty. T spills once at most, so that
    one free wide row will do."""
    lo = T[1]
    hi = T[2]
    for i in range(out.size):
        if valid.size != 0 and not valid[i]:
            out[i] = 0.0
            continue
        v = values[i]
        b = float_bits(v)
        e = I((b >> U(52)) & U(0x7FF))
        s = e - I(T[0])                     # flags make it very negative
        if U(s) <= U(SPAN) and e != 0:
            sign = I(b) >> I(63)
            lo, hi = add_shifted(lo, hi, (I((b & MANTISSA) | IMPLICIT) ^ sign) - sign, s)
        else:
            T[1] = lo
            T[2] = hi
            deposit(T, 0, v, wide, used)
            lo = T[1]
            hi = T[2]
        if T[0] & (SPECIAL | WIDE) != U(0):
            out[i] = sum_value(T, 0, wide)
            continue
        a = lo
        c = hi
        negative = I(hi) < 0
        if negative:
            a = ~a + U(1)
            c = ~c + (U(1) if a == U(0) else U(0))
        total = round_to_double(c, a, False, I(T[0] & BASE))
        out[i] = (-total if negative else total) + 0.0
    T[1] = lo
    T[2] = hi


@kernel(f"void({_RO}, {_VALID}, uint64[::1], int64[:, ::1], int64[::1])")
def add_all(values, valid, T, wide, used):
    """Add the values to the sum in T."""
    for i in range(values.size):
        if valid.size == 0 or valid[i]:
            deposit(T, 0, values[i], wide, used)
