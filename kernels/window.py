"""Moving windows over the rows before each row: exact sums and means, least and greatest values."""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U
from hpcmr.kernels.exact_sum import deposit, mean_value, sum_value
from hpcmr.kernels.jit import kernel

_RO = "Array(float64, 1, 'A', readonly=True)"
_VALID = "Array(boolean, 1, 'A', readonly=True)"


@kernel(f"void({_RO}, {_VALID}, int64, int64, boolean, float64[::1], uint64[::1], int64[:, ::1], int64[::1])")
def moving_sums(values, valid, first, k, mean, out, T, wide, used):
    """Sum, or mean, of rows ``i - k + 1 .. i`` for each row i from `first` on, exact and rounded once. T: a fresh sum, with three wide rows.

    What leaves the window is taken away again, which is exact too; NaN and infinities are counted.
    """
    nans = I(0)
    plus = I(0)
    minus = I(0)
    count = I(0)
    for i in range(max(I(0), first - k + 1), values.size):
        for leaves in range(2):
            at = i - k if leaves else i
            if at < max(I(0), first - k + 1) or (valid.size != 0 and not valid[at]):
                continue
            v = values[at]
            d = I(-1) if leaves else I(1)
            count += d
            if v != v:
                nans += d
            elif v == np.inf:
                plus += d
            elif v == -np.inf:
                minus += d
            else:
                deposit(T, 0, -v if leaves else v, wide, used)
        if i < first:
            continue
        if count == 0:
            total = np.nan if mean else 0.0
        elif nans > 0 or (plus > 0 and minus > 0):
            total = np.nan
        elif plus > 0:
            total = np.inf
        elif minus > 0:
            total = -np.inf
        elif mean:
            total = mean_value(T, 0, wide, used, U(count))
        else:
            total = sum_value(T, 0, wide)
        out[i - first] = total


@kernel(f"void(uint64[::1], {_VALID}, int64, int64, int64[::1], int64[::1])")
def moving_least(words, valid, first, k, queue, out):
    """Row of the least word among rows ``i - k + 1 .. i`` for each row i from `first` on, -1 where none is valid. `queue`: a row each."""
    head = I(0)
    tail = I(0)
    for i in range(max(I(0), first - k + 1), words.size):
        if valid.size == 0 or valid[i]:
            while tail > head and words[queue[tail - 1]] > words[i]:
                tail -= 1
            queue[tail] = i
            tail += 1
        while tail > head and queue[head] <= i - k:
            head += 1
        if i >= first:
            out[i - first] = queue[head] if tail > head else I(-1)
