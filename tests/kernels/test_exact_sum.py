"""Exact sums against fractions: any order, any split, any magnitude."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcmr.kernels import exact_sum as k

EDGES = [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1e300, 1e-300, 1.0, -1.0]
floats = st.floats(width=64) | st.sampled_from(EDGES)
finite = st.floats(width=64, allow_nan=False, allow_infinity=False)


def rounded(value: Fraction) -> float:
    """The double nearest to a fraction, infinity beyond the largest."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def oracle(values: list[float]) -> float:
    if any(math.isnan(v) for v in values) or (math.inf in values and -math.inf in values):
        return math.nan
    if math.inf in values or -math.inf in values:
        return math.inf if math.inf in values else -math.inf
    return rounded(sum((Fraction(v) for v in values), Fraction(0)))


class Sum:
    def __init__(self) -> None:
        self.T = np.zeros(8, np.uint64)
        self.wide = np.zeros((64, k.DIGITS), np.int64)
        self.used = np.zeros(1, np.int64)

    def add(self, values: list[float], at: int = 0) -> None:
        for v in values:
            k.deposit(self.T, at, v, self.wide, self.used)

    def value(self) -> float:
        return k.sum_value(self.T, 0, self.wide)


def same(a: float, b: float) -> bool:
    return np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))


@settings(max_examples=300, deadline=None)
@given(st.lists(floats, max_size=30), st.randoms(use_true_random=False))
@example([1e308, 1e308, -1e308], __import__("random").Random(1))
def test_sum_is_exact_in_any_order(values, random):
    results = []
    for _ in range(2):
        s = Sum()
        s.add(values)
        results.append(s.value())
        random.shuffle(values)
    assert same(results[0], oracle(values))
    assert np.float64(results[0]).tobytes() == np.float64(results[1]).tobytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(floats, max_size=12), st.lists(floats, max_size=12))
def test_merge_is_the_sum_of_all(left, right):
    s = Sum()
    s.add(left, 0)
    s.add(right, 4)
    k.merge_sum(s.T, 0, s.T, 4, s.wide, s.used)
    assert same(s.value(), oracle(left + right))


@settings(max_examples=400, deadline=None)
@given(st.lists(finite, min_size=1, max_size=9), st.integers(1, 1 << 47))
@example([5e-324, 5e-324, 5e-324], 2)
@example([5e-324], 2)
@example([2.2250738585072014e-308], 3)
def test_mean_is_rounded_once(values, extra):
    s = Sum()
    s.add(values)
    for n in (len(values), extra):
        assert same(k.mean_value(s.T, 0, s.wide, s.used, np.uint64(n)), rounded(sum(map(Fraction, values), Fraction(0)) / n))


@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e8])
def test_variance_within_four_ulp(ratio):
    rng = np.random.default_rng(int(ratio))
    for n in (2, 3, 10, 1000):
        x = rng.normal(ratio, 1.0, n)
        s = Sum()
        for v in x.tolist():
            k.deposit(s.T, 0, v, s.wide, s.used)
            p = v * v
            k.deposit(s.T, 4, p, s.wide, s.used)
            k.deposit(s.T, 4, float(Fraction(v) ** 2 - Fraction(p)), s.wide, s.used)
        got = k.variance_value(s.T, 0, 4, s.wide, s.used, np.uint64(n), 1)
        mean = sum(map(Fraction, x.tolist())) / n
        want = float(sum((Fraction(v) - mean) ** 2 for v in x.tolist()) / (n - 1))
        assert abs(got - want) <= 4 * math.ulp(want)


def test_many_deposits_into_a_wide_sum():
    s = Sum()
    s.add([1e300, 1e-300])
    values = np.random.default_rng(5).normal(size=2000).tolist()
    s.add(values)
    assert s.T[0] & k.WIDE
    assert same(s.value(), oracle([1e300, 1e-300, *values]))
