"""An exact sum that goes on from row to row, and from part to part as a whole number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

UNIT = 1074                 # a sum is a whole number of 2**-1074, the smallest double
ROOM_BITS = 85              # of 96 that a sum may take before it is spilled, what a carried one is given
SPECIALS = 7 << 60

Valid = NDArray[np.bool_]
ALL_VALID: Valid = np.empty(0, np.bool_)


class Total(NamedTuple):
    """A sum of floats: ``units * 2**-1074``, and the flags of the NaN and infinities that went in."""

    units: int
    flags: int

    def plus(self, other: Total) -> Total:
        return Total(self.units + other.units, self.flags | other.flags)


NOTHING = Total(0, 0)


class RunningSum:
    """An exact sum (see `hpcmr.kernels.exact_sum`) that begins with a total.

    Parameters
    ----------
    total : Total
    """

    def __init__(self, total: Total = NOTHING) -> None:
        from hpcmr.kernels.opcodes import DIGITS

        self.T = np.zeros(3, np.uint64)
        self.wide = np.zeros((2, DIGITS), np.int64)
        self.used = np.zeros(1, np.int64)
        if total.units:
            self._begin(total.units)
        self.T[0] |= np.uint64(total.flags)

    def _begin(self, units: int) -> None:
        from hpcmr.kernels.exact_sum import BASE_MAX, WIDE

        zeros = (units & -units).bit_length() - 1
        shift = max(0, min(zeros, BASE_MAX - 1, max(0, abs(units).bit_length() - ROOM_BITS)))
        mantissa = units >> shift
        if abs(mantissa).bit_length() <= 96:
            mantissa &= (1 << 128) - 1
            self.T[:] = np.array([shift + 1, mantissa & (1 << 64) - 1, mantissa >> 64], np.uint64)
            return
        sign, rest = (-1 if units < 0 else 1), abs(units)
        for i in range(self.wide.shape[1]):
            self.wide[0, i] = sign * (rest >> 32 * i & 0xFFFFFFFF)
        self.used[0] = 1
        self.T[:] = np.array([int(WIDE) | 1, 0, 0], np.uint64)

    def add(self, values: NDArray[np.float64], valid: Valid | None) -> None:
        from hpcmr.kernels.scan import add_all

        add_all(values, ALL_VALID if valid is None else valid, self.T, self.wide, self.used)

    def prefixes(self, values: NDArray[np.float64], valid: Valid | None) -> NDArray[np.float64]:
        """The sum after each row, rounded once; rows that are not valid count for nothing."""
        from hpcmr.kernels.scan import prefix_sums

        out = np.empty(len(values))
        prefix_sums(values, ALL_VALID if valid is None else valid, out, self.T, self.wide, self.used)
        return out

    def total(self) -> Total:
        from hpcmr.kernels.exact_sum import BASE, WIDE

        window, low, high = (int(x) for x in self.T)
        flags = window & SPECIALS
        if window & int(WIDE):
            digits: Any = self.wide[low].tolist()
            return Total(sum(d << 32 * i for i, d in enumerate(digits)), flags)
        whole = low | high << 64
        whole -= (1 << 128) if whole >> 127 else 0
        base = window & int(BASE)
        return Total(whole << max(base, 1) - 1, flags)
