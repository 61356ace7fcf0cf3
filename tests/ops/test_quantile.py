"""Quantiles against NumPy: by selection over pretended ranks, and by counts of magnitudes within the error that is stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import JobSpecError
from hpcmr.ops import quantile as module
from hpcmr.ops.quantile import APPROX_ERROR, ApproxQuantile, ExactQuantile, middle_of
from tests.support.pretend import on_ranks
from tests.support.small_engine import Context

Q = [0, 0.01, 0.25, 0.5, 0.5000001, 0.9, 0.999, 1]


def quantiles(make: Any, values: Any, ranks: int = 3, batch_rows: int = 400) -> np.ndarray:
    whole = Batch.of({"x": values})

    def work(together: Any) -> Any:
        outlet, ctx = make(), Context()
        outlet.open(ctx, whole.schema)
        lo, hi = whole.nrows * together.rank // ranks, whole.nrows * (together.rank + 1) // ranks
        for a in range(lo, hi, batch_rows):
            outlet.take(0, whole.slice(a, min(hi, a + batch_rows)))
        if hasattr(outlet, "settle"):
            outlet.settle(together)
        payload = outlet.local()
        outlet.abandon()
        assert ctx.taken == 0
        return payload if not hasattr(outlet, "settle") else outlet.combine([])

    found = on_ranks(ranks, work)
    if make().name == "quantile" and not hasattr(make(), "settle"):
        outlet = make()
        outlet.open(Context(), whole.schema)
        return outlet.combine(found)
    assert all(f.tobytes() == found[0].tobytes() for f in found)
    return found[0]


rng = np.random.default_rng(5)
SHAPES: dict[str, Any] = {
    "uniform": rng.random(3000), "normal": rng.standard_normal(3000), "heavy": rng.integers(0, 4, 3000), "wide": 10.0 ** rng.uniform(-300, 300, 3000),
    "ints": rng.integers(-2**62, 2**62, 3001), "unsigned": rng.integers(0, 2**64, 999, dtype=np.uint64),
    "small": rng.integers(-128, 128, 2000).astype(np.int8),
    "same": np.full(1000, 0.1), "one": np.array([7.5]), "two": np.array([1, 2]), "float32": rng.standard_normal(500).astype(np.float32),
    "infinite": np.array([np.inf, -np.inf, 1.0, 2.0, -0.0]),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ranks", [1, 3, 7])
@pytest.mark.parametrize("gathered", [0, 16, 1 << 14])
def test_exact_quantiles_are_those_of_numpy(name: str, ranks: int, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHERED", gathered)
    x = SHAPES[name]
    wide = x.astype(np.float64) if x.dtype.kind == "f" else x
    with np.errstate(all="ignore"):
        for method in ("linear", "lower", "higher", "midpoint"):
            q = [0.25, 0.5] if name == "infinite" else Q
            expected = np.quantile(wide, q, method=method)
            found = quantiles(lambda m=method, q=q: ExactQuantile("x", q, m), x, ranks)
            assert np.array_equal(found, expected, equal_nan=True), method
            assert method not in ("lower", "higher") or found.dtype == x.dtype


class Shelf:
    """A spool that counts what lies on it."""

    def __init__(self) -> None:
        self.kept: dict[int, Batch] = {}
        self.puts = 0

    def put(self, batch: Batch) -> int:
        self.puts += 1
        self.kept[self.puts] = batch
        return self.puts

    def get(self, handle: int) -> Batch:
        return self.kept[handle]

    def drop(self, handle: int) -> None:
        del self.kept[handle]


@pytest.mark.parametrize("name", ["normal", "heavy", "same", "ints"])
def test_values_go_to_scratch_where_memory_is_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 100)
    monkeypatch.setattr(module, "GATHERED", 0)
    shelves = [Shelf() for _ in range(2)]
    whole = Batch.of({"x": SHAPES[name]})

    class Short(Context):
        def available(self) -> int:
            return 4000 - self.taken

    def work(together: Any) -> Any:
        outlet, ctx = ExactQuantile("x", Q), Short()
        ctx.spool = shelves[together.rank]      # type: ignore[attr-defined]
        outlet.open(ctx, whole.schema)
        half = whole.nrows // 2
        outlet.take(0, whole.slice(half * together.rank, half if together.rank == 0 else whole.nrows))
        assert ctx.taken <= 4000
        outlet.settle(together)
        outlet.abandon()
        return outlet.combine([])

    assert on_ranks(2, work)[0].tolist() == np.quantile(SHAPES[name], Q).tolist()
    assert all(shelf.puts and not shelf.kept for shelf in shelves)


def test_nulls_nan_dates_and_nothing() -> None:
    masked = np.ma.MaskedArray(np.arange(10.0), np.arange(10) % 2 == 0)
    assert quantiles(lambda: ExactQuantile("x", [0.5]), masked).tolist() == [5.0]
    assert np.isnan(quantiles(lambda: ExactQuantile("x", [0.1, 0.5]), np.array([1.0, np.nan, 2.0]))).all()
    assert np.isnan(quantiles(lambda: ExactQuantile("x", [0.1]), np.array([], np.int64))).all()
    days = np.array(["2024-01-03", "2024-01-01", "2024-01-02"], "M8[D]")
    assert quantiles(lambda: ExactQuantile("x", [0.5], "lower"), days)[0] == np.datetime64("2024-01-02")
    assert np.isnat(quantiles(lambda: ExactQuantile("x", [0.5], "lower"), np.append(days, np.datetime64("NaT")))[0])
    assert quantiles(lambda: ExactQuantile("x", []), np.arange(3)).tolist() == []


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "infinite"])
def test_estimates_keep_their_stated_error(name: str) -> None:
    x = SHAPES[name].astype(np.float64)
    found = quantiles(lambda: ApproxQuantile("x", Q), SHAPES[name])
    low, high = np.quantile(x, Q, method="lower"), np.quantile(x, Q, method="higher")
    assert (np.abs(found - np.quantile(x, Q)) <= 1.0001 * APPROX_ERROR * np.maximum(np.abs(low), np.abs(high))).all()
    assert quantiles(lambda: ApproxQuantile("x", Q), SHAPES[name], 1).tolist() == found.tolist()


def test_estimates_of_odd_values() -> None:
    assert quantiles(lambda: ApproxQuantile("x", [0, 0.5, 1]), np.array([-np.inf, 0.0, np.inf])).tolist() == [-np.inf, 0.0, np.inf]
    assert quantiles(lambda: ApproxQuantile("x", [0.5]), np.array([-0.0, -0.0])).tolist() == [0.0]
    assert np.isnan(quantiles(lambda: ApproxQuantile("x", [0.5]), np.array([1.0, np.nan]))[0])
    assert np.isnan(quantiles(lambda: ApproxQuantile("x", [0.5]), np.array([]))[0])
    middles = np.array([middle_of(b) for b in range(0, 1 << 20, 97)])
    middles = middles[~np.isnan(middles)]
    assert (np.diff(middles) >= 0).all()


def test_wrong_use_is_refused() -> None:
    for make in (lambda: ExactQuantile("x", [1.5]), lambda: ExactQuantile("x", [0.5], "best")):
        with pytest.raises(JobSpecError):
            make()
    for values in (["a"], np.zeros((2, 3)), np.array([True]), np.array([1j])):
        with pytest.raises(JobSpecError, match="needs a column of numbers"):
            ExactQuantile("x", [0.5]).open(Context(), Batch.of({"x": values}).schema)
