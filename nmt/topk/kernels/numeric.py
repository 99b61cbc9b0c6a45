"""Exponentials that LLVM vectorises, and the order of floats as that of integers.

Multiplications and additions may be contracted; nothing else is allowed to the compiler in what must be exact: a
reassociation would undo the rounding to an integer and the reduction by a split ln 2.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

CONTRACT = {"contract"}
# Sums in any order: the order is that of the compiled code, the same for every row.
SUMS = {"contract", "reassoc", "nsz"}

_INTS = {32: types.int32, 64: types.int64}
_MANTISSA = {32: 23, 64: 52}


def _float_of(kind: Any) -> Any:
    return types.float32 if kind.bitwidth == 32 else types.float64


@intrinsic
def key(typing: Any, x: Any) -> Any:
    """The integer of the same width whose order is that of the floats; NaN lies beyond either infinity."""
    width = x.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(width)
        bits = builder.bitcast(arguments[0], kind)
        flip = builder.and_(builder.ashr(bits, ir.Constant(kind, width - 1)), ir.Constant(kind, 2 ** (width - 1) - 1))
        return builder.xor(bits, flip)

    return _INTS[width](x), generate


@intrinsic
def unkey(typing: Any, bits: Any) -> Any:
    """The inverse of `key`."""
    width = bits.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(width)
        flip = builder.and_(
            builder.ashr(arguments[0], ir.Constant(kind, width - 1)), ir.Constant(kind, 2 ** (width - 1) - 1)
        )
        return builder.bitcast(builder.xor(arguments[0], flip), ir.FloatType() if width == 32 else ir.DoubleType())

    return _float_of(bits)(bits), generate


@intrinsic
def magnitude(typing: Any, x: Any) -> Any:
    """The bits of |x| as an integer; above those of infinity for NaN of either sign."""
    width = x.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(width)
        return builder.and_(builder.bitcast(arguments[0], kind), ir.Constant(kind, 2 ** (width - 1) - 1))

    return _INTS[width](x), generate


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two integers of one width, in that width."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *arguments), *arguments)

    return a(a, a), generate


@intrinsic
def _times_power(typing: Any, p: Any, shifted: Any) -> Any:
    """p 2^m, where `shifted` is m added to 1.5 times the largest power of two whose floats have a step of 1."""
    width = p.bitwidth

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(width)
        bits, power = (builder.bitcast(argument, kind) for argument in arguments)
        power = builder.shl(power, ir.Constant(kind, _MANTISSA[width]))
        return builder.bitcast(builder.add(bits, power), ir.FloatType() if width == 32 else ir.DoubleType())

    return p(p, p), generate


_ZERO, _SHIFT, _FLOOR, _LOG2E = np.float32(0), np.float32(1.5 * 2**23), np.float32(-87.0), np.float32(math.log2(math.e))
# ln 2 in two parts, of which multiples of the first by integers are exact.
_HIGH, _LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
_T = [np.float32(1 / math.factorial(i)) for i in range(8)]
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7 = _T
_SHIFT_D, _FLOOR_D, _LOG2E_D = 1.5 * 2**52, -708.0, math.log2(math.e)
_HIGH_D, _LOW_D = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10, _D11, _D12, _D13 = (1 / math.factorial(i) for i in range(2, 14))


@njit(fastmath=CONTRACT, error_model="numpy")
def _exp_single(x: Any) -> Any:
    shifted = x * _LOG2E + _SHIFT
    m = shifted - _SHIFT
    f = (x - m * _HIGH) - m * _LOW
    p = _T5 + f * (_T6 + f * _T7)
    p = _T0 + f * (_T1 + f * (_T2 + f * (_T3 + f * (_T4 + f * p))))
    return _times_power(p, shifted) if x > _FLOOR else _ZERO


@njit(fastmath=CONTRACT, error_model="numpy")
def _exp_double(x: Any) -> Any:
    shifted = x * _LOG2E_D + _SHIFT_D
    m = shifted - _SHIFT_D
    f = (x - m * _HIGH_D) - m * _LOW_D
    p = _D8 + f * (_D9 + f * (_D10 + f * (_D11 + f * (_D12 + f * _D13))))
    p = _D2 + f * (_D3 + f * (_D4 + f * (_D5 + f * (_D6 + f * (_D7 + f * p)))))
    return _times_power(1.0 + f * (1.0 + f * p), shifted) if x > _FLOOR_D else 0.0


def exp(x: Any) -> Any:
    """exp(x), 0 for x <= -87 (float64: -708), in the dtype of x; x must not exceed 87 (700).

    The error is below 1.5 (float64: 2) units in the last place.
    """
    raise NotImplementedError("for compiled code")


@overload(exp)
def _exp(x):
    chosen = _exp_single if x == types.float32 else _exp_double
    return lambda x: chosen(x)
