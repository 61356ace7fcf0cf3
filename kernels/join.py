"""The index of the right side of a join, and its probing from the left.

The index holds the right rows as *entries* in the order of their buckets, the top bits of the key hash: the hash, the key words where
one word is not all of the key, and the columns of fixed width packed behind them. Bucket b is entries ``starts[b]`` to ``starts[b + 1]``,
some 10 to 20 of them, in the order of the rows; ``tags[e]`` are the eight bits of the hash behind those of the bucket. The tags of a
bucket are compared at once, so that a probe of a row meets `starts` and `tags`, which are small, and then one entry, which holds all
that the result needs (5 million rows of 24 bytes: 25 ns a probe; 45 where entries are looked
through one by one, for want of predictable branches; one loop that compares and asks for the next ones' entries took twice as long).
Buckets of `WIDE` entries and more are sorted by hash and searched.

The hash of a key of one word is one to one (`fold`), so equal hashes are equal keys; longer keys are compared word by word. Left
rows are handled `MICRO` at a time: hash and ask for the line of `starts`, ask for the tags, compare them and ask for the entry, copy
what matched.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, byte_mask, ctz, peek8, peek16, peek32, peek64, poke8, poke16, poke32, poke64, popcount, prefetch
from hpcmr.kernels.jit import helper, inner, kernel
from hpcmr.kernels.keys import LONG, fold, string_hash
from hpcmr.kernels.opcodes import MICRO

_KEYS = "int64, int64, uint64, int64"
_RO_I = "Array(int64, 1, 'A', readonly=True)"
_RO_B = "Array(uint8, 1, 'C', readonly=True)"
WIDE = 64          # entries whose tags are compared at once


@helper
def _hash_at(address, stride, xor, hashed, i):
    """Hash of key i: of a word in memory, or read from there where it is known."""
    x = peek64(address + i * stride)
    return x if hashed != 0 else fold(U(0), x ^ xor)


@kernel(f"void({_KEYS}, uint8[::1], int64, int64, int32[::1])")
def count_buckets(address, stride, xor, hashed, valid, n, shift, starts):
    """Rows of each bucket to ``starts[b + 2]``, then the sums before each bucket to ``starts[b + 1]``; starts: buckets + 2, zero on entry."""
    masked = valid.size > 0
    for b in range(0, n, MICRO):
        m = min(MICRO, n - b)
        for i in range(b, b + m):
            prefetch(starts, I(_hash_at(address, stride, xor, hashed, i) >> U(shift)) + 2)
        for i in range(b, b + m):
            if not masked or valid[i] != 0:
                starts[U(I(_hash_at(address, stride, xor, hashed, i) >> U(shift)) + 2)] += 1
    for b in range(starts.size - 1):
        starts[b + 1] += starts[b]


@helper
def _copy_in(to, row, columns):
    """The columns of a row into its entry, which begins at the address `to`."""
    for c in range(columns.shape[0]):
        width = columns[c, 1]
        at = columns[c, 0] + row * width
        if width == 8:
            poke64(to + columns[c, 2], peek64(at))
        elif width == 4:
            poke32(to + columns[c, 2], peek32(at))
        elif width == 2:
            poke16(to + columns[c, 2], peek16(at))
        elif width == 1:
            poke8(to + columns[c, 2], peek8(at))
        else:
            poke32(to + columns[c, 2], np.uint32(row))


@kernel(f"void({_KEYS}, uint8[::1], int64, int64, uint64[::1], int64, int64[:, ::1], int32[::1], uint8[::1], uint64[::1], int64)")
def fill_entries(address, stride, xor, hashed, valid, n, shift, words, K, columns, starts, tags, E, S):
    """Rows into their buckets' entries of S words; afterwards bucket b is entries ``starts[b]`` to ``starts[b + 1]``.

    words: K key words a row, kept behind the hash. columns: (address, bytes of a value or 0 for the row's number, place in the entry).
    """
    masked = valid.size > 0
    base = I(E.ctypes.data)
    for b in range(0, n, MICRO):
        m = min(MICRO, n - b)
        for i in range(b, b + m):
            prefetch(starts, I(_hash_at(address, stride, xor, hashed, i) >> U(shift)) + 1)
        for i in range(b, b + m):
            e = starts[U(I(_hash_at(address, stride, xor, hashed, i) >> U(shift)) + 1)]
            prefetch(E, I(e) * S)
        for i in range(b, b + m):
            if masked and valid[i] == 0:
                continue
            h = _hash_at(address, stride, xor, hashed, i)
            q = U(I(h >> U(shift)) + 1)
            e = I(starts[q])
            o = e * S
            starts[q] = np.int32(e + 1)
            tags[U(e)] = np.uint8(h >> U(shift - 8))
            E[U(o)] = h
            for k in range(K):
                E[U(o + 1 + k)] = words[i * K + k]
            _copy_in(base + 8 * o, i, columns)


@inner
def _sort_wide(E, S, a, n):
    """Entries a .. a + n - 1 in the order of their hashes; equal ones stay in their order."""
    hashes = np.empty(n, np.uint64)
    sorted_already = True
    for i in range(n):
        hashes[i] = E[(a + i) * S]
        if i > 0 and hashes[i] < hashes[i - 1]:
            sorted_already = False
    if sorted_already:
        return
    order = np.argsort(hashes, kind="mergesort")
    copy = E[a * S:(a + n) * S].copy()
    for i in range(n):
        for q in range(S):
            E[(a + i) * S + q] = copy[order[i] * S + q]


@kernel("void(int32[::1], uint64[::1], int64)")
def sort_buckets(starts, E, S):
    """Entries of wide buckets in the order of their hashes, equal ones in the order of their rows. starts as `fill_entries` leaves them."""
    for b in range(starts.size - 2):
        n = I(starts[b + 1]) - I(starts[b])
        if n >= WIDE:
            _sort_wide(E, S, I(starts[b]), n)


@inner
def _first_of(E, S, a, stop, h):
    """The first entry of a long bucket with a hash of `h` or above."""
    while a < stop:
        middle = (a + stop) >> 1
        if E[middle * S] < h:
            a = middle + 1
        else:
            stop = middle
    return a


@helper
def _place(at, j):
    """The int32 number j of those at an address; the first entry where nothing was found (`_clear_missing` follows)."""
    return max(I(np.int32(peek32(at + 4 * j))), I(0))


@inner
def _gather(found, m, source, stride, width, target):
    """Values of a column at the m rows or entries that lie at `found` to `target`."""
    if width == 8:
        for j in range(m):
            poke64(target + 8 * j, peek64(source + _place(found, j) * stride))
    elif width == 4:
        for j in range(m):
            poke32(target + 4 * j, peek32(source + _place(found, j) * stride))
    elif width == 2:
        for j in range(m):
            poke16(target + 2 * j, peek16(source + _place(found, j) * stride))
    else:
        for j in range(m):
            poke8(target + j, peek8(source + _place(found, j) * stride))


@inner
def _clear_missing(found, m, width, target):
    """Zero where nothing was found."""
    for j in range(m):
        if I(np.int32(peek32(found + 4 * j))) < 0:
            for q in range(width):
                poke8(target + width * j + q, np.uint8(0))


@helper
def _same_words(E, o, words, w, K):
    """Whether the key behind the hash at word `o` is the one at word `w`."""
    same = True
    for q in range(K):
        same = same and E[o + 1 + q] == words[w + q]
    return same


INNER, LEFT, SEMI, ANTI = range(4)


@kernel(f"int64({_KEYS}, uint8[::1], int64, int64, uint64[::1], int64, int32[::1], uint8[::1], uint64[::1], int64, int64, int64[:, ::1], "
        "int32[::1], int32[::1], int64[::1])")
def probe(address, stride, xor, hashed, valid, n, shift, words, K, starts, tags, E, S, how, right_columns, lefts, rights, state):
    """Matches of left rows from state[0] on, to `lefts` (rows) and `rights` (entries, or -1) and their columns; returns how many.

    Stops where `lefts` is full; state[0] is then the row to go on with and state[1] its entry to go on with, or -1. right_columns: (place in
    the entry, bytes of a value, target). how: `INNER` a pair for each match; `LEFT` also rows without match; `SEMI` rows with a match;
    `ANTI` rows without.
    """
    masked = valid.size > 0
    capacity = lefts.size
    base, at_rights = I(E.ctypes.data), I(rights.ctypes.data)
    hs = np.empty(MICRO, np.uint64)
    es = np.empty(MICRO, np.int64)
    candidates = np.empty(MICRO, np.uint64)
    m = I(0)
    resume = state[1]
    full = False
    for b in range(state[0], n, MICRO):
        k = min(MICRO, n - b)
        for i in range(k):
            h = _hash_at(address, stride, xor, hashed, b + i)
            hs[U(i)] = h
            prefetch(starts, I(h >> U(shift)))
        for i in range(k):
            e = I(starts[U(hs[U(i)] >> U(shift))])
            es[U(i)] = e
            prefetch(tags, e)
        most = I(0)
        wide = False
        for i in range(k):
            h = hs[U(i)]
            e = es[U(i)]
            size = I(starts[U(h >> U(shift)) + U(1)]) - e
            found = byte_mask(tags, e, np.uint8(h >> U(shift - 8)))
            found &= (U(1) << U(size)) - U(1)
            if size >= WIDE:
                e = _first_of(E, S, e, e + size, h)
                es[U(i)] = e
                wide = True
                found = U(0)
            most += popcount(found)
            candidates[U(i)] = found
            prefetch(E, (e + (ctz(found) & 63)) * S)
        begin = m
        if how == INNER and K == 0 and not masked and not wide and resume < 0 and m + most <= capacity:
            for i in range(k):
                h = hs[U(i)]
                e = es[U(i)]
                found = candidates[U(i)]
                while found != U(0):
                    c = e + ctz(found)
                    if E[U(c * S)] == h:
                        lefts[U(m)] = b + i
                        rights[U(m)] = c
                        m += 1
                    found &= found - U(1)
        else:
            for i in range(k):
                h = hs[U(i)]
                e = es[U(i)]
                found = candidates[U(i)]
                stop = I(starts[U(h >> U(shift)) + U(1)])
                some = resume >= 0
                is_wide = stop - I(starts[U(h >> U(shift))]) >= WIDE
                if masked and valid[b + i] == 0:
                    found = U(0)
                    stop = e
                elif some and is_wide:
                    e = resume
                elif some:
                    found &= ~U(0) << U(resume - e)
                c = e
                while found != U(0) or (is_wide and c < stop):
                    if not is_wide:
                        c = e + ctz(found)
                        found &= found - U(1)
                    if E[U(c * S)] == h:
                        if _same_words(E, c * S, words, (b + i) * K, K):
                            some = True
                            if how >= SEMI:
                                break
                            if m == capacity:
                                state[1] = c
                                full = True
                                break
                            lefts[U(m)] = b + i
                            rights[U(m)] = c
                            m += 1
                    elif is_wide:
                        break
                    c += 1
                resume = I(-1)
                if not full and ((how == LEFT and not some) or (how == SEMI and some) or (how == ANTI and not some)):
                    full = m == capacity
                    state[1] = -1
                    if not full:
                        lefts[U(m)] = b + i
                        rights[U(m)] = -1
                        m += 1
                if full:
                    state[0] = b + i
                    break
        for c in range(right_columns.shape[0]):
            w = right_columns[c, 1]
            target = right_columns[c, 2] + w * begin
            _gather(at_rights + 4 * begin, m - begin, base + right_columns[c, 0], 8 * S, w, target)
            if how == LEFT:
                _clear_missing(at_rights + 4 * begin, m - begin, w, target)
        if full:
            return m
    state[0] = n
    state[1] = -1
    return m


@kernel("void(int64, int64, int32[::1], int64, int64)")
def gather_rows(source, width, rows, m, target):
    """Values of 1, 2, 4 or 8 bytes at the first m of `rows`, from one address to another."""
    _gather(I(rows.ctypes.data), m, source, width, width, target)


@kernel(f"void({_RO_I}, {_RO_I}, {_RO_B}, uint64[::1], int64, int64, int64[::1], int64[::1], int64[::1], uint64[::1], uint8[::1])")
def find_strings(starts, ends, data, words, width, at, slots, long_starts, long_ends, long_hashes, long_data):
    """As `intern_strings`, of strings that get no number if they have none: their last word becomes one that no string has."""
    limit = data.size
    mask = slots.size - 1
    for i in range(starts.size):
        o = i * width + at + 2
        if words[o] & LONG != LONG:
            continue
        a = starts[i]
        n = ends[i] - a
        h = string_hash(data, a, a + n, limit)
        j = I(h >> U(20)) & mask
        found = I(-1)
        while slots[j] != 0 and found < 0:
            r = slots[j] - 1
            if long_hashes[r] == h and long_ends[r] - long_starts[r] == n:
                found = r
                for q in range(n):
                    if long_data[long_starts[r] + q] != data[a + q]:
                        found = I(-1)
                        break
            j = (j + 1) & mask
        words[o] = (U(found) << U(8)) | LONG
