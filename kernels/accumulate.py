"""What happens to a row's values: a small interpreter of accumulator programs.

The state of a group is a row of 64-bit words. A *program* says what to do with it, one instruction a row:
``op, place, address, stride, mask, words``: the operation, the first word of its state, the machine address and stride in bytes
of its input values, the address of their validity bytes (or 0), and the words of one value. Instructions run one after the other
over a few hundred rows whose states are in the first-level cache, so that interpreting costs nothing per row, and no combination of
aggregates needs a kernel of its own. `STATS_F` is sum, min and max of one float column in one loop, the commonest trio.

Every operation is exact or commutative, so the order of rows and merges never shows. In hot loops indices are unsigned: a signed one
is tested for being negative at every access.
"""

from __future__ import annotations

import numpy as np

from hpcmr.kernels.bits import I, U, add128, add_shifted, bits_float, fma, peek8, peek64
from hpcmr.kernels.exact_sum import BASE_MAX, IMPLICIT, MANTISSA, SPAN, deposit, merge_sum
from hpcmr.kernels.jit import inner
from hpcmr.kernels.opcodes import (
    ADDRESS,
    COUNT,
    FIRST,
    LAST,
    MASK,
    MAX_F,
    MAX_I,
    MAX_U,
    MIN_F,
    MIN_I,
    MIN_S,
    MIN_U,
    NULLS,
    OP,
    PLACE,
    SQUARES_F,
    STATS_F,
    STRIDE,
    SUM_F,
    SUM_I,
    SUM_U,
    WORDS,
)


@inner
def compare_strings(a0, a1, a2, b0, b1, b2, long_starts, long_ends, long_data):
    """-1, 0 or 1: order of two strings given as interned words."""
    if a0 != b0:
        return -1 if a0 < b0 else 1
    if a1 != b1:
        return -1 if a1 < b1 else 1
    la = a2 & U(255) == U(255)
    lb = b2 & U(255) == U(255)
    if a2 == b2:
        return 0
    if not la and not lb:
        return -1 if a2 < b2 else 1
    na = long_ends[I(a2 >> U(8))] - long_starts[I(a2 >> U(8))] if la else I(a2 & U(255))
    nb = long_ends[I(b2 >> U(8))] - long_starts[I(b2 >> U(8))] if lb else I(b2 & U(255))
    for i in range(16, min(na, nb)):
        x = long_data[long_starts[I(a2 >> U(8))] + i] if la else np.uint8((a2 >> U(56 - 8 * (i - 16))) & U(255))
        y = long_data[long_starts[I(b2 >> U(8))] + i] if lb else np.uint8((b2 >> U(56 - 8 * (i - 16))) & U(255))
        if x != y:
            return -1 if x < y else 1
    return 0 if na == nb else (-1 if na < nb else 1)


