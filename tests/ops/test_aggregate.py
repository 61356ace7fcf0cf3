"""Aggregates against plain Python, whichever way rows are held, however often state is sealed and merged."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmr.data.batch import Batch
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.kernels.table import compact_groups
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate, has_long_tail
from hpcmr.ops.contract import Origin


class Context:
    """A stage context with a budget that never ends."""

    seed = 0

    def __init__(self, partitions: int = 4) -> None:
        self.partitions = partitions
        self.taken = 0

    def take(self, nbytes: int, what: str) -> None:
        self.taken += nbytes

    def give(self, nbytes: int) -> None:
        self.taken -= nbytes

    def available(self) -> int:
        return 1 << 40

    def count(self, name: str, n: int) -> None: ...

    def log(self, message: str, once: str | None = None) -> None: ...


@pytest.fixture(autouse=True)
def few_hot_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen keys fill the table of frequent ones, so that the rows of others are put aside."""
    monkeypatch.setattr("hpcmr.ops.aggregate.HOT_SLOTS", 16)


def run(batches: list[Batch], keys: tuple[str, ...], aggs: list[Agg], strategy: str = "auto", seal_each: bool = False,
        ranks: int = 1) -> dict[str, list[Any]]:
    """All groups, as columns; `ranks` operators share the batches and a further one merges what they sealed."""
    schema = batches[0].schema
    ctx = Context()
    workers = [Aggregate(keys, tuple(aggs), strategy) for _ in range(ranks)]
    owner = Aggregate(keys, tuple(aggs), strategy)
    for op in (*workers, owner):
        op.bind(schema)
        op.open(ctx, batches[0])
    for i, batch in enumerate(batches):
        op = workers[i % ranks]
        op.consume(batch, Origin(i, 0))
        if seal_each:
            op.drain()
            owner.merge(kept(op.seal()))
            while op.pending():
                owner.merge(kept(op.seal()))
    for op in workers:
        op.drain()
        owner.merge(kept(op.seal()))
        while op.pending():
            owner.merge(kept(op.seal()))
    parts = [owner.finish(p) for p in range(ctx.partitions)]
    out = Batch.concat(parts)
    for op in (*workers, owner):
        op.close()
    assert ctx.taken == 0
    return out.to_pydict()


def kept(part: Partitioned) -> Partitioned:
    """What an exchange does with sealed state that will be overwritten."""
    rows = np.arange(part.batch.nrows)
    return Partitioned(part.batch.take(rows), part.starts, part.first) if part.reused else part


FULL = [Agg("count", None, "n")] + [Agg(f, "v", f) for f in ("sum", "min", "max", "mean", "var", "std", "first", "last")]


def exact(values: list[float]) -> Fraction:
    return sum((Fraction(v) for v in values), Fraction(0))


def as_double(x: Fraction) -> float:
    try:
        return float(x) + 0.0
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def close(a: float, b: float, ulps: float = 0) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b or abs(a - b) <= ulps * math.ulp(b)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(width=64, allow_nan=False, allow_infinity=False)), min_size=1, max_size=60),
       st.sampled_from(["direct", "hot", "radix", "raw"]), st.booleans(), st.integers(1, 3))
