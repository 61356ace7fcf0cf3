"""Tables as a whole: union, repartition, persist, broadcast and iterate, on all ranks, against NumPy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.errors import JobSpecError
from hpcmr.run.session import current

pytestmark = pytest.mark.mpi

N = 3000
rng = np.random.default_rng(5)
K = rng.integers(-30, 30, N)
X = rng.standard_normal(N) * 10.0 ** rng.integers(-9, 9, N)
S = [None if i % 17 == 0 else f"é{i % 7}" for i in range(N)]


def arrays(world: Any, rows: slice = slice(0, N), split_rows: int = 300) -> mr.Table:
    at = range(N)[rows]
    a, b = at.start + len(at) * world.rank // world.size, at.start + len(at) * (world.rank + 1) // world.size
    table = mr.from_arrays(world.comm if world.size > 1 else None, {"k": K[a:b], "x": X[a:b], "s": S[a:b]})
    table._node.source.split_nbytes = 40 * split_rows       # type: ignore[attr-defined]
    return table


def got(table: mr.Table) -> dict[str, Any]:
    found = table.collect()
    assert found is not None
    return found.batch.to_pydict()


def rows(*parts: slice) -> dict[str, Any]:
    return {"k": [int(v) for p in parts for v in K[p]], "x": [float(v) for p in parts for v in X[p]], "s": [v for p in parts for v in S[p]]}


def session(world: Any) -> Any:
    return current(world.comm if world.size > 1 else None)


def sent(world: Any) -> list[int]:
    """Bytes that the stages so far have sent; on rank 0."""
    return [s.exchanged_nbytes for s in session(world).stages]


# ---- union -----------------------------------------------------------------------------------------------------------


def test_union(world: Any) -> None:
    one, none, two = arrays(world, slice(0, 1000)), arrays(world).filter(mr.col("k") > 99), arrays(world, slice(500, 2000))
    both = one.union(none, two, one)
    want = rows(slice(0, 1000), slice(500, 2000), slice(0, 1000))
    assert got(both) == want
    assert got(both.filter(mr.col("k") > 28)) == {n: [v for v, k in zip(c, want["k"], strict=True) if k > 28] for n, c in want.items()}
    head = both.head(1002)
    assert head is not None and head["x"].tolist() == want["x"][:1002]
    sums = got(both.group_by("k").agg(n=mr.count()))
    assert dict(zip(sums["k"], sums["n"], strict=True)) == {int(k): want["k"].count(int(k)) for k in np.unique(K)}
    text = both.explain()
    assert "input 1 of union(4 tables):" in text and "input 4" in text


def test_union_of_aggregates_and_rows(world: Any) -> None:
    table = arrays(world)
    sums = table.group_by("k").agg(x=mr.sum("x"))
    both = got(sums.union(table.select("k", "x"), sums))
    alone = got(sums)
    n = len(alone["k"])
    assert both["k"][:n] == both["k"][-n:] == alone["k"] and both["x"][:n] == both["x"][-n:] == alone["x"]
    assert both["x"][n:-n] == X.tolist()


def test_a_union_that_does_not_fit(world: Any) -> None:
    table = arrays(world)
    with pytest.raises(JobSpecError, match="column 'x' is float64 in table 1 and int64 in table 2"):
        table.union(table.with_columns(x=mr.col("k"))).collect()
    with pytest.raises(JobSpecError, match="takes one or several tables"):
        table.union()


# ---- repartition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3, 64])
def test_parts_of_equal_length_keep_the_order(world: Any, parts: int) -> None:
    table = arrays(world)
    assert got(table.repartition(parts)) == rows(slice(0, N))
    plain = table.map(lambda row: {"k": row.k, "x": row.x})
    assert got(plain.repartition(parts))["x"] == X.tolist()
    held = got(table.filter(mr.col("k") > 0).repartition(parts))
    assert held["x"] == X[K > 0].tolist()
    assert got(table.filter(mr.col("k") > 99).repartition(parts))["x"] == []


def test_rows_of_a_key_lie_side_by_side(world: Any) -> None:
    moved = got(arrays(world).repartition(8, by=["s", "k"]))
    keys = list(zip(moved["s"], moved["k"], strict=True))
    changes = [a for a, b in pairwise(keys) if a != b]
    assert len(changes) == len(set(keys)) - 1
    order = {key: [X[i] for i in range(N) if (S[i], int(K[i])) == key] for key in set(keys)}
    for key in order:
        assert [x for x, k in zip(moved["x"], keys, strict=True) if k == key] == order[key]
    assert sorted(moved["x"]) == sorted(X.tolist())


def test_the_parts_are_the_same_on_any_number_of_ranks(world: Any) -> None:
    whole = mr.from_arrays(None, {"k": K, "x": X, "s": S}) if world.size == 1 else None
    mine = got(arrays(world).repartition(16, by="k"))
    if whole is not None:
        assert got(whole.repartition(16, by="k")) == mine
    from hpcmr.data.batch import Batch
    from hpcmr.data.keys import KeyLayout, encode_keys

    batch = Batch.of({"k": K})
    parts = (encode_keys(batch, KeyLayout.of(batch.schema, ("k",))).hashes >> np.uint64(60)).astype(int)
    assert mine["x"] == X[np.lexsort((np.arange(N), K, parts))].tolist()


def test_wrong_parts(world: Any) -> None:
    table = arrays(world)
    for wrong in (lambda: table.repartition(), lambda: table.repartition(0), lambda: table.repartition(3, by="k"), lambda: table.repartition(by=[])):
        with pytest.raises(JobSpecError):
            wrong()


# ---- persist ---------------------------------------------------------------------------------------------------------


def test_a_persisted_table_is_read_once(world: Any) -> None:
    calls: list[int] = []

    def seen(row: Any) -> dict[str, Any]:
        calls.append(1)
        return {"k": row.k, "x": row.x}

    table = arrays(world).map(seen, out={"k": "int64", "x": "float64"}).persist()
    before = len(calls)
    assert got(table)["x"] == X.tolist()
    n = len(calls)
    assert n > before or world.size > 1
    assert got(table.filter(mr.col("k") == 3))["x"] == X[K == 3].tolist()
    assert len(calls) == n
    assert "rows kept on the ranks" in table.explain()
    table.unpersist()
    table.unpersist()
    assert got(table)["x"] == X.tolist()
    table.unpersist()
    with pytest.raises(JobSpecError, match="unpersist"):
        table.select("k").unpersist()


def test_groups_on_the_key_of_a_persisted_table_move_nothing(world: Any) -> None:
    table = arrays(world).persist(key="k")
    assert sorted(got(table)["x"]) == sorted(X.tolist())
    plan = table.filter(mr.col("x") > 0).rename(k="key").group_by("key").agg(n=mr.count(), total=mr.sum("x"))
    assert "no exchange: the rows of each key lie with their owner already" in plan.explain()
    n = len(sent(world))
    here = got(plan)
    if world.rank == 0:
        assert max(sent(world)[n:]) < 200      # counts, but no rows
    there = got(arrays(world).filter(mr.col("x") > 0).group_by("k").agg(n=mr.count(), total=mr.sum("x")))
    assert list(here.values()) == list(there.values())
    other = table.with_columns(k=mr.col("k") + 1).group_by("k").agg(n=mr.count())
    assert "no exchange" not in other.explain()
    assert sum(got(other)["n"]) == N
    table.unpersist()


def test_groups_of_groups_move_nothing(world: Any) -> None:
    plan = arrays(world).group_by("k").agg(x=mr.max("x")).group_by("k").agg(n=mr.count())
    assert plan.explain().count("no exchange") == 1
    found = got(plan)
    assert sorted(found["k"]) == sorted(set(K.tolist())) and set(found["n"]) == {1}


def test_joins_with_a_persisted_table(world: Any) -> None:
    from hpcmr.ops.join import Join
    from hpcmr.plan.nodes import Pair

    big = arrays(world).persist(key="k")
    small = arrays(world, slice(0, 40)).group_by("k").agg(first=mr.first("x"))
    got(big)
    node = Pair("join", "", big._node, small._node, Join(("k",), ("k",), "inner", broadcast_nbytes=-1))
    n = len(sent(world))
    joined = got(big._on(node))
    if world.rank == 0 and world.size > 1:
        assert sent(world)[-3] < 200 < max(sent(world)[n:])      # the left side; the groups of the right one travel
    firsts = {int(k): float(X[i]) for i, k in reversed(list(enumerate(K[:40])))}
    assert sorted(joined["x"]) == sorted(float(x) for k, x in zip(K, X, strict=True) if int(k) in firsts)
    assert all(firsts[k] == f for k, f in zip(joined["k"], joined["first"], strict=True))
    big.unpersist()


# ---- broadcast -------------------------------------------------------------------------------------------------------


def test_a_small_table_inside_functions(world: Any) -> None:
    means = arrays(world).group_by("k").agg(mean=mr.mean("x")).broadcast()
    assert means.rows == len(np.unique(K)) and set(means) == {"k", "mean"} and "2 rows" not in repr(means)
    order = np.argsort(means["k"])
    keys, values = means["k"][order], means["mean"][order]
    with pytest.raises(ValueError, match="read-only"):
        means["mean"][0] = 1.0
    with pytest.raises(KeyError, match="no column 'nope'"):
        means["nope"]

    @mr.batch
    def centred(cols: Any) -> Any:
        return {"y": cols.x - values[np.searchsorted(keys, cols.k)]}

    want = X - np.array([values[np.searchsorted(keys, k)] for k in K])
    assert got(arrays(world).map(centred))["y"] == want.tolist()


# ---- iterate ---------------------------------------------------------------------------------------------------------


def test_a_fixed_count(world: Any) -> None:
    taken = session(world).memory.taken_nbytes
    last = mr.iterate(arrays(world).select("k", "x"), lambda t: t.with_columns(x=mr.col("x") / 2), count=5)
    assert got(last)["x"] == (X / 32).tolist()
    last.unpersist()
    assert session(world).memory.taken_nbytes == taken
    assert got(mr.iterate(arrays(world), lambda t: t, count=0))["x"] == X.tolist()


def test_until_a_reduced_value_says_so(world: Any) -> None:
    def step(state: Any) -> Any:
        table, low = state
        smaller = table.filter(mr.col("k") > low)
        least = smaller.reduce(lambda a, b: a if a.k < b.k else b)
        return smaller, int(least.k)

    asked: list[int] = []

    def until(before: Any, after: Any) -> bool:
        asked.append(after[1])
        return world.rank == 0 and bool(after[1] >= -25)

    table, low = mr.iterate((arrays(world).select("k", "x"), -31), step, until=until, count=100)
    assert low == -25 and len(asked) == 6
    assert got(table)["x"] == X[K > -26].tolist()


def test_plans_do_not_grow_with_the_number_of_steps(world: Any) -> None:
    def step(t: mr.Table) -> mr.Table:
        return t.union(t.filter(mr.col("k") > 100)).group_by("k").agg(x=mr.sum("x"))

    last = mr.iterate(arrays(world).group_by("k").agg(x=mr.sum("x")), step, count=30)
    assert len(last.explain().splitlines()) < 5
    import math

    found = got(last)
    assert all(x == math.fsum(X[K == k]) for k, x in zip(found["k"], found["x"], strict=True))


def test_iterations_that_cannot_be(world: Any) -> None:
    with pytest.raises(JobSpecError, match="count=N, or until"):
        mr.iterate(arrays(world), lambda t: t)
    with pytest.raises(JobSpecError, match="was given Table and returned int"):
        mr.iterate(arrays(world), lambda t: 3, count=2)     # type: ignore[arg-type, return-value]
