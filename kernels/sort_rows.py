"""Rows on their way through a distributed sort: sampled, given a partition, scattered, gathered again.

A row is a *record* of R words: the K words of its key (`hpcmr.kernels.sort_keys`) and its other columns, packed. Records of a partition lie
in *runs*: rows of one split that follow each other in the input. A run begins with a header, as many records as two words need, which
holds the origin of the run and its number of rows. Sorting is stable and takes runs in the order of their origins, so that no row carries one.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, clz, load8, peek8, peek64, poke64, store8
from hpcmr.kernels.jit import inner, kernel
from hpcmr.kernels.keys import K1, LONG, fold
from hpcmr.kernels.sort_keys import TAIL_DATA, TAIL_ENDS, TAIL_SKIP, TAIL_STARTS, TAIL_STEP, TAIL_TURNED, TAIL_WORD, compare_bytes

_P = "uint64[::1]"
_RO_B = "Array(uint8, 1, 'C', readonly=True)"


@kernel("int64(uint64, uint64, int64, int64, int64[::1], uint8[::1])")
def draw(seed, first, n, level, rows, levels):
    """Rows of level `level` and above among n rows whose origins are first, first + 1, ...: half of all rows have level 1, a quarter 2, ...

    Returns how many there are; `rows` gets their places, `levels` their levels.
    """
    found = 0
    limit = ~U(0) >> U(level) if level < 64 else U(0)
    for i in range(n):
        h = fold(seed, (first + U(i)) * K1)
        rows[found] = i
        if h <= limit:
            levels[found] = min(clz(h), 63)
            found += 1
    return found


@kernel(f"void({_RO_B}, int64, int64, uint64, uint8[::1], int64, int64)")
def put_column(source, width, n, turn, records, first, stride):
    """n values of `width` bytes, one behind the other, to ``records[first + stride * i:]``; those of eight bytes are turned."""
    if width == 8:
        for i in range(n):
            store8(records, first + stride * i, load8(source, 8 * i) ^ turn)
    elif width == 1:
        for i in range(n):
            records[U(first + stride * i)] = source[U(i)]
    else:
        whole = width & ~7
        for i in range(n):
            a = i * width
            o = first + stride * i
            j = 0
            while j < whole:
                store8(records, o + j, load8(source, a + j))
                j += 8
            while j < width:
                records[U(o + j)] = source[U(a + j)]
                j += 1


@kernel(f"void({_P}, int64, int64, int64, int64, uint8[::1])")
def take_column(addresses, first, step, offset, width, out):
    """Values of `width` bytes from `offset` on of the records at ``addresses[first + step * i]``."""
    if width == 8:
        for i in range(out.size // 8):
            store8(out, 8 * i, peek64(I(addresses[U(first + step * i)]) + offset))
    elif width == 1:
        for i in range(out.size):
            out[U(i)] = peek8(I(addresses[U(first + step * i)]) + offset)
    else:
        whole = width & ~7
        for i in range(out.size // width):
            a = I(addresses[U(first + step * i)]) + offset
            o = i * width
            j = 0
            while j < whole:
                store8(out, o + j, peek64(a + j))
                j += 8
            while j < width:
                out[U(o + j)] = peek8(a + j)
                j += 1


@inner
def compare_across(tail, i, other, j):
    """Order of the string of row i in one table and of row j in another, behind their words."""
    skip = tail[TAIL_SKIP]
    a = I(peek64(tail[TAIL_STARTS] + tail[TAIL_STEP] * i))
    b = I(peek64(other[TAIL_STARTS] + other[TAIL_STEP] * j))
    c = compare_bytes(tail[TAIL_DATA] + a + skip, I(peek64(tail[TAIL_ENDS] + tail[TAIL_STEP] * i)) - a - skip,
                      other[TAIL_DATA] + b + skip, I(peek64(other[TAIL_ENDS] + other[TAIL_STEP] * j)) - b - skip)
    return -c if tail[TAIL_TURNED] else c


@inner
def begins_before(splits, s, split_tails, split_origins, address, i, tails, origin):
    """Whether splitter s, whose first word is that of row i, is at or before it."""
    t = 0
    for k in range(splits.shape[1]):
        x = peek64(address + 8 * k) if k else splits[s, 0]
        if splits[s, k] != x:
            return splits[s, k] < x
        if t < tails.shape[0] and tails[t, TAIL_WORD] == k:
            mark = ~x if tails[t, TAIL_TURNED] else x
            if mark & LONG == LONG:
                c = compare_across(split_tails[t], s, tails[t], i)
                if c != 0:
                    return c < 0
            t += 1
    return split_origins[s] <= origin


@kernel("void(int64, int64, uint64, int64, uint64, uint64, int64, uint16[:, ::1], uint64[:, ::1], uint64[::1], int64[:, ::1], int64[:, ::1], "
        "uint16[::1])")
def assign(address, stride, turn, n, origin, lo, shift, cells, splits, split_origins, split_tails, tails, out):
    """Partition of each row: how many splitters are at or before it, in the order of keys and then origins.

    The n rows have their words at `address`, `stride` bytes apart (the first one turned), and origins from `origin` on. Cell c of
    the first word, ``(word - lo) >> shift``, has ``cells[c, 0]`` splitters before it and ``cells[c, 1]`` up to its end.
    """
    if splits.shape[0] == 0:
        out[:n] = 0
        return
    top = U(cells.shape[0] - 1)
    sh = U(shift)
    for i in range(n):
        x = peek64(address + stride * i) ^ turn
        c = min((x - lo) >> sh, top) if x > lo else U(0)
        p = I(cells[c, 0])
        q = I(cells[c, 1])
        while p < q:
            mid = (p + q) >> 1
            s = splits[mid, 0]
            if s < x or (s == x and begins_before(splits, mid, split_tails, split_origins, address + stride * i, i, tails, origin + U(i))):
                p = mid + 1
            else:
                q = mid
        out[i] = p


@kernel("void(uint16[::1], int64[::1], int64, int64[::1])")
def count_runs(dest, run_starts, header, totals):
    """Records of each partition, headers among them (each takes `header` records). Run r is rows ``run_starts[r] .. run_starts[r + 1] - 1``."""
    counts = np.empty(totals.size, np.int64)
    totals[:] = 0
    for r in range(run_starts.size - 1):
        counts[:] = 0
        for i in range(run_starts[r], run_starts[r + 1]):
            counts[U(dest[i])] += 1
        for p in range(totals.size):
            if counts[p] > 0:
                totals[p] += counts[p] + header


@kernel("void(uint64[:, ::1], uint16[::1], int64[::1], uint64[::1], int64, int64[::1], uint64[:, ::1], int64[::1])")
def scatter_runs(rows, dest, run_starts, run_origins, header, at, out, order):
    """Records to their partitions, run by run, behind headers. `at`: where each partition begins in `out`; becomes its end.

    `order`: which row each record of `out` is, the number of rows for headers; or empty.
    """
    counts = np.empty(at.size, np.int64)
    R = rows.shape[1]
    for r in range(run_starts.size - 1):
        counts[:] = 0
        for i in range(run_starts[r], run_starts[r + 1]):
            counts[U(dest[i])] += 1
        for p in range(at.size):
            if counts[p] > 0:
                c = at[p]
                out[c, 0] = run_origins[r]
                out[c + header - 1, 1 if header == 1 else 0] = U(counts[p])
                at[p] = c + header
                if order.size > 0:
                    order[c:c + header] = rows.shape[0]
        if R == 2:
            for i in range(run_starts[r], run_starts[r + 1]):
                p = U(dest[i])
                c = at[p]
                at[p] = c + 1
                out[U(c), U(0)] = rows[U(i), U(0)]
                out[U(c), U(1)] = rows[U(i), U(1)]
        else:
            for i in range(run_starts[r], run_starts[r + 1]):
                p = U(dest[i])
                c = at[p]
                at[p] = c + 1
                for w in range(U(R)):
                    out[U(c), U(w)] = rows[U(i), U(w)]
        if order.size > 0:
            for p in range(at.size):
                counts[p] = at[p] - counts[p]
            for i in range(run_starts[r], run_starts[r + 1]):
                p = U(dest[i])
                order[counts[p]] = i
                counts[p] += 1


@kernel("int64(int64[::1], int64[::1], int64, int64, int64[::1], int64[::1], uint64[::1], int64[::1])")
def walk_runs(addresses, records, stride, header, run_addresses, run_rows, run_origins, run_parts):
    """Runs of one partition as it came in parts of ``records[s]`` records at ``addresses[s]``; returns how many there are.

    Those that have no room in the arrays are counted all the same.
    """
    found = 0
    for s in range(addresses.size):
        at = addresses[s]
        end = at + records[s] * stride
        while at < end:
            rows = I(peek64(at + 8))
            if found < run_rows.size:
                run_addresses[found] = at + header * stride
                run_rows[found] = rows
                run_origins[found] = peek64(at)
                run_parts[found] = s
            found += 1
            at += (header + rows) * stride
    return found


@kernel("void(int64[::1], int64[::1], int64, int64)")
def number_rows(addresses, rows, stride, slot):
    """Write the number of each row, in the order of the runs, into its record, `slot` bytes behind its beginning."""
    n = 0
    for s in range(addresses.size):
        at = addresses[s] + slot
        for _ in range(rows[s]):
            poke64(at, U(n))
            n += 1
            at += stride