def test_float_aggregates(rows, strategy, seal_each, ranks):
    whole = Batch.of({"k": np.array([k for k, _ in rows], np.int64), "v": np.array([v for _, v in rows])})
    batches = [whole.slice(i, i + 7) for i in range(0, len(rows), 7)]
    aggs = FULL if strategy == "direct" else FULL[:5]
    out = run(batches, ("k",), aggs, strategy, seal_each, ranks)
    got = {k: i for i, k in enumerate(out["k"])}
    want: dict[int, list[float]] = {}
    for k, v in rows:
        want.setdefault(k, []).append(v)
    assert set(got) == set(want)
    for k, values in want.items():
        i = got[k]
        assert out["n"][i] == len(values)
        assert out["sum"][i] == as_double(exact(values))
        assert out["min"][i] == min(values) and out["max"][i] == max(values)
        assert out["mean"][i] == as_double(exact(values) / len(values))
        if strategy == "direct":
            assert out["first"][i] == values[0] and out["last"][i] == values[-1]
            if max(map(abs, values)) < 1e100:
                mean = exact(values) / len(values)
                var = float(sum((Fraction(v) - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
                if math.isnan(var) or var == 0 or var > 1e-250:
                    assert close(out["var"][i], var, 4), (values, out["var"][i], var)


def test_the_three_ways_give_the_same_bits_and_key_order():
    rng = np.random.default_rng(1)
    k = rng.integers(-500, 500, 20000)
    v = rng.normal(size=20000) * 10.0 ** rng.integers(-300, 300, 20000)
    v[rng.integers(0, 20000, 9)] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e308, -1e308, 1e-308]
    batches = [Batch.of({"k": k[i:i + 3000], "v": v[i:i + 3000]}) for i in range(0, 20000, 3000)]
    results = [run(batches, ("k",), FULL[:5], s, e, r) for s in ("direct", "hot", "radix", "raw") for e in (False, True) for r in (1, 3)]
    for other in results[1:]:
        for name in other:
            assert np.array(other[name]).tobytes() == np.array(results[0][name]).tobytes(), name
    oracle = {key: [float(x) for x in v[k == key]] for key in set(k.tolist())}
    for i, key in enumerate(results[0]["k"]):
        values = oracle[key]
        if all(map(math.isfinite, values)):
            assert results[0]["sum"][i] == as_double(exact(values))


BORDERS = [b"a", b"a\0", b"a\0\0", b"x" * 22, b"x" * 23, b"x" * 24, b"x" * 25, b"x" * 16 + b"y" * 30]
KEYS = {"int8": st.integers(-128, 127), "uint64": st.integers(0, 2**64 - 1),
        "float32": st.sampled_from([0.0, -0.0, math.nan, 1.5, -math.inf, math.inf]),
        "bool": st.booleans(), "S5": st.binary(max_size=5).map(lambda b: b.rstrip(b"\0")), "text": st.text(max_size=30),
        "bytes": st.one_of(st.binary(max_size=40), st.sampled_from(BORDERS))}


@pytest.mark.parametrize("kind", list(KEYS))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_keys_of_every_kind(kind, data):
    keys = data.draw(st.lists(KEYS[kind], min_size=1, max_size=40))
    column: Any = keys if kind in ("text", "bytes") else np.array(keys, kind)
    values = np.arange(len(keys))
    b = Batch.of({"k": column, "v": values})
    out = run([b.slice(0, 10), b.slice(10, 40)] if len(keys) > 10 else [b], ("k",), [Agg("count", None, "n"), Agg("sum", "v", "s")], seal_each=True)

    def canon(x: Any) -> Any:
        x = x.encode("utf-8", "surrogateescape") if isinstance(x, str) else x
        return "nan" if isinstance(x, float) and math.isnan(x) else x + 0.0 if isinstance(x, float) else x

    want: dict[Any, list[int]] = {}
    for key, v in zip(b["k"].to_list(), values.tolist(), strict=True):
        want.setdefault(canon(key), []).append(v)
    assert {canon(k): (n, s) for k, n, s in zip(out["k"], out["n"], out["s"], strict=True)} == {k: (len(x), sum(x)) for k, x in want.items()}
    assert len(out["k"]) == len(want)


def test_rows_in_key_order_within_a_partition():
    rng = np.random.default_rng(3)
    words = [bytes(rng.integers(97, 99, rng.integers(0, 34), dtype=np.uint8)) for _ in range(5000)]
    batch = Batch.of({"k": words, "x": rng.normal(size=5000)})
    op = Aggregate(("k",), (Agg("count", None, "n"), Agg("sum", "x", "s")))
    op.bind(batch.schema)
    op.open(Context(), batch)
    op.consume(batch, Origin(0, 0))
    op.drain()
    op.merge(op.seal())
    for p in range(4):
        keys = op.finish(p)["k"].to_list()
        assert keys == sorted(keys) and len(set(keys)) == len(keys)


def test_composite_keys_shapes_and_other_types():
    rng = np.random.default_rng(4)
    n = 500
    data = {"a": rng.integers(0, 3, n).astype("int16"), "b": [f"name{i % 4}" + "x" * (i % 2 * 30) for i in range(n)],
            "pos": rng.normal(size=(n, 3)).astype("f4"), "ok": rng.random(n) < 0.5, "u": rng.integers(0, 2**63, n).astype("u8"),
            "t": rng.integers(0, 10**18, n).astype("M8[ns]"), "c": rng.normal(size=n) + 1j, "s": [f"v{i}" * (i % 9) for i in range(n)]}
    batch = Batch.of(data)
    asked = {"mp": "mean pos", "xp": "max pos", "any": "any ok", "all": "all ok", "mu": "min u", "mt": "min t", "sc": "sum c", "ms": "min s",
             "xs": "max s", "fs": "first s", "lp": "last pos", "ma": "mean a", "va": "var a", "so": "sum ok", "cs": "count s"}
    aggs = [Agg(*what.split(), name) for name, what in asked.items()]
    out = run([batch.slice(i, i + 90) for i in range(0, n, 90)], ("a", "b"), aggs, seal_each=True, ranks=2)
    for i in range(len(out["a"])):
        sel = np.array([data["a"][j] == out["a"][i] and data["b"][j] == out["b"][i] for j in range(n)])
        rows = np.flatnonzero(sel)
        assert np.array_equal(out["mp"][i], [as_double(exact(data["pos"][sel][:, c].astype(float).tolist()) / len(rows)) for c in range(3)])
        assert np.array_equal(np.array(out["xp"][i], "f4"), data["pos"][sel].max(axis=0))
        assert (out["any"][i], out["all"][i], out["so"][i]) == (data["ok"][sel].any(), data["ok"][sel].all(), data["ok"][sel].sum())
        assert out["mu"][i] == data["u"][sel].min()
        assert out["ms"][i] == min(data["s"][j] for j in rows) and out["xs"][i] == max(data["s"][j] for j in rows)
        assert out["fs"][i] == data["s"][rows[0]] and np.array_equal(np.array(out["lp"][i], "f4"), data["pos"][rows[-1]])
        assert out["sc"][i].real == as_double(exact(data["c"][sel].real.tolist()))
        assert out["cs"][i] == len(rows) and out["ma"][i] == out["a"][i]
        assert out["va"][i] == 0.0 if len(rows) > 1 else math.isnan(out["va"][i])


@pytest.mark.parametrize("strategy", ["direct", "hot", "radix", "raw"])
def test_nulls_are_skipped(strategy):
    v = np.ma.array([1.0, 2.0, 3.0, 4.0, 5.0], mask=[0, 1, 1, 0, 1])
    aggs = [Agg("count", None, "n"), Agg("count", "v", "c"), Agg("sum", "v", "s"), Agg("mean", "v", "m"), Agg("max", "v", "x")]
    out = run([Batch.of({"k": np.array([1, 1, 2, 3, 3]), "v": v})], ("k",), aggs, strategy)
    rows = sorted(zip(*out.values(), strict=True))
    assert rows == [(1, 2, 1, 1.0, 1.0, 1.0), (2, 1, 0, None, None, None), (3, 2, 1, 4.0, 4.0, 4.0)]


def test_integer_sums_are_checked_once_at_the_end():
    k, big = np.array([7, 7, 7]), np.array([2**62, 2**62, -(2**62)])
    assert run([Batch.of({"k": k, "v": big})], ("k",), [Agg("sum", "v", "s")])["s"] == [2**62]
    with pytest.raises(DataError, match="does not fit in int64"):
        run([Batch.of({"k": k, "v": np.abs(big)})], ("k",), [Agg("sum", "v", "s")])


@pytest.mark.parametrize(("agg", "message"), [
    (Agg("sum", "s", "x"), "needs numbers"), (Agg("sum", "vv", "x"), "did you mean 'v'"), (Agg("median", "v", "x"), "unknown aggregate"),
    (Agg("any", "v", "x"), "needs a bool column"), (Agg("sum", "v", "k"), "two output columns are called 'k'")])
def test_refused(agg, message):
    schema = Batch.of({"k": np.zeros(1), "v": np.zeros(1), "s": ["a"]}).schema
    with pytest.raises(JobSpecError, match=message):
        Aggregate(("k",), (agg,)).bind(schema)


def test_statistics_agree_with_the_library():
    rng = np.random.default_rng(8)
    v = rng.normal(1e6, 1, 400)
    out = run([Batch.of({"k": np.zeros(400, np.int8), "v": v})], ("k",), FULL)
    assert close(out["var"][0], statistics.variance([Fraction(x) for x in v.tolist()]), 4)


def test_no_rows():
    batch = Batch.of({"k": np.zeros(0, np.int64), "v": np.zeros(0)})
    op = Aggregate(("k",), tuple(FULL))
    schema = op.bind(batch.schema)
    op.open(Context(), None)
    op.drain()
    op.merge(op.seal())
    out = op.finish(0)
    assert out.nrows == 0 and out.schema == schema and isinstance(schema, Schema)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=400), st.integers(1, 2))
