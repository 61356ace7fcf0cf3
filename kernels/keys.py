"""Keys as order-preserving 64-bit words, and their hash.

Comparing the words of two rows as unsigned numbers, first word first, is comparing the keys: integers have their sign bit
turned, floats are folded so that NaN comes last, strings take three words, big endian: 23 bytes and the length in the last
byte. A longer string has 255 there (`LONG`); rows whose words are equal and end so are told apart by their bytes, or by the
number that an interning table gave them (see `intern_strings`).

The hash of a row folds its words one by one; in a long string's last word the hash of all its bytes stands in. The top bits of
the hash are the partition. Changing it changes the order of every output: it is part of the format.
"""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, bits_float, bswap, float_bits, load8
from hpcmr.kernels.jit import helper, kernel

K1 = U(0x9E3779B97F4A7C15)
K2 = U(0xD6E8FEB86659FD93)
SIGN = U(1 << 63)
NAN_BITS = U(0x7FF8000000000000)
LONG = U(255)
INLINE_NBYTES = 23

# Inputs are declared read-only: such a signature takes writable arrays as well.
_RO_B = "Array(uint8, 1, 'C', readonly=True)"
_RO_I = "Array(int64, 1, 'A', readonly=True)"


@helper
def fold(h, w):
    """Hash of a word after the words whose hash is h; 0 before the first."""
    x = (h ^ w) * K1
    x ^= x >> U(32)
    return x * K2


@helper
def float_word(v):
    """Order-preserving word of a float: all NaN are one, -0.0 is 0.0."""
    b = float_bits(v + 0.0)
    if v != v:
        b = NAN_BITS
    return b ^ (U(I(b) >> 63) | SIGN)


@helper
def word_float(w):
    return bits_float(w ^ (SIGN if w & SIGN else ~U(0)))


@helper
def load_be(data, at, count, limit):
    """The next `count` bytes (0 to 8) as the top bytes of a big-endian word; never reads at or beyond `limit`."""
    if count <= 0:
        return U(0)
    if at + 8 <= limit:
        x = bswap(load8(data, at))
        return x if count >= 8 else x & ~(~U(0) >> U(8 * count))
    x = U(0)
    for j in range(min(count, 8)):
        x |= U(data[at + j]) << U(56 - 8 * j)
    return x


@helper
def leading(x, count):
    """The first `count` bytes (0 to 8) of a big-endian word, without a branch."""
    half = U(4 * count)
    return x & ~((~U(0) >> half) >> half)


@helper
def string_hash(data, a, b, limit):
    h = U(b - a)
    for at in range(a, b, 8):
        h = fold(h, load_be(data, at, b - at, limit))
    return h


@kernel(f"int64({_RO_I}, {_RO_I}, {_RO_B}, uint64[::1], int64, int64, uint64[::1])")
def encode_strings(starts, ends, data, words, width, at, hashes):
    """Strings to words ``at .. at+2`` of rows of `width` words, folded into `hashes`. Returns the number of long ones."""
    limit = data.size
    long_count = 0
    for i in range(starts.size):
        a = starts[i]
        n = ends[i] - a
        w0 = load_be(data, a, n, limit)
        w1 = U(0)
        w2 = U(n)
        if n > 8:
            w1 = load_be(data, a + 8, n - 8, limit)
            if n > 16:
                w2 = load_be(data, a + 16, min(n - 16, 7), limit) | U(min(n, 255))
        last = w2
        if n > INLINE_NBYTES:
            w2 |= LONG
            last = string_hash(data, a, a + n, limit)
            long_count += 1
        o = i * width + at
        words[o] = w0
        words[o + 1] = w1
        words[o + 2] = w2
        hashes[i] = fold(fold(fold(hashes[i], w0), w1), last)
    return long_count


@kernel(f"void({_RO_I}, uint64[::1], int64, int64, uint64[::1])")
def encode_signed(values, words, width, at, hashes):
    for i in range(values.size):
        w = U(values[i]) ^ SIGN
        words[i * width + at] = w
        hashes[i] = fold(hashes[i], w)


@kernel("void(Array(uint64, 1, 'A', readonly=True), uint64[::1], int64, int64, uint64[::1])")
def encode_unsigned(values, words, width, at, hashes):
    for i in range(values.size):
        words[i * width + at] = values[i]
        hashes[i] = fold(hashes[i], values[i])


@kernel("void(Array(float64, 1, 'A', readonly=True), uint64[::1], int64, int64, uint64[::1])")
def encode_float(values, words, width, at, hashes):
    for i in range(values.size):
        w = float_word(values[i])
        words[i * width + at] = w
        hashes[i] = fold(hashes[i], w)


