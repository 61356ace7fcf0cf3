"""group, reduce_by_key and the outlets against plain Python, however the input is cut, sealed, merged and spread over ranks."""

from __future__ import annotations

import functools
import math
import operator
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.partitioning import partition_bits
from hpcmr.data.python_values import rows_of
from hpcmr.errors import FunctionError, JobSpecError, Refused
from hpcmr.ops.collect import Collect
from hpcmr.ops.functions import batch_function, kernel_function
from hpcmr.ops.group import GroupRows
from hpcmr.ops.head import Head
from hpcmr.ops.outlet import Outlet
from hpcmr.ops.reduce import Reduce
from hpcmr.ops.reduce_by_key import ReduceByKey
from hpcmr.ops.write import Write
from tests.support.small_engine import Context, Splits, cut, reused, run, spoil

VARIANTS = [{}, {"ranks": 3}, {"ranks": 2, "seal_every": 1}, {"seal_every": 2}]


def expected_order(keys: dict[str, list[Any]], partitions: int = 8) -> list[Any]:
    """Distinct keys by partition, then by value."""
    batch = Batch.of(keys)
    layout = KeyLayout.of(batch.schema, tuple(keys))
    bits = partition_bits(partitions)
    where = (encode_keys(batch, layout).hashes >> np.uint64(64 - bits)).tolist()
    rows = list(zip(*(c for c in keys.values()), strict=True))
    found = {canonical(r): p for p, r in zip(where, rows, strict=True)}
    return sorted(found, key=lambda r: (found[r], r))


