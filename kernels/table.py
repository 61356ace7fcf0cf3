"""Open addressing on rows of words: key words first, then the number of rows, then accumulator states.

The slot is the hash scaled to the number of slots, so the table stands in partition order. A state row with a row count of zero is free. Rows are
handled `MICRO` at a time: hash and prefetch all, then probe all, then run the accumulator program over them. Load decides more than
size: 36 million rows/s at 0.48, 63 at 0.24 (a million keys), so growing starts early.
"""

from __future__ import annotations

from hpcmr.kernels.accumulate import apply_program
from hpcmr.kernels.bits import I, U, bswap, load8, mulhi, peek64, prefetch
from hpcmr.kernels.jit import inner, kernel
from hpcmr.kernels.keys import INLINE_NBYTES, LONG, fold, leading, load_be
from hpcmr.kernels.opcodes import ADDRESS, MICRO

_STATE = "uint64[::1], float64[::1], int64, int64, int64, int64[::1], uint64[::1], int64[:, ::1], int64[:, ::1], int64[::1], int64, uint64"
_SCRATCH = "int64[::1], int64[::1], int64[::1], float64[::1], int64[::1], int64[::1], uint8[::1]"


@inner
def _consume_one(key_address, key_stride, key_xor, start, n, T, F, R, slots, limit, count, init, program, wide, used, room, origin,
                 js, jm, so, sv, long_starts, long_ends, long_data):
    end = T.size - R
    groups = count[0]
    for b in range(start, n, MICRO):
        m = min(MICRO, n - b)
        if groups + m > limit or used[0] + room > wide.shape[0]:
            count[0] = groups
            return b
        base = key_address + b * key_stride
        for i in range(m):
            j = I(mulhi(fold(U(0), peek64(base + i * key_stride) ^ key_xor), U(slots))) * R
            js[U(i)] = j
            prefetch(T, j)
        for i in range(m):
            x = peek64(base + i * key_stride) ^ key_xor
            o = js[U(i)]
            while True:
                rows = T[U(o + 1)]
                if T[U(o)] == x and rows != U(0):
                    T[U(o + 1)] = rows + U(1)
                    break
                if rows == U(0):
                    T[U(o)] = x
                    T[U(o + 1)] = U(1)
                    for q in range(2, R):
                        T[U(o + q)] = init[U(q)]
                    groups += 1
                    break
                o += R
                if o == end:
                    o = 0
            js[U(i)] = o
        apply_program(T, F, js, m, b, program, wide, used, origin, end, jm, so, sv, long_starts, long_ends, long_data)
    count[0] = groups
    return n


@kernel(f"int64(int64, int64, uint64, int64, int64, {_STATE}, {_SCRATCH})")
def consume_one(key_address, key_stride, key_xor, start, n, T, F, R, slots, limit, count, init, program, wide, used, room, origin, js, jm, so, sv,
                long_starts, long_ends, long_data):
    """Rows start .. n - 1 with keys of one word, read from memory and turned by `key_xor`.

    count[0] is the number of groups. Stops, and returns the row reached, before a step that might pass `limit` groups or leave
    fewer than `room` wide rows.
    """
    return _consume_one(key_address, key_stride, key_xor, start, n, T, F, R, slots, limit, count, init, program, wide, used, room, origin,
                        js, jm, so, sv, long_starts, long_ends, long_data)


