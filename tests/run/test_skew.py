"""One key with nine rows of ten: every keyed verb gives the right rows, and no rank carries more than it must."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.run.feed import PartitionFeed
from hpcmr.run.session import Session

pytestmark = pytest.mark.mpi

ROWS, OTHERS, HOT = 40_000, 2000, 1007
RNG = np.random.default_rng(90)
KEYS = np.where(RNG.random(ROWS) < 0.9, HOT, RNG.integers(0, OTHERS, ROWS))
VALUES = RNG.standard_normal(ROWS) * 10.0 ** RNG.integers(-9, 9, ROWS)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows that this rank made of the partitions that it owns, by operator; partitions are small, so that there are many."""
    rows: Counter[str] = Counter()
    read = PartitionFeed.read

    def counted(self: PartitionFeed, piece: int) -> Any:
        for batch in read(self, piece):
            rows[self.operator.name] += batch.nrows
            yield batch

    monkeypatch.setattr(PartitionFeed, "read", counted)
    monkeypatch.setattr("hpcmr.data.partitioning.PARTITION_NBYTES", 1 << 13)
    return rows


def table(world: Any, keys: Any = KEYS, values: Any = VALUES) -> Any:
    """Each rank has a stretch of the rows."""
    a, b = (len(keys) * (world.rank + i) // world.size for i in (0, 1))
    return mr.from_arrays(getattr(world, "comm", None), {"k": keys[a:b], "v": values[a:b]})


def collected(world: Any, rows: Any) -> dict[str, Any]:
    with Session(world):
        found = rows.collect()
        return {name: found[name] for name in found.batch.names}


def shares(world: Any, done: Counter[str], name: str) -> Any:
    """Rows of each rank, as multiples of the mean."""
    rows = np.array(world.allgather(done[name]), np.float64)
    assert rows.sum() > 0
    return rows / rows.mean()


def sums() -> dict[int, tuple[int, float]]:
    return {int(k): (int((KEYS == k).sum()), math.fsum(VALUES[KEYS == k])) for k in np.unique(KEYS)}


@pytest.mark.parametrize("way", ["direct", "hot", "radix", "raw"])
def test_group_by(world: Any, done: Counter[str], monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    chosen = []
    monkeypatch.setattr("hpcmr.ops.aggregate.Aggregate._choose", lambda *_: chosen.append(way) or way)
    monkeypatch.setattr("hpcmr.ops.aggregate.HOT_SLOTS", 64)
    found = collected(world, table(world).group_by("k").agg(n=mr.count(), s=mr.sum("v")))
    assert chosen
    assert dict(zip(found["k"].tolist(), zip(found["n"].tolist(), found["s"].tolist(), strict=True), strict=True)) == sums()
    if way != "raw":                     # combined before they travel: the hot key is a state as any other
        assert shares(world, done, "aggregate").max() < 1.4
    elif world.size > 1:                 # all its rows go to one rank, which gets next to nothing else
        assert shares(world, done, "aggregate").min() < 0.3


@pytest.mark.parametrize("kernel", [False, True])
def test_reduce_by_key(world: Any, done: Counter[str], kernel: bool) -> None:
    f = mr.kernel(lambda a, b: a + b) if kernel else lambda a, b: a + b
    ones = np.ones(ROWS, np.int64)
    found = collected(world, table(world, values=ones).reduce_by_key(f, key="k"))
    assert dict(zip(found["k"].tolist(), found["v"].tolist(), strict=True)) == {k: n for k, (n, _) in sums().items()}
    assert shares(world, done, "reduce_by_key").max() < 1.4


def test_sort_by(world: Any, done: Counter[str]) -> None:
    found = collected(world, table(world).sort_by("k"))
    order = np.argsort(KEYS, kind="stable")
    assert (found["k"] == KEYS[order]).all() and (found["v"] == VALUES[order]).all()
    assert shares(world, done, "sort").max() < 1.15


@pytest.mark.parametrize("how", ["inner", "left"])
def test_join(world: Any, done: Counter[str], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("hpcmr.ops.join.BROADCAST_NBYTES", 0)
    keys = np.arange(0, OTHERS, 3) if how == "left" else np.concatenate([np.arange(0, OTHERS), [HOT]])
    right = table(world, keys, np.arange(len(keys)) / 7)
    found = collected(world, table(world).join(right, on="k", how=how))
    wanted: Counter[tuple[Any, ...]] = Counter()
    for k, v in zip(KEYS.tolist(), VALUES.tolist(), strict=True):
        for at in np.flatnonzero(keys == k).tolist() or ([None] if how == "left" else []):
            wanted[k, v, None if at is None else at / 7] += 1
    assert Counter(zip(found["k"].tolist(), found["v"].tolist(), found["v_right"].tolist(), strict=True)) == wanted
    assert shares(world, done, "join").max() <= 1.5
