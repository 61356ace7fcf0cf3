"""Row numbers, running values, ranks and windows against NumPy, however the rows are cut, batched and spread over ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import DataError, FunctionError, JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import batch_function, kernel_function
from hpcmr.ops.rank import Rank, RankInGroups
from hpcmr.ops.running_sum import RunningSum, Total
from hpcmr.ops.scan import scan_of
from hpcmr.ops.window import Lag, Lead, Window
from hpcmr.ops.zip_with_index import ZipWithIndex
from tests.support.pretend import on_ranks

WAYS = [(1, 1), (4, 1), (4, 2), (7, 3), (3, 5)]       # splits, ranks
Columns = dict[str, Any]


def run(make: Callable[[], Any], columns: Columns, splits: int, ranks: int, batch_rows: int = 7) -> Batch:
    """The step over rows that are dealt to ranks; some splits lie on two ranks, and both passes have batches of their own."""
    whole = Batch.of(columns)
    cuts = [whole.nrows * i // splits for i in range(splits + 1)]

    def parts_of(rank: int) -> list[tuple[int, int, int, int]]:
        found = []
        for s, (a, b) in enumerate(itertools.pairwise(cuts)):
            first = s % ranks
            middle = (a + b) // 2 if ranks > 1 and s % 2 and first + 1 < ranks else b
            found += [(s, a, middle, 0)] if first == rank else [(s, middle, b, middle - a)] if middle < b and first + 1 == rank else []
        return found

    def batches(rank: int, rows: int) -> list[tuple[Batch, Origin]]:
        return [(Batch.of(columns).slice(x, min(b, x + rows)), Origin(s, row + x - a))
                for s, a, b, row in parts_of(rank) for x in range(a, b, rows)]

    def work(together: Any) -> list[Any]:
        step = make()
        step.bind(whole.schema)
        for batch, origin in batches(together.rank, batch_rows)[:2]:
            step.apply(batch, origin)                                   # a sample, which must leave no trace
        for batch, origin in batches(together.rank, batch_rows):
            step.observe(batch, origin)
        step.settle(together)
        return [(origin, step.apply(batch, origin)) for batch, origin in batches(together.rank, batch_rows + 3)]

    found = sorted((pair for mine in on_ranks(ranks, work) for pair in mine), key=lambda pair: pair[0])
    return Batch.concat([b for _, b in found])


rng = np.random.default_rng(11)
N = 61
X = rng.standard_normal(N) * 10.0 ** rng.integers(-20, 20, N)
INTS = rng.integers(-1000, 1000, N)
HOLES = rng.random(N) < 0.3
MASKED = np.ma.MaskedArray(X, HOLES)
S = np.sort(rng.integers(0, 15, N))
WORDS = sorted(rng.choice(["", "a", "b", "x" * 40, "x" * 40 + "y", "z"], N).tolist())
DATA: Columns = {"x": X, "i": INTS, "m": MASKED, "s": S, "w": WORDS}


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_numbered(way: tuple[int, int]) -> None:
    found = run(lambda: ZipWithIndex("n"), DATA, *way)
    assert found["n"].to_list() == list(range(N)) and found["x"].to_list() == X.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_running_sums_are_exact_in_every_row(way: tuple[int, int]) -> None:
    assert run(lambda: scan_of("x", "sum", "r"), DATA, *way)["r"].to_list() == [math.fsum(X[:k + 1]) for k in range(N)]
    assert run(lambda: scan_of("i", "sum", "r"), DATA, *way)["r"].to_list() == np.cumsum(INTS).tolist()
    expected = [None if HOLES[k] else math.fsum(X[:k + 1][~HOLES[:k + 1]]) for k in range(N)]
    assert run(lambda: scan_of("m", "sum", "r"), DATA, *way)["r"].to_list() == expected


@pytest.mark.parametrize("way", WAYS)
def test_running_extremes_and_functions(way: tuple[int, int]) -> None:
    for op, ufunc in (("min", np.minimum), ("max", np.maximum)):
        for name in ("x", "i"):
            assert run(lambda o=op, c=name: scan_of(c, o, "r"), DATA, *way)["r"].to_list() == ufunc.accumulate(DATA[name]).tolist()
    expected = np.maximum.accumulate(INTS).tolist()
    for f in (max, kernel_function(lambda a, b: a if a > b else b)):
        assert run(lambda g=f: scan_of("i", g, "r"), DATA, *way)["r"].to_list() == expected
    running = np.maximum.accumulate(np.where(HOLES, -np.inf, X))
    expected = [None if HOLES[k] else running[k] for k in range(N)]
    for op in ("max", max):
        assert run(lambda o=op: scan_of("m", o, "r"), DATA, *way)["r"].to_list() == expected


def test_running_values_of_nan_infinities_and_zeros() -> None:
    x = np.array([-0.0, 1.0, np.inf, 2.0, -np.inf, 1.0])
    sums = run(lambda: scan_of("x", "sum", "r"), {"x": x}, 3, 2)["r"].values
    assert np.array_equal(sums, [0.0, 1.0, np.inf, np.inf, np.nan, np.nan], equal_nan=True) and not np.signbit(sums[0])
    low = run(lambda: scan_of("x", "min", "r"), {"x": np.array([0.0, -0.0, np.nan, -5.0])}, 2, 2)["r"].values
    assert np.array_equal(low, [0, 0, np.nan, np.nan], equal_nan=True) and not np.signbit(low[1])
    big = np.array([1.7e308, 1.7e308, -1.7e308, 5e-324, -1.7e308])
    assert run(lambda: scan_of("x", "sum", "r"), {"x": big}, 4, 2)["r"].to_list() == [1.7e308, np.inf, 1.7e308, 1.7e308, 5e-324]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool", "float32"])
def test_running_sums_of_each_type(dtype: str) -> None:
    x = rng.integers(0, 2, 40).astype(dtype)
    found = run(lambda: scan_of("x", "sum", "r"), {"x": x}, 4, 3)["r"]
    assert found.values.dtype == {"float32": "float64", "uint64": "uint64"}.get(dtype, "int64")
    assert found.to_list() == np.cumsum(x.astype(float)).tolist()


def test_a_running_sum_that_does_not_fit_is_an_error() -> None:
    x = np.array([1 << 62, 1 << 62, -1, 1 << 62])
    with pytest.raises(DataError, match=r"running sum is 9223372036854775808, which does not fit in int64"):
        run(lambda: scan_of("x", "sum", "r"), {"x": x}, 1, 1)
    for splits, ranks in ((2, 2), (4, 3)):
        with pytest.raises(DataError, match="does not fit"):
            run(lambda: scan_of("x", "sum", "r"), {"x": x}, splits, ranks)
    with pytest.raises(DataError, match="does not fit in uint64"):
        run(lambda: scan_of("x", "sum", "r"), {"x": np.array([2 ** 64 - 1, 1], np.uint64)}, 2, 1)


def test_a_total_goes_from_part_to_part_without_loss() -> None:
    values = rng.standard_normal(200) * 10.0 ** rng.integers(-300, 300, 200)
    for count in (0, 1, 2, 50, 200):
        first = RunningSum()
        first.add(values[:count], None)
        again = RunningSum(first.total())
        assert again.total() == first.total()
        again.add(-values[:count], None)
        assert again.total().units == 0
    special = RunningSum(Total(0, 0))
    special.add(np.array([np.inf, 1.0]), None)
    assert RunningSum(special.total()).prefixes(np.array([1.0]), None)[0] == np.inf


def ranks_of(values: np.ndarray, method: str) -> list[int]:
    if method == "row_number":
        return list(range(1, len(values) + 1))
    if method == "rank":
        return (np.searchsorted(values, values) + 1).tolist()
    return (np.unique(values, return_inverse=True)[1] + 1).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["rank", "dense_rank", "row_number"])
def test_ranks_of_sorted_rows(way: tuple[int, int], method: str) -> None:
    for name in ("s", "w"):
        assert run(lambda c=name: Rank((c,), method), DATA, *way)["rank"].to_list() == ranks_of(np.array(DATA[name]), method)
    same = {"x": np.zeros(20)}
    assert run(lambda: Rank(("x",), method), same, *way)["rank"].to_list() == (list(range(1, 21)) if method == "row_number" else [1] * 20)


def test_ranks_of_nan_nulls_and_zeros() -> None:
    x = np.ma.MaskedArray([-0.0, 0.0, 1.0, np.nan, -np.nan, 5.0, 6.0], [False] * 5 + [True] * 2)
    for way in WAYS:
        assert run(lambda: Rank(("x",)), {"x": x}, *way)["rank"].to_list() == [1, 1, 3, 4, 4, 6, 6]
        assert run(lambda: Rank(("x",), "dense_rank"), {"x": x}, *way)["rank"].to_list() == [1, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
@pytest.mark.parametrize("method", ["rank", "dense_rank", "row_number"])
def test_ranks_within_groups(batch_rows: int, method: str) -> None:
    groups = np.sort(rng.integers(0, 6, 50))
    values = np.concatenate([np.sort(rng.integers(0, 5, int((groups == g).sum()))) for g in range(6)])
    step = RankInGroups(("g",), ("v",), method)
    batch = Batch.of({"g": groups, "v": values})
    step.bind(batch.schema)
    step.apply(batch.slice(0, 10), Origin(0, 0))
    found = [step.apply(batch.slice(a, a + batch_rows), Origin(0, a)) for a in range(0, 50, batch_rows)]
    expected = [r for g in range(6) for r in ranks_of(values[groups == g], method)]
    assert Batch.concat(found)["rank"].to_list() == expected
    assert step.apply(batch.slice(0, 3), Origin(1, 0))["rank"].to_list() == ranks_of(values[:3], method)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 5, 40, 100])
def test_lag_and_lead(way: tuple[int, int], rows: int) -> None:
    gone = [None] * min(rows, N)
    for name in ("i", "w", "m"):
        values = Batch.of(DATA)[name].to_list()
        assert run(lambda c=name: Lag(c, rows, "l"), DATA, *way)["l"].to_list() == (gone + values)[:N]
        assert run(lambda c=name: Lead(c, rows, "l"), DATA, *way)["l"].to_list() == values[rows:] + gone


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 4, 30, 100])
def test_moving_aggregates(way: tuple[int, int], rows: int) -> None:
    places = [slice(max(0, k - rows + 1), k + 1) for k in range(N)]
    assert run(lambda: Window("x", "sum", rows, "r"), DATA, *way)["r"].to_list() == [math.fsum(X[p]) for p in places]
    assert run(lambda: Window("i", "sum", rows, "r"), DATA, *way)["r"].to_list() == [int(INTS[p].sum()) for p in places]
    assert run(lambda: Window("i", "mean", rows, "r"), DATA, *way)["r"].to_list() == [int(INTS[p].sum()) / len(INTS[p]) for p in places]
    for op, least in (("min", min), ("max", max)):
        assert run(lambda o=op: Window("x", o, rows, "r"), DATA, *way)["r"].to_list() == [least(X[p]) for p in places]
        expected = [least(v) if (v := MASKED[p].compressed().tolist()) else None for p in places]
        assert run(lambda o=op: Window("m", o, rows, "r"), DATA, *way)["r"].to_list() == expected
    expected = [math.fsum(v) if (v := MASKED[p].compressed().tolist()) else None for p in places]
    assert run(lambda: Window("m", "sum", rows, "r"), DATA, *way)["r"].to_list() == expected
    assert run(lambda: Window("m", "count", rows, "r"), DATA, *way)["r"].to_list() == [int((~HOLES[p]).sum()) for p in places]
    assert run(lambda: Window("w", "count", rows, "r"), DATA, *way)["r"].to_list() == [len(INTS[p]) for p in places]


def test_what_leaves_a_window_leaves_no_trace() -> None:
    x = np.array([1.0, np.nan, np.inf, 1e300, -np.inf, 0.1, 0.2, 0.3, -0.0])
    for way in WAYS:
        found = run(lambda: Window("x", "sum", 2, "r"), {"x": x}, *way)["r"].values
        assert np.array_equal(found, [1, np.nan, np.nan, np.inf, -np.inf, -np.inf, 0.1 + 0.2, 0.5, 0.3], equal_nan=True)
        low = run(lambda: Window("x", "min", 2, "r"), {"x": x}, *way)["r"].values
        assert np.array_equal(low, [1, np.nan, np.nan, 1e300, -np.inf, -np.inf, 0.1, 0.2, 0.0], equal_nan=True)
    with pytest.raises(DataError, match="does not fit in int64"):
        run(lambda: Window("i", "sum", 3, "r"), {"i": np.array([1, 1 << 62, 1 << 62, 5])}, 1, 1)


def test_wrong_use_is_refused_before_any_work() -> None:
    schema = Batch.of(DATA).schema
    for make, message in ((lambda: ZipWithIndex("x"), "'x' already"), (lambda: scan_of("w", "sum", "r"), "needs a column of numbers"),
                          (lambda: scan_of("x", "product", "r"), "sum, min, max"), (lambda: Rank(()), "name the columns"),
                          (lambda: Lag("x", 0, "r"), "integer from 1"), (lambda: Window("x", "median", 3, "r"), "sum, mean"),
                          (lambda: scan_of("nope", "sum", "r"), "no column 'nope'"), (lambda: ZipWithIndex(""), "a name"),
                          (lambda: scan_of("x", batch_function(lambda c: c), "r"), "plain function or a kernel"),
                          (lambda: RankInGroups(("s",), ()), "order_by")):
        with pytest.raises(JobSpecError, match=message):
            make().bind(schema)
    with pytest.raises(FunctionError, match=r"ZeroDivisionError"):
        run(lambda: scan_of("i", lambda a, b: a // 0, "r"), DATA, 2, 2)
    with pytest.raises(FunctionError, match=r"expected int64"):
        run(lambda: scan_of("i", lambda a, b: a + 0.5, "r"), DATA, 1, 1)
