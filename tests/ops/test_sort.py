"""Sorting against plain comparison and NumPy: every kind of column, every direction, however rows are cut, sealed and spread over ranks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn
from hpcmr.data.sort_keys import SortLayout, nulls_in, order_of
from hpcmr.errors import JobSpecError
from hpcmr.ops.sort import Sort
from tests.support.small_engine import Splits
from tests.support.survey_engine import run

STRINGS = [b"", b"a", b"a\0", b"ab", b"\xff" * 23, b"x" * 23, b"x" * 24, b"x" * 24 + b"a", b"x" * 60, b"x" * 60 + b"\0",
           b"a hundred bytes", b"\xff\xfe"]
KEYS = [["i64"], ["b", "i64"], ["f"], ["f", "s"], ["s"], ["s", "f"], ["t", "s"], ["S", "i8"], ["raw"], ["d", "n"], ["n", "i8", "u16", "f4"],
        ["b", "i8", "s", "i64"], ["same"], ["u8"]]


def rows(n: int, seed: int = 0) -> Batch:
    """Columns of all kinds, with repeats, NaN, -0.0, nulls and strings that only differ far behind."""
    rng = np.random.default_rng([n, seed])
    return Batch.of({
        "i8": rng.integers(-3, 3, n).astype(np.int8), "i64": rng.integers(-2**62, 2**62, n), "u16": rng.integers(0, 5, n).astype(np.uint16),
        "u8": rng.integers(0, 2**64, n, np.uint64), "b": rng.integers(0, 2, n).astype(bool), "same": np.full(n, 7),
        "f": rng.choice([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1.5, -2.5, 5e-324], n), "f4": rng.normal(size=n).astype(np.float32),
        "s": BytesColumn.from_list([STRINGS[i] for i in rng.integers(0, len(STRINGS), n)], False),
        "t": BytesColumn.from_list([["a", "b", "ü", None, "long" * 20][i] for i in rng.integers(0, 5, n)], True),
        "S": np.array([STRINGS[i][:11] for i in rng.integers(0, len(STRINGS), n)], "S11") if n else np.zeros(0, "S11"),
        "raw": rng.integers(0, 2, (n, 30)).astype(np.uint8) * (rng.random(n) < 0.5)[:, None].astype(np.uint8),
        "d": rng.integers(-5, 5, n).astype("datetime64[s]"), "n": FixedColumn(rng.integers(0, 4, n), rng.integers(0, 3, n) > 0),
        "l": ListColumn(np.arange(n), np.arange(n) + rng.integers(0, 2, n), FixedColumn(rng.integers(0, 9, n + 1))),
        "pos": rng.random((n, 3)), "p": np.arange(n)})


def compared(a: Any, b: Any, down: bool) -> int:
    """Numbers, then NaN, then nulls, whichever way."""
    ranks = [2 if v is None else int(v != v) for v in (a, b)]
    if ranks[0] != ranks[1]:
        return ranks[0] - ranks[1]
    if ranks[0] or a == b:
        return 0
    return (1 if a > b else -1) * (-1 if down else 1)


def expected(batch: Batch, names: list[str], descending: list[bool]) -> list[int]:
    """The order by plain comparison."""
    def values(name: str) -> list[Any]:
        column = batch[name]
        if name == "raw":
            return [bytes(r) for r in column.values]
        if name == "d":
            return column.values.view(np.int64).tolist()
        return [v.encode() if isinstance(v, str) else v for v in column.to_list()]

    columns = [values(n) for n in names]

    def by(i: int, j: int) -> int:
        return next((c for c in (compared(v[i], v[j], d) for v, d in zip(columns, descending, strict=True)) if c), 0)

    return sorted(range(batch.nrows), key=functools.cmp_to_key(by))


def directions(names: list[str], seed: int) -> list[bool]:
    return [bool(x) for x in np.random.default_rng([len(names), seed, sum(map(ord, "".join(names)))]).integers(0, 2, len(names))]


def identical(a: Batch, b: Batch) -> bool:
    """The same bits, nulls apart."""
    assert a.schema == b.schema and a.nrows == b.nrows
    for name in a.names:
        x, y = a[name], b[name]
        if isinstance(x, FixedColumn) and x.valid is None and y.valid is None:
            if x.values.tobytes() != y.values.tobytes():
                return False
        elif repr(x.to_list()) != repr(y.to_list()):
            return False
    return True


def cut(batch: Batch, splits: int, batches: int) -> Splits:
    out = []
    for a, b in itertools.pairwise(np.linspace(0, batch.nrows, splits + 1).astype(int).tolist()):
        cuts = np.linspace(a, b, batches + 1).astype(int).tolist()
        out.append([batch.slice(i, j) for i, j in itertools.pairwise(cuts)])
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 60, 700])
def test_order_of_a_batch(n: int) -> None:
    batch = rows(n)
    for names in KEYS:
        for seed in range(2):
            down = directions(names, seed)
            layout = SortLayout.of(batch.schema, names, down, nulls_in(batch, names))
            assert order_of(batch, layout).tolist() == expected(batch, names, down), (names, down)


def test_equal_rows_follow_their_origin() -> None:
    batch = rows(500)
    origin = np.random.default_rng(1).permutation(500).astype(np.uint64)
    order = order_of(batch, SortLayout.of(batch.schema, ["i8"]), origin)
    assert order.tolist() == np.lexsort((origin, batch["i8"].values)).tolist()


@pytest.mark.parametrize(("n", "partitions", "ranks", "seals"), [(1, 4, 2, 1), (300, 1, 1, 1), (3000, 8, 1, 1), (3000, 16, 3, 2), (20000, 16, 2, 3)])
def test_sort_of_all_kinds(n: int, partitions: int, ranks: int, seals: int) -> None:
    whole = rows(n)
    for i, names in enumerate(KEYS):
        extra = [["p"], ["i8", "u16", "n"], ["l", "s", "p"], ["t", "pos"], []][i % 5]
        batch = whole.select([*(e for e in extra if e not in names), *names])
        down = directions(names, 1)
        want = batch.take(order_of(batch, SortLayout.of(batch.schema, names, down, nulls_in(batch, names))))
        found = run(functools.partial(Sort, names, down), cut(batch, 5, 3), partitions, ranks, seals)
        assert identical(Batch.concat([f for f in found if f.nrows]), want), (names, down)


def test_hidden_columns_are_sorted_by() -> None:
    batch = rows(2000).select(["p", "s", "f", "raw"])
    for hidden in (["f"], ["s"], ["raw"]):
        found = Batch.concat(run(functools.partial(Sort, hidden, False, hidden), cut(batch, 3, 2), 4, 2))
        order = order_of(batch, SortLayout.of(batch.schema, hidden))
        assert found.names == tuple(n for n in batch.names if n not in hidden)
        assert found["p"].values.tolist() == order.tolist()


SPREADS = {"all equal": lambda n, rng: np.zeros(n, np.int64), "two values": lambda n, rng: rng.integers(0, 2, n),
           "sorted": lambda n, rng: np.arange(n), "Zipf": lambda n, rng: rng.zipf(1.3, n) % 10**6,
           "reversed": lambda n, rng: np.arange(n)[::-1].copy(), "lognormal": lambda n, rng: rng.lognormal(0, 5, n),
           "even": lambda n, rng: rng.integers(0, 2**62, n)}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("mean", [1000, 9000])
def test_partitions_are_of_one_size(spread: str, mean: int) -> None:
    partitions = 32
    n = partitions * mean
    batch = Batch.of({"k": SPREADS[spread](n, np.random.default_rng(3)), "p": np.arange(n)})
    one, two = (run(functools.partial(Sort, ["k"]), cut(batch, 7, 4), partitions, ranks, 2) for ranks in (1, 2))
    sizes = [f.nrows for f in one]
    assert max(sizes) <= 1.1 * mean and min(sizes) >= 0.9 * mean
    assert sizes == [f.nrows for f in two]
    order = np.argsort(batch["k"].values, kind="stable")
    for found in (one, two):
        assert (np.concatenate([f["p"].values for f in found]) == order).all()


@pytest.mark.mpi
@pytest.mark.parametrize("n", [0, 1, 5, 3000])
def test_on_ranks(subworld: Any, n: int) -> None:
    whole = rows(n, 4)
    r, size = subworld.rank, subworld.size
    first = 0 if n < 10 else n // 3                        # rank 0 has the more, or nothing
    cuts = [0, *(first + (n - first) * i // max(1, size - 1) for i in range(size))] if size > 1 else [0, n]
    a, b = cuts[r:r + 2]
    comm = getattr(subworld, "comm", None)
    for names, extra in ((["i64"], ["p"]), (["t", "f"], ["p", "pos", "l"]), (["raw", "n"], ["s"]), (["same"], ["p"])):
        batch = whole.select([*names, *extra])
        down = directions(names, 0)
        table = mr.from_arrays(comm, batch.slice(a, b).columns)
        order = order_of(batch, SortLayout.of(batch.schema, names, down, nulls_in(batch, names)))
        if n <= 5:
            assert order.tolist() == expected(batch, names, down)
        found = table.sort_by(*names, descending=down).collect().batch
        assert identical(found, batch.take(order))
        in_parts = table._keyed("sort", Sort(names, down), 8).collect().batch
        assert identical(in_parts, found)
        for k in (0, 1, 7, n + 3):
            assert identical(table.top_k(k, by=names, descending=down).collect().batch, batch.take(order[:k]))


@pytest.mark.mpi
def test_expressions_are_sorted_by(world: Any) -> None:
    n = 100
    a, b = n * world.rank // world.size, n * (world.rank + 1) // world.size
    x = np.random.default_rng(0).integers(-50, 50, n)
    table = mr.from_arrays(world.comm if world.size > 1 else None, {"x": x[a:b]})
    found = table.sort_by(mr.col("x") % 7, "x", descending=[False, True]).collect()
    assert found.batch.names == ("x",)
    assert found.batch["x"].values.tolist() == x[np.lexsort((-x, x % 7))].tolist()
    assert table.top_k(3, by=-mr.col("x")).collect().batch["x"].values.tolist() == np.sort(x)[:3].tolist()


def test_what_cannot_be_sorted_by() -> None:
    table = mr.from_arrays(None, {"x": np.zeros(3), "pos": np.zeros((3, 2)), "z": np.zeros(3, complex)})
    with pytest.raises(JobSpecError, match="sort_by takes names"):
        table.sort_by()
    with pytest.raises(JobSpecError, match="descending has 2 values for 1 column"):
        table.sort_by("x", descending=[True, False])
    with pytest.raises(JobSpecError, match="descending = 'x'"):
        table.sort_by("x", descending="x")  # type: ignore[arg-type]
    with pytest.raises(JobSpecError, match="top_k"):
        table.top_k(-1, by="x")
    for name, message in (("pos", "cannot be sorted by"), ("z", "cannot be sorted by"), ("y", "there is no column 'y'")):
        with pytest.raises(JobSpecError, match=message):
            table.sort_by(name).collect()
