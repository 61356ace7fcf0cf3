"""Counting strings: short ones in a table of their own, two words an entry.

Most words of a text have up to seven bytes. One word holds such a string with its length; its entry is half as large as one of the
main table and its hash takes one step instead of three. Which table a string goes to is decided without a branch, because lengths
cannot be predicted: each row is written to both lists, and only one of the two moves on.
"""

from __future__ import annotations

from hpcmr.kernels.accumulate import MICRO
from hpcmr.kernels.bits import I, U, bswap, load8, prefetch
from hpcmr.kernels.jit import kernel
from hpcmr.kernels.keys import INLINE_NBYTES, fold, leading, load_be

SHORT_NBYTES = 7
GREW, LONG_STRING, SHORT_FULL, MAIN_FULL = 0, 1, 2, 3

_STRINGS = "Array(int64, 1, 'A', readonly=True), Array(int64, 1, 'A', readonly=True), Array(uint8, 1, 'C', readonly=True)"


_TABLE = "uint64[::1], int64, int64"


@kernel(f"int64({_STRINGS}, uint64[::1], int64[::1], int64[::1], int64, int64, {_TABLE}, {_TABLE}, int64[::1])")
def count_strings(starts, ends, data, queue, slots, rest, start, n, S, short_shift, short_limit, T, shift, limit, count):
    """Count strings start .. n - 1. S: entries (bytes and length, count); T: entries (three key words, count).

    queue: 4 * MICRO words, slots and rest: MICRO each. count: groups of T, why it stopped, groups of S. Stops before a step that
    may pass a limit or that holds a string of over 23 bytes. Returns the row reached.
    """
    size = data.size
    short_end = S.size - 2
    end = T.size - 4
    groups = count[0]
    short_groups = count[2]
    for b in range(start, n, MICRO):
        m = min(MICRO, n - b)
        if groups + m > limit or short_groups + m > short_limit:
            count[0] = groups
            count[1] = SHORT_FULL if short_groups + m > short_limit else MAIN_FULL
            count[2] = short_groups
            return b
        short = 0
        other = 0
        for i in range(m):
            a = starts[b + i]
            c = ends[b + i] - a
            x = bswap(load8(data, a)) if a + 8 <= size else load_be(data, a, min(c, 8), size)
            x = leading(x, min(c, SHORT_NBYTES)) | U(c)
            j = I(fold(U(0), x) >> U(short_shift)) * 2
            queue[short] = x
            slots[short] = j
            rest[other] = b + i
            fits = I(c <= SHORT_NBYTES)
            short += fits
            other += 1 - fits
            prefetch(S, j)
        longest = I(0)
        for i in range(other):
            a = starts[rest[i]]
            c = ends[rest[i]] - a
            longest = max(longest, c)
            if a + 24 <= size:
                w0 = bswap(load8(data, a))
                w1 = leading(bswap(load8(data, a + 8)), min(max(c - 8, 0), 8))
                w2 = leading(bswap(load8(data, a + 16)), min(max(c - 16, 0), 7)) | U(c)
            else:
                w0 = load_be(data, a, c, size)
                w1 = load_be(data, a + 8, c - 8, size)
                w2 = load_be(data, a + 16, min(c - 16, 7), size) | U(c)
            j = I(fold(fold(fold(U(0), w0), w1), w2) >> U(shift)) * 4
            q = MICRO + 3 * i
            queue[q] = w0
            queue[q + 1] = w1
            queue[q + 2] = w2
            rest[i] = j
            prefetch(T, j)
        if longest > INLINE_NBYTES:
            count[0] = groups
            count[1] = LONG_STRING
            count[2] = short_groups
            return b
        for i in range(short):
            x = queue[i]
            o = slots[i]
            while True:
                rows = S[o + 1]
                if S[o] == x and rows != U(0):
                    S[o + 1] = rows + U(1)
                    break
                if rows == U(0):
                    S[o] = x
                    S[o + 1] = U(1)
                    short_groups += 1
                    break
                o += 2
                if o == short_end:
                    o = 0
        for i in range(other):
            o = rest[i]
            q = MICRO + 3 * i
            w0 = queue[q]
            w1 = queue[q + 1]
            w2 = queue[q + 2]
            while True:
                rows = T[o + 3]
                if T[o] == w0 and T[o + 1] == w1 and T[o + 2] == w2 and rows != U(0):
                    T[o + 3] = rows + U(1)
                    break
                if rows == U(0):
                    T[o] = w0
                    T[o + 1] = w1
                    T[o + 2] = w2
                    T[o + 3] = U(1)
                    groups += 1
                    break
                o += 4
                if o == end:
                    o = 0
    count[0] = groups
    count[1] = GREW
    count[2] = short_groups
    return n


@kernel("void(uint64[::1], uint64[::1], int64)")
def grow_short(S, larger, shift):
    end = larger.size - 2
    for s in range(0, S.size - 2, 2):
        if S[s + 1] != U(0):
            o = I(fold(U(0), S[s]) >> U(shift)) * 2
            while larger[o + 1] != U(0):
                o += 2
                if o == end:
                    o = 0
            larger[o] = S[s]
            larger[o + 1] = S[s + 1]


@kernel("int64(uint64[::1], uint64[::1])")
def widen_short(S, out):
    """Entries of the short table as rows of the main one: (bytes, 0, length, count). Returns how many."""
    n = 0
    for s in range(0, S.size - 2, 2):
        if S[s + 1] != U(0):
            out[4 * n] = S[s] & ~U(255)
            out[4 * n + 1] = U(0)
            out[4 * n + 2] = S[s] & U(255)
            out[4 * n + 3] = S[s + 1]
            n += 1
    return n