@kernel(f"int64(int64, int64, uint64, int64, int64, int64, int64, uint64[::1], int64, int64, int64[::1], int64[::1], {_STATE}, {_SCRATCH})")
def consume_buckets(key_address, key_stride, key_xor, value_address, start, n, bits, buffers, stride, capacity, fill, full, T, F, R, slots,
                    limit, count, init, program, wide, used, room, origin, js, jm, so, sv, long_starts, long_ends, long_data):
    """Rows (one key word, one float64 value) to buckets by the top bits of their hash; a full bucket goes into the table at once.

    Bucket b lies at word ``b * stride`` and takes `capacity` rows. Returns the row reached: n, or behind the row that filled a
    bucket which could not be emptied; full is that bucket and the rows of it that are in the table, or -1.
    """
    sh = U(64 - bits)
    base = I(buffers.ctypes.data)
    for i in range(start, n):
        x = peek64(key_address + i * key_stride) ^ key_xor
        b = I(fold(U(0), x) >> sh)
        f = fill[U(b)]
        o = b * stride + 2 * f
        prefetch(buffers, o + 16)
        buffers[U(o)] = x
        buffers[U(o + 1)] = peek64(value_address + 8 * i)
        f += 1
        fill[U(b)] = f
        if f == capacity:
            at = base + 8 * b * stride
            for p in range(program.shape[0]):
                program[p, ADDRESS] = at + 8
            reached = _consume_one(at, 16, U(0), 0, capacity, T, F, R, slots, limit, count, init, program, wide, used, room, origin,
                                   js, jm, so, sv, long_starts, long_ends, long_data)
            if reached < capacity:
                full[0] = b
                full[1] = reached
                return i + 1
            fill[U(b)] = 0
    full[0] = -1
    return n


@kernel(f"int64(int64, int64, uint64, int64, int64, int64, uint64[::1], int64[::1], {_STATE}, {_SCRATCH})")
def consume_hot(key_address, key_stride, key_xor, value_address, start, n, misses, missed, T, F, R, slots, limit, count, init, program, wide, used,
                room, origin, js, jm, so, sv, long_starts, long_ends, long_data):
    """As `consume_one` with one float64 value, into a table that does not grow: rows of a key that finds no place any more are put
    aside, side by side with their value, in `misses`; missed[0] is their number.

    The spare state at the end of the table takes what is aside, so that the program runs over all rows alike. Stops also before a
    step that `misses` might not hold.
    """
    end = T.size - R
    groups = count[0]
    aside = missed[0]
    for b in range(start, n, MICRO):
        m = min(MICRO, n - b)
        if 2 * (aside + m) > misses.size or used[0] + room > wide.shape[0]:
            count[0] = groups
            missed[0] = aside
            return b
        base = key_address + b * key_stride
        values = value_address + 8 * b
        for i in range(m):
            j = I(mulhi(fold(U(0), peek64(base + i * key_stride) ^ key_xor), U(slots))) * R
            js[U(i)] = j
            prefetch(T, j)
        for i in range(m):
            x = peek64(base + i * key_stride) ^ key_xor
            o = js[U(i)]
            while True:
                rows = T[U(o + 1)]
                if T[U(o)] == x and rows != U(0):
                    T[U(o + 1)] = rows + U(1)
                    break
                if rows == U(0):
                    if groups < limit:
                        T[U(o)] = x
                        T[U(o + 1)] = U(1)
                        for q in range(2, R):
                            T[U(o + q)] = init[U(q)]
                        groups += 1
                    else:
                        misses[U(2 * aside)] = x
                        misses[U(2 * aside + 1)] = peek64(values + 8 * i)
                        aside += 1
                        o = end
                    break
                o += R
                if o == end:
                    o = 0
            js[U(i)] = o
        apply_program(T, F, js, m, b, program, wide, used, origin, end, jm, so, sv, long_starts, long_ends, long_data)
    count[0] = groups
    missed[0] = aside
    return n


