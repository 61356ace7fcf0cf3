"""Verbs that go by the order of rows, and the actions on whole columns: end to end on all ranks, against NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.errors import DataError, FunctionError, JobSpecError

pytestmark = pytest.mark.mpi

N = 4001
rng = np.random.default_rng(17)
X = rng.standard_normal(N) * 10.0 ** rng.integers(-9, 9, N)
I = rng.integers(-40, 40, N)
FEW = I > 35


def arrays(world: Any, shares: str = "even", split_rows: int = 450) -> mr.Table:
    """The same rows on any number of ranks: cut evenly, or all on the last rank. Splits lie on several ranks."""
    ranks = world.size
    a, b = (N * world.rank // ranks, N * (world.rank + 1) // ranks) if shares == "even" else (0, N if world.rank == ranks - 1 else 0)
    table = mr.from_arrays(world.comm if ranks > 1 else None, {"x": X[a:b], "i": I[a:b]})
    table._node.source.split_nbytes = 16 * split_rows       # type: ignore[attr-defined]
    return table


@pytest.fixture(params=["even", "last"])
def table(request: pytest.FixtureRequest, world: Any) -> mr.Table:
    return arrays(world, request.param)


@pytest.fixture
def lines(world: Any, mpi_tmp_path: Path) -> mr.Table:
    """The numbers as lines of five files, one of them empty."""
    def write() -> None:
        for k in range(5):
            part = [] if k == 2 else X[N * k // 5:N * (k + 1) // 5].tolist()
            (mpi_tmp_path / f"{k}.txt").write_text("".join(f"{v!r}\n" for v in part))

    world.on_root(write)
    return mr.read_text(str(mpi_tmp_path / "*.txt")).map(float)


LINES = np.concatenate([X[N * k // 5:N * (k + 1) // 5] for k in (0, 1, 3, 4)])


def collected(table: mr.Table) -> Any:
    found = table.collect()
    assert found is not None
    return found


def test_rows_are_numbered_wherever_they_come_from(table: mr.Table, lines: mr.Table) -> None:
    assert collected(table.zip_with_index("n"))["n"].tolist() == list(range(N))
    few = collected(table.filter(mr.batch(lambda c: c["i"] > 35)).zip_with_index())
    assert few["index"].tolist() == list(range(FEW.sum())) and few["x"].tolist() == X[FEW].tolist()
    found = collected(lines.zip_with_index())
    assert found["index"].tolist() == list(range(len(LINES))) and found["value"].tolist() == LINES.tolist()
    groups = collected(table.group_by("i").agg(n=mr.count()).zip_with_index())
    assert groups["index"].tolist() == list(range(80))
    later = collected(table.zip_with_index().filter(mr.batch(lambda c: c["index"] % 3 == 0)).zip_with_index("third"))
    assert (later["index"] == 3 * later["third"]).all() and len(later) == -(-N // 3)


def test_running_values(table: mr.Table, lines: mr.Table) -> None:
    found = collected(table.scan("x").scan("i").scan("x", "max").scan("i", min, name="low"))
    assert found["x_sum"].tolist() == exact_running(X)
    assert found["i_sum"].tolist() == np.cumsum(I).tolist()
    assert found["x_max"].tolist() == np.maximum.accumulate(X).tolist() and found["low"].tolist() == np.minimum.accumulate(I).tolist()
    assert collected(lines.scan("value"))["value_sum"].tolist() == exact_running(LINES)
    kernel = mr.kernel(lambda a, b: a if a > b else b)
    assert collected(table.scan("i", kernel, name="high"))["high"].tolist() == np.maximum.accumulate(I).tolist()
    totals = collected(table.group_by("i").agg(n=mr.count()).scan("n"))
    assert totals["n_sum"].tolist() == np.cumsum(totals["n"]).tolist() and totals["n_sum"][-1] == N


def exact_running(values: np.ndarray) -> list[float]:
    """Prefix sums, exact in units of 2^-1074, each rounded once."""
    out, total = [], 0
    for v in values.tolist():
        m, e = math.frexp(v)
        total += int(m * 2 ** 53) << (e - 53 + 1074)
        out.append(total / (1 << 1074))
    return out


def test_windows_look_across_splits_and_ranks(table: mr.Table) -> None:
    for rows in (1, 7, 1000):
        found = collected(table.lag("x", rows).lead("i", rows).window("i", "sum", rows))
        assert found["x_lag"].tolist() == ([None] * rows + X.tolist())[:N]
        assert found["i_lead"].tolist() == I[rows:].tolist() + [None] * rows
        assert found["i_sum"].tolist() == (np.cumsum(I) - np.concatenate([np.zeros(rows, np.int64), np.cumsum(I)])[:N]).tolist()
    means = collected(table.window("x", "mean", 3))["x_mean"]
    assert means[10] == math.fsum(X[8:11]) / 3 or abs(means[10] - X[8:11].mean()) <= 1e-15 * abs(X[8:11]).max()


def test_ranks_of_a_sorted_table(table: mr.Table) -> None:
    found = collected(table.sort_by("i").rank().dense_rank("i").row_number())
    s = np.sort(I)
    assert found["i"].tolist() == s.tolist() and found["rank"].tolist() == (np.searchsorted(s, s) + 1).tolist()
    assert found["dense_rank"].tolist() == (np.unique(s, return_inverse=True)[1] + 1).tolist()
    assert found["row_number"].tolist() == list(range(1, N + 1))
    with pytest.raises(JobSpecError, match="not sorted"):
        table.rank()


def test_ranks_within_groups(table: mr.Table) -> None:
    grouped = table.with_columns(k=mr.col("i") % 7).group_by("k", order_by="i", descending=True)
    found = collected(grouped.rank())
    assert found.columns == ("x", "i", "k", "rank") and sorted(found["x"].tolist()) == sorted(X.tolist())
    numbers = collected(grouped.row_number(name="n"))
    dense = collected(grouped.dense_rank())["dense_rank"]
    assert numbers["x"].tolist() == found["x"].tolist()
    for key in range(7):
        mine = found["k"] == key
        values = np.sort(I[I % 7 == key])[::-1]
        assert found["i"][mine].tolist() == values.tolist()
        assert found["rank"][mine].tolist() == (np.searchsorted(-values, -values) + 1).tolist()
        assert dense[mine].tolist() == (np.unique(-values, return_inverse=True)[1] + 1).tolist()
        assert numbers["n"][mine].tolist() == list(range(1, len(values) + 1))
    first = collected(table.group_by("i").row_number())
    assert first["x"][first["row_number"] == 1].tolist() == [float(X[np.argmax(I == k)]) for k in first["i"][first["row_number"] == 1]]
    with pytest.raises(JobSpecError, match="order_by"):
        table.group_by("i").rank()


def test_samples_do_not_depend_on_who_holds_what(world: Any, lines: mr.Table) -> None:
    few = mr.batch(lambda c: c["i"] > 0)
    for make in (lambda t: t.sample(count=50, seed=3), lambda t: t.sample(fraction=0.05), lambda t: t.filter(few).sample(count=50),
                 lambda t: t.filter(few).sample(fraction=0.1, seed=9)):
        even, last = (collected(make(arrays(world, shares))) for shares in ("even", "last"))
        assert even.columns == ("x", "i") and even["x"].tolist() == last["x"].tolist()
        places = [X.tolist().index(v) for v in even["x"].tolist()]
        assert places == sorted(places)
    # What one seed draws is fixed: by this list all numbers of ranks are compared with one another.
    assert [X.tolist().index(v) for v in collected(arrays(world).filter(few).sample(count=4))["x"].tolist()] == SAMPLED
    assert len(collected(lines.sample(count=33))) == 33 and len(collected(lines.sample(count=10 ** 6))) == len(LINES)
    assert len(collected(lines.sample(fraction=1))) == len(LINES) and len(collected(lines.sample(count=0))) == 0
    for wrong in ({}, {"fraction": 0.5, "count": 3}, {"fraction": 2}, {"count": -1}):
        with pytest.raises(JobSpecError):
            lines.sample(**wrong)


SAMPLED = [646, 665, 1906, 3593]


def test_quantiles(world: Any, table: mr.Table) -> None:
    q = [0, 0.1, 0.5, 0.999, 1]
    assert table.quantile("x", q).tolist() == np.quantile(X, q).tolist()
    assert table.quantile("i", 0.5) == np.quantile(I, 0.5) and table.quantile("i", 0.3, method="lower").dtype == np.int64
    exact, near = np.quantile(X, q), table.quantile("x", q, approx=True)
    assert (np.abs(near - exact) <= np.abs(exact) / 256).all()
    assert np.isnan(table.filter(mr.batch(lambda c: c["i"] > 99)).quantile("x", 0.5))
    assert (table.quantile("x", 0.5, root=0) is None) == (world.rank != 0)
    with pytest.raises(JobSpecError, match="0 to 1"):
        table.quantile("x", 2)


def test_histograms(world: Any, table: mr.Table) -> None:
    counts, edges = table.histogram("i", 16)
    assert counts.tolist() == np.histogram(I, 16)[0].tolist() and edges.tolist() == np.histogram(I, 16)[1].tolist()
    counts, (e0, e1) = table.histogram(["x", "i"], [5, 4], range=[(-1, 1), None])
    expected = np.histogramdd(np.column_stack([X, I]), [5, 4], [(-1, 1), (I.min(), I.max())])
    assert counts.tolist() == expected[0].tolist() and [e0.tolist(), e1.tolist()] == [e.tolist() for e in expected[1]]
    sums, _ = table.histogram("i", np.arange(-40, 41, 20), weights="x")
    assert sums.tolist() == [math.fsum(X[(I >= a) & (I < a + 20)]) for a in range(-40, 40, 20)]
    assert (table.histogram("i", 2, root=world.size - 1) is not None) == (world.rank == world.size - 1)
    nothing = table.filter(mr.batch(lambda c: c["i"] > 99))
    assert nothing.histogram("x", 3)[0].tolist() == [0, 0, 0] and nothing.histogram("x", 3)[1].tolist() == np.histogram([], 3)[1].tolist()


def test_distinct(table: mr.Table) -> None:
    found = collected(table.distinct("i"))
    firsts = {int(k): float(X[np.argmax(k == I)]) for k in np.unique(I)}
    assert {int(r.i): float(r.x) for r in found.rows()} == firsts
    assert len(collected(table.select("i").distinct())) == len(firsts)


def test_errors_are_the_same_on_all_ranks(table: mr.Table) -> None:
    with pytest.raises(DataError, match="does not fit in int64"):
        table.with_columns(big=lambda r: 1 << 61).scan("big").collect()
    with pytest.raises(FunctionError, match="ZeroDivisionError"):
        table.scan("i", lambda a, b: a // 0).collect()
    with pytest.raises(JobSpecError, match="no column 'y'"):
        table.scan("y").collect()
    with pytest.raises(JobSpecError, match="needs a column of numbers"):
        table.select("i").map(str).histogram("value", 3, range=(0, 1))
