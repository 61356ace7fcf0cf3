"""Results of a partition: equal keys that stand together become one state, and states become values.

Works through a block of groups at a time, so that their states stay in the second-level cache between being made and being read.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.accumulate import apply_program, merge_states
from hpcmr.kernels.bits import I, U, peek64
from hpcmr.kernels.exact_sum import HAS_NAN, mean_value, sum_value, variance_value
from hpcmr.kernels.jit import kernel

_WIDE = "int64[:, ::1], int64[::1]"
_LONG = "int64[::1], int64[::1], uint8[::1]"


@kernel(f"void(uint64[::1], int64[::1], int64, int64, int64, int64, uint64[::1], float64[::1], int64[:, ::1], {_WIDE}, {_LONG})")
def merge_groups(A, starts, first, count, S, K, T, F, program, wide, used, long_starts, long_ends, long_data):
    """States of groups first .. first + count - 1 to T, S words each. Group g has the state rows whose addresses are the payloads of
    pairs starts[g] .. starts[g + 1] - 1. T holds one row more, for a scratch."""
    spare = count * S
    for g in range(count):
        a = starts[first + g]
        o = g * S
        at = I(A[2 * a + 1])
        for w in range(S):
            T[o + w] = peek64(at + 8 * w)
        for i in range(a + 1, starts[first + g + 1]):
            at = I(A[2 * i + 1])
            for w in range(S):
                T[spare + w] = peek64(at + 8 * w)
            T[o + K] += T[spare + K]
            merge_states(T, F, o + K + 1, spare + K + 1, program, wide, used, long_starts, long_ends, long_data)


@kernel("void(uint64[::1], int64[::1], int64, int64, int64, uint64[::1], float64[::1], uint64[::1], int64[:, ::1], "
        f"{_WIDE}, int64, int64[::1], int64[::1], int64[::1], float64[::1], {_LONG})")
def reduce_groups(A, starts, first, count, S, T, F, init, program, wide, used, trash, js, jm, so, sv, long_starts, long_ends, long_data):
    """States of groups of sorted raw rows to T. A: pairs (key, value), one value column, which is the program's only input. `trash`: a
    state for what is null."""
    a = starts[first]
    n = starts[first + count] - a
    for g in range(count):
        o = g * S
        T[o] = A[2 * starts[first + g]]
        T[o + 1] = U(starts[first + g + 1] - starts[first + g])
        for w in range(2, S):
            T[o + w] = init[w]
    g = 0
    done = 0
    while done < n:
        m = min(n - done, js.size)
        for i in range(m):
            while a + done + i >= starts[first + g + 1]:
                g += 1
            js[i] = g * S
        apply_program(T, F, js, m, a + done, program, wide, used, U(0), trash, jm, so, sv, long_starts, long_ends, long_data)
        done += m


@kernel("void(uint64[::1], int64, int64, int64, int64[:, ::1], float64[::1])")
def final_sum(T, at, S, n, wide, out):
    for i in range(n):
        out[i] = sum_value(T, i * S + at, wide)


@kernel(f"void(uint64[::1], int64, int64, int64, uint64[::1], {_WIDE}, float64[::1])")
def final_mean(T, at, S, n, counts, wide, used, out):
    """The sum at word `at` over the number of values, rounded once; NaN where there are none."""
    for i in range(n):
        c = counts[i]
        out[i] = mean_value(T, i * S + at, wide, used, c) if c != U(0) else np.nan


@kernel(f"void(uint64[::1], int64, int64, int64, uint64[::1], {_WIDE}, float64[::1])")
def final_mean_int(T, at, S, n, counts, wide, used, out):
    """The 128-bit integer at word `at` over the number of values, rounded once: it is an exact sum with base exponent 1075."""
    state = np.zeros(3, np.uint64)
    for i in range(n):
        o = i * S
        state[0] = U(1075)
        state[1] = T[o + at]
        state[2] = T[o + at + 1]
        c = counts[i]
        out[i] = mean_value(state, 0, wide, used, c) if c != U(0) else np.nan


@kernel(f"void(uint64[::1], int64, int64, int64, int64, uint64[::1], int64, {_WIDE}, float64[::1], boolean)")
def final_variance(T, at, squares, S, n, counts, ddof, wide, used, out, root):
    """Variance, or its root, from exact sums; works on copies of both states."""
    state = np.zeros(6, np.uint64)
    for i in range(n):
        o = i * S
        keep = used[0]
        for w in range(3):
            state[w] = T[o + at + w]
            state[3 + w] = T[o + squares + w]
        for w in (0, 3):                      # a wide sum is copied, not used up
            if state[w] & U(1 << 59) != U(0):
                wide[used[0]] = wide[I(state[w + 1])]
                state[w + 1] = U(used[0])
                used[0] += 1
        v = variance_value(state, 0, 3, wide, used, counts[i], ddof)
        out[i] = np.sqrt(v) if root else v
        used[0] = keep


@kernel("void(uint64[::1], int64, int64, int64, int64, float64[::1])")
def final_extreme(T, at, window, S, n, out):
    """A float min or max. `window`: place of the sum whose NaN flag counts, or -1. NaN is canonical, a zero is +0.0."""
    F = T.view(np.float64)
    for i in range(n):
        v = F[i * S + at] + 0.0
        if v != v or (window >= 0 and T[i * S + window] & HAS_NAN != U(0)):
            v = np.nan
        out[i] = v


@kernel("int64(uint64[::1], int64, int64, int64, boolean, int64[::1])")
def final_int_sum(T, at, S, n, signed, out):
    """Low words of 128-bit sums; returns the first group whose sum does not fit in 64 bits, or -1."""
    for i in range(n):
        lo = T[i * S + at]
        hi = T[i * S + at + 1]
        out[i] = I(lo)
        if signed:
            if I(hi) != I(lo) >> I(63):
                return i
        elif hi != U(0):
            return i
    return -1


@kernel("void(uint64[::1], int64, int64, int64, uint64[::1])")
def final_words(T, at, S, n, out):
    for i in range(n):
        out[i] = T[i * S + at]


@kernel("int64(uint64[::1], int64, int64[::1])")
def group_starts(A, n, starts):
    """First pair of each run of equal words in n sorted pairs; returns the number of runs. starts: n + 1."""
    groups = 0
    for i in range(n):
        if i == 0 or A[2 * i] != A[2 * i - 2]:
            starts[groups] = i
            groups += 1
    starts[groups] = n
    return groups
