"""Columns to sort by, as bits that order as the values do.

A row's key is K words of 64 bits, compared as unsigned numbers, first word first. Each column has a *field* in it: some bits for a value that
order as the values do, all turned where the order is descending, and one bit before them where the column has nulls: 1 for a null, whose
value bits are all equal, so that nulls come last in both directions. Fields lie one behind the other, the most significant bit first; those of
strings begin and end with a word.

A string takes `count` words, big endian: its first 8 count - 1 bytes, and its length in the last byte, 255 (`LONG`) where it is longer. Rows
whose words are equal and end so are told apart by the bytes behind (see `order_rows`). A *tail* tells where these are: eight numbers
(`TAIL_*`) for each field of strings that has long ones.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, bswap, float_bits, peek8, peek64
from hpcmr.kernels.jit import helper, inner, kernel
from hpcmr.kernels.keys import LONG, SIGN, load_be
from hpcmr.kernels.sort import sort_groups_by_word, split_groups

TAIL_WORD, TAIL_TURNED, TAIL_SKIP, TAIL_SLOT, TAIL_STARTS, TAIL_ENDS, TAIL_DATA, TAIL_STEP = range(8)
INSIDE = -2          # as TAIL_SLOT: strings of TAIL_ENDS bytes lie in the records themselves, TAIL_DATA bytes behind the address
NAN_WORD = U(0xFFF8000000000000)
INFINITY_BITS = U(0x7FF0000000000000)

_P = "uint64[::1]"
_RO_B = "Array(uint8, 1, 'C', readonly=True)"
_RO_I = "Array(int64, 1, 'A', readonly=True)"
_RO_U = "Array(uint64, 1, 'A', readonly=True)"
_RO_F = "Array(float64, 1, 'A', readonly=True)"
_RO_M = "Array(boolean, 1, 'A', readonly=True)"


@helper
def put_field(words, o, bit, bits, v):
    """Write the low `bits` bits of v, the others being 0, from bit `bit` on of the row at word o, whose bits there are 0."""
    w = o + (bit >> 6)
    left = 64 - (bit & 63)
    if bits <= left:
        words[w] |= v << U(left - bits)
    else:
        words[w] |= v >> U(bits - left)
        words[w + 1] |= v << U(64 - bits + left)


@kernel(f"void({_RO_I}, {_P}, int64, int64, int64, uint64, uint64)", f"void({_RO_U}, {_P}, int64, int64, int64, uint64, uint64)")
def put_integers(values, words, width, bit, bits, bias, turn):
    """Integers into fields of `bits` bits: plus `bias`, modulo 2^bits, turned by `turn`."""
    mask = ~U(0) >> U(64 - bits)
    for i in range(values.size):
        put_field(words, i * width, bit, bits, ((U(values[i]) + bias) & mask) ^ turn)


@helper
def turned_float(v, descending):
    """Order-preserving word of a float: -0.0 is 0.0, NaN comes last, also where the order of numbers is turned."""
    b = float_bits(v + 0.0)
    w = b ^ (U(I(b) >> 63) | SIGN)
    if descending:
        w = ~w
    return NAN_WORD if v != v else w


@kernel(f"void({_RO_F}, {_P}, int64, int64, boolean)")
def put_floats(values, words, width, bit, descending):
    for i in range(values.size):
        put_field(words, i * width, bit, 64, turned_float(values[i], descending))


@kernel(f"int64({_RO_I}, {_RO_I}, {_RO_B}, {_P}, int64, int64, int64, uint64)")
def put_strings(starts, ends, data, words, width, at, count, turn):
    """Strings into words ``at .. at + count - 1``. Returns the length of the longest."""
    limit = data.size
    inline = 8 * count - 1
    longest = I(0)
    for i in range(starts.size):
        a = starts[i]
        n = ends[i] - a
        longest = max(longest, n)
        o = i * width + at
        for k in range(count - 1):
            words[o + k] = load_be(data, a + 8 * k, min(n - 8 * k, 8), limit) ^ turn
        k = count - 1
        last = load_be(data, a + 8 * k, min(n - 8 * k, 7), limit) | (LONG if n > inline else U(n))
        words[o + k] = last ^ turn
    return longest


@kernel(f"void({_RO_M}, {_P}, int64, int64, int64, int64, boolean)")
def put_nulls(valid, words, width, null_bit, bit, bits, ones):
    """Mark the null rows of a field, and make all bits of their value 0, or 1 (so that a string that is turned does not seem long)."""
    for i in range(valid.size):
        if not valid[i]:
            o = i * width
            at = bit
            while at < bit + bits:
                m = min(bit + bits - at, 64 - (at & 63))
                here = (~U(0) >> U(64 - m)) << U(64 - (at & 63) - m)
                words[o + (at >> 6)] = (words[o + (at >> 6)] & ~here) | (here if ones else U(0))
                at += m
            put_field(words, o, null_bit, 1, U(1))


@kernel(f"void({_P}, int64, int64, int64, int64, uint64, uint64, int64[::1])")
def get_integers(addresses, first, bit, bits, stride, bias, turn, out):
    """Undo `put_integers` for rows of words at ``addresses[first + stride * i]``."""
    mask = ~U(0) >> U(64 - bits)
    w = 8 * (bit >> 6)
    left = 64 - (bit & 63)
    for i in range(out.size):
        a = I(addresses[U(first + stride * i)]) + w
        if bits <= left:
            v = peek64(a) >> U(left - bits)
        else:
            v = (peek64(a) << U(bits - left)) | (peek64(a + 8) >> U(64 - bits + left))
        out[i] = I((((v & mask) ^ turn) - bias) & mask)


@inner
def compare_bytes(a, n, b, m):
    """Order of n bytes at address a and m bytes at address b: below, at or above 0."""
    both = min(n, m)
    i = I(0)
    while i + 8 <= both:
        x = peek64(a + i)
        y = peek64(b + i)
        if x != y:
            return -1 if bswap(x) < bswap(y) else 1
        i += 8
    while i < both:
        x8 = peek8(a + i)
        y8 = peek8(b + i)
        if x8 != y8:
            return -1 if x8 < y8 else 1
        i += 1
    return 0 if n == m else (-1 if n < m else 1)


@inner
def compare_tails(tail, i, j):
    """Order of the strings of rows i and j behind their words, as the field wants it. i and j are addresses where strings lie in the records."""
    step = tail[TAIL_STEP]
    skip = tail[TAIL_SKIP]
    if tail[TAIL_SLOT] == INSIDE:
        n = tail[TAIL_ENDS] - skip
        c = compare_bytes(tail[TAIL_DATA] + i + skip, n, tail[TAIL_DATA] + j + skip, n)
        return -c if tail[TAIL_TURNED] else c
    a = I(peek64(tail[TAIL_STARTS] + step * i))
    b = I(peek64(tail[TAIL_STARTS] + step * j))
    c = compare_bytes(tail[TAIL_DATA] + a + skip, I(peek64(tail[TAIL_ENDS] + step * i)) - a - skip,
                      tail[TAIL_DATA] + b + skip, I(peek64(tail[TAIL_ENDS] + step * j)) - b - skip)
    return -c if tail[TAIL_TURNED] else c


@helper
def row_number(tail, address, base, stride):
    slot = tail[TAIL_SLOT]
    return I(peek64(address + slot)) if slot >= 0 else address if slot == INSIDE else (address - base) // stride


@inner
def sort_by_tails(A, a, m, tail, base, stride):
    """Sort m pairs from a on, whose strings are long and equal as far as words go, by what is behind, stably.

    The word of each pair becomes the number of its group of equal strings, so that groups can be split by words.
    """
    spare = np.empty(2 * m, np.uint64)
    for i in range(m):
        A[2 * (a + i)] = U(row_number(tail, I(A[2 * (a + i) + 1]), base, stride))
    width = 1
    while width < m:
        for lo in range(0, m, 2 * width):
            mid = min(lo + width, m)
            end = min(lo + 2 * width, m)
            i = lo
            j = mid
            for q in range(lo, end):
                if i < mid and (j >= end or compare_tails(tail, I(A[2 * (a + i)]), I(A[2 * (a + j)])) <= 0):
                    spare[2 * q] = A[2 * (a + i)]
                    spare[2 * q + 1] = A[2 * (a + i) + 1]
                    i += 1
                else:
                    spare[2 * q] = A[2 * (a + j)]
                    spare[2 * q + 1] = A[2 * (a + j) + 1]
                    j += 1
        for i in range(2 * m):
            A[2 * a + i] = spare[i]
        width *= 2
    group = U(0)
    for i in range(m):
        if i > 0 and compare_tails(tail, I(spare[2 * i - 2]), I(A[2 * (a + i)])) != 0:
            group += U(1)
        spare[2 * i] = A[2 * (a + i)]
        A[2 * (a + i)] = group


@kernel(f"int64({_P}, int64, int64, int64[:, ::1], int64, int64, {_P}, {_P}, int64[::1], int64[::1])")
def order_rows(A, n, K, tails, base, stride, spare, spare_small, counts, starts):
    """Finish an order of pairs (word 0, address of the row's words) by words 1 .. K - 1 and by tails; stable.

    tails ``(t, 8)``, ascending by word. The number of a row in the columns of strings is the word `TAIL_SLOT` bytes behind its address, or
    (address - base) // stride. starts: n + 1; becomes the first pair of each group of equal keys. Returns the number of groups.
    """
    starts[0] = 0
    starts[1] = n
    groups = split_groups(A, 1 if n else 0, starts)
    t = 0
    for k in range(K):
        if k > 0:
            sort_groups_by_word(A, groups, k, spare, spare_small, counts, starts)
            groups = split_groups(A, groups, starts)
        if t < tails.shape[0] and tails[t, TAIL_WORD] == k:
            found = False
            for g in range(groups):
                m = starts[g + 1] - starts[g]
                if m == 1:
                    continue
                last = peek64(I(A[2 * starts[g] + 1]) + 8 * k)
                if tails[t, TAIL_TURNED]:
                    last = ~last
                if last & LONG == LONG:
                    sort_by_tails(A, starts[g], m, tails[t], base, stride)
                    found = True
                else:
                    for i in range(starts[g], starts[g + 1]):
                        A[2 * i] = U(0)
            if found:
                groups = split_groups(A, groups, starts)
            t += 1
    return groups
