"""Null keys: one group, last in the order, however rows are held, sealed, merged and spread over ranks."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.keys import KeyLayout, LongStrings, decode_keys, encode_keys, intern_keys
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.group import GroupRows
from hpcmr.ops.reduce_by_key import ReduceByKey
from tests.support.small_engine import run

VARIANTS = [{}, {"ranks": 3}, {"ranks": 2, "seal_every": 1}, {"seal_every": 2}]
KEYS: dict[str, list[Any]] = {
    "i": [None, -(2**63), 0, 1, 2**63 - 1],
    "f": [None, -math.inf, -1.5, 0.0, math.inf, math.nan],
    "t": [None, "", "a", "x" * 23, "x" * 24, "x" * 300, "x" * 300 + "y"],
    "b": [None, False, True],
}


def column(values: list[Any], kind: str) -> Any:
    valid = np.array([v is not None for v in values], np.bool_)
    mask = None if valid.all() else valid
    if kind == "t":
        # What lies under a null is no value: it must not show.
        out = BytesColumn.from_list(["under a null " * 3 + str(i) if v is None else v for i, v in enumerate(values)], True)
        out.valid = mask
        return out
    dtype = {"i": np.int64, "f": np.float64, "b": np.bool_}[kind]
    return FixedColumn(np.array([7 if v is None else v for v in values], dtype), mask)


def order_of(v: Any) -> Any:
    return (2, 0) if v is None else (1, 0) if isinstance(v, float) and math.isnan(v) else (0, v.encode() if isinstance(v, str) else v)


def rows_of_seed(seed: int, kinds: str, n: int) -> list[tuple[Any, ...]]:
    rng = random.Random(seed)
    return [(*(rng.choice(KEYS[k]) for k in kinds), rng.choice([0.1, 0.7, 1e17, -3.3, None])) for _ in range(n)]


def splits_of(rows: list[tuple[Any, ...]], kinds: str, whole_splits: int = 4, batch_rows: int = 7) -> list[list[Batch]]:
    """Some splits have no null at all, and no validity then."""
    names = [f"k{i}" for i in range(len(kinds))]
    out = []
    for s in range(whole_splits):
        mine = rows[len(rows) * s // whole_splits:len(rows) * (s + 1) // whole_splits]
        batches = []
        for a in range(0, len(mine), batch_rows):
            part = mine[a:a + batch_rows]
            columns = {n: column([r[i] for r in part], k) for i, (n, k) in enumerate(zip(names, kinds, strict=True))}
            batches.append(Batch({**columns, "v": column([r[-1] for r in part], "f")}))
        if batches:
            out.append(batches)
    return out


def oracle(rows: list[tuple[Any, ...]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for *key, v in rows:
        found.setdefault(tuple(order_of(k) for k in key), []).append(v)
    return found


def shown(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(order_of(k) for k in keys)


def test_words_are_in_order_and_come_back():
    for kind, values in KEYS.items():
        batch = Batch({"k": column(values, kind)})
        layout = KeyLayout.of(batch.schema, ("k",))
        wide = layout.for_batches(batch)
        assert layout.nullable == (False,) and wide.nullable == (True,) and wide.width == layout.width + 1
        encoded = encode_keys(batch, wide)
        long = LongStrings()
        words = encoded.words.copy()
        intern_keys(batch, wide, words.reshape(-1), long)
        back = decode_keys(words.reshape(-1), wide.width, wide, long)["k"].to_list()
        assert [order_of(v) for v in back] == [order_of(v) for v in values]
        assert encoded.words[0, 0] == 1 and not encoded.words[0, 1:].any() and not encoded.words[1:, 0].any()
        # The hash does not depend on the layout.
        rest = batch.slice(1, batch.nrows)
        assert rest["k"].valid is not None
        assert (encode_keys(rest, layout).hashes == encoded.hashes[1:]).all() and layout.for_batches(rest) is layout


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kinds", ["i", "f", "t", "b", "it", "fi", "tt"])
def test_aggregates(kinds: str, variant: dict[str, Any]) -> None:
    rows = rows_of_seed(5, kinds, 90)
    rows[:20] = [r for r in rows if None not in r[:-1]][:20]
    names = tuple(f"k{i}" for i in range(len(kinds)))
    aggs = (Agg("count", None, "n"), *(Agg(f, "v", n) for n, f in {"c": "count", "s": "sum", "m": "max", "a": "first", "z": "last"}.items()))
    out = run(lambda: Aggregate(names, aggs), splits_of(rows, kinds), **variant).to_pydict()
    expected = oracle(rows)
    keys = [shown(k) for k in zip(*(out[n] for n in names), strict=True)]
    assert sorted(keys) == sorted(expected) and len(set(keys)) == len(keys)
    for i, key in enumerate(keys):
        values = [v for v in expected[key] if v is not None]
        assert out["n"][i] == len(expected[key]) and out["c"][i] == len(values)
        assert out["s"][i] == (math.fsum(values) if values else None)
        assert (out["m"][i], out["a"][i], out["z"][i]) == ((max(values), values[0], values[-1]) if values else (None,) * 3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("strategy", ["direct", "hot", "radix", "raw"])
def test_the_three_ways(strategy: str, variant: dict[str, Any]) -> None:
    rows = rows_of_seed(9, "i", 200)
    aggs = (Agg("count", None, "n"), Agg("sum", "v", "s"), Agg("min", "v", "m"), Agg("mean", "v", "a"))
    out = run(lambda: Aggregate(("k0",), aggs, strategy), splits_of(rows, "i"), **variant).to_pydict()
    for i, key in enumerate(out["k0"]):
        values = [v for v in oracle(rows)[shown((key,))] if v is not None]
        assert out["n"][i] == len(oracle(rows)[shown((key,))]) and out["s"][i] == math.fsum(values) and out["m"][i] == min(values)
    assert len(out["k0"]) == len(oracle(rows))


@pytest.mark.parametrize("kinds", ["i", "t", "ft", "ib"])
def test_order_within_a_partition(kinds: str) -> None:
    rows = rows_of_seed(3, kinds, 120)
    names = tuple(f"k{i}" for i in range(len(kinds)))
    for make in (lambda: Aggregate(names, (Agg("count", None, "n"),)), lambda: GroupRows(names)):
        out = run(make, splits_of(rows, kinds), partitions=1).to_pydict()
        keys = [shown(k) for k in zip(*(out[n] for n in names), strict=True)]
        assert keys == sorted(oracle(rows))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_by_key(variant: dict[str, Any]) -> None:
    for kinds in ("i", "t", "ft"):
        rows = rows_of_seed(4, kinds, 80)
        names = tuple(f"k{i}" for i in range(len(kinds)))
        out = run(lambda names=names: GroupRows(names), splits_of(rows, kinds), **variant).to_pydict()
        assert {shown(k): v for *k, v in zip(*(out[n] for n in names), out["v"], strict=True)} == oracle(rows)
    rows = [(k, v if v is not None else 0.5) for k, v in rows_of_seed(4, "i", 80)]
    out = run(lambda: ReduceByKey(max, "k0"), splits_of(rows, "i"), **variant).to_pydict()
    assert {shown((k,)): v for k, v in zip(out["k0"], out["v"], strict=True)} == {k: max(v) for k, v in oracle(rows).items()}


@pytest.mark.mpi
def test_on_ranks(subworld: Any) -> None:
    """Nulls on one rank only: the others have no validity to send."""
    n = 400
    key = np.arange(n) % 13
    valid = (key != 5) | (np.arange(n) < n // 2)
    value = np.arange(n) * 0.1
    a, b = n * subworld.rank // subworld.size, n * (subworld.rank + 1) // subworld.size
    part = slice(a, b)
    columns = {"k": np.ma.MaskedArray(key, ~valid)[part] if not valid[part].all() else key[part], "x": key[part] % 3, "v": value[part]}
    table = mr.from_arrays(getattr(subworld, "comm", None), columns)
    aggs = (mr.sum("v", name="s"), mr.count(name="n"))
    one, two = (table.group_by(*keys).agg(*aggs).collect().batch.to_pydict() for keys in (("k",), ("x", "k")))
    masked = [k if ok else None for k, ok in zip(key.tolist(), valid.tolist(), strict=True)]
    assert {k: (s, c) for k, s, c in zip(one["k"], one["s"], one["n"], strict=True)} == {
        k: (math.fsum(v for j, v in zip(masked, value.tolist(), strict=True) if j == k), masked.count(k)) for k in set(masked)}
    assert one["k"].count(None) == 1 and one["k"][-1] is None
    pairs = list(zip((key % 3).tolist(), masked, strict=True))
    assert {(x, k): c for x, k, c in zip(two["x"], two["k"], two["n"], strict=True)} == {p: pairs.count(p) for p in set(pairs)}
