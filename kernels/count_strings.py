"""Counting strings: short ones in a table of their own, two words an entry.

Most words of a text have up to eight bytes. One word holds such a string if its last byte is not NUL; its entry is half as large as
one of the main table, and its hash takes one step instead of three. Which table a string goes to is decided without a branch, because
lengths cannot be predicted: each row is written to both lists, and only one of the two moves on. Indices are unsigned: a signed one
would be tested for being negative at every access (20 % of the time here).
"""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, bswap, ctz, load8, prefetch, space_mask
from hpcmr.kernels.jit import inner, kernel
from hpcmr.kernels.keys import INLINE_NBYTES, fold, leading, load_be
from hpcmr.kernels.opcodes import MICRO

SHORT_NBYTES = 8
GREW, LONG_STRING, SHORT_FULL, MAIN_FULL = 0, 1, 2, 3

_STRINGS = "Array(int64, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), Array(uint8, 1, 'C', readonly=True)"


_TABLE = "uint64[::1], int64, int64"


@inner
def _mask_tail(data, pos, end):
    """`space_mask` of fewer than 64 bytes; what lies behind them is white space."""
    m = ~U(0)
    for i in range(max(end - pos, 0)):
        x = data[pos + i]
        if not (x == 32 or (x >= 9 and x <= 13)):
            m &= ~(U(1) << U(i))
    return m


@inner
def _load_tail(data, a, c):
    """Up to eight bytes near the end of the data, little endian."""
    x = U(0)
    for q in range(min(c, 8)):
        x |= U(data[a + q]) << U(8 * q)
    return x


@inner
def _count_queued(queue, slots, rest, short, other, S, T, count):
    """Count what is queued: short strings with their places in `slots`, and behind MICRO words the key words of others with theirs in `rest`."""
    end = U(S.size - 2)
    groups = count[2]
    for i in range(short):
        x = queue[U(i)]
        o = slots[U(i)]
        while True:
            y = S[o]
            if y == x:
                S[o + U(1)] += U(1)
                break
            if y == U(0):
                S[o] = x
                S[o + U(1)] = U(1)
                groups += 1
                break
            o += U(2)
            if o == end:
                o = U(0)
    count[2] = groups
    end = U(T.size - 4)
    groups = count[0]
    for i in range(other):
        o = U(rest[U(i)])
        q = U(MICRO) + U(3) * U(i)
        w0 = queue[q]
        w1 = queue[q + U(1)]
        w2 = queue[q + U(2)]
        while True:
            rows = T[o + U(3)]
            if T[o] == w0 and T[o + U(1)] == w1 and T[o + U(2)] == w2 and rows != U(0):
                T[o + U(3)] = rows + U(1)
                break
            if rows == U(0):
                T[o] = w0
                T[o + U(1)] = w1
                T[o + U(2)] = w2
                T[o + U(3)] = U(1)
                groups += 1
                break
            o += U(4)
            if o == end:
                o = U(0)
    count[0] = groups


@inner
def _count_step(starts, ends, b, m, data, queue, slots, rest, S, short_shift, short_limit, T, shift, limit, count):
    """Count strings b .. b + m - 1, m <= MICRO; False, with the reason in count[1], where nothing was counted."""
    if count[0] + m > limit or count[2] + m > short_limit:
        count[1] = SHORT_FULL if count[2] + m > short_limit else MAIN_FULL
        return False
    size = data.size
    s_shift = U(short_shift)
    t_shift = U(shift)
    short = U(0)
    other = U(0)
    for i in range(b, b + m):
        a = starts[U(i)]
        c = ends[U(i)] - a
        x = load8(data, a) if a + 8 <= size else _load_tail(data, a, c)
        x &= ~U(0) >> (U(64 - 8 * c) & U(63))
        fits = U((U(c - 1) < U(SHORT_NBYTES)) & ((x >> (U(8 * c - 8) & U(63))) != U(0)))
        j = (fold(U(0), x) >> s_shift) << U(1)
        prefetch(S, I(j))
        queue[short] = x
        slots[short] = j
        rest[other] = i
        short += fits
        other += U(1) - fits
    longest = I(0)
    for i in range(other):
        a = starts[U(rest[U(i)])]
        c = ends[U(rest[U(i)])] - a
        longest = max(longest, c)
        if a + 24 <= size:
            w0 = leading(bswap(load8(data, a)), min(c, 8))
            w1 = leading(bswap(load8(data, a + 8)), min(max(c - 8, 0), 8))
            w2 = leading(bswap(load8(data, a + 16)), min(max(c - 16, 0), 7)) | U(c)
        else:
            w0 = load_be(data, a, c, size)
            w1 = load_be(data, a + 8, c - 8, size)
            w2 = load_be(data, a + 16, min(c - 16, 7), size) | U(c)
        j = (fold(fold(fold(U(0), w0), w1), w2) >> t_shift) << U(2)
        q = U(MICRO) + U(3) * U(i)
        queue[q] = w0
        queue[q + U(1)] = w1
        queue[q + U(2)] = w2
        rest[U(i)] = I(j)
        prefetch(T, I(j))
    if longest > INLINE_NBYTES:
        count[1] = LONG_STRING
        return False
    _count_queued(queue, slots, rest, short, other, S, T, count)
    return True