def test_counting_strings(words, ranks):
    words = words + [b"the", b"", b"a\0", b"a", b"x" * 7, b"x" * 8, b"x" * 23, b"x" * 24] * 2
    batch = Batch.of({"w": words})
    out = run([batch.slice(i, i + 150) for i in range(0, len(words), 150)], ("w",), [Agg("count", None, "n")], seal_each=True, ranks=ranks)
    assert dict(zip(out["w"], out["n"], strict=True)) == {w: words.count(w) for w in words}
    assert len(out["w"]) == len(set(words))


def test_counting_many_strings_grows_both_tables():
    rng = np.random.default_rng(2)
    words = [b"%x" % x for x in rng.integers(0, 1 << rng.integers(1, 60, 60000), 60000).tolist()]
    out = run([Batch.of({"w": words})], ("w",), [Agg("count", None, "n")])
    from collections import Counter

    assert dict(zip(out["w"], out["n"], strict=True)) == Counter(words)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=9), st.binary(max_size=40), st.sampled_from([b" ", b"\n\t", b"x" * 30, b"a b"])), max_size=300),
       st.integers(0, 70))
def test_words_are_counted_where_they_are_found(pieces, cut):
    from hpcmr.ops.words import Words

    text = b" ".join(pieces)
    cut = text.find(b" ", cut) if b" " in text[cut:] else len(text)
    blocks = Batch.of({"line": [text[:cut], text[cut:]]})
    step = Words()
    op = Aggregate(("word",), (Agg("count", None, "n"),))
    op.bind(step.bind(blocks.schema))
    op.open(Context(), None)
    assert op.absorb(step) and not Aggregate(("word",), (Agg("count", None, "n"),)).absorb(Words(lowercase=True))
    assert op.consume(blocks, Origin(0, 0)) == len(text.split())
    op.merge(op.seal())
    out = Batch.concat([op.finish(p) for p in range(4)]).to_pydict()
    words = text.split()
    assert dict(zip(out["word"], out["n"], strict=True)) == {w: words.count(w) for w in words}


