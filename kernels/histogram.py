"""Values into bins: ``edges[j] <= v < edges[j + 1]``, the last bin with its upper edge, as NumPy has it."""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U
from hpcmr.kernels.exact_sum import WIDE, deposit, merge_sum, sum_value
from hpcmr.kernels.jit import kernel

_RO = "Array(float64, 1, 'A', readonly=True)"


@kernel(f"void({_RO}, float64[::1], float64, int64[::1])")
def locate(values, edges, scale, flat):
    """Append a digit, the bin of the value, to the bin numbers `flat`; -1 for what lies outside.

    scale: bins per unit where they are of one width, which gives a guess to be corrected by at most a few bins; 0 where they are not.
    """
    bins = edges.size - 1
    low = edges[0]
    high = edges[bins]
    for i in range(flat.size):
        if flat[i] < 0:
            continue
        v = values[i]
        if not (v >= low and v <= high):
            flat[i] = -1
            continue
        if scale > 0.0:
            j = min(max(I((v - low) * scale), I(0)), bins - 1)
            while j > 0 and v < edges[j]:
                j -= 1
            while j < bins - 1 and v >= edges[j + 1]:
                j += 1
        else:
            a = I(0)
            b = I(bins)
            while a < b:                    # how many of edges[1:] are <= v
                m = (a + b) >> 1
                if edges[m + 1] <= v:
                    a = m + 1
                else:
                    b = m
            j = min(a, bins - 1)
        flat[i] = flat[i] * bins + j


@kernel("void(int64[::1], int64[::1])")
def count_bins(flat, counts):
    for i in range(flat.size):
        if flat[i] >= 0:
            counts[flat[i]] += 1


@kernel(f"int64(int64[::1], {_RO}, int64, uint64[::1], int64[:, ::1], int64[::1])")
def sum_bins(flat, weights, first, T, wide, used):
    """Add the weights of rows from `first` on to the exact sums T, three words a bin. Stops at the row for which no wide row is free."""
    for i in range(first, flat.size):
        if flat[i] < 0:
            continue
        if used[0] == wide.shape[0]:
            return i
        deposit(T, 3 * flat[i], weights[i], wide, used)
    return I(flat.size)


@kernel("int64(uint64[::1], int64[:, ::1], uint64[::1], int64[:, ::1], int64, int64[::1])")
def merge_bins(other, other_wide, T, wide, first, used):
    """Add the sums of another rank, from bin `first` on. Stops at the bin for which no two wide rows are free."""
    state = np.zeros(3, np.uint64)
    for j in range(first, T.size // 3):
        if used[0] + 2 > wide.shape[0]:
            return I(j)
        for k in range(3):
            state[k] = other[3 * j + k]
        if state[0] & WIDE != U(0):
            wide[used[0]] = other_wide[I(state[1])]
            state[1] = U(used[0])
            used[0] += 1
        merge_sum(T, 3 * j, state, 0, wide, used)
    return I(T.size // 3)


@kernel("void(uint64[::1], int64[:, ::1], float64[::1])")
def bin_values(T, wide, out):
    for j in range(out.size):
        out[j] = sum_value(T, 3 * j, wide)
