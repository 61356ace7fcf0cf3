"""Arithmetic of blocks: no MPI."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.comm.blocks import block_counts, block_range, check_bounds, displs_of, ends_of, fragments, partners


@given(st.integers(0, 1000), st.integers(1, 40))
def test_blocks_cover_everything_once_and_evenly(n, size):
    ranges = [block_range(n, size, r) for r in range(size)]
    assert [x for a, b in ranges for x in range(a, b)] == list(range(n))
    assert block_counts(n, size).tolist() == [b - a for a, b in ranges]
    assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1


def test_displacements_do_not_overflow_32_bits():
    counts = np.array([3_000_000_000, 5, 4_000_000_000], np.int64)
    assert displs_of(counts).tolist() == [0, 3_000_000_000, 3_000_000_005]
    assert ends_of(counts).tolist() == [0, 3_000_000_000, 3_000_000_005, 7_000_000_005]


def test_ends_of_narrow_lengths_count_wide():
    assert ends_of(np.full(1000, 255, np.uint8))[-1] == 255_000


@given(st.integers(0, 10**12), st.integers(0, 5000), st.integers(1, 700))
def test_fragments_join_without_gap_and_respect_the_limit(start, nbytes, limit):
    pieces = list(fragments(start, nbytes, limit))
    assert sum(b - a for a, b in pieces) == nbytes
    assert all(0 < b - a <= limit for a, b in pieces)
    assert all(x[1] == y[0] for x, y in itertools.pairwise(pieces))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_partners_pair_up(size):
    steps = [list(partners(r, size)) for r in range(size)]
    for r in range(size):
        assert sorted(d for d, _ in steps[r]) == [x for x in range(size) if x != r]
        for i, (dest, _) in enumerate(steps[r]):
            assert steps[dest][i][1] == r


@pytest.mark.parametrize(
    ("bounds", "fine"), [([0, 2, 4], True), ([0, 0, 4], True), ([0, 4], False), ([0, 3, 2], False), ([1, 2, 4], False), ([0, 5, 4], False)]
)
def test_check_bounds(bounds, fine):
    assert (check_bounds(np.array(bounds), 4, 2) is None) == fine
