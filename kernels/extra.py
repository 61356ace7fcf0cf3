"""What a state row points at when it leaves its table: long strings and wide sums, written behind one another as bytes.

For row i: each long string among `string_places` (in order) as its length in 8 bytes and its bytes, then each wide sum among
`sum_places` as its 70 digits.
"""

from __future__ import annotations

from hpcmr.kernels.bits import I, U, load8, store8
from hpcmr.kernels.exact_sum import WIDE
from hpcmr.kernels.jit import kernel
from hpcmr.kernels.keys import LONG
from hpcmr.kernels.opcodes import DIGITS

_WIDE_NBYTES = 8 * DIGITS


@kernel("int64(uint64[:, ::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def extra_lengths(rows, string_places, sum_places, long_starts, long_ends, offsets):
    """Offsets ``(n + 1,)`` of the rows' extra bytes; returns the total."""
    offsets[0] = 0
    for i in range(rows.shape[0]):
        n = I(0)
        for p in string_places:
            if rows[i, p] & LONG == LONG:
                r = I(rows[i, p] >> U(8))
                n += 8 + long_ends[r] - long_starts[r]
        for p in sum_places:
            if rows[i, p] & WIDE != U(0):
                n += _WIDE_NBYTES
        offsets[i + 1] = offsets[i] + n
    return offsets[rows.shape[0]]


@kernel("void(uint64[:, ::1], int64[::1], int64[::1], int64[::1], int64[::1], uint8[::1], int64[:, ::1], int64[::1], uint8[::1])")
def write_extra(rows, string_places, sum_places, long_starts, long_ends, long_data, wide, offsets, out):
    for i in range(rows.shape[0]):
        at = offsets[i]
        for p in string_places:
            if rows[i, p] & LONG == LONG:
                r = I(rows[i, p] >> U(8))
                n = long_ends[r] - long_starts[r]
                store8(out, at, U(n))
                for q in range(n):
                    out[at + 8 + q] = long_data[long_starts[r] + q]
                at += 8 + n
        for p in sum_places:
            if rows[i, p] & WIDE != U(0):
                r = I(rows[i, p + 1])
                for d in range(DIGITS):
                    store8(out, at + 8 * d, U(wide[r, d]))
                at += _WIDE_NBYTES


@kernel("int64(uint64[:, ::1], int64[::1], int64[::1], int64[::1], Array(uint8, 1, 'C', readonly=True), int64[:, ::1], int64[:, ::1], "
        "int64[:, ::1], int64)")
def read_extra(rows, string_places, sum_places, starts, data, string_starts, string_ends, wide, used):
    """Undo `write_extra`: places of the long strings to string_starts/ends ``(places, n)``, wide digits to rows `used` on.

    Rows are changed to point at them; short strings get starts = ends. Returns the wide rows used.
    """
    for i in range(rows.shape[0]):
        at = starts[i]
        for k in range(string_places.size):
            string_starts[k, i] = 0
            string_ends[k, i] = 0
            if rows[i, string_places[k]] & LONG == LONG:
                n = I(load8(data, at))
                string_starts[k, i] = at + 8
                string_ends[k, i] = at + 8 + n
                at += 8 + n
        for p in sum_places:
            if rows[i, p] & WIDE != U(0):
                for d in range(DIGITS):
                    wide[used, d] = I(load8(data, at + 8 * d))
                rows[i, p + 1] = U(used)
                used += 1
                at += _WIDE_NBYTES
    return used
