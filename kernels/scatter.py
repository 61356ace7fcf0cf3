"""Bare rows by partition: by the top bits of the hash, into chunks that are used again.

A row is one key word and V value words, side by side. Appending to one open chunk per partition costs 2.8 ns a row; a histogram with
write-combining buffers cost 6.8. Chunks are padded by 24 words against cache aliasing.
"""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, peek64
from hpcmr.kernels.jit import kernel
from hpcmr.kernels.keys import fold

CHUNK_PAD = 24


@kernel("int64(int64, int64, uint64, int64[::1], int64[::1], int64, int64, int64, uint64[::1], int64, int64, int64[::1], int64[::1], "
        "int64[::1], int64)")
def append_chunks(key_address, key_stride, key_xor, value_addresses, value_strides, start, n, bits, arena, stride, capacity, opened, fill,
                  owner, used):
    """Append rows to lists of chunks: opened[b] is the open chunk of bucket b (-1: none), fill[b] its rows, owner[c] the bucket of
    chunk c. `used` chunks are in use; stops where the arena has none left. Returns the row reached; owner[-1] becomes the chunks used.
    """
    V = value_addresses.size
    W = V + 1
    sh = U(64 - bits)
    chunks = owner.size - 1
    va = value_addresses[0] if V else I(0)
    vs = value_strides[0] if V else I(0)
    for i in range(start, n):
        x = peek64(key_address + i * key_stride) ^ key_xor
        b = U(fold(U(0), x) >> sh) if bits else U(0)
        f = fill[b]
        if f == capacity or opened[b] < 0:
            if used == chunks:
                owner[chunks] = used
                return i
            opened[b] = used
            owner[U(used)] = I(b)
            used += 1
            f = 0
        o = opened[b] * stride + W * f
        arena[U(o)] = x
        if V == 1:
            arena[U(o + 1)] = peek64(va + i * vs)
        else:
            for v in range(V):
                arena[U(o + 1 + v)] = peek64(value_addresses[v] + i * value_strides[v])
        fill[b] = f + 1
    owner[chunks] = used
    return n


@kernel("void(uint64[::1], int64, int64, int64, int64[::1], int64[::1], int64[::1], int64, int64[::1], uint64[:, ::1])")
def pack_chunks(arena, stride, capacity, W, opened, fill, owner, used, starts, out):
    """Rows of all chunks to `out`, in bucket order, in the order they came. starts: buckets + 1, becomes their first rows."""
    starts[:] = 0
    for c in range(used):
        b = owner[c]
        starts[b + 1] += fill[b] if opened[b] == c else capacity
    for b in range(starts.size - 1):
        starts[b + 1] += starts[b]
    at = starts[:-1].copy()
    for c in range(used):
        b = owner[c]
        rows = fill[b] if opened[b] == c else capacity
        flat = out[at[b]:at[b] + rows].reshape(-1)
        o = c * stride
        for w in range(rows * W):
            flat[w] = arena[o + w]
        at[b] += rows