@kernel(f"int64({_STRINGS}, uint64[::1], uint64[::1], int64[::1], int64, int64, {_TABLE}, {_TABLE}, int64[::1])")
def count_strings(starts, ends, data, queue, slots, rest, start, n, S, short_shift, short_limit, T, shift, limit, count):
    """Count strings start .. n - 1. S: entries (bytes, count); T: entries (three key words, count).

    queue: 4 * MICRO words, slots and rest: MICRO each. count: groups of T, why it stopped, groups of S. Stops before a step that
    may pass a limit or that holds a string of over 23 bytes. Returns the row reached.
    """
    for b in range(start, n, MICRO):
        if not _count_step(starts, ends, b, min(MICRO, n - b), data, queue, slots, rest, S, short_shift, short_limit, T, shift, limit, count):
            return b
    count[1] = GREW
    return n


@kernel(f"int64(Array(uint8, 1, 'C', readonly=True), int64, int64, uint64[::1], uint64[::1], int64[::1], {_TABLE}, {_TABLE}, int64[::1])")
def count_words(data, begin, end, queue, slots, rest, S, short_shift, short_limit, T, shift, limit, count):
    """Count the words of data[begin:end], which begins and ends at the border of a word: found, hashed and queued in one pass.

    count[3]: words counted. Else as `count_strings`; returns the byte reached.
    """
    s_shift = U(short_shift)
    t_shift = U(shift)
    size = min(end, data.size)
    start = begin
    done = begin
    pos = begin
    short = U(0)
    other = U(0)
    while pos < end or start < end:       # a word that ends with the last of 64 bytes is found behind them
        m = space_mask(data, pos) if pos + 64 <= size else _mask_tail(data, pos, size)
        while m != U(0):
            stop = pos + I(ctz(m))
            m &= m - U(1)
            c = stop - start
            if c > 0:
                inside = start + 24 <= data.size
                x = load8(data, start) if inside else _load_tail(data, start, c)
                if c <= SHORT_NBYTES:
                    x &= ~U(0) >> U(64 - 8 * c)
                if c <= SHORT_NBYTES and (x >> U(8 * c - 8)) != U(0):
                    j = (fold(U(0), x) >> s_shift) << U(1)
                    prefetch(S, I(j))
                    queue[short] = x
                    slots[short] = j
                    short += U(1)
                elif c <= INLINE_NBYTES:
                    if inside:
                        w0 = leading(bswap(x), min(c, 8))
                        w1 = leading(bswap(load8(data, start + 8)), min(max(c - 8, 0), 8))
                        w2 = leading(bswap(load8(data, start + 16)), max(c - 16, 0)) | U(c)
                    else:
                        w0 = load_be(data, start, c, data.size)
                        w1 = load_be(data, start + 8, c - 8, data.size)
                        w2 = load_be(data, start + 16, c - 16, data.size) | U(c)
                    j = (fold(fold(fold(U(0), w0), w1), w2) >> t_shift) << U(2)
                    prefetch(T, I(j))
                    q = U(MICRO) + U(3) * other
                    queue[q] = w0
                    queue[q + U(1)] = w1
                    queue[q + U(2)] = w2
                    rest[other] = I(j)
                    other += U(1)
                else:
                    count[1] = LONG_STRING
                    return done
            start = stop + 1
            if start >= end:
                break
        pos += 64
        if I(short + other) > MICRO - 65 or pos >= end:
            if count[0] + I(other) > limit or count[2] + I(short) > short_limit:
                count[1] = SHORT_FULL if count[2] + I(short) > short_limit else MAIN_FULL
                return done
            _count_queued(queue, slots, rest, short, other, S, T, count)
            count[3] += I(short + other)
            short = U(0)
            other = U(0)
            done = min(start, end)
    count[1] = GREW
    return end


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
            w = bswap(S[s])
            out[4 * n] = w
            out[4 * n + 1] = U(0)
            out[4 * n + 2] = U(8 - (ctz(w) >> 3))
            out[4 * n + 3] = S[s + 1]
            n += 1
    return n