@pytest.mark.parametrize("behind", [b"", b" ", b"\n\n"])
def test_words_that_end_where_a_block_ends_are_counted(behind):
    from hpcmr.ops.words import Words

    for n in [*range(60, 70), *range(124, 132), 192, 256]:
        for last in (1, 7, 8, 9, 23, 24, 40):
            text = (b"ab " * n)[:n - last - 1] + b" " + b"x" * last + behind
            step, op = Words(), Aggregate(("word",), (Agg("count", None, "n"),))
            op.bind(step.bind(Batch.of({"line": [text]}).schema))
            op.open(Context(), None)
            assert op.absorb(step)
            assert op.consume(Batch.of({"line": [text, text]}), Origin(0, 0)) == 2 * len(text.split()), (n, last)


def test_a_long_tail_of_rare_keys_is_found_in_a_sample() -> None:
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 1 << 62, 1 << 20).astype(np.uint64)
    skewed = hashes[np.minimum(rng.zipf(1.3, 40_000), len(hashes) - 1)]
    assert has_long_tail(skewed)
    assert not has_long_tail(rng.choice(hashes[:5_000], 40_000))          # few keys, all met often
    assert not has_long_tail(rng.choice(hashes, 40_000))                  # many, none met often


def test_a_table_that_is_packed_in_place_is_in_partition_order() -> None:
    """Groups that were pushed past the border of their partition, or past the end of the table, come back."""
    rng = np.random.default_rng(6)
    for slots, fill in ((8, 0.7), (64, 0.9), (1000, 0.97), (1000, 0.5), (1000, 0.0), (64, 1.0)):
        keys = rng.choice(1 << 40, int(slots * fill), replace=False).astype(np.int64)
        table = np.zeros((slots + 1) * 3, np.uint64)
        hashes = encode_keys(Batch.of({"k": keys}), KeyLayout.of(Batch.of({"k": keys}).schema, ("k",))).hashes.tolist()
        for key, h in zip(keys.tolist(), hashes, strict=True):
            at = h * slots >> 64
            while table[3 * at + 1]:
                at = (at + 1) % slots
            table[3 * at:3 * at + 3] = (key ^ 1 << 63, 1, key + 1)
        for bits in (0, 1, 3, 6):
            again, starts = table.copy(), np.zeros((1 << bits) + 1, np.int64)
            n = compact_groups(again, 3, bits, np.zeros(300, np.uint64), starts)
            if n < 0:
                assert fill == 1.0
                continue
            rows = again[:3 * n].reshape(-1, 3)
            assert sorted(rows[:, 2].tolist()) == sorted((keys + 1).tolist())
            of = dict(zip((keys + 1).tolist(), hashes, strict=True))
            partitions = [of[v] >> (64 - bits) if bits else 0 for v in rows[:, 2].tolist()]
            assert partitions == sorted(partitions)
            assert starts.tolist() == np.searchsorted(partitions, np.arange((1 << bits) + 1)).tolist()


