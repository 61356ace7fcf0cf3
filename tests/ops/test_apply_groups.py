"""Functions of the user's over the rows of a group: apply, order_by, blocks of a group that does not fit, fold and apply as aggregates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.api.aggregates import apply as apply_agg
from hpcmr.api.aggregates import fold as fold_agg
from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import FunctionError, JobSpecError, MemoryTooSmall
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.apply_groups import ApplyGroups
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import batch_function, kernel_function
from hpcmr.ops.group_agg import aggregation
from tests.support.small_engine import Context, cut, run

VARIANTS = [{}, {"ranks": 3}, {"ranks": 2, "seal_every": 1}, {"seal_every": 2, "partitions": 1}]


def data(n: int = 80, seed: int = 1) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    names = ["", "a", "b" * 30, None, "c"]
    return {"k": [names[int(i)] for i in rng.integers(0, len(names), n)], "t": [None if v == 3 else float(v) for v in rng.integers(0, 6, n)],
            "v": [float(v) for v in rng.normal(size=n)]}


def groups_of(rows: dict[str, list[Any]]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for i, k in enumerate(rows["k"]):
        found.setdefault(k, []).append(i)
    return found


def by_time(rows: dict[str, list[Any]], where: list[int], descending: bool) -> list[int]:
    some = [i for i in where if rows["t"][i] is not None]
    return sorted(some, key=lambda i: -rows["t"][i] if descending else rows["t"][i]) + [i for i in where if rows["t"][i] is None]


def two_rows(cols: Any) -> dict[str, Any]:
    return {"n": np.full(2, cols.nrows), "v": np.array([cols.v[0], cols.v[-1]])}


def spread(key: Any, rows: list[Any]) -> dict[str, Any]:
    return {"n": len(rows), "first": rows[0].v, "last": rows[-1].v}


def each(key: Any, rows: list[Any]) -> Iterator[float]:
    for r in rows:
        yield r.v


def in_blocks(blocks: Iterable[Any]) -> Iterator[dict[str, Any]]:
    before = 0
    for cols in blocks:
        yield {"v": cols["v"], "row": np.arange(before, before + cols.nrows)}
        before += cols.nrows


def some_of(key: Any, blocks: Iterable[list[Any]]) -> float:
    return next(iter(blocks))[0].v


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("descending", [None, False, True])
def test_all_kinds_of_functions(descending: bool | None, variant: dict[str, Any]) -> None:
    rows = data()
    expected = {k: w if descending is None else by_time(rows, w, descending) for k, w in groups_of(rows).items()}
    options: dict[str, Any] = {} if descending is None else {"order_by": ("t",), "descending": descending}
    parts = cut(rows, 4)

    def made(function: Any, **more: Any) -> dict[Any, list[Any]]:
        out = run(lambda: ApplyGroups(("k",), function, **options, **more), parts, **variant).to_pydict()
        found: dict[Any, list[Any]] = {}
        for key, *values in zip(*out.values(), strict=True):
            found.setdefault(key, []).append(tuple(values))
        return found

    v = {k: [rows["v"][i] for i in w] for k, w in expected.items()}
    assert made(batch_function(two_rows)) == {k: [(len(x), x[0]), (len(x), x[-1])] for k, x in v.items()}
    assert made(spread) == {k: [(len(x), x[0], x[-1])] for k, x in v.items()}
    assert made(each) == {k: [(y,) for y in x] for k, x in v.items()}
    assert made(batch_function(in_blocks), blocks=True) == {k: [(y, i) for i, y in enumerate(x)] for k, x in v.items()}
    assert made(some_of, blocks=True, out={"x": "float64"}) == {k: [(x[0],)] for k, x in v.items()}


class Spool:
    """Scratch in memory, that counts."""

    def __init__(self) -> None:
        self.kept: dict[int, Batch] = {}
        self.made = 0

    def put(self, batch: Batch) -> int:
        self.made += 1
        self.kept[self.made] = batch.take(np.arange(batch.nrows))
        return self.made

    def get(self, handle: int) -> Batch:
        return self.kept[handle]

    def drop(self, handle: int) -> None:
        del self.kept[handle]


class Small(Context):
    """A stage with little memory, which it keeps."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(1)
        self.limit, self.most, self.spool = nbytes, 0, Spool()

    def take(self, nbytes: int, what: str) -> None:
        super().take(nbytes, what)
        if self.taken > self.limit:
            raise MemoryTooSmall(what)
        self.most = max(self.most, self.taken)

    def available(self) -> int:
        return max(0, self.limit - self.taken)