@kernel(f"int64(uint64[::1], uint64[::1], int64, int64, int64, {_STATE}, {_SCRATCH})")
def consume_many(words, hashes, K, start, n, T, F, R, slots, limit, count, init, program, wide, used, room, origin, js, jm, so, sv,
                 long_starts, long_ends, long_data):
    """As `consume_one`, for keys of K words that were encoded and interned beforehand."""
    end = T.size - R
    groups = count[0]
    for b in range(start, n, MICRO):
        m = min(MICRO, n - b)
        if groups + m > limit or used[0] + room > wide.shape[0]:
            count[0] = groups
            return b
        for i in range(m):
            j = I(mulhi(hashes[b + i], U(slots))) * R
            js[i] = j
            prefetch(T, j)
        for i in range(m):
            k = (b + i) * K
            o = js[i]
            while True:
                rows = T[o + K]
                if rows == U(0):
                    for q in range(K):
                        T[o + q] = words[k + q]
                    T[o + K] = U(1)
                    for q in range(K + 1, R):
                        T[o + q] = init[q]
                    groups += 1
                    break
                same = T[o] == words[k]
                for q in range(1, K):
                    same = same and T[o + q] == words[k + q]
                if same:
                    T[o + K] = rows + U(1)
                    break
                o += R
                if o == end:
                    o = 0
            js[i] = o
        apply_program(T, F, js, m, b, program, wide, used, origin, end, jm, so, sv, long_starts, long_ends, long_data)
    count[0] = groups
    return n


@kernel("int64(Array(int64, 1, 'A', readonly=True), Array(int64, 1, 'A', readonly=True), Array(uint8, 1, 'C', readonly=True), "
        f"uint64[::1], int64, int64, {_STATE}, {_SCRATCH})")
def consume_strings(starts, ends, data, words, start, n, T, F, R, slots, limit, count, init, program, wide, used, room, origin, js, jm, so, sv,
                    long_starts, long_ends, long_data):
    """As `consume_one`, for keys of one string each, encoded on the way in `words` (3 * MICRO).

    Encoding a whole batch first would leave the second-level cache. Stops also before a step that has a string of over 23 bytes;
    count[1] is 1 then.
    """
    end = T.size - R
    groups = count[0]
    count[1] = 0
    size = data.size
    for b in range(start, n, MICRO):
        m = min(MICRO, n - b)
        if groups + m > limit or used[0] + room > wide.shape[0]:
            count[0] = groups
            return b
        longest = I(0)
        for i in range(m):
            a = starts[b + i]
            c = ends[b + i] - a
            longest = max(longest, c)
            if a + 24 <= size:
                w0 = leading(bswap(load8(data, a)), min(c, 8))
                w1 = leading(bswap(load8(data, a + 8)), min(max(c - 8, 0), 8))
                w2 = leading(bswap(load8(data, a + 16)), min(max(c - 16, 0), 7)) | U(c)
            else:
                w0 = load_be(data, a, c, size)
                w1 = load_be(data, a + 8, c - 8, size)
                w2 = load_be(data, a + 16, min(c - 16, 7), size) | U(c)
            words[3 * i] = w0
            words[3 * i + 1] = w1
            words[3 * i + 2] = w2
            j = I(mulhi(fold(fold(fold(U(0), w0), w1), w2), U(slots))) * R
            js[i] = j
            prefetch(T, j)
        if longest > INLINE_NBYTES:
            count[0] = groups
            count[1] = 1
            return b
        for i in range(m):
            o = js[i]
            w0 = words[3 * i]
            w1 = words[3 * i + 1]
            w2 = words[3 * i + 2]
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
                    for q in range(4, R):
                        T[o + q] = init[q]
                    groups += 1
                    break
                o += R
                if o == end:
                    o = 0
            js[i] = o
        apply_program(T, F, js, m, b, program, wide, used, origin, end, jm, so, sv, long_starts, long_ends, long_data)
    count[0] = groups
    return n


@kernel("int64(uint64[::1], int64, int64, int64[::1])")
def list_groups(T, R, K, places):
    """Word offsets of the groups of a table, in table order."""
    n = 0
    for o in range(0, T.size - R, R):
        if T[o + K] != U(0):
            places[n] = o
            n += 1
    return n


