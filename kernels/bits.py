"""Machine operations that Numba has no name for: prefetch, bit counts, unaligned loads, bit casts, 128-bit sums, byte masks.

All are LLVM instructions behind `@intrinsic`; each one works in place, without a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

U = np.uint64
I = np.int64

_I8 = ir.IntType(8)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_I128 = ir.IntType(128)


def _pointer(ctx: Any, b: Any, array_type: Any, array: Any, index: Any) -> Any:
    return b.gep(ctx.make_array(array_type)(ctx, b, array).data, [index])


def _prefetch(b: Any, pointer: Any) -> None:
    p = b.bitcast(pointer, _I8.as_pointer())
    fn = b.module.declare_intrinsic("llvm.prefetch", [p.type], ir.FunctionType(ir.VoidType(), [p.type, _I32, _I32, _I32]))
    b.call(fn, [p, _I32(1), _I32(3), _I32(1)])


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, to be written."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        _prefetch(b, _pointer(ctx, b, sig.args[0], args[0], args[1]))
        return ctx.get_dummy_value()

    return types.void(array, types.int64), emit


@intrinsic
def popcount(typing: Any, x: Any) -> Any:
    return types.int64(types.uint64), lambda c, b, s, a: b.ctpop(a[0])


@intrinsic
def clz(typing: Any, x: Any) -> Any:
    """Leading zeros of 64 bits; 64 for 0."""
    return types.int64(types.uint64), lambda c, b, s, a: b.ctlz(a[0], ir.IntType(1)(0))


@intrinsic
def ctz(typing: Any, x: Any) -> Any:
    """Trailing zeros of 64 bits; 64 for 0."""
    return types.int64(types.uint64), lambda c, b, s, a: b.cttz(a[0], ir.IntType(1)(0))


@intrinsic
def bswap(typing: Any, x: Any) -> Any:
    def emit(c: Any, b: Any, s: Any, a: Any) -> Any:
        return b.call(b.module.declare_intrinsic("llvm.bswap", [_I64], ir.FunctionType(_I64, [_I64])), [a[0]])

    return types.uint64(types.uint64), emit


@intrinsic
def float_bits(typing: Any, x: Any) -> Any:
    return types.uint64(types.float64), lambda c, b, s, a: b.bitcast(a[0], _I64)


@intrinsic
def bits_float(typing: Any, x: Any) -> Any:
    return types.float64(types.uint64), lambda c, b, s, a: b.bitcast(a[0], ir.DoubleType())


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""

    def emit(c: Any, b: Any, s: Any, a: Any) -> Any:
        d = ir.DoubleType()
        return b.call(b.module.declare_intrinsic("llvm.fma", [d], ir.FunctionType(d, [d, d, d])), list(a))

    return types.float64(types.float64, types.float64, types.float64), emit


@intrinsic
def add_shifted(typing: Any, lo: Any, hi: Any, m: Any, s: Any) -> Any:
    """The 128-bit sum (lo, hi) + (int64 m << s), 0 <= s <= 63, as a pair.

    Two 64-bit shifts: a 128-bit shift by a variable is slow on x86.
    """

    def emit(ctx: Any, b: Any, sig: Any, a: Any) -> Any:
        lo, hi, m, s = a
        s = b.and_(s, _I64(63))
        low = b.shl(m, s)
        high = b.ashr(b.ashr(m, _I64(1)), b.xor(s, _I64(63)))
        return _sum128(ctx, b, sig, lo, hi, low, high)

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64, types.int64, types.int64), emit


@intrinsic
def mulhi(typing: Any, x: Any, y: Any) -> Any:
    """The upper 64 bits of a product of uint64: ``hash * slots >> 64`` spreads hashes over any number of slots, in order."""

    def make(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = b.mul(b.zext(args[0], wide), b.zext(args[1], wide))
        return b.trunc(b.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), make


@intrinsic
def add128(typing: Any, lo: Any, hi: Any, lo2: Any, hi2: Any) -> Any:
    """The 128-bit sum of two pairs, modulo 2^128, as a pair."""
    return (types.UniTuple(types.uint64, 2)(types.uint64, types.uint64, types.uint64, types.uint64),
            lambda ctx, b, sig, a: _sum128(ctx, b, sig, *a))


def _sum128(ctx: Any, b: Any, sig: Any, lo: Any, hi: Any, lo2: Any, hi2: Any) -> Any:
    x = b.or_(b.zext(lo, _I128), b.shl(b.zext(hi, _I128), _I128(64)))
    y = b.or_(b.zext(lo2, _I128), b.shl(b.zext(hi2, _I128), _I128(64)))
    r = b.add(x, y)
    return ctx.make_tuple(b, sig.return_type, [b.trunc(r, _I64), b.trunc(b.lshr(r, _I128(64)), _I64)])


@intrinsic
def load8(typing: Any, array: Any, index: Any) -> Any:
    """Eight bytes of a uint8 array from `index` on, at any alignment, little endian. Nothing is checked."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        r = b.load(b.bitcast(_pointer(ctx, b, sig.args[0], args[0], args[1]), _I64.as_pointer()))
        r.align = 1
        return r

    return types.uint64(array, types.int64), emit


