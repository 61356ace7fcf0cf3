"""Order of rows by their key words.

Works on *pairs*: (word, payload) side by side in one uint64 array. One pass on the most significant bits of word - min makes buckets
of about 200 pairs that lie in the cache; each bucket takes a counting pass on its next bits and an insertion sort, which gives up
(to a merge sort) where values cluster. Further words are looked at only where the ones before are equal. Stable: equal words keep
the order in which they came in, unless said otherwise.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.accumulate import compare_strings
from hpcmr.kernels.bits import I, U, clz, peek64
from hpcmr.kernels.jit import inner, kernel
from hpcmr.kernels.keys import LONG

SMALL = 4096
COUNTS = 2 * SMALL + 2
BUCKET_BITS_MAX = 14

_P = "uint64[::1]"


@inner
def insertion_sort(A, a, n):
    for i in range(a + 1, a + n):
        x = A[2 * i]
        if x < A[2 * i - 2]:
            y = A[2 * i + 1]
            j = i - 1
            while j >= a and A[2 * j] > x:
                A[2 * j + 2] = A[2 * j]
                A[2 * j + 3] = A[2 * j + 1]
                j -= 1
            A[2 * j + 2] = x
            A[2 * j + 3] = y


@inner
def merge_sort(A, a, n, spare):
    """Bottom up, from runs of 16: for values that cluster. n <= SMALL."""
    for i in range(0, n, 16):
        insertion_sort(A, a + i, min(16, n - i))
    width = 16
    while width < n:
        for i in range(2 * n):
            spare[i] = A[2 * a + i]
        for lo in range(0, n, 2 * width):
            mid = min(lo + width, n)
            end = min(lo + 2 * width, n)
            i = lo
            j = mid
            for q in range(a + lo, a + end):
                if i < mid and (j >= end or spare[2 * i] <= spare[2 * j]):
                    A[2 * q] = spare[2 * i]
                    A[2 * q + 1] = spare[2 * i + 1]
                    i += 1
                else:
                    A[2 * q] = spare[2 * j]
                    A[2 * q + 1] = spare[2 * j + 1]
                    j += 1
        width *= 2


@inner
def sort_bucket(A, a, n, spare, counts):
    """Sort pairs a .. a + n - 1 in place, n <= SMALL. spare: 2 * SMALL words; counts: COUNTS."""
    if n > 24:
        lo = A[2 * a]
        hi = lo
        for i in range(a + 1, a + n):
            lo = min(lo, A[2 * i])
            hi = max(hi, A[2 * i])
        if lo == hi:
            return
        top = 64 - clz(hi - lo)
        bits = min(64 - clz(U(n)), top)
        sh = U(top - bits)
        size = 1 << bits
        counts[:size + 1] = 0
        most = I(0)
        for i in range(a, a + n):
            q = I((A[2 * i] - lo) >> sh) + 1
            counts[q] += 1
            most = max(most, counts[q])
        for q in range(size):
            counts[q + 1] += counts[q]
        for i in range(a, a + n):
            x = A[2 * i]
            b = I((x - lo) >> sh)
            q = counts[b]
            counts[b] = q + 1
            spare[2 * q] = x
            spare[2 * q + 1] = A[2 * i + 1]
        for i in range(2 * n):
            A[2 * a + i] = spare[i]
        if most > 64 and sh != U(0):
            merge_sort(A, a, n, spare)
            return
        if sh == U(0):
            return
    insertion_sort(A, a, n)


@inner
def spread_pairs(B, A, a, n, starts):
    """Pairs a .. a + n - 1 of B to the same places of A, by the most significant bits of word - least word.

    starts: 2^14 + 2; bucket b becomes ``starts[b] .. starts[b + 1] - 1``. Returns the number of buckets, negative if each holds equal words.
    """
    lo = B[2 * a]
    hi = lo
    for i in range(a, a + n):
        lo = min(lo, B[2 * i])
        hi = max(hi, B[2 * i])
    span = 64 - clz(hi - lo) if hi > lo else 0
    bits = min(max(64 - clz(U(n)) - 8, 0), min(span, BUCKET_BITS_MAX))
    size = I(1) << bits
    if bits == 0:                             # all equal, or few: one bucket
        for i in range(2 * a, 2 * (a + n)):
            A[i] = B[i]
        starts[0] = a
        starts[1] = a + n
        return -size if span == 0 else size
    sh = U(span - bits)
    starts[:size + 2] = 0
    starts[1] = a
    for i in range(a, a + n):
        starts[I((B[2 * i] - lo) >> sh) + 2] += 1
    for q in range(size):
        starts[q + 2] += starts[q + 1]
    for i in range(a, a + n):
        x = B[2 * i]
        b = I((x - lo) >> sh) + 1
        q = starts[b]
        starts[b] = q + 1
        A[2 * q] = x
        A[2 * q + 1] = B[2 * i + 1]
    starts[0] = a
    return -size if sh == U(0) else size


@kernel(f"void({_P}, int64, {_P}, {_P}, int64[::1])")
def sort_pairs(B, n, A, spare, counts):
    """Pairs of B, sorted by word, to A; B is overwritten. spare: 2 * SMALL words; counts: COUNTS."""
    if n == 0:
        return
    starts = np.empty((1 << BUCKET_BITS_MAX) + 2, np.int64)
    todo = np.empty(2 * (n // SMALL + 2), np.int64)          # stretches that are in B and have more than SMALL pairs, or the first one
    todo[0] = 0
    todo[1] = n
    top = 1
    while top > 0:
        top -= 1
        a = todo[2 * top]
        size = spread_pairs(B, A, a, todo[2 * top + 1], starts)
        for b in range(size):
            a = starts[b]
            m = starts[b + 1] - a
            if m > SMALL:
                for i in range(2 * a, 2 * (a + m)):
                    B[i] = A[i]
                todo[2 * top] = a
                todo[2 * top + 1] = m
                top += 1
            elif m > 1:
                sort_bucket(A, a, m, spare, counts)


@kernel(f"int64(int64[::1], int64[::1], int64, int64, {_P})")
def gather_pairs(addresses, rows, stride, payload, B):
    """(first word, payload) of the rows of segments: `rows[s]` rows of `stride` bytes at `addresses[s]`.

    payload: the word that goes along, by its place; or -1 for the row's own address. Returns the number of pairs.
    """
    n = 0
    for s in range(addresses.size):
        at = addresses[s]
        for _ in range(rows[s]):
            B[2 * n] = peek64(at)
            B[2 * n + 1] = U(at) if payload < 0 else peek64(at + 8 * payload)
            at += stride
            n += 1
    return n


@kernel(f"boolean(int64[::1], int64[::1], int64, int64, uint64, int64, int64, int64, {_P}, int64[::1])")
def fill_buckets(addresses, rows, stride, payload, lo, shift, size, room, A, fill):
    """What `gather_pairs` gives, stably into buckets ``(word - lo) >> shift`` of `room` pairs each; False if that is not enough for one.

    No row is counted before, so the rows are read once. For words that are spread evenly. A: 2 * room * size words.
    """
    fill[:size] = 0
    sh = U(shift)
    top = U(size - 1)
    pitch = U(2 * room)
    for s in range(addresses.size):
        at = addresses[s]
        for _ in range(rows[s]):
            x = peek64(at)
            b = min((x - lo) >> sh, top)
            f = fill[b]
            if f == room:
                return False
            fill[b] = f + 1
            o = b * pitch + U(2 * f)
            A[o] = x
            A[o + U(1)] = U(at) if payload < 0 else peek64(at + 8 * payload)
            at += stride
    return True


@inner
def sort_bucket_out(A, o, m, lo, shift, counts, W, Q, pos):
    """m pairs from word o of A on, sorted, to W (words) and Q (payload) from pos on. Word - lo has at most `shift` bits.

    A counting pass on the first bits makes places of one word each, about; an insertion sort does the rest.
    """
    sh = U(0)
    if m > 12:
        bits = min(64 - clz(U(m - 1)), shift)
        sh = U(shift - bits)
        size = 1 << bits
        for q in range(size + 1):
            counts[q] = 0
        for i in range(m):
            counts[((A[o + U(2 * i)] - lo) >> sh) + U(1)] += np.uint16(1)
        below = np.uint16(0)
        for q in range(size):
            below += counts[q + 1]
            counts[q + 1] = below
        for i in range(m):
            x = A[o + U(2 * i)]
            b = (x - lo) >> sh
            q = counts[b]
            counts[b] = q + np.uint16(1)
            W[U(pos) + U(q)] = x
            Q[U(pos) + U(q)] = A[o + U(2 * i + 1)]
        if sh == U(0):
            return
    else:
        for i in range(m):
            W[U(pos + i)] = A[o + U(2 * i)]
            Q[U(pos + i)] = A[o + U(2 * i + 1)]
    most = W[U(pos)]
    for i in range(pos + 1, pos + m):
        x = W[U(i)]
        if x < most:
            y = Q[U(i)]
            j = i - 1
            while j >= pos and W[U(j)] > x:
                W[U(j + 1)] = W[U(j)]
                Q[U(j + 1)] = Q[U(j)]
                j -= 1
            W[U(j + 1)] = x
            Q[U(j + 1)] = y
        else:
            most = x


@kernel(f"void({_P}, int64[::1], int64, int64, uint64, int64, uint16[::1], uint64, {_P}, {_P})")
def empty_buckets(A, fill, size, room, lo, shift, counts, turn, W, Q):
    """Buckets of `fill_buckets`, sorted: words, turned by `turn`, to W and payload to Q. counts: twice `room` + 2."""
    pos = 0
    for b in range(size):
        m = fill[b]
        if m > 0:
            sort_bucket_out(A, U(2 * room) * U(b), m, lo + (U(b) << U(shift)), shift, counts, W, Q, pos)
            for i in range(pos, pos + m):
                W[U(i)] ^= turn
            pos += m


@inner
def order_long(A, a, m, k, long_starts, long_ends, long_data):
    """Pairs a .. a + m - 1 are ordered by the last word of a string; where long ones are among them, order them by their bytes.

    Interned numbers are equal exactly where strings are, so a bottom-up merge sort by comparison keeps groups together.
    """
    found = False
    for i in range(a, a + m):
        found = found or A[2 * i] & LONG == LONG
    if not found:
        return
    spare = np.empty(2 * m, np.uint64)
    width = 1
    while width < m:
        for lo in range(0, m, 2 * width):
            mid = min(lo + width, m)
            end = min(lo + 2 * width, m)
            i = lo
            j = mid
            for q in range(lo, end):
                left = j >= end
                if i < mid and not left:
                    x = I(A[2 * (a + i) + 1]) + 8 * k
                    y = I(A[2 * (a + j) + 1]) + 8 * k
                    left = compare_strings(U(0), U(0), peek64(x), U(0), U(0), peek64(y), long_starts, long_ends, long_data) <= 0
                if left and i < mid:
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


@inner
def sort_groups_by_word(A, groups, k, spare, spare_small, counts, starts):
    """Sort the pairs of each group ``starts[g] .. starts[g + 1] - 1`` by word k of their rows, whose addresses are their payload."""
    for g in range(groups):
        a = starts[g]
        m = starts[g + 1] - a
        if m == 1:
            continue
        for i in range(a, a + m):
            A[2 * i] = peek64(I(A[2 * i + 1]) + 8 * k)
        if m <= SMALL:
            sort_bucket(A, a, m, spare_small, counts)
        else:
            for i in range(2 * m):
                spare[i] = A[2 * a + i]
            sort_pairs(spare, m, A[2 * a:2 * (a + m)], spare_small, counts)


@inner
def split_groups(A, groups, starts):
    """Groups of equal words within the groups: `starts` becomes theirs. Returns their number."""
    bounds = starts[:groups + 1].copy()
    refined = 0
    for g in range(groups):
        starts[refined] = bounds[g]
        refined += 1
        for i in range(bounds[g] + 1, bounds[g + 1]):
            if A[2 * i] != A[2 * i - 2]:
                starts[refined] = i
                refined += 1
    starts[refined] = bounds[groups]
    return refined


@kernel(f"int64({_P}, int64, int64, int64[::1], int64[::1], int64[::1], uint8[::1], {_P}, {_P}, int64[::1], int64[::1])")
def order_ties(A, n, K, string_ends, long_starts, long_ends, long_data, spare, spare_small, counts, starts):
    """Finish an order by first words: sort ties by words 1 .. K - 1, read at the rows' addresses (payload).

    `string_ends[k]`: word k ends a string; equal marks of long strings are ordered by their bytes. starts: n + 1; becomes the
    first pair of each group of equal keys. Returns the number of groups. The words of A are left in disorder.
    """
    starts[0] = 0
    starts[1] = n
    groups = split_groups(A, 1 if n else 0, starts)
    for k in range(1, K):
        sort_groups_by_word(A, groups, k, spare, spare_small, counts, starts)
        if string_ends[k] != 0:
            for g in range(groups):
                if starts[g + 1] - starts[g] > 1:
                    order_long(A, starts[g], starts[g + 1] - starts[g], k, long_starts, long_ends, long_data)
        groups = split_groups(A, groups, starts)
    return groups
