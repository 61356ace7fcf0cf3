"""Rows by destination: counted, then scattered stably, in one pass for each column.

`dest` is ``(n,) uint16``, the place of each row's group; `at` ``(groups,) int64`` is where the next row of each group goes, in rows or in
bytes, and is moved on: a call for the next rows goes on behind this one.

Notes
-----
10 million values of eight bytes: 4 ns a value into 2 to 64 groups and 6 into 1,024, where NumPy's stable argsort and one fancy index
take 40 to 60.
"""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, load8, store8
from hpcmr.kernels.jit import helper, kernel

_RO_I = "Array(int64, 1, 'A', readonly=True)"
_RO_B = "Array(uint8, 1, 'C', readonly=True)"
_SCALARS = tuple(f"void(Array({t}, 1, 'C', readonly=True), uint16[::1], int64[::1], {t}[::1])" for t in ("uint8", "uint16", "uint32", "uint64"))


@kernel("int64(Array(int64, 1, 'A', readonly=True), int64, uint16[::1])")
def narrow(ranks, size, dest):
    """Destinations as uint16. Returns the first row whose destination is not in [0, size), -1 if there is none."""
    for i in range(ranks.size):
        r = ranks[i]
        if r < 0 or r >= size:
            return i
        dest[i] = r
    return -1


@kernel("void(uint64[::1], int64, uint16[::1])")
def top_bits(hashes, bits, out):
    """Partition of each hash: its first `bits` bits, 0 to 16."""
    if bits == 0:
        out[:] = 0
        return
    sh = U(64 - bits)
    for i in range(hashes.size):
        out[i] = hashes[i] >> sh


@kernel("void(uint16[::1], int64[::1])")
def count_rows(dest, counts):
    """Add each row to its group's count."""
    for i in range(dest.size):
        counts[U(dest[i])] += 1


@kernel(f"void(uint16[::1], {_RO_I}, {_RO_I}, int64[::1])")
def count_bytes(dest, starts, ends, counts):
    """Add the length of each string to its group's count."""
    for i in range(dest.size):
        counts[U(dest[i])] += ends[i] - starts[i]


@kernel(*_SCALARS)
def scatter_values(values, dest, at, out):
    """``values (n,)`` of 1, 2, 4 or 8 bytes to the next places of their groups in `out`."""
    for i in range(values.size):
        d = U(dest[i])
        p = at[d]
        at[d] = p + 1
        out[U(p)] = values[i]


@kernel("void(Array(uint64, 2, 'C', readonly=True), uint16[::1], int64[::1], uint64[:, ::1])",
        "void(Array(uint8, 2, 'C', readonly=True), uint16[::1], int64[::1], uint8[:, ::1])")
def scatter_rows(values, dest, at, out):
    """``values (n, width)`` to the next places of their groups in `out`."""
    width = U(values.shape[1])
    for i in range(values.shape[0]):
        d = U(dest[i])
        p = at[d]
        at[d] = p + 1
        for w in range(width):
            out[U(p), U(w)] = values[U(i), U(w)]


@helper
def copy_bytes(source, a, n, target, t):
    """``target[t:t + n] = source[a:a + n]``, nothing beyond it."""
    whole = n & ~7
    j = 0
    while j < whole:
        store8(target, t + j, load8(source, a + j))
        j += 8
    while j < n:
        target[t + j] = source[a + j]
        j += 1


@kernel(f"void({_RO_I}, {_RO_I}, {_RO_B}, uint16[::1], int64[::1], uint8[::1])")
def scatter_strings(starts, ends, data, dest, at, out):
    """Bytes of each string behind those of its group; `at` counts bytes."""
    for i in range(starts.size):
        d = U(dest[i])
        a = starts[i]
        n = ends[i] - a
        t = at[d]
        at[d] = t + n
        copy_bytes(data, a, n, out, t)


@kernel("void(uint16[::1], int64[::1], int64[::1], uint8[::1], uint8[::1])")
def place_strings(dest, at, offsets, data, out):
    """Strings that lie one behind the other in `data` to the next rows of their groups, whose places in `out` are `offsets`; `at` counts rows."""
    a = I(0)
    for i in range(dest.size):
        d = U(dest[i])
        p = at[d]
        at[d] = p + 1
        t = offsets[p]
        n = offsets[p + 1] - t
        copy_bytes(data, a, n, out, t)
        a += n
