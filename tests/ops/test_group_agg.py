"""Aggregates of values and rows, mixed with those of the table, against NumPy and plain Python."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.contract import Origin
from hpcmr.ops.fine_groups import LOOK_ROWS
from hpcmr.ops.group_agg import aggregation
from hpcmr.ops.group_sketch import bucket_values, buckets, log_bits, register_bits
from tests.support.small_engine import Context, Splits, run

VARIANTS = [{}, {"ranks": 3}, {"ranks": 2, "seal_every": 1}, {"seal_every": 2, "partitions": 1}]
Rows = dict[str, list[Any]]
SPECIAL = [math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e308, -1e308]


def data(seed: int, n: int, nan: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=n) * 10.0 ** rng.integers(-5, 5, n)).tolist()
    for i in range(0, n, 17):
        x[i] = SPECIAL[i // 17 % len(SPECIAL)]
    if nan:
        x[3] = math.nan
    keys = ["a", "b", "c" * 30, "", None]
    words = ["", "w", "v" * 24, "v" * 25, None, "ü"]
    return {"k": [keys[int(i)] for i in rng.integers(0, len(keys), n)],
            "j": [[1, 2, None][int(i)] for i in rng.integers(0, 3, n)],
            "x": [None if rng.integers(0, 9) == 0 else v for v in x],
            "i": [None if rng.integers(0, 7) == 0 else int(v) for v in rng.integers(-4, 4, n)],
            "t": [words[int(v)] for v in rng.integers(0, len(words), n)]}


def splits_of(rows: Rows, count: int = 4, batch_rows: int = 9) -> Splits:
    n = len(rows["k"])
    cuts = [n * s // count for s in range(count + 1)]
    whole = Batch.of(rows)
    return [[whole.slice(a, min(a + batch_rows, stop)) for a in range(start, stop, batch_rows)]
            for start, stop in itertools.pairwise(cuts) if stop > start]


def groups_of(rows: Rows, keys: tuple[str, ...]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for row, key in enumerate(zip(*(rows[k] for k in keys), strict=True)):
        found.setdefault(key, []).append(row)
    return found


def there(rows: Rows, name: str, where: list[int]) -> list[Any]:
    return [rows[name][r] for r in where if rows[name][r] is not None]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return (isinstance(a, float) and isinstance(b, float) and (a == b or (math.isnan(a) and math.isnan(b)))) or (type(a) is type(b) and a == b)


def distinct(values: list[Any]) -> int:
    return len({"nan" if isinstance(v, float) and math.isnan(v) else v for v in values})


def best(rows: Rows, x: str, of: str, where: list[int], most: bool) -> Any:
    """By the rules of min and max: NaN wins, the first of equal ones."""
    some = [r for r in where if rows[of][r] is not None]
    nans = [r for r in some if isinstance(rows[of][r], float) and math.isnan(rows[of][r])]
    if nans or not some:
        return rows[x][nans[0]] if nans else None
    value = lambda r: rows[of][r].encode() if isinstance(rows[of][r], str) else rows[of][r]  # noqa: E731
    wanted = max(map(value, some)) if most else min(map(value, some))
    return rows[x][next(r for r in some if value(r) == wanted)]


def top(rows: Rows, x: str, where: list[int], k: int) -> list[Any]:
    values = there(rows, x, where)
    number = sorted((v for v in values if v == v), key=lambda v: v.encode() if isinstance(v, str) else v, reverse=True)
    return (number + [v for v in values if v != v])[:k]


def np_quantile(values: list[float], q: float, method: str) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.quantile(np.array(values), q, method=method))


MIXED = (Agg("count", None, "n"), Agg("mean", "x", "mean"), Agg("sum", "i", "sum"), Agg("first", "t", "first"), Agg("median", "x", "median"),
         Agg("quantile", "i", "q", (("q", 0.25), ("interpolation", "linear"))), Agg("count_distinct", "x", "dx"), Agg("count_distinct", "t", "dt"),
         Agg("list", "x", "xs"), Agg("list", "t", "ts"), Agg("argmin", "t", "tmin", (("of", "x"),)), Agg("argmax", "i", "imax", (("of", "x"),)),
         Agg("argmax", "x", "xmax", (("of", "t"),)), Agg("top_k", "x", "top", (("k", 3),)), Agg("top_k", "t", "topt", (("k", 2),)),
         Agg("approx_quantile", "x", "aq", (("q", 0.5), ("error", 0.01))), Agg("approx_count_distinct", "t", "ad", (("error", 0.02),)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keys", [("k",), ("j", "k")])
@pytest.mark.parametrize("nan", [False, True])
def test_a_mix_of_all(keys: tuple[str, ...], nan: bool, variant: dict[str, Any]) -> None:
    rows = data(1, 300, nan)
    out = run(lambda: aggregation(keys, MIXED), splits_of(rows), **variant).to_pydict()
    expected = groups_of(rows, keys)
    found = list(zip(*(out[k] for k in keys), strict=True))
    assert len(found) == len(expected) and set(found) == set(expected)
    for g, key in enumerate(found):
        where = expected[key]
        x, i, t = (there(rows, c, where) for c in "xit")
        want = {"n": len(where), "sum": sum(i) if i else None, "first": t[0] if t else None, "dx": distinct(x), "dt": distinct(t), "xs": x, "ts": t,
                "tmin": best(rows, "t", "x", where, False), "imax": best(rows, "i", "x", where, True), "xmax": best(rows, "x", "t", where, True),
                "top": top(rows, "x", where, 3), "topt": top(rows, "t", where, 2), "q": np_quantile(i, 0.25, "linear") if i else None,
                "ad": distinct(t)}
        for name, value in want.items():
            assert same(out[name][g], value), (name, key, out[name][g], value)
        with np.errstate(invalid="ignore"):
            assert same(out["median"][g], float(np.median(x)) if x else None)
        if any(map(math.isnan, x)):
            assert math.isnan(out["median"][g]) and math.isnan(out["aq"][g])
        elif x:
            exact = sorted(x)[(len(x) - 1) // 2]
            assert out["aq"][g] == exact or abs(out["aq"][g] - exact) <= 0.01 * abs(exact) or abs(exact) < 1e-300


@pytest.mark.parametrize("strategy", ["table", "aside"])
def test_many_values_with_and_without_repeats(strategy: str) -> None:
    rng = np.random.default_rng(5)
    n = 3 * LOOK_ROWS
    k, x = rng.integers(0, 500, n), rng.normal(size=n)
    if strategy == "table":
        x = np.round(x, 1)
    batches = [[Batch.of({"k": k[a:a + 8000], "x": x[a:a + 8000]}) for a in range(0, n, 8000)]]
    aggs = (Agg("median", "x", "m"), Agg("count_distinct", "x", "d"), Agg("quantile", "x", "q", (("q", 0.9), ("interpolation", "lower"))))
    out = run(lambda: aggregation(("k",), aggs), batches, ranks=1)
    key, m, d, q = (out[c].values for c in ("k", "m", "d", "q"))
    for g in range(0, 500, 7):
        values = x[k == key[g]]
        assert m[g] == np.median(values) and d[g] == len(np.unique(values)) and q[g] == np.quantile(values, 0.9, method="lower")


@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "nearest", "midpoint"])
def test_quantiles_are_those_of_numpy(interpolation: str) -> None:
    rng = np.random.default_rng(2)
    k = rng.integers(0, 40, 500)
    for x in (rng.normal(size=500) * 1e3, rng.integers(-9, 9, 500), rng.integers(0, 200, 500).astype(np.uint8), rng.normal(size=500).astype("f4")):
        for q in (0.0, 0.1, 0.25, 0.5, 0.75, 1 / 3, 1.0):
            agg = Agg("quantile", "x", "q", (("q", q), ("interpolation", interpolation)))
            out = run(lambda agg=agg: aggregation(("k",), (agg,)), [[Batch.of({"k": k, "x": x})]])
            for g, key in enumerate(out["k"].values):
                values = x[k == key]
                picks = interpolation in ("lower", "higher", "nearest")
                want = np.quantile(values if picks else values.astype(np.float64), q, method=interpolation)
                assert out["q"].values[g] == want and out["q"].values.dtype == (x.dtype if picks else np.float64)


def test_quantile_at_the_ends_of_doubles() -> None:
    x = np.array([-1.7e308, 1.7e308, math.inf, math.inf, -math.inf, 1.0, -0.0, 0.0, 0.0])
    k = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    out = run(lambda: aggregation(("k",), (Agg("median", "x", "m"),)), [[Batch.of({"k": k, "x": x})]], partitions=1).to_pydict()
    assert out["m"] == [0.0, math.inf, -math.inf, 0.0] and math.copysign(1, out["m"][3]) == 1
    dates = np.array(["2020-01-01", "2020-03-01", "2020-02-01"], "datetime64[D]")
    agg = Agg("quantile", "d", "m", (("q", 0.5), ("interpolation", "lower")))
    assert run(lambda: aggregation(("k",), (agg,)), [[Batch.of({"k": [1, 1, 1], "d": dates})]])["m"].values[0] == dates[2]


def test_the_error_of_buckets() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=4000) * 10.0 ** rng.integers(-300, 300, 4000), [0.0, -0.0, math.inf, -math.inf, 1e308, 2.3e-308]])
    for error in (0.3, 0.01, 0.001, 1e-6):
        bits = log_bits(error)
        found = buckets(x, bits)
        order = np.argsort(x)
        assert (np.diff(found[order]) >= 0).all()
        back = bucket_values(found, bits)
        finite = np.isfinite(x) & (x != 0)
        assert (np.abs(back[finite] - x[finite]) <= error * np.abs(x[finite])).all() and (back[~finite] == x[~finite]).all()
        assert 2.0 ** -bits > error             # no more buckets than the error asks for
    assert np.isnan(bucket_values(buckets(np.array([math.nan]), 6), 6)).all()


def test_the_error_of_a_sketch_quantile() -> None:
    rng = np.random.default_rng(4)
    x = np.exp(rng.normal(size=20000) * 4) * rng.choice([-1, 1], 20000)
    k = rng.integers(0, 3, 20000)
    for q in (0.01, 0.3, 0.5, 0.99):
        agg = Agg("approx_quantile", "x", "q", (("q", q), ("error", 0.005)))
        out = run(lambda agg=agg: aggregation(("k",), (agg,)), [[Batch.of({"k": k, "x": x})]])
        for g, key in enumerate(out["k"].values):
            exact = np.quantile(x[k == key], q, method="lower")
            assert abs(out["q"].values[g] - exact) <= 0.005 * abs(exact)


@pytest.mark.parametrize("kind", ["int", "float", "text"])
def test_the_error_of_distinct_counts(kind: str) -> None:
    """Over sizes: within four standard errors each, and without bias on the whole."""
    bits = register_bits(0.02)
    off = []
    for n in (1, 3, 100, 900, 5000, 9000, 30000):
        raw = np.arange(n) * 7919
        column = {"int": raw, "float": raw * 0.37, "text": [f"name {v}" for v in raw.tolist()] if kind == "text" else raw}[kind]
        rows = Batch.of({"k": np.zeros(n, np.int64), "x": column})
        splits = [[rows, rows], [rows]]
        found = run(lambda: aggregation(("k",), (Agg("approx_count_distinct", "x", "d", (("error", 0.02),)),)), splits)["d"].values[0]
        off.append((found - n) / n)
        assert abs(off[-1]) <= 4 * 1.04 / 2 ** (bits / 2)
        assert n > 100 or abs(found - n) <= n // 50
    assert abs(np.mean(off)) < 0.02


def raw(column: Any) -> Any:
    if not isinstance(column, FixedColumn):
        return column.data
    return column.values if column.valid is None else np.where(column.valid, column.values, 0)


def test_the_order_of_merges_changes_no_bit() -> None:
    """Sketches, floats with NaN and signed zeros: sealed anywhere, merged in any order, on any number of ranks."""
    rows = data(8, 400, True)
    first = run(lambda: aggregation(("k",), MIXED), splits_of(rows))
    for variant in ({"ranks": 4}, {"ranks": 3, "seal_every": 1}, {"seal_every": 3}):
        other = run(lambda: aggregation(("k",), MIXED), splits_of(rows), **variant)
        for name in first.names:
            a, b = first[name].compact(), other[name].compact()
            while hasattr(a, "child"):
                assert (a.ends == b.ends).all()
                a, b = a.child, b.child
            assert raw(a).tobytes() == raw(b).tobytes(), name


def test_sketches_of_many_groups_are_small() -> None:
    n = 200_000
    rows = Batch.of({"k": np.arange(n) // 2, "x": np.arange(n) * 0.1})
    aggs = (Agg("approx_count_distinct", "x", "d"), Agg("approx_quantile", "x", "q"))
    op = aggregation(("k",), aggs)
    op.bind(rows.schema)
    ctx = Context(8)
    op.open(ctx, None)
    op.consume(rows, Origin(0, 0))
    assert ctx.taken < 600 * n           # 16,384 registers each would be 1.6 GB
    op.close()
    assert ctx.taken == 0


def test_what_is_refused() -> None:
    schema = Batch.of({"k": [1], "t": ["a"], "c": np.array([1j]), "x": [1.0], "p": np.zeros((1, 3))}).schema
    for agg, words in ((Agg("median", "t", "m"), "needs numbers"), (Agg("count_distinct", "c", "m"), "bytes or text"),
                       (Agg("approx_quantile", "t", "m"), "needs numbers"), (Agg("argmin", "x", "m", (("of", "p"),)), "'p'"),
                       (Agg("median", "xx", "m"), "did you mean"), (Agg("list", None, "m"), "needs a column"),
                       (Agg("quantile", "t", "m", (("interpolation", "lower"),)), "numbers or dates"), (Agg("mode", "x", "m"), "unknown aggregate")):
        with pytest.raises(JobSpecError, match=words):
            aggregation(("k",), (agg,)).bind(schema)
    for error in (0, 1, -1, 1e-9):
        with pytest.raises(JobSpecError, match="error"):
            aggregation(("k",), (Agg("approx_quantile", "x", "m", (("error", error),)),))
        with pytest.raises(JobSpecError, match="error"):
            aggregation(("k",), (Agg("approx_count_distinct", "x", "m", (("error", error),)),))
    assert isinstance(aggregation(("k",), (Agg("sum", "x", "s"),)), Aggregate)


@pytest.mark.mpi
def test_on_ranks(subworld: Any) -> None:
    rows = data(6, 250, True)
    n, r, size = 250, subworld.rank, subworld.size
    mine = Batch.of(rows).slice(n * r // size, n * (r + 1) // size)
    out = mr.from_arrays(getattr(subworld, "comm", None), mine.columns).group_by("k").agg(*MIXED).collect().batch.to_pydict()
    alone = run(lambda: aggregation(("k",), MIXED), splits_of(rows), partitions=1).to_pydict()
    assert [repr(v) for v in out.values()] == [repr(v) for v in alone.values()]
