"""Histograms against NumPy, bin by bin and edge by edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.histogram import Extent, Histogram
from tests.support.small_engine import Context

rng = np.random.default_rng(8)
N = 2000
VALUES: dict[str, Any] = {
    "floats": rng.standard_normal(N), "float32": rng.random(N).astype(np.float32), "ints": rng.integers(0, 20, N),
    "small": rng.integers(-9, 9, N).astype(np.int8), "edges": np.repeat(np.linspace(0, 1, 11), 20), "one": np.array([3.0]), "same": np.full(9, 5),
    "none": np.array([]),
}


def histogram(columns: dict[str, Any], ranks: int, *args: Any, **options: Any) -> Any:
    """Every rank takes its share, the first one combines."""
    whole = Batch.of(columns)
    outlets = [Histogram(*args, **options) for _ in range(ranks)]
    extent = [Extent(outlets[0].columns) for _ in range(ranks)]
    for group in ([extent] if outlets[0].needs_extents else []) + [outlets]:
        if group is outlets and outlets[0].needs_extents:
            found = extent[0].combine([e.local() for e in extent])
            for o in outlets:
                o.extents = found
        for r, outlet in enumerate(group):
            outlet.open(Context(), whole.schema)
            a, b = whole.nrows * r // ranks, whole.nrows * (r + 1) // ranks
            for x in range(a, b, 300):
                outlet.take(0, whole.slice(x, min(b, x + 300)))
    return outlets[0].combine([o.local() for o in outlets])


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("bins", [1, 10, 37, [0, 1, 2, 5, 20], [-1.0, 0.25, 0.25, 0.5], [0.5, 0.5]])
@pytest.mark.parametrize("limits", [None, (0, 1), (-2.5, 7.25), (3, 3)])
def test_one_column(name: str, bins: Any, limits: Any) -> None:
    x = VALUES[name]
    expected, edges = np.histogram(x, bins, limits)
    for ranks in (1, 3):
        found, found_edges = histogram({"x": x}, ranks, "x", bins, limits)
        assert found.dtype == np.int64 and found.tolist() == expected.tolist()
        assert found_edges.dtype == edges.dtype and found_edges.tobytes() == edges.tobytes()
    if expected.sum():
        with np.errstate(all="ignore"):
            expected = np.histogram(x, bins, limits, density=True)[0]
        assert histogram({"x": x}, 2, "x", bins, limits, density=True)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("bins", [5, [4, 7], [[-1, 0, 3], 6], [[0, 0.5, 1], [-9, 0, 9.5]]])
@pytest.mark.parametrize("limits", [None, [(-1, 1), (-9, 9)], [None, (0, 5)]])
def test_two_columns(bins: Any, limits: Any) -> None:
    x, y = VALUES["floats"], VALUES["small"]
    bins = bins if bins == 5 else [np.array(b) if isinstance(b, list) else b for b in bins]
    filled = None if limits is None else [pair or (v.min(), v.max()) for pair, v in zip(limits, (x, y), strict=True)]
    expected, edges = np.histogramdd(np.column_stack([x, y]), bins, filled)
    for ranks in (1, 2):
        found, found_edges = histogram({"x": x, "y": y}, ranks, ["x", "y"], bins, limits)
        assert found.tolist() == expected.tolist() and found.dtype == np.int64
        assert [e.tolist() for e in found_edges] == [e.tolist() for e in edges]
    expected = np.histogramdd(np.column_stack([x, y]), bins, filled, density=True)[0]
    assert histogram({"x": x, "y": y}, 2, ("x", "y"), bins, limits, density=True)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("ranks", [1, 4])
def test_weights_are_summed_exactly(ranks: int) -> None:
    x = rng.integers(0, 10, N)
    weights = {"f": rng.standard_normal(N) * 10.0 ** rng.integers(-200, 200, N), "i": rng.integers(-2**62, 2**62, N),
               "u": rng.integers(0, 2**64, N, dtype=np.uint64), "b": rng.random(N) < 0.5, "f4": rng.standard_normal(N).astype(np.float32)}
    for w in weights.values():
        found, _ = histogram({"x": x, "w": w}, ranks, "x", 10, (0, 10), weights="w")
        if w.dtype.kind == "f":
            expected = [math.fsum(w[x == k].tolist()) for k in range(10)]
        else:
            expected = [float(sum(int(v) for v in w[x == k])) for k in range(10)]
        assert found.tolist() == expected


def test_nulls_nan_and_infinities_are_in_no_bin() -> None:
    x = np.ma.MaskedArray([0.5, 0.5, np.nan, np.inf, -np.inf, 1.0], [False, True, False, False, False, False])
    found, _ = histogram({"x": x}, 2, "x", 2, (0, 1))
    assert found.tolist() == [0, 2]
    w = np.ma.MaskedArray([1.0, 1.0, 2.0], [False, True, False])
    assert histogram({"x": np.zeros(3), "w": w}, 1, "x", 1, (0, 1), weights="w")[0].tolist() == [3.0]
    strange = histogram({"x": np.arange(3), "w": np.array([np.nan, np.inf, 1.0])}, 2, "x", 3, (0, 3), weights="w")[0]
    assert np.array_equal(strange, [np.nan, np.inf, 1.0], equal_nan=True)


def test_wrong_use_is_refused() -> None:
    for args in (("x", "auto"), ("x", 2.5), (["x", "y"], [3]), (["x", "y"], 3, [(0, 1)]), ([], 3)):
        with pytest.raises(JobSpecError):
            Histogram(*args)
    with pytest.raises(DataError, match=r"values range from 1\.0 to inf; give range"):
        histogram({"x": np.array([1.0, np.inf])}, 1, "x", 3)
    with pytest.raises(DataError, match="give range"):
        histogram({"x": np.array([1.0, np.nan]), "y": np.zeros(2)}, 1, ["x", "y"], 3)
    for bins in (0, [2, 1]):
        with pytest.raises(JobSpecError, match="histogram"):
            histogram({"x": np.arange(3)}, 1, "x", bins)
    with pytest.raises(JobSpecError, match="needs a column of numbers"):
        histogram({"x": ["a"]}, 1, "x", 3, (0, 1))