@intrinsic
def store8(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight bytes of a uint8 array from `index` on, at any alignment. Nothing is checked."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        w = b.store(args[2], b.bitcast(_pointer(ctx, b, sig.args[0], args[0], args[1]), _I64.as_pointer()))
        w.align = 1
        return ctx.get_dummy_value()

    return types.void(array, types.int64, types.uint64), emit


def _address(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


@intrinsic
def peek64(typing: Any, address: Any) -> Any:
    """The 64-bit word at a machine address. The caller keeps the array alive and inside its bounds."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        r = b.load(_address(b, args[0], _I64))
        r.align = 1
        return r

    return types.uint64(types.int64), emit


@intrinsic
def peek8(typing: Any, address: Any) -> Any:
    """The byte at a machine address."""
    return types.uint8(types.int64), lambda ctx, b, sig, args: b.load(_address(b, args[0], _I8))


@intrinsic
def poke64(typing: Any, address: Any, value: Any) -> Any:
    """Write a 64-bit word at a machine address."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        w = b.store(args[1], _address(b, args[0], _I64))
        w.align = 1
        return ctx.get_dummy_value()

    return types.void(types.int64, types.uint64), emit


def _byte_vector(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
    vector = ir.VectorType(_I8, 64)
    x = b.load(b.bitcast(_pointer(ctx, b, sig.args[0], args[0], args[1]), vector.as_pointer()))
    x.align = 1
    return x


def _splat(value: int) -> Any:
    return ir.Constant(ir.VectorType(_I8, 64), [value] * 64)


@intrinsic
def space_mask(typing: Any, array: Any, index: Any) -> Any:
    """Bit i is set where byte ``array[index + i]`` is ASCII white space: 9 to 13 or 32. Reads 64 bytes."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        x = _byte_vector(ctx, b, sig, args)
        control = b.icmp_unsigned("<", b.sub(x, _splat(9)), _splat(5))
        return b.bitcast(b.or_(control, b.icmp_unsigned("==", x, _splat(32))), _I64)

    return types.uint64(array, types.int64), emit


@intrinsic
def byte_mask(typing: Any, array: Any, index: Any, byte: Any) -> Any:
    """Bit i is set where ``array[index + i] == byte``. Reads 64 bytes."""

    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        x = _byte_vector(ctx, b, sig, args)
        one = b.insert_element(ir.Constant(ir.VectorType(_I8, 64), ir.Undefined), args[2], _I32(0))
        all_equal = b.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, 64), [0] * 64))
        return b.bitcast(b.icmp_unsigned("==", x, all_equal), _I64)

    return types.uint64(array, types.int64, types.uint8), emit


def _peek(width: Any) -> Any:
    return lambda ctx, b, sig, args: b.load(_address(b, args[0], width))


def _poke(width: Any) -> Any:
    def emit(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store(args[1], _address(b, args[0], width))
        return ctx.get_dummy_value()

    return emit


@intrinsic
def peek32(typing: Any, address: Any) -> Any:
    """Four bytes at a machine address, which is a multiple of four."""
    return types.uint32(types.int64), _peek(_I32)


@intrinsic
def peek16(typing: Any, address: Any) -> Any:
    return types.uint16(types.int64), _peek(ir.IntType(16))


@intrinsic
def poke32(typing: Any, address: Any, value: Any) -> Any:
    """Write four bytes at a machine address, which is a multiple of four."""
    return types.void(types.int64, types.uint32), _poke(_I32)


@intrinsic
def poke16(typing: Any, address: Any, value: Any) -> Any:
    return types.void(types.int64, types.uint16), _poke(ir.IntType(16))


@intrinsic
def poke8(typing: Any, address: Any, value: Any) -> Any:
    return types.void(types.int64, types.uint8), _poke(_I8)
