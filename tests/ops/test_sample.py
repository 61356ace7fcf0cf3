"""Samples: the same rows however the input is dealt, as many as were asked for, and none more likely than another."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.sample import SampleCount, SampleFraction
from tests.support.pretend import on_ranks

N, SPLITS = 5000, 8
CUTS = [N * i // SPLITS for i in range(SPLITS + 1)]


def rows(step: Any, ranks: int, batch_rows: int, shrink: bool = False) -> list[int]:
    def work(together: Any) -> list[Any]:
        mine = step()
        mine.bind(Batch.of({"i": np.arange(1)}).schema)
        batches = [(Batch.of({"i": np.arange(x, min(b, x + batch_rows))}), Origin(s, x - a))
                   for s, (a, b) in enumerate(itertools.pairwise(CUTS)) if s % ranks == together.rank for x in range(a, b, batch_rows)]
        if getattr(mine, "survey", False):
            for batch, origin in batches:
                mine.observe(batch, origin)
                if shrink:
                    mine._shrink()
            mine.settle(together)
        return [x for batch, origin in batches for x in mine.apply(batch, origin)["i"].to_list()]

    return sorted(x for found in on_ranks(ranks, work) for x in found)


@pytest.mark.parametrize("count", [0, 1, 7, 2500, N - 1, N, N + 5])
def test_exactly_so_many_rows_the_same_on_any_number_of_ranks(count: int) -> None:
    first = rows(lambda: SampleCount(count, 3), 1, 100)
    assert len(first) == len(set(first)) == min(count, N)
    for ranks, batch_rows, shrink in ((2, 33, False), (3, 1000, True), (12, 100, True)):
        assert rows(lambda: SampleCount(count, 3), ranks, batch_rows, shrink) == first


@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 1])
def test_a_fraction_of_the_rows(fraction: float) -> None:
    first = rows(lambda: SampleFraction(fraction, 1), 1, 100)
    assert abs(len(first) - fraction * N) <= 5 * (fraction * (1 - fraction) * N) ** 0.5
    assert rows(lambda: SampleFraction(fraction, 1), 3, 77) == first


def test_seeds_draw_independently_and_samples_grow() -> None:
    a, b = (set(rows(lambda s=seed: SampleFraction(0.5, s), 1, 500)) for seed in (1, 2))
    assert abs(len(a & b) - N / 4) < 5 * (N * 3 / 16) ** 0.5
    small, large = (set(rows(lambda c=count: SampleCount(c, 1), 2, 500)) for count in (50, 500))
    assert small < large < a or small < large


def test_every_place_is_as_likely_as_another() -> None:
    drawn = np.array(rows(lambda: SampleCount(N // 2, 9), 1, 500))
    counts = np.histogram(drawn, 20, (0, N))[0]
    assert np.abs(counts - N / 40).max() < 5 * (N / 80) ** 0.5


@pytest.mark.parametrize("make", [lambda: SampleFraction(1.5), lambda: SampleFraction("x"), lambda: SampleCount(-1), lambda: SampleCount(2.5),  # type: ignore[arg-type]
                                  lambda: SampleCount(1, -1)])
def test_wrong_use_is_refused(make: Any) -> None:
    with pytest.raises(JobSpecError):
        make()
