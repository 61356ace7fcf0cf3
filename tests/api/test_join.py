"""Table.join on ranks: the same rows in the same order on any number of them, both ways, and what explain and the log say."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.data.batch import Batch
from hpcmr.errors import JobSpecError
from hpcmr.ops.collect import Collect
from hpcmr.ops.join_keys import HOWS
from hpcmr.run.session import Session
from tests.ops.test_join import by_partition, oracle, rows_of, skewed

pytestmark = pytest.mark.mpi


def on_ranks(world: Any, batch: Batch) -> mr.Table:
    """The rows of a batch, an uneven share on each rank."""
    cuts = [0, *(batch.nrows * (r * r + r) // (world.size * world.size + world.size) for r in range(1, world.size + 1))]
    mine = batch.slice(cuts[world.rank], cuts[world.rank + 1])
    return mr.from_arrays(world.comm, mine.columns)


def result(table: mr.Table) -> list[dict[str, Any]]:
    found = table.collect()
    assert found is not None
    return rows_of(found.batch)


@pytest.mark.parametrize("way", ["broadcast", "shuffle"])
def test_the_same_rows_in_the_same_order_on_any_number_of_ranks(subworld: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "shuffle":
        monkeypatch.setattr("hpcmr.ops.join.BROADCAST_NBYTES", 0)
    rng = random.Random(11)
    left, right = skewed(rng, 500, {7: 0.2, None: 0.3}, 60), skewed(rng, 300, {7: 0.05, None: 0.1}, 80)
    for how in HOWS:
        expected = oracle(rows_of(left), rows_of(right), ["k"], how)
        if way == "shuffle" or how in ("right", "outer"):
            expected = by_partition(expected, ["k"], left.select(["k"]), 1)
        assert result(on_ranks(subworld, left).join(on_ranks(subworld, right), on="k", how=how)) == expected


def test_hot_keys_on_ranks(subworld: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcmr.ops.join.BROADCAST_NBYTES", 0)
    monkeypatch.setattr("hpcmr.data.partitioning.PARTITION_NBYTES", 2048)
    rng = random.Random(12)
    left, right = skewed(rng, 2000, {7: 0.4}, 300), skewed(rng, 700, {9: 0.3, 7: 0.31}, 300)
    for how in ("inner", "outer"):
        expected = sorted(map(str, oracle(rows_of(left), rows_of(right), ["k"], how)))
        found = result(on_ranks(subworld, left).join(on_ranks(subworld, right), on="k", how=how))
        assert sorted(map(str, found)) == expected
        first = subworld.bcast(found, 0)
        assert found == first
    grouped = on_ranks(subworld, left).join(on_ranks(subworld, right), on="k").group_by("k").agg(n=mr.count(), s=mr.sum("v_right"))
    pairs = oracle(rows_of(left), rows_of(right), ["k"], "inner")
    sums: dict[int, list[int]] = {}
    for p in pairs:
        sums.setdefault(p["k"], []).append(p["v_right"])
    assert {r["k"]: (r["n"], r["s"]) for r in result(grouped)} == {k: (len(v), sum(v)) for k, v in sums.items()}


def test_a_side_without_rows_and_a_join_of_a_join(world: Any) -> None:
    a = Batch.of({"id": np.arange(20), "x": np.arange(20) / 7})
    b = Batch.of({"ident": np.arange(0, 40, 2), "y": np.arange(20)})
    none = on_ranks(world, b).filter(mr.col("y") > 100)
    left = on_ranks(world, a)
    assert result(left.join(none, left_on="id", right_on="ident")) == []
    assert [r["y"] for r in result(left.join(none, left_on="id", right_on="ident", how="left"))] == [None] * 20
    assert len(result(left.join(none, left_on="id", right_on="ident", how="outer"))) == 20
    twice = left.join(on_ranks(world, b), left_on="id", right_on="ident").join(left.rename(x="z"), on="id").with_columns(d=mr.col("x") - mr.col("z"))
    assert [(r["id"], r["y"], r["d"]) for r in result(twice)] == [(i, i // 2, 0.0) for i in range(0, 20, 2)]


def test_a_join_that_explodes_obeys_the_memory_limit(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 3000
    left, right = Batch.of({"k": np.arange(n) % 3, "v": np.arange(n)}), Batch.of({"k": np.arange(n) % 3, "w": np.arange(n)})
    for limit in (1 << 30, 0):
        monkeypatch.setattr("hpcmr.ops.join.BROADCAST_NBYTES", limit)
        table = on_ranks(world, left).join(on_ranks(world, right), on="k").group_by("k").agg(n=mr.count())
        got = Session(world, memory="64MiB").execute(table._node, Collect(None))
        assert sum(got["n"].to_list()) == n * n // 3        # 3 million rows of 24 bytes


def test_what_is_said(world: Any) -> None:
    a, b = mr.from_arrays(world.comm, {"k": np.arange(3)}), mr.from_arrays(world.comm, {"k": np.arange(3), "w": np.arange(3)})
    text = a.join(b, on="k").explain()
    assert "broadcast if the right side has up to 128 MiB: in the order of the left rows, then of the right ones" in text
    assert "shuffle, as any outer join: in key order within partitions" in a.join(b, on="k", how="outer").explain()
    for bad in ({}, {"on": "k", "left_on": "k"}, {"left_on": "k"}):
        with pytest.raises(JobSpecError, match="name the key columns"):
            a.join(b, **bad)
    with pytest.raises(JobSpecError, match="the right side is a table"):
        a.join("b", on="k")  # type: ignore[arg-type]
    with pytest.raises(JobSpecError, match="the left side has no column 'x'"):
        a.join(b, on="x").collect()
