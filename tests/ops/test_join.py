"""join against plain Python: all hows, key types, duplicates and nulls, both ways, however the input is cut and spread over ranks."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.partitioning import Partitioned, owner_bounds, partition_bits
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.join import Join
from hpcmr.ops.join_keys import HOWS
from hpcmr.ops.keyed_rows import owned
from tests.support.small_engine import Context, reused, spoil

Row = dict[str, Any]
LONG = "a string of more than twenty-three bytes, number "


# ---- the oracle ----------------------------------------------------------------------------------------------------------


def same(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keys that count as equal are equal as this."""
    return tuple("nan" if isinstance(k, float) and k != k else k + 0.0 if isinstance(k, float) else k for k in key)


def oracle(left: list[Row], right: list[Row], on: list[str], how: str) -> list[Row]:
    """The joined rows in the order of the left rows, then the right ones; rows without a left one last, in right order."""
    names = [n for n in (right[0] if right else {}) if n not in on]
    places: dict[Any, list[int]] = {}
    for i, r in enumerate(right):
        if all(r[k] is not None for k in on):
            places.setdefault(same(tuple(r[k] for k in on)), []).append(i)
    out, met = [], set()
    new = {n: f"{n}_right" if left and n in left[0] else n for n in names}
    for row in left:
        key = tuple(row[k] for k in on)
        found = places.get(same(key), []) if None not in key else []
        met.update(found)
        if how in ("semi", "anti"):
            out += [row] if bool(found) == (how == "semi") else []
            continue
        out += [{**row, **{new[n]: right[i][n] for n in names}} for i in found]
        if not found and how in ("left", "outer"):
            out.append({**row, **{new[n]: None for n in names}})
    if how in ("right", "outer"):
        blank = dict.fromkeys(left[0] if left else on)
        out += [{**blank, **{k: r[k] for k in on}, **{new[n]: r[n] for n in names}} for i, r in enumerate(right) if i not in met]
    return out


def by_partition(rows: list[Row], on: list[str], kinds: Batch, partitions: int) -> list[Row]:
    """The same rows as a shuffled join gives them: by partition, by key, and otherwise as they come."""
    if not rows:
        return rows
    keys = Batch({k: typed([r[k] for r in rows], kinds[k]) for k in on})
    hashes = encode_keys(keys, KeyLayout.of(keys.schema, tuple(on)).for_batches(keys)).hashes
    bits = partition_bits(partitions)
    place = (hashes >> np.uint64(64 - bits)).tolist() if bits else [0] * len(rows)

    def rank(value: Any) -> Any:
        if value is None:
            return (2, 0)
        if isinstance(value, float) and value != value:
            return (1, 0)
        return (0, value.encode() if isinstance(value, str) else value)

    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (place[i], [rank(rows[i][k]) for k in on]))]


def typed(values: list[Any], like: Any) -> Any:
    if isinstance(like, BytesColumn):
        return BytesColumn.from_list(values, like.text)
    return FixedColumn(np.array([0 if v is None else v for v in values], like.values.dtype), np.array([v is not None for v in values]))


# ---- the engine in small -------------------------------------------------------------------------------------------------


class Ranks:
    """`Collective` of pretended ranks, of which each answers with what all gave; settled in one go."""

    rank, size = 0, 1

    def allgather(self, obj: Any) -> list[Any]:
        return [obj]

    def allreduce(self, array: np.ndarray, op: str = "sum") -> np.ndarray:
        return array.copy()

    def allgather_batch(self, batch: Batch) -> Batch:
        return batch

    def exscan(self, array: np.ndarray) -> np.ndarray:
        return np.zeros_like(array)