def test_the_last_seal_gives_back_what_rows_waited_in() -> None:
    n = 300_000
    batch = Batch.of({"k": np.arange(n), "x": np.ones(n)})
    op, ctx = Aggregate(("k",), (Agg("sum", "x", "s"),), "raw"), Context()
    op.bind(batch.schema)
    op.open(ctx, None)
    op.consume(batch, Origin(0, 0))
    first = op.seal()
    assert first.batch.nrows == n and op.chunks is not None
    arena = op.chunks.arena.nbytes
    op.consume(batch, Origin(1, 0))
    before = ctx.taken
    op.settle(None)  # type: ignore[arg-type]
    last = op.seal()
    assert last.batch.nrows == n and before - ctx.taken > 0.9 * arena       # the rows are still there until they are sent
    assert (last.batch["row"].values[:, 0] == first.batch["row"].values[:, 0]).all()  # type: ignore[union-attr]
    rows = ctx.taken
    op.merge(last)
    assert ctx.taken <= rows
    op.close()
    assert ctx.taken == 0


def test_sums_of_frequent_keys_that_leave_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values from 1e-300 to 1e300 need wide sums for more keys than there is room for at first."""
    monkeypatch.setattr("hpcmr.ops.aggregate.HOT_SLOTS", 1024)
    rng = np.random.default_rng(7)
    keys, values = rng.integers(0, 1000, 20_000), rng.standard_normal(20_000) * 10.0 ** rng.integers(-300, 300, 20_000)
    got = run([Batch.of({"k": keys, "v": values})], ("k",), [Agg("sum", "v", "s")], "hot")
    expected = {k: math.fsum(values[keys == k]) for k in set(keys.tolist())}
    assert dict(zip(got["k"], got["s"], strict=True)) == expected