@kernel("void(Array(boolean, 1, 'C', readonly=True), uint64[::1], int64, int64, int64, Array(uint64, 1, 'C', readonly=True), uint64[::1])")
def encode_nulls(valid, words, width, at, count, before, hashes):
    """The null word, at ``at - 1``, of an encoded column of `count` words; nulls become zeros, folded into the hashes `before` the column."""
    for i in range(valid.size):
        o = i * width + at
        words[o - 1] = U(0)
        if not valid[i]:
            words[o - 1] = U(1)
            h = before[i]
            for k in range(count):
                words[o + k] = U(0)
                h = fold(h, U(0))
            hashes[i] = h


@kernel("void(uint64[::1], int64, int64, int64, float64[::1])")
def decode_float(words, width, at, n, out):
    for i in range(n):
        out[i] = word_float(words[i * width + at])


@kernel("void(Array(uint8, 2, 'C', readonly=True), int64[::1])")
def trimmed_lengths(rows, out):
    """Length of each fixed-width string without the NULs at its end."""
    for i in range(rows.shape[0]):
        n = rows.shape[1]
        while n > 0 and rows[i, n - 1] == 0:
            n -= 1
        out[i] = n


@kernel(f"void({_RO_I}, {_RO_I}, {_RO_B}, uint8[:, ::1])")
def pad_strings(starts, ends, data, out):
    """Strings to rows of a fixed width, which holds the longest."""
    for i in range(starts.size):
        for j in range(ends[i] - starts[i]):
            out[i, j] = data[starts[i] + j]


@kernel("void(uint64[::1], int64, int64, int64, int64[::1], int64[::1], int64[::1])")
def decoded_lengths(words, width, at, n, long_starts, long_ends, offsets):
    """Offsets ``(n + 1,)`` of the strings whose interned words these are."""
    offsets[0] = 0
    for i in range(n):
        w = words[i * width + at + 2]
        m = I(w & LONG)
        if m == 255:
            r = I(w >> U(8))
            m = long_ends[r] - long_starts[r]
        offsets[i + 1] = offsets[i] + m


@kernel("void(uint64[::1], int64, int64, int64, int64[::1], int64[::1], uint8[::1], int64[::1], uint8[::1])")
def decode_strings(words, width, at, n, long_starts, long_ends, long_data, offsets, out):
    for i in range(n):
        o = i * width + at
        p = offsets[i]
        m = offsets[i + 1] - p
        if words[o + 2] & LONG == LONG:
            a = long_starts[I(words[o + 2] >> U(8))]
            for j in range(m):
                out[p + j] = long_data[a + j]
        else:
            for j in range(m):
                out[p + j] = (words[o + (j >> 3)] >> U(56 - 8 * (j & 7))) & U(255)


@kernel(f"int64({_RO_I}, {_RO_I}, {_RO_B}, uint64[::1], int64, int64, int64[::1], int64[::1], int64[::1], uint64[::1], uint8[::1], int64, int64)")
def intern_strings(starts, ends, data, words, width, at, slots, long_starts, long_ends, long_hashes, long_data, count, used):
    """Give each long string its number: its last word becomes ``number << 8 | 255``.

    `slots` is an open table of numbers + 1 whose size is a power of two; everything has room for all long rows of the call.
    Returns the new count; the bytes used are ``long_ends[count - 1]``.
    """
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
        while True:
            r = slots[j] - 1
            if r < 0:
                r = count
                slots[j] = r + 1
                long_starts[r] = used
                long_ends[r] = used + n
                long_hashes[r] = h
                for q in range(n):
                    long_data[used + q] = data[a + q]
                used += n
                count += 1
                break
            if long_hashes[r] == h and long_ends[r] - long_starts[r] == n:
                same = True
                b = long_starts[r]
                for q in range(n):
                    if long_data[b + q] != data[a + q]:
                        same = False
                        break
                if same:
                    break
            j = (j + 1) & mask
        words[o] = (U(r) << U(8)) | LONG
    return count


@kernel("void(uint64[::1], int64, int64, int64[::1], uint64[::1], uint64[::1])")
def hash_words(words, stride, n, string_ends, long_hashes, out):
    """Hashes of rows of interned key words: `string_ends` marks with 1 each word that ends a string."""
    for i in range(n):
        h = U(0)
        for k in range(string_ends.size):
            w = words[i * stride + k]
            if string_ends[k] and w & LONG == LONG:
                w = long_hashes[I(w >> U(8))]
            h = fold(h, w)
        out[i] = h
