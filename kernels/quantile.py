"""Order statistics without sorting: how many values lie where, narrowed until few are left; and counts by magnitude for an estimate."""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, float_bits
from hpcmr.kernels.jit import kernel
from hpcmr.kernels.keys import SIGN, float_word

_RO_F = "Array(float64, 1, 'A', readonly=True)"


@kernel(f"int64({_RO_F}, uint64[::1])")
def float_words(values, words):
    """Order-preserving words of those that are not NaN, to the front; returns how many."""
    n = 0
    for i in range(values.size):
        v = values[i]
        if v == v:
            words[n] = float_word(v)
            n += 1
    return n


@kernel("void(uint64[::1], int64, uint64[::1], uint64[::1], int64[::1], int64[:, ::1])")
def count_words(words, n, lows, highs, shifts, counts):
    """Count words within disjoint ascending ranges ``lows[k] .. highs[k]`` in bins of ``2**shifts[k]``."""
    ranges = lows.size
    for i in range(n):
        w = words[i]
        a = 0
        b = ranges
        while a < b:                        # the first range that ends at w or above
            m = (a + b) >> 1
            if highs[m] < w:
                a = m + 1
            else:
                b = m
        if a < ranges and w >= lows[a]:
            counts[a, I((w - lows[a]) >> U(shifts[a]))] += 1


@kernel("int64(uint64[::1], int64, uint64[::1], uint64[::1], uint64[::1], int64)")
def keep_words(words, n, lows, highs, out, at):
    """Write the words that lie within the ranges to ``out[at:]``; returns where they end."""
    ranges = lows.size
    for i in range(n):
        w = words[i]
        a = 0
        b = ranges
        while a < b:
            m = (a + b) >> 1
            if highs[m] < w:
                a = m + 1
            else:
                b = m
        if a < ranges and w >= lows[a]:
            out[at] = w
            at += 1
    return at


@kernel(f"int64({_RO_F}, int64, int64[::1])")
def count_magnitudes(values, shift, counts):
    """Count values by sign, exponent and the first bits of the mantissa, in ascending order of value; returns how many are NaN."""
    nans = 0
    for i in range(values.size):
        v = values[i]
        if v != v:
            nans += 1
            continue
        b = float_bits(v + 0.0)
        counts[I((b ^ (U(I(b) >> 63) | SIGN)) >> U(shift))] += 1
    return nans