@pytest.mark.parametrize("order_by", [(), ("t",), ("t", "name")])
def test_a_group_larger_than_memory_comes_in_blocks(order_by: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    n = 60_000
    k = np.where(rng.random(n) < 0.9, 5, rng.integers(0, 9, n))
    t = rng.integers(0, 40, n).astype(float)
    t[rng.integers(0, n, 50)] = math.nan
    name = ["x" * int(i) for i in rng.integers(20, 40, n)]
    whole = Batch.of({"k": k, "t": t, "name": name, "row": np.arange(n)})
    budget = 1_300_000
    assert whole.nbytes > 3 * budget

    def seen(blocks: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for cols in blocks:
            yield {"row": cols["row"]}

    op = ApplyGroups(("k",), batch_function(seen), order_by, True, blocks=True, out={"row": "int64"})
    op.bind(whole.schema)
    sealing = Context(1)
    op.open(sealing, None)
    parts = []
    for a in range(0, n, 3000):
        op.consume(whole.slice(a, a + 3000), Origin(a // 20000, a % 20000))
        parts.append(op.seal())
    ctx = Small(budget)
    op.close()
    op.open(ctx, None)

    def read(limit: int) -> Iterator[Partitioned]:
        for part in parts:
            step = max(1, part.batch.nrows * limit // part.batch.nbytes)
            for a in range(0, part.batch.nrows, step):
                piece = part.batch.slice(a, a + step)
                yield Partitioned(piece, np.array([0, piece.nrows]))

    op.bring(0, whole.nbytes, read)
    assert ctx.spool.made > 10
    got = [b.take(np.arange(b.nrows)) for b in op.finish_blocks(0)]
    assert ctx.taken == 0 and not ctx.spool.kept and op.rows_out == n
    keys = [-t if "t" in order_by else np.zeros(n)]
    if "name" in order_by:
        keys.append(-np.array([len(s) for s in name]))
    order = np.lexsort((np.arange(n), *keys[::-1], k))
    assert np.concatenate([b["row"].values for b in got]).tolist() == order.tolist()
    assert np.concatenate([b["k"].values for b in got]).tolist() == k[order].tolist()

    op = ApplyGroups(("k",), batch_function(lambda cols: {"n": cols.nrows}), order_by, out={"n": "int64"})
    op.bind(whole.schema)
    ctx = Small(budget)
    op.open(ctx, None)
    op.bring(0, whole.nbytes, read)
    with pytest.raises(MemoryTooSmall, match=r"key 5 has .*blocks=True"):
        list(op.finish_blocks(0))
    op.close()
    assert not ctx.spool.kept


def weighted(x, w):
    s = 0.0
    for i in range(len(x)):
        s += x[i] * w[i]
    return s / w.sum()


def larger(a, b):
    return a if abs(a) > abs(b) else b


def minus(a, b):
    return 0.5 * a - b


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["kernel", "plain"])
def test_functions_as_aggregates(kind: str, variant: dict[str, Any]) -> None:
    rows = data(90, 5)
    as_kind = kernel_function if kind == "kernel" else (lambda f: f)
    aggs = (apply_agg(as_kind(weighted), "v", "t", name="w"), fold_agg("v", as_kind(larger), exact=True, name="l"),
            fold_agg("t", as_kind(minus), name="m"), Agg("sum", "v", "s"), Agg("median", "v", "q"))
    splits = 4
    out = run(lambda: aggregation(("k",), aggs), cut(rows, splits), **variant).to_pydict()
    n = len(rows["k"])
    bounds = [n * s // splits for s in range(splits + 1)]
    assert set(out["k"]) == set(rows["k"])
    for g, key in enumerate(out["k"]):
        where = groups_of(rows)[key]
        both = [i for i in where if rows["t"][i] is not None]
        v, t = np.array([rows["v"][i] for i in both]), np.array([rows["t"][i] for i in both])
        want = weighted(v, t) if both else None
        assert out["w"][g] == want or (math.isnan(want) and math.isnan(out["w"][g]))
        assert out["s"][g] == math.fsum(rows["v"][i] for i in where) and out["q"][g] == np.median([rows["v"][i] for i in where])
        most = rows["v"][where[0]]
        for i in where[1:]:
            most = larger(most, rows["v"][i])
        assert out["l"][g] == most
        partial = []
        for a, b in itertools.pairwise(bounds):
            mine = [rows["t"][i] for i in both if a <= i < b]
            for j, x in enumerate(mine):
                partial[len(partial) - (j > 0):] = [minus(partial[-1], x) if j else x]
        total = partial[0] if partial else None
        for x in partial[1:]:
            total = minus(total, x)
        assert out["m"][g] == total


def test_an_aggregate_of_a_sorted_group() -> None:
    rows = data(70, 2)
    aggs = (Agg("first", "v", "a"), Agg("last", "v", "z"), Agg("list", "v", "l"), Agg("count", None, "n"), Agg("first", "t", "t"))
    out = run(lambda: aggregation(("k",), aggs, ("t",), True), cut(rows, 3), ranks=2).to_pydict()
    for g, key in enumerate(out["k"]):
        order = by_time(rows, groups_of(rows)[key], True)
        assert out["l"][g] == [rows["v"][i] for i in order] and out["n"][g] == len(order)
        assert (out["a"][g], out["z"][g], out["t"][g]) == (rows["v"][order[0]], rows["v"][order[-1]], rows["t"][order[0]])


def test_errors_are_clear() -> None:
    parts = cut({"k": [1, 1, 2], "v": [1.0, 2.0, 3.0]}, 1)
    schema = parts[0][0].schema

    def wrong(cols: Any) -> Any:
        return {"a": [1, 2], "b": [1]}

    with pytest.raises(FunctionError, match=r"unequal length, for key [12]"):
        run(lambda: ApplyGroups(("k",), batch_function(wrong), out={"a": "int64", "b": "int64"}), parts)
    with pytest.raises(FunctionError, match=r"ZeroDivisionError.*for key [12]") as caught:
        run(lambda: ApplyGroups(("k",), lambda key, rows: 1 // 0, out={"a": "int64"}), parts)
    assert "test_apply_groups.py" in str(caught.value)
    with pytest.raises(FunctionError, match="dict of arrays"):
        run(lambda: ApplyGroups(("k",), batch_function(lambda cols: 3), out={"a": "int64"}), parts)
    with pytest.raises(JobSpecError, match="an aggregate"):
        ApplyGroups(("k",), kernel_function(weighted))
    with pytest.raises(JobSpecError, match="key of the group"):
        ApplyGroups(("k",), spread, out={"k": "int64"}).bind(schema)
    with pytest.raises(JobSpecError, match="did you mean"):
        ApplyGroups(("k",), spread, ("vv",)).bind(schema)
    with pytest.raises(FunctionError, match="given 1 array"):
        op = aggregation(("k",), (apply_agg(kernel_function(weighted), "v"),))
        op.bind(schema)
        op.compile()
    with pytest.raises(JobSpecError, match="is a number"):
        aggregation(("k",), (apply_agg(weighted, "v", "v", out="text"),))


@pytest.mark.mpi
def test_on_ranks(subworld: Any) -> None:
    rows = data(120, 9)
    n, r, size = 120, subworld.rank, subworld.size
    mine = Batch.of(rows).slice(n * r // size, n * (r + 1) // size)
    table = mr.from_arrays(getattr(subworld, "comm", None), mine.columns)
    out = table.group_by("k", order_by="t", descending=True).apply(mr.batch(two_rows)).collect().batch.to_pydict()
    again = table.group_by("k", order_by="t", descending=True).agg(mr.list("v"), mr.fold("v", larger), mr.apply(mr.kernel(weighted), "v", "t"))
    lists = again.collect().batch.to_pydict()
    expected = {k: [rows["v"][i] for i in by_time(rows, w, True)] for k, w in groups_of(rows).items()}
    assert dict(zip(lists["k"], lists["v_list"], strict=True)) == expected
    assert out["n"] == [len(expected[k]) for k in out["k"]] and len(out["n"]) == 2 * len(expected)
    assert out["v"] == [x for k in lists["k"] for x in (expected[k][0], expected[k][-1])]
    assert lists["v_fold"] == [max(expected[k], key=abs) for k in lists["k"]]