@kernel("void(uint64[::1], int64[::1], int64, int64[::1], uint64[::1], uint64[::1])")
def hash_groups(T, places, n, string_ends, long_hashes, out):
    """Hashes of the groups at `places`; long strings by the hash of their bytes."""
    for i in range(n):
        h = U(0)
        for k in range(string_ends.size):
            w = T[places[i] + k]
            if string_ends[k] != 0 and w & LONG == LONG:
                w = long_hashes[I(w >> U(8))]
            h = fold(h, w)
        out[i] = h


@kernel("void(uint64[::1], int64[::1], int64, uint64[::1], uint64[::1], int64, int64, int64)")
def rehash(T, places, n, hashes, T2, R, K, slots):
    """Groups of a table into a larger, empty one."""
    end = T2.size - R
    for b in range(0, n, MICRO):
        m = min(MICRO, n - b)
        for i in range(b, b + m):
            prefetch(T2, I(mulhi(hashes[i], U(slots))) * R)
        for i in range(b, b + m):
            o = I(mulhi(hashes[i], U(slots))) * R
            while T2[o + K] != U(0):
                o += R
                if o == end:
                    o = 0
            s = places[i]
            for q in range(R):
                T2[o + q] = T[s + q]


@kernel("void(uint64[::1], int64[::1], int64, uint64[::1], int64, int64, int64[::1], uint64[:, ::1])")
def pack_groups(T, places, n, hashes, bits, S, starts, out):
    """The first S words of each group to `out`, in partition order. starts: partitions + 1, zero on entry."""
    for i in range(n):
        p = I(hashes[i] >> U(64 - bits)) if bits else I(0)
        starts[p + 1] += 1
    for p in range(starts.size - 1):
        starts[p + 1] += starts[p]
    for i in range(n - 1, -1, -1):
        p = I(hashes[i] >> U(64 - bits)) if bits else I(0)
        starts[p + 1] -= 1
        q = starts[p + 1]
        s = places[i]
        for w in range(S):
            out[q, w] = T[s + w]
    # Counting down moved each partition's end to its start: put them back.
    for p in range(starts.size - 1):
        starts[p] = starts[p + 1]
    starts[starts.size - 1] = n


@kernel("int64(uint64[::1], int64, int64, uint64[::1], int64[::1])")
def compact_groups(T, R, bits, wrapped, starts):
    """Move the groups of a table of one-word keys to its beginning, in partition order, in place; returns how many, or -1 if nothing was done.

    The table stands in that order but for groups that were pushed past the border of their partition: these are put back one by one.
    Groups of the last partition that were pushed past the end of the table wait in `wrapped`. starts: partitions + 1, zero on entry.
    """
    end = T.size - R
    last = starts.size - 2
    sh = U(64 - bits)
    aside = 0
    o = 0
    while o < end and T[o + 1] != U(0):               # only the run at the beginning can have come around
        if bits and I(fold(U(0), T[o]) >> sh) == last:
            aside += R
        o += R
    if aside > wrapped.size or (o == end and aside):
        return -1
    aside = 0
    n = 0
    newest = 0
    first_run = True
    for o in range(0, end, R):
        if T[o + 1] == U(0):
            first_run = False
            continue
        p = I(fold(U(0), T[o]) >> sh) if bits else 0
        if first_run and p == last and bits:
            for q in range(R):
                wrapped[aside + q] = T[o + q]
            aside += R
            continue
        starts[p + 1] += 1
        w = n * R
        if p >= newest:
            newest = p
            if w != o:
                for q in range(R):
                    T[w + q] = T[o + q]
        else:
            spare = end                               # the spare state holds the group while the others make room
            for q in range(R):
                T[spare + q] = T[o + q]
            while w > 0 and I(fold(U(0), T[w - R]) >> sh) > p:
                for q in range(R):
                    T[w + q] = T[w - R + q]
                w -= R
            for q in range(R):
                T[w + q] = T[spare + q]
        n += 1
    for q in range(aside):
        T[n * R + q] = wrapped[q]
    n += aside // R
    starts[last + 1] += aside // R
    for p in range(starts.size - 1):
        starts[p + 1] += starts[p]
    return n