@inner
def apply_program(T, F, js, n, first, program, wide, used, origin, trash, jm, so, sv, long_starts, long_ends, long_data):
    """Add rows ``first .. first + n - 1`` of the program's inputs to the states at ``js[:n]``.

    Values that leave the fast path of a sum are noted in so, sv and deposited after the loop: handing the state array to a
    function inside it made the loop 2.4 times slower. Wide rows for MICRO spills per sum must be free. Rows whose value is null
    go to the state at `trash`, and NULLS counts them. A sum starts with window 1.
    """
    for p in range(program.shape[0]):
        op = program[p, OP]
        at = program[p, PLACE]
        step = program[p, STRIDE]
        base = program[p, ADDRESS] + first * step
        j = js
        mask = program[p, MASK] + first
        if op == NULLS:
            if program[p, MASK] != 0:
                for i in range(n):
                    T[js[i] + at] += U(1 - peek8(mask + i))
            continue
        if program[p, MASK] != 0:
            for i in range(n):
                jm[i] = js[i] if peek8(mask + i) else trash
            j = jm
        if op == STATS_F:
            ns = 0
            for i in range(n):
                o = U(j[U(i)] + at)
                b = peek64(base + i * step)
                y = bits_float(b)
                e = I((b >> U(52)) & U(0x7FF))
                sign = I(b) >> I(63)
                m = (I((b & MANTISSA) | IMPLICIT) ^ sign) - sign
                s = e - I(T[o])                       # flags make it very negative
                lo = T[o + U(1)]
                hi = T[o + U(2)]
                if U(s) <= U(SPAN) and e != 0:
                    lo, hi = add_shifted(lo, hi, m, s)
                    T[o + U(1)] = lo
                    T[o + U(2)] = hi
                elif T[o] == U(1) and e != 0 and e != 2047 and lo == U(0) and hi == U(0):
                    g = min(max(e - 21, I(1)), I(BASE_MAX))          # a fresh state: its window is set here
                    lo, hi = add_shifted(U(0), U(0), m, e - g)
                    T[o] = U(g)
                    T[o + U(1)] = lo
                    T[o + U(2)] = hi
                else:
                    so[U(ns)] = I(o)
                    sv[U(ns)] = y
                    ns += 1
                q = F[o + U(3)]
                F[o + U(3)] = y if y < q else q
                q = F[o + U(4)]
                F[o + U(4)] = y if y > q else q
            for i in range(ns):
                deposit(T, so[i], sv[i], wide, used)
        elif op == SUM_F:
            ns = 0
            for i in range(n):
                o = U(j[U(i)] + at)
                b = peek64(base + i * step)
                e = I((b >> U(52)) & U(0x7FF))
                sign = I(b) >> I(63)
                m = (I((b & MANTISSA) | IMPLICIT) ^ sign) - sign
                s = e - I(T[o])
                lo = T[o + U(1)]
                hi = T[o + U(2)]
                if U(s) <= U(SPAN) and e != 0:
                    lo, hi = add_shifted(lo, hi, m, s)
                    T[o + U(1)] = lo
                    T[o + U(2)] = hi
                elif T[o] == U(1) and e != 0 and e != 2047 and lo == U(0) and hi == U(0):
                    g = min(max(e - 21, I(1)), I(BASE_MAX))
                    lo, hi = add_shifted(U(0), U(0), m, e - g)
                    T[o] = U(g)
                    T[o + U(1)] = lo
                    T[o + U(2)] = hi
                else:
                    so[U(ns)] = I(o)
                    sv[U(ns)] = bits_float(b)
                    ns += 1
            for i in range(ns):
                deposit(T, so[i], sv[i], wide, used)
        elif op == SQUARES_F:
            for i in range(n):
                x = bits_float(peek64(base + i * step))
                y = x * x
                deposit(T, j[i] + at, y, wide, used)
                if np.isfinite(y):
                    deposit(T, j[i] + at, fma(x, x, -y), wide, used)
        elif op == MIN_F:
            for i in range(n):
                y = bits_float(peek64(base + i * step))
                q = F[j[i] + at]
                F[j[i] + at] = y if (y < q or y != y) else q
        elif op == MAX_F:
            for i in range(n):
                y = bits_float(peek64(base + i * step))
                q = F[j[i] + at]
                F[j[i] + at] = y if (y > q or y != y) else q
        elif op == COUNT:
            for i in range(n):
                T[j[i] + at] += U(1)
        elif op == SUM_I or op == SUM_U:
            for i in range(n):
                o = j[i] + at
                v = peek64(base + i * step)
                high = U(I(v) >> I(63)) if op == SUM_I else U(0)
                lo, hi = add128(T[o], T[o + 1], v, high)
                T[o] = lo
                T[o + 1] = hi
        elif op == MIN_I:
            for i in range(n):
                v = peek64(base + i * step)
                if I(v) < I(T[j[i] + at]):
                    T[j[i] + at] = v
        elif op == MAX_I:
            for i in range(n):
                v = peek64(base + i * step)
                if I(v) > I(T[j[i] + at]):
                    T[j[i] + at] = v
        elif op == MIN_U:
            for i in range(n):
                v = peek64(base + i * step)
                if v < T[j[i] + at]:
                    T[j[i] + at] = v
        elif op == MAX_U:
            for i in range(n):
                v = peek64(base + i * step)
                if v > T[j[i] + at]:
                    T[j[i] + at] = v
        elif op == FIRST or op == LAST:
            w = program[p, WORDS]
            for i in range(n):
                o = j[i] + at
                key = origin + U(first + i + 1)         # 0 and its complement are left for what is not set
                key = key if op == FIRST else ~key     # the last is the first from behind
                if key < T[o]:
                    T[o] = key
                    for q in range(w):
                        T[o + 1 + q] = peek64(base + i * step + 8 * q)
        else:
            for i in range(n):
                o = j[i] + at
                a = base + i * step
                c = compare_strings(peek64(a), peek64(a + 8), peek64(a + 16), T[o + 1], T[o + 2], T[o + 3], long_starts, long_ends, long_data)
                if T[o] == U(0) or (c < 0 if op == MIN_S else c > 0):
                    T[o] = U(1)
                    T[o + 1] = peek64(a)
                    T[o + 2] = peek64(a + 8)
                    T[o + 3] = peek64(a + 16)


@inner
def merge_states(T, F, o, q, program, wide, used, long_starts, long_ends, long_data):
    """Add the program's state at word q to the one at word o. Needs one free wide row per sum."""
    for p in range(program.shape[0]):
        op = program[p, OP]
        a = o + program[p, PLACE]
        b = q + program[p, PLACE]
        if op == SUM_F or op == SQUARES_F or op == STATS_F:
            merge_sum(T, a, T, b, wide, used)
            if op == STATS_F:
                F[a + 3] = min(F[a + 3], F[b + 3])
                F[a + 4] = max(F[a + 4], F[b + 4])
        elif op == COUNT or op == NULLS:
            T[a] += T[b]
        elif op == MIN_F:
            F[a] = F[b] if (F[b] < F[a] or F[b] != F[b]) else F[a]
        elif op == MAX_F:
            F[a] = F[b] if (F[b] > F[a] or F[b] != F[b]) else F[a]
        elif op == SUM_I or op == SUM_U:
            lo, hi = add128(T[a], T[a + 1], T[b], T[b + 1])
            T[a] = lo
            T[a + 1] = hi
        elif op == MIN_I:
            T[a] = T[b] if I(T[b]) < I(T[a]) else T[a]
        elif op == MAX_I:
            T[a] = T[b] if I(T[b]) > I(T[a]) else T[a]
        elif op == MIN_U:
            T[a] = min(T[a], T[b])
        elif op == MAX_U:
            T[a] = max(T[a], T[b])
        elif op == FIRST or op == LAST:
            if T[b] < T[a]:
                for w in range(program[p, WORDS] + 1):
                    T[a + w] = T[b + w]
        elif T[b] != U(0):
            c = compare_strings(T[b + 1], T[b + 2], T[b + 3], T[a + 1], T[a + 2], T[a + 3], long_starts, long_ends, long_data)
            if T[a] == U(0) or (c < 0 if op == MIN_S else c > 0):
                for w in range(4):
                    T[a + w] = T[b + w]
