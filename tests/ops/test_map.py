"""map and flat_map in the three speeds: the same answer, and one clear error for each way to get it wrong."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, column_of
from hpcmr.data.python_values import rows_of
from hpcmr.data.schema import Schema
from hpcmr.errors import EXIT_REFUSED, FunctionError, JobSpecError
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.filter import Filter
from hpcmr.ops.flat_map import FlatMap
from hpcmr.ops.functions import batch_function, kernel_function, plain_function
from hpcmr.ops.map import Map
from hpcmr.ops.select import Drop, Select
from hpcmr.ops.with_columns import WithColumns

START = Origin(3, 100)
FACTOR = 2.5


def scaled(x):
    return x * FACTOR


def run(step: Any, batch: Batch, origin: Origin = START) -> Batch:
    """What the engine does: bind, infer on a sample and fix if need be, compile, apply."""
    assert isinstance(step, Step)
    schema = step.bind(batch.schema)
    if schema is None:
        schema = step.infer(batch, origin)
        assert schema is not None
        step.fix(schema)
    if hasattr(step, "compile"):
        step.compile()
    out = step.apply(batch, origin)
    assert out.schema == schema
    return out


def particles(n: int = 10) -> Batch:
    return Batch.of({"k": np.arange(n) % 3, "x": np.arange(n) * 0.1, "pos": np.arange(3.0 * n).reshape(n, 3), "name": [f"p {i}é" for i in range(n)]})


def emit_scaled(row, emit):
    for j in range(row.k):
        emit(row.k, scaled(row.x) + row.pos[j])


def test_three_speeds_of_flat_map_agree() -> None:
    def plain(row):
        for j in range(row.k):
            yield {"k": row.k, "v": scaled(row.x) + row.pos[j]}

    def columns(cols):
        rows = np.repeat(np.arange(cols.nrows), cols["k"])
        j = np.concatenate([np.arange(k) for k in cols["k"]])
        return {"k": cols.k[rows], "v": cols["x"][rows] * FACTOR + cols["pos"][rows, j]}

    out = {"k": "int64", "v": "float64"}
    results = [run(FlatMap(f), particles()).to_pydict()
               for f in (plain_function(plain), batch_function(columns), kernel_function(emit_scaled, out), plain_function(plain, out))]
    assert results[0]["k"] == [k for k in (np.arange(10) % 3).tolist() for _ in range(k)]
    assert results[1:] == results[:1] * 3


def test_a_kernel_grows_its_arrays_and_does_not_lose_a_row() -> None:
    def burst(row, emit):
        for j in range(row.n):
            emit(row.n, j)

    n = np.array([0, 3000, 1, 0, 50_000, 7])
    step = Map(kernel_function(burst, {"n": "int32", "j": "uint16"}))
    out = run(step, Batch.of({"n": n})).to_pydict()
    assert out["n"] == np.repeat(n, n).tolist() and out["j"] == [j for k in n for j in range(k)]
    again = step.apply(Batch.of({"n": np.array([2])}), START).to_pydict()
    assert again == {"n": [2, 2], "j": [0, 1]}


def test_a_kernel_reads_and_emits_strings() -> None:
    def pieces(row, emit):
        at = 0
        for j in range(len(row.line) + 1):
            if j == len(row.line) or row.line[j] == 32:
                if j > at:
                    emit(row.line[at:j], j - at, b"<>")
                at = j + 1

    lines = ["a bc", "", "déf   g ", "x" * 50_000]
    out = run(FlatMap(kernel_function(pieces, {"word": "text", "n": "int64", "tag": "S4"})), Batch.of({"line": lines}))
    words = [w for line in lines for w in line.split()]
    assert out.to_pydict() == {"word": words, "n": [len(w.encode()) for w in words], "tag": [b"<>"] * len(words)}


def test_a_kernel_may_return_instead() -> None:
    def pair(row):
        return row.k + 1, row.pos

    out = run(Map(kernel_function(pair, {"k": "int64", "pos": "float64[3]"})), particles())
    assert out.to_pydict() == {"k": [k + 1 for k in particles()["k"].to_list()], "pos": particles()["pos"].to_list()}
    assert run(Map(kernel_function(lambda row: row.x > 0.5, {"far": "bool"})), particles())["far"].to_list() == [False] * 6 + [True] * 4


@pytest.mark.parametrize(("kernel", "words"), [
    (lambda row, emit: emit(row.k), "emit takes 2 values (k, v)"),
    (lambda row, emit: emit(row.k, row.nothing), "no column 'nothing'"),
    (lambda row, emit: emit(row.x, row.x), "cannot take a float64"),
    (lambda row, emit: emit(row.k, row.x.real.foo), "foo"),
    (lambda row, emit: emit(row.k, undefined_name), "undefined_name"),  # noqa: F821
    (lambda row, emit, more: emit(row.k, more), "f(row, emit)"),
    (lambda row, emit: print(emit), "can only be called"),
])
def test_a_kernel_that_cannot_be_compiled_is_refused_with_its_line(kernel: Any, words: str) -> None:
    step = Map(kernel_function(kernel, {"k": "int64", "v": "float64"}))
    step.bind(particles().schema)
    with pytest.raises(FunctionError, match="drop the decorator") as caught:
        step.compile()
    assert words in str(caught.value) and f"test_map.py:{kernel.__code__.co_firstlineno}" in str(caught.value)
    assert caught.value.exit_code == EXIT_REFUSED


def test_the_line_that_cannot_be_compiled_is_named() -> None:
    def kernel(row, emit):
        k = row.k
        name = k.nonsense
        emit(k, 1.0 * name)

    step = Map(kernel_function(kernel, {"k": "int64", "v": "float64"}))
    step.bind(particles().schema)
    with pytest.raises(FunctionError, match=r"name = k\.nonsense"):
        step.compile()


def test_a_kernel_without_out_is_refused() -> None:
    with pytest.raises(FunctionError, match="out="):
        Map(kernel_function(emit_scaled)).bind(particles().schema)


@pytest.mark.parametrize(("kernel", "words"), [
    (lambda row, emit: emit(1 // (row.k - 2), row.x), "ZeroDivisionError"),
    (lambda row, emit: emit(row.k, row.pos[row.k + 1]), "IndexError"),
    (lambda row, emit: emit(row.k - (row.k // 2) * 200, 1.0), "does not fit in int8"),
])
def test_a_kernel_that_fails_names_the_record(kernel: Any, words: str) -> None:
    with pytest.raises(FunctionError, match=words) as caught:
        run(Map(kernel_function(kernel, {"k": "int8", "v": "float64"})), particles())
    assert caught.value.record == 102


def test_a_kernel_does_not_take_nulls_silently() -> None:
    batch = Batch.of({"k": np.ma.MaskedArray([1, 2], [False, True])})
    with pytest.raises(FunctionError, match="nulls"):
        run(Map(kernel_function(lambda row: row.k, {"k": "int64"})), batch)


def test_captured_values_and_helpers_count(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.array([5.0, 6.0, 7.0])
    shift = 10

    def lookup(i):
        return table[i] + shift

    def kernel(row, emit):
        emit(lookup(row.k))

    first = run(Map(kernel_function(kernel, {"v": "float64"})), particles(3))["v"].to_list()
    shift = 20
    second = run(Map(kernel_function(kernel, {"v": "float64"})), particles(3))["v"].to_list()
    assert first == [15.0, 16.0, 17.0] and second == [25.0, 26.0, 27.0]


# ---- plain -----------------------------------------------------------------------------------------------------------------


def test_rows_of_one_column_are_values_and_others_named_tuples() -> None:
    seen: list[Any] = []
    run(Map(lambda r: seen.append(r) or 1), Batch.of({"line": [b"a\xff".decode("utf-8", "surrogateescape"), "b"]}))
    assert seen[:2] == ["a\udcff", "b"]
    seen.clear()
    run(Map(lambda r: seen.append(r) or 1), Batch.of({"a": [1, 2], "b": [b"x", b"y"]}))
    assert seen[0] == (1, b"x") and seen[0].a == 1 and seen[0]._fields == ("a", "b")


@pytest.mark.parametrize(("returned", "columns"), [
    (7, {"value": [7, 7]}),
    (("k", 1.5), {"key": ["k", "k"], "value": [1.5, 1.5]}),
    ({"a": True, "b": b"x"}, {"a": [True, True], "b": [b"x", b"x"]}),
    ([1, 2], {"value": [[1, 2], [1, 2]]}),
    (("k", (1, 2.5)), {"key": ["k", "k"], "value.0": [1, 1], "value.1": [2.5, 2.5]}),
    (("k", {"a": 1, "b": (2, "t")}), {"key": ["k", "k"], "value.a": [1, 1], "value.b.0": [2, 2], "value.b.1": ["t", "t"]}),
    ({"l": [(1, "x"), (2, "y")]}, {"l[].0": [[1, 2], [1, 2]], "l[].1": [["x", "y"], ["x", "y"]]}),
    (2 ** 63, {"value": [2 ** 63, 2 ** 63]}),
    (np.float32(0.1), {"value": [float(np.float32(0.1))] * 2}),
    (1 + 2j, {"value": [1 + 2j] * 2}),
    (namedtuple("P", "x y")(1, 2), {"x": [1, 1], "y": [2, 2]}),
])
def test_what_is_returned_becomes_columns_and_comes_back(returned: Any, columns: dict[str, Any]) -> None:
    out = run(Map(lambda r: returned), Batch.of({"x": [1, 2]}))
    assert out.to_pydict() == columns
    back = rows_of(out)[0]
    if isinstance(returned, dict):
        back = back._asdict() if hasattr(back, "_asdict") else {next(iter(returned)): back}
    assert back == returned


scalars = [st.integers(-2 ** 63, 2 ** 63 - 1), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8")), st.binary(), st.booleans()]


@given(st.sampled_from(scalars)
       .flatmap(lambda s: st.sampled_from([s, st.lists(s, min_size=1), st.tuples(s, s), st.tuples(s, st.lists(st.tuples(s, s), min_size=1)),
                                           st.fixed_dictionaries({"a": s, "b": st.tuples(s)})]))
       .flatmap(lambda s: st.lists(s, min_size=1, max_size=8)))
def test_any_typed_value_comes_back(values: list[Any]) -> None:
    out = run(Map(lambda i: ("k", values[i])), Batch.of({"i": list(range(len(values)))}))
    assert [r.value for r in rows_of(out)] == values


@pytest.mark.parametrize(("function", "words"), [
    (lambda r: r.k if r.k < 2 else "two", "a str ('two')"),
    (lambda r: None, "returned None"),
    (lambda r: (1, 2, 3), "tuple of 3"),
    (lambda r: {"a": 1} if r.k < 2 else {"b": 1}, "keys 'b'"),
    (lambda r: {1: 2}, "name columns"),
    (lambda r: object(), "object"),
    (lambda r: (1, (1,) * (r.k + 1)), "a tuple of"),
    (lambda r: 2 ** 70, "64 bits"),
    (lambda r: 1 // (r.k - 2), "ZeroDivisionError"),
    (lambda r: r.nonsense, "AttributeError"),
])
def test_plain_errors_name_function_and_record(function: Any, words: str) -> None:
    with pytest.raises(FunctionError, match="at record 10") as caught:
        run(Map(function), particles())
    assert words in str(caught.value) and "test_map.py" in str(caught.value)


def test_the_users_traceback_is_kept_without_ours() -> None:
    def deep(row):
        return scaled(None)

    with pytest.raises(FunctionError) as caught:
        run(Map(deep), particles())
    trace = caught.value.trace
    assert trace is not None and "in deep" in trace and "in scaled" in trace and "functions.py" not in trace


def test_two_types_of_one_key_are_named_with_the_record() -> None:
    with pytest.raises(FunctionError, match=r"column 'key' got a str \('s'\), 2 records before it got an int \(0\)") as caught:
        run(Map(lambda r: (r.k if r.k < 2 else "s", 1)), particles())
    assert caught.value.record == 102


def test_later_batches_are_cast_safely_or_fail() -> None:
    step = Map(lambda r: r.v)
    step.bind(Batch.of({"u": [0], "v": [0.5]}).schema)
    schema = step.infer(Batch.of({"u": [0], "v": [0.5]}), START)
    assert schema is not None
    step.fix(schema)
    assert step.apply(Batch.of({"u": [0], "v": [7]}), START).schema == schema
    with pytest.raises(FunctionError, match="does not fit in float64") as caught:
        step.apply(Batch.of({"u": [0, 0], "v": [7, 2 ** 53 + 1]}), START)
    assert caught.value.record == 101
    with pytest.raises(FunctionError, match="expected float64"):
        step.apply(Batch.of({"u": [0], "v": ["x"]}), START)
    narrow = Map(lambda r: r.v)
    narrow.bind(Batch.of({"u": [0], "v": [1]}).schema)
    narrow.fix(Schema.of({"value": column_of([1]).type}))
    with pytest.raises(FunctionError, match="expected int64"):
        narrow.apply(Batch.of({"u": [0], "v": [1.5]}), START)


def test_declared_types_are_kept() -> None:
    out = run(Map(lambda r: (r.k, r.x), {"key": "int8", "value": "float32"}), particles())
    assert [str(f.type) for f in out.schema] == ["int8", "float32"]
    with pytest.raises(FunctionError, match="300 does not fit in int8"):
        run(Map(lambda r: 300, {"v": "int8"}), particles())
    with pytest.raises(FunctionError, match="expected 'a'"):
        run(Map(lambda r: {"b": 1}, {"a": "int64"}), particles())


@pytest.mark.parametrize("returned", ["text", 5, {"a": 1}, None])
def test_flat_map_wants_an_iterable_of_rows(returned: Any) -> None:
    with pytest.raises(FunctionError, match="iterable"):
        run(FlatMap(lambda r: returned), particles())


def test_flat_map_names_the_input_record_of_a_bad_row() -> None:
    with pytest.raises(FunctionError) as caught:
        run(FlatMap(lambda r: [1] * 5 if r.k < 2 else [1, "x"]), particles())
    assert caught.value.record == 102


def test_flat_map_without_rows_has_no_schema_yet_and_later_none_to_give() -> None:
    step = FlatMap(lambda x: ["w"] * x)
    step.bind(Batch.of({"x": [0]}).schema)
    assert step.infer(Batch.of({"x": [0, 0]}), START) is None
    schema = step.infer(Batch.of({"x": [2]}), START)
    assert schema is not None
    step.fix(schema)
    assert step.apply(Batch.of({"x": [0]}), START).nrows == 0


# ---- batch -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "words"), [
    (lambda c: {"x": c["x"][:-1]}, "9 rows in column 'x'"),
    (lambda c: {"x": c["x"], "y": c["x"][:2]}, "2 rows in column 'y'"),
    (lambda c: {"x": c["x"].sum()}, "expected an array"),
    (lambda c: 7, "a dict of arrays"),
    (lambda c: {}, "a dict of arrays"),
    (lambda c: {"x": np.array([object()] * 10)}, "values of types object"),
    (lambda c: {"x": c["nope"]}, "no column 'nope'"),
    (lambda c: 1 / 0, "ZeroDivisionError"),
])
def test_batch_errors_say_what_was_expected(function: Any, words: str) -> None:
    with pytest.raises((FunctionError, JobSpecError)) as caught:
        run(Map(batch_function(function)), particles())
    assert words in str(caught.value)


def test_batch_functions_cannot_write_into_the_input() -> None:
    def change(cols):
        cols["x"][0] = 1

    with pytest.raises(FunctionError, match="read-only"):
        run(Map(batch_function(change)), particles())


def test_batch_functions_see_strings_and_nulls() -> None:
    batch = Batch.of({"n": np.ma.MaskedArray([1, 2, 3], [False, True, False]), "t": ["a", "b", "c"]})
    out = run(Map(batch_function(lambda c: {"m": c["n"] * 2, "t": c["t"], "u": [s + "!" for s in c["t"].to_list()]})), batch)
    assert out.to_pydict() == {"m": [2, None, 6], "t": ["a", "b", "c"], "u": ["a!", "b!", "c!"]}
    assert isinstance(out["t"], BytesColumn)


# ---- filter, select, with_columns ------------------------------------------------------------------------------------------


def test_three_speeds_of_filter_agree() -> None:
    whole = particles()
    expected = [r for r in zip(*whole.select(["k", "x", "name"]).to_pydict().values(), strict=True) if r[1] > 0.35 and r[0] != 1]
    for f in (plain_function(lambda r: r.x > 0.35 and r.k != 1), batch_function(lambda c: (c["x"] > 0.35) & (c["k"] != 1)),
              kernel_function(lambda row: row.x > 0.35 and row.k != 1)):
        out = run(Filter(f), whole)
        assert list(zip(*out.select(["k", "x", "name"]).to_pydict().values(), strict=True)) == expected


@pytest.mark.parametrize("function", [plain_function(lambda r: "yes"), batch_function(lambda c: c["x"]), batch_function(lambda c: c["x"][:1] > 0),
                                      kernel_function(lambda row: row.x)])
def test_a_predicate_gives_booleans(function: Any) -> None:
    with pytest.raises(FunctionError):
        run(Filter(function), particles())


def test_select_drop_and_their_errors() -> None:
    assert run(Select(["x", "k"]), particles()).names == ("x", "k")
    assert run(Drop(["pos", "name"]), particles()).names == ("k", "x")
    for wrong, words in ((Select(["kk"]), "did you mean 'k'"), (Drop(["q"]), "no column 'q'"), (Drop(["k", "x", "pos", "name"]), "leaves no column")):
        with pytest.raises(JobSpecError, match=words):
            wrong.bind(particles().schema)
    with pytest.raises(JobSpecError, match="twice"):
        Select(["k", "k"])


def test_with_columns_in_three_speeds_and_constants() -> None:
    out = run(WithColumns({"x": lambda r: r.x * 2, "b": batch_function(lambda c: c["x"] + 1),
                           "c": kernel_function(lambda row: row.k + 1, {"c": "int32"}), "run": 42, "tag": "t"}), particles())
    assert out.names == ("k", "x", "pos", "name", "b", "c", "run", "tag")
    x = particles()["x"].to_list()
    assert out["x"].to_list() == [v * 2 for v in x] and out["b"].to_list() == [v + 1 for v in x]
    assert out["run"].to_list() == [42] * 10 and out["tag"].to_list() == ["t"] * 10 and str(out["c"].type) == "int32"
    with pytest.raises(FunctionError, match="3 rows for column 'q'"):
        run(WithColumns({"q": batch_function(lambda c: c["x"][:3])}), particles())
    with pytest.raises(JobSpecError, match="constant"):
        WithColumns({"q": [1, 2]})