def batches_of(rows: Batch, splits: int, size: int) -> list[tuple[int, int, Batch]]:
    found = []
    bounds = [rows.nrows * i // splits for i in range(splits + 1)]
    for s, (a, b) in enumerate(itertools.pairwise(bounds)):
        found += [(s, r - a, rows.slice(r, min(b, r + size))) for r in range(a, b, size)]
    return found


def broadcast(join: Join, left: Batch, right: Batch, splits: int = 3, size: int = 7) -> list[Row]:
    join.bind(left.schema, right.schema)
    step = join.probe(owned(right))
    out = []
    for split, row, batch in batches_of(left, splits, size):
        given = reused(batch)
        for block in step.apply_blocks(given, Origin(split, row)):
            assert block.schema == join.columns.schema
            out += rows_of(block)
        spoil(given)
    return out


def shuffle(join: Join, left: Batch, right: Batch, partitions: int = 8, seals: int = 2, splits: int = 3, size: int = 7) -> list[Row]:
    schema = join.bind(left.schema, right.schema)
    ctx = Context(partitions)
    join.open(ctx, None)
    for side, rows in ((join.right, right), (join.left, left)):
        for split, row, batch in batches_of(rows, splits, size):
            side.observe(reused(batch), Origin(split, row))
    join.settle(Ranks())
    count = partitions if join.cuts is None else join.cuts.count
    for side, rows in ((join.left, left), (join.right, right)):
        parts = []
        for i, (split, row, batch) in enumerate(batches_of(rows, splits, size)):
            given = reused(batch)
            side.consume(given, Origin(split, row))
            spoil(given)
            if i % seals == 0:
                side.drain()
                parts.append(side.seal())
        side.drain()
        parts.append(side.seal())
        for part in random.Random(1).sample(parts, len(parts)):
            assert part.count == count
            for lo, hi in ((0, count // 2), (count // 2, count)):
                side.merge(Partitioned(part.batch.slice(int(part.starts[lo]), int(part.starts[hi])), part.starts[lo:hi + 1] - part.starts[lo], lo))
    out = []
    loads = np.zeros(count, np.int64)
    for p in range(count):
        taken = join.left.rows_out + join.right.rows_out
        for block in join.finish_blocks(p):
            assert block.schema == schema
            out += rows_of(block)
            loads[p] += block.nrows
        loads[p] += join.left.rows_out + join.right.rows_out - taken
    bounds = owner_bounds(join.left.weights() + join.right.weights(), 4)
    join.loads = [int(loads[a:b].sum()) for a, b in itertools.pairwise(bounds)]
    for side in (join.left, join.right):
        side.check(side.rows_in, side.rows_out)
    join.close()
    assert ctx.taken == 0
    return out


def rows_of(batch: Batch) -> list[Row]:
    columns = batch.to_pydict()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] if columns else []


def plain(rows: list[Row]) -> list[Any]:
    """Rows that can be compared: NaN equals itself, and the signs of zeros count."""
    return [[(n, repr(v)) for n, v in r.items()] for r in rows]


# ---- inputs --------------------------------------------------------------------------------------------------------------


def key_values(kind: str, rng: random.Random, n: int, distinct: int, nulls: bool) -> list[Any]:
    pool: list[Any]
    if kind == "int64":
        pool = [rng.choice([i, -i, i << 40]) for i in range(distinct)]
    elif kind == "float64":
        pool = [0.0, -0.0, float("nan"), float("inf"), -1.5, *(rng.random() for _ in range(distinct))][:distinct + 3]
    elif kind == "text":
        pool = ["", "a", "ab", "é", *(f"word {i}" for i in range(distinct)), *(f"{LONG}{i}" for i in range(distinct))][:2 * distinct + 4]
    else:
        pool = list(range(distinct))
    return [None if nulls and rng.random() < 0.2 else rng.choice(pool) for _ in range(n)]


def table(rng: random.Random, n: int, on: list[str], kinds: list[str], distinct: int, nulls: bool, side: str) -> Batch:
    columns: dict[str, Any] = {}
    for name, kind in zip(on, kinds, strict=True):
        values = key_values(kind, rng, n, distinct, nulls)
        if kind in ("int64", "float64", "int32", "uint8"):
            masked = np.ma.MaskedArray(np.array([0 if v is None else v for v in values], kind), [v is None for v in values])
            columns[name] = masked if nulls else masked.data
        else:
            columns[name] = Batch.of({"x": [*values, "z"]})["x"].slice(0, n)
    columns["v"] = np.array([rng.random() for _ in range(n)])
    columns[f"small_{side}"] = np.arange(n, dtype=np.int16)
    columns[f"flag_{side}"] = np.arange(n) % 3 == 0
    columns[f"maybe_{side}"] = np.ma.MaskedArray(np.arange(n, dtype=np.float32), [i % 4 == 1 for i in range(n)])
    columns[f"text_{side}"] = Batch.of({"x": [*(f"{side} {i}" * (i % 3) for i in range(n)), "z"]})["x"].slice(0, n)
    columns[f"list_{side}"] = Batch.of({"x": [*([i] * (i % 3) for i in range(n)), [0]]})["x"].slice(0, n)
    columns[f"xyz_{side}"] = np.arange(3.0 * n).reshape(n, 3)
    columns[f"z_{side}"] = np.arange(n) + 1j
    return Batch.of(columns)


CASES = [(["k"], ["int64"]), (["k"], ["int32"]), (["k"], ["float64"]), (["k"], ["text"]), (["k", "l"], ["int64", "text"]),
         (["k", "l"], ["uint8", "int32"])]
SIZES = [(40, 30, 8), (60, 20, 1), (30, 50, 60), (0, 9, 3), (9, 0, 3), (0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("on", "kinds"), CASES, ids=["-".join(k) for _, k in CASES])
def test_every_how_and_key_type_against_plain_python(on: list[str], kinds: list[str], how: str) -> None:
    for number, (n, m, distinct) in enumerate(SIZES):
        for nulls in (False, True):
            rng = random.Random(f"{kinds}{number}{nulls}")
            left, right = (table(rng, c, on, kinds, distinct, nulls, side) for c, side in ((n, "l"), (m, "r")))
            expected = oracle(rows_of(left) if n else [], rows_of(right) if m else [], on, how)
            if not (n and m):
                expected = complete(expected, left, right, on, how)
            if how not in ("right", "outer"):
                assert plain(broadcast(Join(tuple(on), tuple(on), how, block_nbytes=1000), left, right)) == plain(expected)
            kept = by_partition(expected, on, Batch({k: left[k] for k in on}), 8)
            assert plain(shuffle(Join(tuple(on), tuple(on), how, block_nbytes=1000), left, right)) == plain(kept)


def complete(rows: list[Row], left: Batch, right: Batch, on: list[str], how: str) -> list[Row]:
    """Columns of a side that has no row, which plain Python knows nothing of."""
    names = list(left.names)
    if how not in ("semi", "anti"):
        names += [f"{n}_right" if n in left.names else n for n in right.names if n not in on]
    out = []
    for r in rows:
        if "v_right" in names and not left.nrows:
            r = {**r, "v_right": r["v"], "v": None}
        out.append({n: r.get(n) for n in names})
    return out


# ---- hot keys ------------------------------------------------------------------------------------------------------------


def skewed(rng: random.Random, n: int, hot: dict[Any, float], others: int) -> Batch:
    """Keys of which some have a share of all rows each; None is null."""
    keys = [next((k for k, until in hot.items() if x < until), rng.randrange(others) * 3) for x in (rng.random() for _ in range(n))]
    return Batch.of({"k": np.ma.MaskedArray([0 if k is None else k for k in keys], [k is None for k in keys]), "v": np.arange(n)})


SKEWED = {
    "left": ({7: 0.5}, 2000, {7: 0.02}, 300),
    "left, without partner": ({7: 0.5}, 2000, {}, 300),
    "right, one left row": ({}, 400, {300: 0.5}, 2000),
    "right, few left rows": ({9: 0.008}, 400, {9: 0.5}, 2000),
    "right, without partner": ({}, 400, {7: 0.5}, 2000),
    "both": ({-5: 0.1, 7: 0.2, 8: 0.22}, 1000, {7: 0.1, 8: 0.3}, 200),
    "nulls": ({None: 0.5, 7: 0.6}, 2000, {None: 0.5}, 1000),
}


@pytest.mark.parametrize("name", SKEWED)
def test_hot_keys_are_spread_over_ranks_and_the_result_is_the_same(name: str) -> None:
    hot_left, n, hot_right, m = SKEWED[name]
    rng = random.Random(name)
    left, right = skewed(rng, n, hot_left, 150), skewed(rng, m, hot_right, 150)
    for how in HOWS:
        join = Join(("k",), ("k",), how, block_nbytes=4096)
        expected = by_partition(oracle(rows_of(left), rows_of(right), ["k"], how), ["k"], left.select(["k"]), 16)
        assert shuffle(join, left, right, partitions=16, splits=5, size=97, seals=3) == expected
        loads = join.loads
        hot = name not in ("left, without partner", "right, without partner", "nulls") or how in ("outer", name.partition(",")[0])
        if hot and how not in ("semi", "anti"):
            assert join.cuts is not None
            assert max(loads) <= 1.5 * sum(loads) / len(loads), (how, loads)


def test_hot_keys_are_found_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcmr.ops.join_cuts.SAMPLE_ROWS", 200)
    monkeypatch.setattr("hpcmr.ops.join_cuts.SAMPLE_ROWS_GLOBAL", 150)
    rng = random.Random(3)
    left, right = skewed(rng, 3000, {7: 0.3, None: 0.4}, 400), skewed(rng, 1500, {7: 0.01, 9: 0.3}, 400)
    for how in HOWS:
        join = Join(("k",), ("k",), how)
        expected = by_partition(oracle(rows_of(left), rows_of(right), ["k"], how), ["k"], left.select(["k"]), 8)
        assert shuffle(join, left, right, partitions=8, splits=4, size=200, seals=2) == expected
        assert join.cuts is not None and join.left.sampler.level > 0


# ---- blocks and errors ---------------------------------------------------------------------------------------------------


def test_a_join_that_explodes_comes_in_blocks() -> None:
    left, right = Batch.of({"k": np.zeros(300, np.int64), "v": np.arange(300)}), Batch.of({"k": np.zeros(500, np.int64), "w": np.arange(500)})
    pairs = [(v, w) for v in range(300) for w in range(500)]
    join = Join(("k",), ("k",), block_nbytes=24_000)
    join.bind(left.schema, right.schema)
    blocks = [owned(b) for b in join.probe(right).apply_blocks(left, Origin(0, 0))]
    assert max(b.nrows for b in blocks) <= 1000 and len(blocks) >= 150
    whole = Batch.concat(blocks)
    assert list(zip(whole["v"].to_list(), whole["w"].to_list(), strict=True)) == pairs
    found = shuffle(join, left, right, partitions=4, size=100)
    assert [(r["v"], r["w"]) for r in found] == pairs


@pytest.mark.parametrize(("left", "right", "common"), [("int32", "int64", "int64"), ("uint8", "int16", "int16"), ("int32", "float64", "float64"),
                                                        ("float32", "float64", "float64"), ("S3", "S6", "S6"), ("uint16", "float32", "float32"),
                                                        ("uint32", "float32", "float64")])
def test_keys_of_different_types_are_compared_exactly(left: str, right: str, common: str) -> None:
    a = Batch.of({"k": np.array([1, 2, 3, 3], left), "v": np.arange(4)})
    b = Batch.of({"j": np.array([3, 1, 5], right), "w": np.arange(3)})
    for how in HOWS:
        join = Join(("k",), ("j",), how)
        schema = join.bind(a.schema, b.schema)
        assert str(schema["k"].type) == (common if how in ("right", "outer") else left)
        found = sorted((r["v"], r.get("w")) for r in shuffle(join, a, b) if r["v"] is not None)
        want = {"semi": [(0, None), (2, None), (3, None)], "anti": [(1, None)]}.get(how, [(0, 1), (2, 0), (3, 0)])
        assert [f for f in found if how in ("semi", "anti") or f[1] is not None] == want if how not in ("left", "outer") else (0, 1) in found
        if how not in ("right", "outer"):
            found = [r["v"] for r in broadcast(Join(("k",), ("j",), how), a, b)]
            assert found == ([1] if how == "anti" else [0, 1, 2, 3] if how == "left" else [0, 2, 3])


@pytest.mark.parametrize(("left", "right"), [("int64", "uint64"), ("int64", "float64"), ("bool", "int8"), ("datetime64[s]", "int64"),
                                               ("int64", "S8")])
def test_keys_that_cannot_be_compared_exactly_are_refused(left: str, right: str) -> None:
    a, b = Batch.of({"k": np.zeros(1, left)}), Batch.of({"k": np.zeros(1, right)})
    with pytest.raises(JobSpecError, match=r"no type holds the values of both exactly, cast one of them"):
        Join(("k",), ("k",)).bind(a.schema, b.schema)


def test_names_that_clash_and_columns_that_are_not_there() -> None:
    a, b = Batch.of({"k": [1], "v": [1], "v_right": [2]}), Batch.of({"k": [1], "v": [3]})
    with pytest.raises(JobSpecError, match=r"column 'v' of the right side would be called 'v_right'"):
        Join(("k",), ("k",)).bind(a.schema, b.schema)
    assert Join(("k",), ("k",), "semi").bind(a.schema, b.schema) == a.schema
    with pytest.raises(JobSpecError, match="the right side has no column 'x'"):
        Join(("k",), ("x",)).bind(a.schema, b.schema)
    with pytest.raises(JobSpecError, match="no how='full'"):
        Join(("k",), ("k",), "full")
    with pytest.raises(JobSpecError, match="cannot be a key"):
        Join(("k",), ("k",)).bind(Batch.of({"k": np.zeros((1, 3))}).schema, Batch.of({"k": np.zeros((1, 3))}).schema)


def test_the_size_of_the_right_side_alone_decides() -> None:
    join = Join(("k",), ("k",))
    assert join.choose(128 << 20, 5)[0] == "broadcast" and join.choose((128 << 20) + 1, 5)[0] == "shuffle"
    assert "the right side has 5 rows, 128 MiB" in join.choose(128 << 20, 5)[1]
    assert Join(("k",), ("k",), "outer").choose(0, 0)[0] == "shuffle"


@pytest.mark.parametrize("how", ["inner", "left", "semi", "anti"])
def test_many_rows_against_numpy(how: str) -> None:
    """Several steps of the probe's loop, rows without a match among them, a key with very many rows, blocks that end anywhere."""
    rng = np.random.default_rng(5)
    n, m = 5000, 2000
    left = {"k": np.where(rng.random(n) < 0.001, -1, rng.integers(0, 3000, n)), "v": rng.random(n)}
    right = {"k": np.concatenate([np.full(100, -1), rng.integers(0, 2500, m - 100)]), "w": rng.random(m), "g": np.arange(m, dtype=np.int16)}
    by = np.argsort(right["k"], kind="stable")
    first, last = (np.searchsorted(right["k"][by], left["k"], side) for side in ("left", "right"))
    counts = last - first
    reps = {"inner": counts, "left": np.maximum(counts, 1), "semi": counts > 0, "anti": counts == 0}[how].astype(np.int64)
    rows = np.repeat(np.arange(n), reps)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(reps) - reps, reps)
    met = counts[rows] > 0
    partner = by[np.minimum(first[rows] + within, m - 1)]
    for block_nbytes in (3000, 1 << 22):
        join = Join(("k",), ("k",), how, block_nbytes=block_nbytes)
        join.bind(Batch.of(left).schema, Batch.of(right).schema)
        found = Batch.concat([owned(b) for b in join.probe(Batch.of(right)).apply_blocks(Batch.of(left), Origin(0, 0))])
        assert (found["v"].values == left["v"][rows]).all() and (found["k"].values == left["k"][rows]).all()
        if how in ("inner", "left"):
            assert (found["w"].values == np.where(met, right["w"][partner], 0)).all() and (found["g"].values == np.where(met, partner, 0)).all()
            assert found["w"].valid is None if how == "inner" else (found["w"].valid == met).all()