def canonical(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row so that equal keys compare equal, in the order of keys: NaN last, text by its bytes."""
    return tuple((math.isnan(v), 0.0 if math.isnan(v) else v) if isinstance(v, float) else v.encode() if isinstance(v, str) else v for v in row)


def groups_of(keys: dict[str, list[Any]], values: list[Any]) -> dict[Any, list[Any]]:
    out: dict[Any, list[Any]] = {}
    for row, v in zip(zip(*keys.values(), strict=True), values, strict=True):
        out.setdefault(canonical(row), []).append(v)
    return out


def key_rows(out: Batch, names: list[str]) -> list[Any]:
    return [canonical(r) for r in zip(*(out[n].to_list() for n in names), strict=True)]


long_text = st.one_of(st.text(max_size=3), st.sampled_from(["x" * 23, "x" * 24, "x" * 24 + "a", "x" * 24 + "b", "y" * 40, "x" * 30]))
key_lists = st.one_of(st.just({"k": st.integers(-3, 3)}), st.just({"k": st.sampled_from([0.0, -0.0, 1.5, -2.5, math.nan, math.inf, -math.inf])}),
                      st.just({"k": long_text}), st.just({"k": st.binary(max_size=2), "j": st.booleans()}),
                      st.just({"k": long_text, "j": st.integers(0, 1)}))


@st.composite
def grouped_data(draw: Any) -> tuple[dict[str, list[Any]], list[Any]]:
    kinds = draw(key_lists)
    n = draw(st.integers(1, 60))
    keys = {name: draw(st.lists(kind, min_size=n, max_size=n)) for name, kind in kinds.items()}
    values = draw(st.one_of(st.lists(st.integers(-9, 9), min_size=n, max_size=n), st.lists(st.text(max_size=2), min_size=n, max_size=n)))
    return keys, values


@given(grouped_data(), st.integers(1, 6), st.sampled_from(VARIANTS))
def test_lists_and_distinct_ones_match_plain_python(data: tuple[dict[str, list[Any]], list[Any]], splits: int, variant: dict[str, Any]) -> None:
    keys, values = data
    groups = groups_of(keys, values)
    parts = cut({**keys, "v": values}, splits)
    lists = run(lambda: GroupRows(tuple(keys)), parts, **variant)
    assert key_rows(lists, list(keys)) == expected_order(keys)
    assert lists["v"].to_list() == [groups[k] for k in key_rows(lists, list(keys))]
    distinct = run(lambda: GroupRows(tuple(keys), "distinct"), parts, **variant)
    assert key_rows(distinct, list(keys)) == expected_order(keys)
    assert distinct["v"].to_list() == [list(dict.fromkeys(groups[k])) for k in key_rows(distinct, list(keys))]


def in_split_order(keys: list[Any], values: list[Any], splits: int, f: Callable[[Any, Any], Any]) -> dict[Any, Any]:
    n = len(keys)
    partials: dict[Any, list[Any]] = {}
    for i in range(splits):
        mine: dict[Any, list[Any]] = {}
        for k, v in zip(keys[n * i // splits:n * (i + 1) // splits], values[n * i // splits:n * (i + 1) // splits], strict=True):
            mine.setdefault(k, []).append(v)
        for k, vs in mine.items():
            partials.setdefault(k, []).append(functools.reduce(f, vs))
    return {k: functools.reduce(f, vs) for k, vs in partials.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("function", [lambda a, b: a * 0.9 + b, kernel_function(lambda a, b: a * 0.9 + b)])
def test_a_fold_goes_by_rows_then_splits(variant: dict[str, Any], function: Any) -> None:
    rng = random.Random(5)
    keys = [rng.choice("abcdefgh") for _ in range(200)]
    values = [rng.uniform(-1e9, 1e9) for _ in range(200)]
    for splits in (1, 3, 8):
        out = run(lambda: ReduceByKey(function, "k"), cut({"k": keys, "v": values}, splits), **variant).to_pydict()
        assert dict(zip(out["k"], out["v"], strict=True)) == in_split_order(keys, values, splits, lambda a, b: a * 0.9 + b)
        assert [(k.encode(),) for k in out["k"]] == expected_order({"k": keys})


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exact_fold_spans_splits(variant: dict[str, Any]) -> None:
    keys = [i % 7 for i in range(100)]
    out = run(lambda: ReduceByKey(operator.add, "k", exact=True), cut({"k": keys, "v": list(range(100))}, 5), **variant).to_pydict()
    assert dict(zip(out["k"], out["v"], strict=True)) == {k: sum(range(k, 100, 7)) for k in range(7)}


def test_a_fold_of_strings_lists_and_tuples() -> None:
    keys = ["a", "b", "a", "a"]
    for values, f in ((["x", "y", "z", "é"], operator.add), ([[1], [2], [], [3, 4]], operator.add), ([b"1", b"2", b"", b"4"], operator.add)):
        out = run(lambda v=values, g=f: ReduceByKey(g, "k"), cut({"k": keys, "v": values}, 2, 1), ranks=2).to_pydict()
        assert dict(zip(out["k"], out["v"], strict=True)) == in_split_order(keys, values, 2, f)
    pairs = run(lambda: ReduceByKey(lambda a, b: (a[0] + b[0], max(a[1], b[1])), "k"),
                cut({"k": keys, "value.0": [1, 2, 3, 4], "value.1": [0.5, 2.5, 1.5, 0.25]}, 2), ranks=2)
    assert {r.k: r.value for r in rows_of(pairs)} == {"a": (8, 1.5), "b": (2, 2.5)}
    columns = run(lambda: ReduceByKey(lambda a, b: {"n": a.n + b.n, "low": min(a.low, b.low)}, "k"),
                  cut({"k": keys, "n": [1] * 4, "low": [4, 3, 2, 1]}, 2))
    assert {r.k: (r.n, r.low) for r in rows_of(columns)} == {"a": (3, 1), "b": (1, 3)}


def test_a_fold_that_changes_its_type_fails_unless_it_is_declared() -> None:
    parts = cut({"k": [1, 1, 2], "v": [1, 2, 3]}, 1)
    with pytest.raises(FunctionError, match="expected int64"):
        run(lambda: ReduceByKey(lambda a, b: (a + b) / 2, "k"), parts)
    out = run(lambda: ReduceByKey(lambda a, b: (a + b) / 2, "k", {"v": "float64"}), parts).to_pydict()
    assert dict(zip(out["k"], out["v"], strict=True)) == {1: 1.5, 2: 3.0}


def test_errors_of_folds_and_groups_are_clear() -> None:
    parts = cut({"k": [1, 1, 2], "v": [1, 2, 3]}, 1)
    with pytest.raises(FunctionError, match=r"ZeroDivisionError.*record 1") as caught:
        run(lambda: ReduceByKey(lambda a, b: a // 0, "k"), parts)
    assert "test_group.py" in str(caught.value) and "a // 0" in str(caught.value.trace)
    with pytest.raises(FunctionError, match="ZeroDivisionError"):
        run(lambda: ReduceByKey(kernel_function(lambda a, b: a // (b - 2)), "k"), parts)
    with pytest.raises(FunctionError, match=r"for key [12]"):
        run(lambda: GroupRows(("k",), lambda key, values: 1 // 0, out={"value": "int64"}), parts)
    with pytest.raises(JobSpecError, match="plain function or a kernel"):
        ReduceByKey(batch_function(lambda a, b: a), "k")
    with pytest.raises(JobSpecError, match="no column beside"):
        ReduceByKey(operator.add, "k").bind(Batch.of({"k": [1]}).schema)
    with pytest.raises(JobSpecError, match="did you mean"):
        GroupRows(("keys",)).bind(Batch.of({"key": [1], "v": [2]}).schema)
    with pytest.raises(JobSpecError, match="'list', 'distinct'"):
        GroupRows(("k",), "lists")
    with pytest.raises(JobSpecError, match="combiner"):
        GroupRows(("k",), "list", "sum")
    with pytest.raises(FunctionError, match="one column of numbers"):
        ReduceByKey(kernel_function(lambda a, b: a), "k").bind(Batch.of({"k": [1], "v": ["x"], "w": [1]}).schema)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_reducer_sees_key_and_values_in_order(variant: dict[str, Any]) -> None:
    rng = random.Random(1)
    keys = [rng.randrange(9) for _ in range(100)]
    values = [rng.random() for _ in range(100)]
    groups = groups_of({"k": keys}, values)
    out = run(lambda: GroupRows(("k",), lambda key, vs: {"n": len(vs), "text": f"{key}:{vs[0]}", "all": vs}),
              cut({"k": keys, "v": values}, 4), **variant)
    for r in rows_of(out):
        assert (r.n, r.text, r.all) == (len(groups[(r.k,)]), f"{r.k}:{groups[(r.k,)][0]}", groups[(r.k,)])
    one = run(lambda: GroupRows(("k",), lambda key, vs: sum(vs)), cut({"k": keys, "v": values}, 4), **variant)
    assert {r.k: r.value for r in rows_of(one)} == {k: sum(v) for (k,), v in groups.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("combiner", ["sum", lambda key, values: sum(values[1:], values[0])])
def test_a_combiner_folds_each_split_first(variant: dict[str, Any], combiner: Any) -> None:
    rng = random.Random(2)
    keys = [rng.randrange(9) for _ in range(100)]
    values = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-10, 10) for _ in range(100)]
    out = run(lambda: GroupRows(("k",), lambda key, vs: functools.reduce(operator.add, vs), combiner),
              cut({"k": keys, "v": values}, 6), **variant).to_pydict()
    assert dict(zip(out["k"], out["value"], strict=True)) == in_split_order(keys, values, 6, operator.add)


def test_a_key_of_several_columns_and_several_values_are_named_tuples() -> None:
    seen: list[Any] = []

    def reducer(key: Any, values: Any) -> int:
        seen.append((key, values))
        return 1

    run(lambda: GroupRows(("a", "b"), reducer, out={"one": "int8"}), [[Batch.of({"a": [1], "x": [0.5], "b": ["t"], "y": [2]})]])
    (key, values), = seen
    assert key == (1, "t") and key.b == "t" and values == [(0.5, 2)] and values[0].y == 2


def test_lists_of_several_columns_nulls_shapes_and_attributes() -> None:
    batch = Batch.of({"k": [2, 1, 2], "n": np.ma.MaskedArray([1, 2, 3], [False, False, True]), "p": np.arange(6.0).reshape(3, 2),
                      "l": [[1], [], [2, 3]]})
    out = run(lambda: GroupRows(("k",)), [[batch]], partitions=1)
    assert out["k"].to_list() == [1, 2] and out["n"].to_list() == [[2], [1, None]]
    assert out["p"].to_list() == [[[2.0, 3.0]], [[0.0, 1.0], [4.0, 5.0]]] and out["l"].to_list() == [[[]], [[1], [2, 3]]]
    assert str(out.schema["p"].type) == "list<float64[2]>"


def test_a_partition_without_rows_has_the_schema() -> None:
    for make in (lambda: GroupRows(("k",)), lambda: ReduceByKey(operator.add, "k")):
        op = make()
        schema = op.bind(Batch.of({"k": [1], "v": [2]}).schema)
        op.open(Context(4), None)
        op.drain()
        op.merge(op.seal())
        assert op.finish(2).nrows == 0 and op.finish(3).schema == schema


# ---- outlets ---------------------------------------------------------------------------------------------------------------


def run_outlet(make: Callable[[], Any], splits: Splits, ranks: int, backwards: bool = False) -> Any:
    schema = splits[0][0].schema if splits else Batch.of({"x": [1]}).schema
    outlets = [make() for _ in range(ranks)]
    outlets[0].begin(Context())
    for rank, outlet in enumerate(outlets):
        assert isinstance(outlet, Outlet)
        ctx = Context()
        ctx.rank, ctx.size = rank, ranks
        outlet.open(ctx, schema)
    order = list(enumerate(splits))
    for piece, batches in order[::-1] if backwards else order:
        outlet = outlets[piece % ranks]
        for batch in batches:
            if outlet.enough(piece):
                break
            given = reused(batch)
            outlet.take(piece, given)
            spoil(given)
    found = outlets[0].combine(pickle.loads(pickle.dumps([o.local() for o in outlets])))
    for outlet in outlets:
        outlet.abandon()
    return pickle.loads(pickle.dumps(found))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_collect_head_and_reduce_on_any_number_of_ranks(ranks: int) -> None:
    n = 100
    columns = {"x": [0.1 * i for i in range(n)], "t": [f"{i}é" for i in range(n)]}
    splits = cut(columns, 6)
    assert run_outlet(Collect, splits, ranks, backwards=True).to_pydict() == columns
    for m in (0, 1, 7, 33, n, n + 5):
        assert run_outlet(lambda m=m: Head(m), splits, ranks).to_pydict() == {k: v[:m] for k, v in columns.items()}
    only = cut({"x": columns["x"]}, 6)
    for f in (lambda a, b: a * 0.5 + b, kernel_function(lambda a, b: a * 0.5 + b)):
        assert run_outlet(lambda f=f: Reduce(f), only, ranks, backwards=True) == in_split_order([0] * n, columns["x"], 6, lambda a, b: a * 0.5 + b)[0]
    both = run_outlet(lambda: Reduce(lambda a, b: (a.x + b.x, max(a.t, b.t))), splits, ranks)
    assert both.t == max(columns["t"]) and both._fields == ("x", "t")


def test_outlets_of_no_rows() -> None:
    assert run_outlet(Collect, [], 2).nrows == 0
    assert run_outlet(lambda: Head(3), [], 2).nrows == 0
    assert run_outlet(lambda: Reduce(operator.add), [], 2) is None


def test_head_stops_early() -> None:
    head = Head(3)
    head.open(Context(), Batch.of({"x": [1]}).schema)
    head.take(0, Batch.of({"x": [1, 2]}))
    assert not head.enough(0)
    head.take(0, Batch.of({"x": [3, 4]}))
    assert head.enough(0) and head.combine([head.local()]).to_pydict() == {"x": [1, 2, 3]}


@pytest.mark.parametrize("ranks", [1, 3])
def test_write_publishes_all_rows_in_order_or_nothing(ranks: int, tmp_path: Any) -> None:
    columns = {"x": list(range(100)), "t": [f"{i}é" for i in range(100)], "l": [[i] * (i % 3) for i in range(100)]}
    folder = tmp_path / "out"
    found = run_outlet(lambda: Write(folder), cut(columns, 6), ranks)
    assert found["path"] == str(folder) and found["rows"] == 100
    from hpcmr.store.reader import StoredTable

    stored = StoredTable.open(folder)
    assert Batch.concat(list(stored.batches())).to_pydict() == columns
    with pytest.raises(Refused, match="there already"):
        Write(folder).begin(Context())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_abandoned_write_leaves_nothing(tmp_path: Any) -> None:
    write = Write(tmp_path / "out")
    ctx = Context()
    write.begin(ctx)
    write.open(ctx, Batch.of({"x": [1]}).schema)
    write.take(0, Batch.of({"x": [1, 2]}))
    write.abandon()
    assert list(tmp_path.iterdir()) == [] and ctx.taken == 0
