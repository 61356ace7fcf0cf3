"""What becomes of the sorted values of each group: where its quantiles stand, how many distinct values a sketch saw."""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, clz
from hpcmr.kernels.jit import inner, kernel

_STARTS = "Array(int64, 1, 'C', readonly=True)"
_VALID = "Array(boolean, 1, 'C', readonly=True)"


@kernel(f"void({_STARTS}, Array(int64, 1, 'C', readonly=True), {_VALID}, float64, int64[::1], int64[::1], float64[::1], int64[::1])")
def quantile_places(starts, counts, valid, q, low, high, at, last):
    """Rows of the two values around quantile `q` of each group, and where between them it lies.

    Rows ``starts[g] .. starts[g + 1] - 1`` are the distinct values of group g in order, nulls last, each met `counts` times. `last` is
    the row of its greatest value; all are -1 where it has none.
    """
    for g in range(starts.size - 1):
        a = starts[g]
        b = starts[g + 1]
        while b > a and not valid[b - 1]:
            b -= 1
        last[g] = b - 1 if b > a else -1
        low[g] = last[g]
        high[g] = last[g]
        at[g] = 0.0
        if b == a:
            continue
        n = I(0)
        for i in range(a, b):
            n += counts[i]
        place = (n - 1) * q
        rank = min(I(np.floor(place)), n - 1)
        at[g] = place - rank
        i = a
        before = counts[a]                    # how many values rows up to i have
        while before <= rank:
            i += 1
            before += counts[i]
        low[g] = i
        high[g] = i + 1 if before <= rank + 1 and i + 1 < b else i


@kernel("void(Array(uint64, 1, 'C', readonly=True), int64, uint16[::1], uint8[::1])")
def hash_registers(hashes, bits, register, rank):
    """Of each hash, mixed once more: its top `bits` bits, and the place of the first 1 behind them."""
    for i in range(hashes.size):
        h = hashes[i]
        h ^= h >> U(33)
        h *= U(0xFF51AFD7ED558CCD)
        h ^= h >> U(33)
        h *= U(0xC4CEB9FE1A85EC53)
        h ^= h >> U(33)
        register[i] = h >> U(64 - bits)
        rest = h << U(bits)
        rank[i] = min(clz(rest), 64 - bits) + 1 if rest != U(0) else 65 - bits


@inner
def _sigma(x):
    if x == 1.0:
        return np.inf
    y = 1.0
    z = x
    while True:
        x = x * x
        before = z
        z = z + x * y
        y = y + y
        if z == before:
            return z


@inner
def _tau(x):
    if x == 0.0 or x == 1.0:
        return 0.0
    y = 1.0
    z = 1.0 - x
    while True:
        x = np.sqrt(x)
        before = z
        y = 0.5 * y
        z = z - (1.0 - x) * (1.0 - x) * y
        if z == before:
            return z / 3.0


@kernel(f"void({_STARTS}, Array(uint8, 1, 'C', readonly=True), {_VALID}, int64, int64[::1])")
def distinct_estimates(starts, rank, valid, bits, out):
    """Distinct values of each group from the registers that are set, one row each: the estimator of Ertl (2017), which has no tables.

    It sees how many registers hold each rank, so the order of registers does not matter.
    """
    top = 64 - bits
    m = float(1 << bits)
    held = np.zeros(top + 2, np.int64)
    for g in range(starts.size - 1):
        held[:] = 0
        found = I(0)
        for i in range(starts[g], starts[g + 1]):
            if valid[i]:
                held[rank[i]] += 1
                found += 1
        if found == 0:
            out[g] = 0
            continue
        z = m * _tau(1.0 - held[top + 1] / m)
        for k in range(top, 0, -1):
            z = 0.5 * (z + held[k])
        z += m * _sigma((m - found) / m)
        out[g] = I(np.round(m * m / (2.0 * np.log(2.0) * z)))
