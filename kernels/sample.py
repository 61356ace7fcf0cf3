"""Rows drawn by a hash of the seed and of where they stand: who draws does not matter."""

from __future__ import annotations

from hpcmr.kernels.bits import U
from hpcmr.kernels.jit import helper, kernel


@helper
def mix(x):
    """A permutation of the 64-bit numbers that looks random."""
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


@helper
def draw(seed, place):
    """The number that decides about the row at `place`: different for all places of one seed."""
    return mix(mix(place + U(0x9E3779B97F4A7C15)) ^ mix(seed))


@kernel("void(uint64, uint64, uint64[::1])")
def draws(seed, first, out):
    """Numbers of the rows at places ``first .. first + out.size - 1``."""
    for i in range(out.size):
        out[i] = draw(seed, first + U(i))


@kernel("void(uint64, Array(uint64, 1, 'A', readonly=True), uint64[::1])")
def draws_at(seed, places, out):
    for i in range(out.size):
        out[i] = draw(seed, places[i])
