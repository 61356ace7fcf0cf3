"""Expressions against plain NumPy: trees of all operations over all types, nulls, strings, dates, shapes; and what is refused."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import hpcmr as mr
from hpcmr.data.batch import Batch, FixedColumn, column_of
from hpcmr.data.schema import Schema
from hpcmr.errors import EXIT_REFUSED, JobSpecError
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.evaluate import Evaluate, filter_move, fuse, select_move, with_columns_move
from hpcmr.ops.expression import Expr, as_expr
from hpcmr.ops.expression_types import Binder, columns_of
from hpcmr.ops.rename import Rename
from hpcmr.ops.select import Drop, Select
from hpcmr.plan.fingerprint import digest_of
from tests.support.expressions import DTYPES, a_table, conditions, expected, numbers

AT = Origin(0, 0)
c = mr.col


def run(batch: Batch, *moves: Any) -> Batch:
    """What the engine does with one step."""
    step = Evaluate(*moves)
    assert isinstance(step, Step)
    schema = step.bind(batch.schema)
    step.compile()
    out = step.apply(batch, AT)
    assert out.schema == schema
    return out


def values(batch: Batch, **columns: Expr) -> dict[str, list[Any]]:
    return run(batch, select_move(columns.items())).to_pydict()


def type_of(schema: Schema, expr: Expr) -> str:
    return str(Binder(columns_of(schema), "select").bind(expr).type)


def compare(found: Any, expr: Expr, columns: dict[str, Any], n: int, rows: Any, close: bool = False) -> None:
    """Bit for bit (all NaN are one), in type, values and nulls."""
    want, valid = expected(expr, columns, n)
    want, valid = (want.astype(np.float32) if want.dtype == np.float16 else want)[rows], valid[rows]
    have = np.ones(len(found), bool) if found.valid is None else found.valid
    assert found.values.dtype == want.dtype, expr
    assert have.tolist() == valid.tolist(), expr
    assert expr.op == "col" or not found.values[~have].any(), expr         # what lies under a null is zero, the same on all ranks
    if close:
        np.testing.assert_allclose(found.values[valid], want[valid], rtol=1e-6 if want.dtype == np.float32 else 1e-14, err_msg=str(expr))
    else:
        np.testing.assert_array_equal(found.values[valid], want[valid], err_msg=str(expr), strict=True)


# ---- against NumPy -----------------------------------------------------------------------------------------------------------


@settings(max_examples=3, phases=[Phase.generate])         # each compiles a loop
@given(st.lists(st.one_of(numbers(), conditions()), min_size=8, max_size=8), conditions(), st.booleans())
def test_trees_of_numbers_and_truth(trees: list[Expr], condition: Expr, filtering: bool) -> None:
    made = {f"y{i}": e for i, e in enumerate(trees)}
    n = 1301                                               # more than a block
    for nulls in (True, False):
        columns = a_table(n, seed=1)
        if not nulls:
            columns = {name: v.data if isinstance(v, np.ma.MaskedArray) else v for name, v in columns.items()}
        batch = Batch.of(columns)
        out = run(batch, *([filter_move(condition)] if filtering else []), with_columns_move(made))
        keep = np.logical_and(*expected(condition, columns, n)) if filtering else np.ones(n, bool)
        assert out.names == (*columns, *made) and out.nrows == keep.sum()
        for name, expr in made.items():
            compare(out[name], expr, columns, n, keep)
        for name in columns:
            compare(out[name], c(name), columns | {"float16": columns["float16"].astype(np.float32)}, n, keep) if name in (
                "int8", "uint64", "float64", "bool") else None


def test_functions() -> None:
    columns = {k: v for k, v in a_table(200, seed=2).items() if k in ("int16", "float32", "n_float64")}
    exprs = {f"{f}_{n}": getattr(c(n), f)() for n in columns for f in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "abs", "floor", "ceil")}
    exprs |= {f"neg_{n}": -c(n) for n in columns}
    out = run(Batch.of(columns), select_move(exprs.items()))
    for name, expr in exprs.items():
        compare(out[name], expr, columns, 200, slice(None), close=True)


def test_rounding() -> None:
    x = np.array([0.5, 1.5, -2.5, 2.675, 1e300, -0.125, np.nan, np.inf, 123456.789])
    got = values(Batch.of({"x": x, "i": np.arange(9)}), a=c("x").round(), b=c("x").round(2), i=c("i").round(1))
    assert got["i"] == list(range(9))
    np.testing.assert_array_equal(got["a"], np.round(x))
    np.testing.assert_array_equal(got["b"], np.round(x, 2))


@pytest.mark.parametrize("a", DTYPES)
def test_types_are_numpys(a: str) -> None:
    """bool counts as int8, float16 as float32; everything else is `numpy.result_type`."""
    schema = Batch.of(a_table(1, 0, nulls=False)).schema
    number = {"bool": "int8", "float16": "float32"}
    for b in DTYPES:
        want = np.result_type(number.get(a, a), number.get(b, b))
        want = np.dtype("int64") if a == b == "bool" else want
        for expr in (c(a) + c(b), c(a) - c(b), c(a) * c(b), c(a) // c(b), c(a) % c(b), c(a) ** c(b)):
            assert type_of(schema, expr) == want.name
        assert type_of(schema, c(a) / c(b)) == ("float64" if want.kind in "iu" else want.name)
        assert type_of(schema, c(a) < c(b)) == "bool"


def test_constants_take_the_type_of_the_other_side() -> None:
    schema = Batch.of(a_table(1, 0, nulls=False)).schema
    for expr, want in [(c("int8") + 1, "int8"), (c("int8") + 128, "int64"), (c("uint8") - 1, "uint8"), (c("float32") * 0.1, "float32"),
                       (c("int32") * 0.5, "float64"), (c("bool") + 1, "int64"), (c("int16") + np.int64(1), "int64"), (1 - c("uint16"), "uint16"),
                       (c("float32") * np.float64(1), "float64"), (mr.lit(1) + 1, "int64"), (c("float32") + 1j, "complex64"),
                       (c("int64") + 2 ** 63, "float64"), (mr.when(c("bool")).then(1).otherwise(0.5), "float64")]:
        assert type_of(schema, expr) == want, expr
    batch = Batch.of({"i": np.array([-128, 127], np.int8), "u": np.array([0, 255], np.uint8)})
    got = values(batch, a=c("i") > 300, b=c("u") > -1, d=c("i") == 127.0, e=c("i") + 1000)
    assert got == {"a": [False, False], "b": [True, True], "d": [False, True], "e": [872, 1127]}


def test_integers_wrap_around_and_division_by_zero_is_null() -> None:
    low = -(1 << 63)
    batch = Batch.of({"a": np.array([low, 7, -7, 5]), "b": np.array([-1, 0, 2, -3]), "u": np.array([0, 1, 2, 3], np.uint8)})
    got = values(batch, q=c("a") // c("b"), r=c("a") % c("b"), m=-c("a"), w=c("a") - 8, u=c("u") - 1, z=c("u") // 0, d=c("a") / 0,
                 p=c("a") ** c("b"), s=c("a").abs(), c=c("a") // -1)
    assert got["q"] == [low, None, -4, -2] and got["r"] == [0, None, 1, -1]
    assert got["m"] == [low, -7, 7, -5] and got["w"] == [(1 << 63) - 8, -1, -15, -3] and got["u"] == [255, 0, 1, 2]
    assert got["z"] == [None] * 4 and got["d"] == [-math.inf, math.inf, -math.inf, math.inf]
    assert got["p"] == [None, 1, 49, None] and got["s"][0] == low and got["c"] == [low, -7, 7, -5]


def test_powers() -> None:
    rng = np.random.default_rng(3)
    x, n, e = rng.random(50) * 3, rng.integers(-9, 9, 50), rng.integers(0, 30, 50)
    got = values(Batch.of({"x": x, "n": n, "e": e}), a=c("x") ** 2, b=c("x") ** 0.5, d=c("x") ** c("n"), i=c("n") ** c("e"), two=2 ** c("e"),
                 u=c("e").cast("uint8") ** 3)
    assert got["a"] == (x * x).tolist() and got["b"] == np.sqrt(x).tolist()
    np.testing.assert_allclose(got["d"], x ** n, rtol=1e-14)
    assert got["i"] == (n ** e).tolist() and got["two"] == (2 ** e).tolist() and got["u"] == (e.astype("uint8") ** 3).tolist()


def test_signed_and_unsigned_compare_by_value() -> None:
    a = np.array([-1, 0, 5, (1 << 63) - 1])
    b = np.array([(1 << 64) - 1, 0, 5, 1 << 63], np.uint64)
    exprs = {"lt": c("a") < c("b"), "le": c("a") <= c("b"), "eq": c("a") == c("b"), "ne": c("a") != c("b"), "gt": c("b") > c("a"),
             "ge": c("a") >= c("b")}
    got = values(Batch.of({"a": a, "b": b}), **exprs)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert got == {"lt": [x < y for x, y in pairs], "le": [x <= y for x, y in pairs], "eq": [x == y for x, y in pairs],
                   "ne": [x != y for x, y in pairs], "gt": [y > x for x, y in pairs], "ge": [x >= y for x, y in pairs]}


def test_nan_compares_as_ieee_and_null_is_neither() -> None:
    x = np.ma.MaskedArray([1.0, np.nan, -0.0, 9.0], [False, False, False, True])
    got = values(Batch.of({"x": x}), lt=c("x") < 2, ne=c("x") != c("x"), nan=c("x").is_nan(), null=c("x").is_null(), zero=c("x") == 0.0,
                 fill=c("x").fill_null(-1), either=(c("x") > 0) | c("x").is_null(), neither=(c("x") > 5) & mr.lit(False))
    assert got["lt"] == [True, False, True, None] and got["ne"] == [False, True, False, None] and got["nan"] == [False, True, False, None]
    assert got["null"] == [False, False, False, True] and got["zero"] == [False, False, True, None] and got["fill"][3] == -1.0
    assert got["either"] == [True, False, False, True] and got["neither"] == [False] * 4
    assert values(Batch.of({"x": x}), x=c("x"))["x"][3] is None
    assert run(Batch.of({"x": x}), filter_move(c("x") > 0))["x"].to_list() == [1.0]


def test_three_values_of_truth() -> None:
    sides = [(True, True), (False, True), (False, False)]       # value, validity
    rows = [(a, b) for a in sides for b in sides]
    batch = Batch({n: FixedColumn(np.array([r[i][0] for r in rows]), np.array([r[i][1] for r in rows])) for i, n in enumerate("ab")})
    got = values(batch, a=c("a") & c("b"), o=c("a") | c("b"), n=~c("a"))
    t, f, u = True, False, None
    assert got == {"a": [t, f, u, f, f, f, u, f, u], "o": [t, t, t, t, f, u, t, u, u], "n": [f, f, f, t, t, t, u, u, u]}
    assert run(batch, filter_move(~c("a")))["b"].to_list() == [t, f, u]


def test_casts() -> None:
    x = np.array([1.9, -1.9, 300.0, np.nan, 1e300, -0.5])
    batch = Batch.of({"x": x, "i": np.array([-1, 0, 127, 128, 255, 1 << 40]), "u": np.array([0, 1, 1 << 63, 5, 6, 7], np.uint64)})
    got = values(batch, a=c("x").cast("int8"), b=c("x").cast(int), d=c("x").cast("uint8"), e=c("i").cast("int8"), f=c("i").cast("uint8"),
                 g=c("u").cast("int64"), h=c("i").cast(float), j=c("x").cast(bool), k=c("x").cast("float32"), m=c("i").cast("uint64"))
    assert got["a"] == [1, -1, None, None, None, 0] and got["b"] == [1, -1, 300, None, None, 0] and got["d"] == [1, None, None, None, None, 0]
    assert got["e"] == [-1, 0, 127, None, None, None] and got["f"] == [None, 0, 127, 128, 255, None]
    assert got["g"] == [0, 1, None, 5, 6, 7] and got["h"] == [-1.0, 0.0, 127.0, 128.0, 255.0, float(1 << 40)]
    assert got["j"] == [True] * 6 and got["k"][4] == math.inf and got["m"][0] is None


def test_membership_and_ranges() -> None:
    batch = Batch.of({"i": np.array([1, 2, 3, 4], np.uint8), "x": np.ma.MaskedArray([1.0, np.nan, 2.5, 3.0], [0, 0, 0, 1]),
                      "b": np.array([1, 0, 1, 0], bool)})
    got = values(batch, a=c("i").is_in([4, 1, -7, 300]), f=c("i").is_in([2.0, 3.5]), x=c("x").is_in([2.5, float("nan")]), none=c("i").is_in([]),
                 t=c("b").is_in([True]), between=c("i").between(2, 3), np=c("i").is_in(np.array([3])))
    assert got == {"a": [True, False, False, True], "f": [False, True, False, False], "x": [False, False, True, None], "none": [False] * 4,
                   "t": [True, False, True, False], "between": [False, True, True, False], "np": [False, False, True, False]}


def test_choices() -> None:
    batch = Batch.of({"i": np.arange(4), "x": np.ma.MaskedArray([0.5] * 4, [0, 1, 0, 1])})
    got = values(batch, a=mr.when(c("i") < 1).then(10).when(c("i") < 2).then(20).otherwise(c("i")), b=mr.when(c("x") > 0).then(c("i")),
                 d=mr.when(c("i") > 1).then("big").otherwise("small"))
    assert got == {"a": [10, 20, 2, 3], "b": [0, None, 2, None], "d": ["small", "small", "big", "big"]}


# ---- shapes ------------------------------------------------------------------------------------------------------------------


def test_components_and_shapes() -> None:
    rng = np.random.default_rng(4)
    pos, grid, w = rng.standard_normal((9, 3)), rng.integers(0, 99, (9, 2, 4)), np.ma.MaskedArray(rng.random(9), np.arange(9) == 3)
    batch = Batch.of({"pos": pos, "grid": grid, "w": w})
    for keep, moves in ((slice(None), []), (pos[:, 0] > 0, [filter_move(c("pos")[:, 0] > 0)])):
        out = run(batch, *moves, with_columns_move({
            "x": c("pos")[:, 0], "last": c("pos")[:, -1], "xy": c("pos")[:, 0:2], "g": c("grid")[:, 1, ::2], "cell": c("grid")[:, 1, 3],
            "r": (c("pos")[:, 0] ** 2 + c("pos")[:, 1] ** 2).sqrt(), "two": (c("pos") * 2 + 1)[:, 1],
            "all": c("pos") * c("w") - 1, "far": c("pos") > 0}))
        want: dict[str, Any] = {"pos": pos, "grid": grid, "x": pos[:, 0], "last": pos[:, 2], "xy": pos[:, :2], "g": grid[:, 1, ::2],
                                "cell": grid[:, 1, 3], "r": np.sqrt(pos[:, 0] ** 2 + pos[:, 1] ** 2), "two": pos[:, 1] * 2 + 1, "far": pos > 0}
        for name, array in want.items():
            np.testing.assert_array_equal(out[name].values, array[keep], strict=True)  # type: ignore[union-attr]
        valid = ~np.ma.getmaskarray(w)[keep]
        assert out["all"].valid is not None and out["all"].valid.tolist() == valid.tolist()
        np.testing.assert_array_equal(out["all"].values[valid], (pos * w.data[:, None] - 1)[keep][valid])  # type: ignore[union-attr]


# ---- strings and dates -------------------------------------------------------------------------------------------------------

ODD = ["", "a", "Zoë", "naïve É", "日本語", "😀x", "\udcff\udcfeb", "mixed\udce2\udc82", "The Quick", "x" * 40, "quick", "\u0800", "aa\x00b",
       "AbCdEfGhIjK{[`@"]
ODD_BYTES = [s.encode("utf-8", "surrogateescape") for s in ODD] + [
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f\x98", b"\xe2\x28\xa1"]


@pytest.mark.parametrize("kind", ["text", "bytes", "fixed"])
def test_strings(kind: str) -> None:
    rows: list[Any] = [b.decode("utf-8", "surrogateescape") for b in ODD_BYTES] if kind == "text" else ODD_BYTES
    rows = [r for r in rows if not r.endswith(b"\0")] if kind == "fixed" else rows
    column = column_of(np.array(rows, "S60") if kind == "fixed" else rows)
    batch = Batch({"s": column, "i": FixedColumn(np.arange(len(rows)))})

    def as_bytes(value: str) -> Any:
        return value if kind == "text" else value.encode()

    def cased(r: Any, how: str) -> Any:
        raw = getattr(r.encode("utf-8", "surrogateescape") if kind == "text" else r, how)()
        return raw.decode("utf-8", "surrogateescape") if kind == "text" else raw

    s = c("s").str
    got = values(batch, n=s.length(), low=s.lower(), up=s.upper(), st=s.starts_with("Th"), en=s.ends_with(b"ck"), co=s.contains("ick"),
                 e=s.contains(""),
                 eq=c("s") == "quick", lt=c("s") < "b", le="b" <= c("s"), same=c("s") == c("s"), of=c("s").is_in(["a", b"quick", "日本語", "nope"]),
                 pick=mr.when(c("i") % 2 == 0).then(s.upper()).otherwise("odd"), twice=s.lower().str.length() + 1)
    assert got["n"] == [len(r) for r in rows]
    assert got["low"] == [cased(r, "lower") for r in rows] and got["up"] == [cased(r, "upper") for r in rows]
    assert got["st"] == [r.startswith(as_bytes("Th")) for r in rows] and got["en"] == [r.endswith(as_bytes("ck")) for r in rows]
    assert got["co"] == [as_bytes("ick") in r for r in rows] and got["e"] == [True] * len(rows) == got["same"]
    assert got["eq"] == [r == as_bytes("quick") for r in rows] and got["twice"] == [len(r) + 1 for r in rows]
    raw = [r.encode("utf-8", "surrogateescape") if kind == "text" else r for r in rows]
    assert got["lt"] == [r < b"b" for r in raw] and got["le"] == [r >= b"b" for r in raw]
    assert got["of"] == [r in (b"a", b"quick", "日本語".encode()) for r in raw]
    assert got["pick"] == [cased(r, "upper") if i % 2 == 0 else as_bytes("odd") for i, r in enumerate(rows)]


def test_strings_with_nulls_and_far_apart() -> None:
    rows = ["a", None, "b", None, "", "C"] * 500
    whole = column_of(rows)
    for take in (np.arange(3000), np.arange(0, 3000, 601), np.arange(2999, -1, -7)):
        batch = Batch({"s": whole.take(take)})
        want = [rows[i] for i in take]
        got = values(batch, n=c("s").str.length(), f=c("s").fill_null("?"), low=c("s").str.lower(), null=c("s").is_null(), eq=c("s") == "a",
                     w=mr.when(c("s") != "a").then(c("s")), as_bytes=c("s").cast("bytes"))
        assert got["n"] == [None if r is None else len(r) for r in want] and got["f"] == ["?" if r is None else r for r in want]
        assert got["low"] == [None if r is None else r.lower() for r in want] and got["null"] == [r is None for r in want]
        assert got["eq"] == [None if r is None else r == "a" for r in want] and got["w"] == [None if r in (None, "a") else r for r in want]
        assert got["as_bytes"] == [None if r is None else r.encode() for r in want]
        out = run(batch, filter_move(c("s").str.starts_with("b") | (c("s") == "C")))
        assert out["s"].to_list() == [r for r in want if r in ("b", "C")]


def test_dates() -> None:
    days = np.array(["2024-01-01", "2024-02-29", "NaT", "1969-12-31"], "M8[D]")
    ns = days.astype("M8[ns]") + np.timedelta64(5, "h")
    batch = Batch.of({"d": days, "t": ns})
    got = values(batch, ge=c("d") >= "2024-02-01", lt=c("t") < datetime.datetime(2024, 1, 1, 6), mixed=c("d") < c("t"), ne=c("d") != c("d"),
                 nat=c("t").is_nan(), of=c("d").is_in(["2024-02-29", datetime.date(1969, 12, 31)]), n=c("d").cast("int64"))
    assert got == {"ge": [False, True, False, False], "lt": [True, False, False, True], "mixed": [True, True, False, True],
                   "ne": [False, False, True, False], "nat": [False, False, True, False], "of": [False, True, False, True],
                   "n": [19723, 19782, None, -1]}
    out = run(batch, select_move({"gap": c("t") - c("d"), "next": c("d") + np.timedelta64(36, "h"), "day": c("t").cast("datetime64[D]"),
                                  "back": c("d").cast("int64").cast("datetime64[D]")}.items()))
    for name, want in (("gap", ns - days), ("next", days + np.timedelta64(36, "h")), ("day", ns.astype("M8[D]"))):
        np.testing.assert_array_equal(out[name].values, want, strict=True)  # type: ignore[union-attr]
    assert out["back"].to_list()[2] is None and out["back"].values[0] == days[0]  # type: ignore[union-attr]


# ---- steps -------------------------------------------------------------------------------------------------------------------


def several() -> list[Any]:
    return [Evaluate(filter_move(c("k") > 2)), Select(["v", "k", "s"]), Evaluate(with_columns_move({"v": c("v") * 2, "w": c("v") + c("k")})),
            Rename({"v": "x", "k": "j"}), Evaluate(filter_move(c("x") < 30)), Evaluate(with_columns_move({"x": c("x") + c("w")})), Drop(["j"])]


@pytest.mark.parametrize("n", [0, 1, 2, 1500])
def test_fused_steps_give_what_they_give_alone(n: int) -> None:
    batch = Batch.of({"k": np.arange(n) % 7, "v": np.arange(n) * 0.25, "s": [f"s{i}" for i in range(n)], "u": np.ones(n)})
    (one,) = fuse(several())
    schema = batch.schema
    alone = batch
    for step in several():
        schema = step.bind(schema)
        alone = step.apply(alone, AT) if alone.nrows else Batch.empty(schema)
    assert one.bind(batch.schema) == schema and schema.names == ("x", "s", "w")
    one.compile()  # type: ignore[attr-defined]
    if n:
        assert one.apply(batch, AT).to_pydict() == alone.to_pydict()


def test_what_is_fused() -> None:
    def names(*steps: Any) -> list[str]:
        return [s.name for s in fuse(steps)]

    keep, add = Evaluate(filter_move(c("a") > 0)), Evaluate(with_columns_move({"b": c("a") + 1}))
    length = Evaluate(with_columns_move({"n": c("s").str.length()}))
    assert names(keep, add) == ["expressions"] and names(add, length) == ["expressions"]
    assert names(keep, length) == ["filter", "with_columns"]                # strings are asked about the rows that are left
    assert names(Select(["a"]), Drop(["b"])) == ["select", "drop"] and names(Select(["a"]), keep) == ["expressions"]


def test_memory_is_used_again_and_grows() -> None:
    step = Evaluate(filter_move(c("x") > 0), with_columns_move({"y": c("x") * 2}))
    step.bind(Schema.of({"x": Batch.of({"x": np.zeros(1)}).schema["x"].type}))
    for n in (10, 5000, 3, 4999):
        x = np.random.default_rng(n).standard_normal(n)
        out = step.apply(Batch.of({"x": x}), AT)
        np.testing.assert_array_equal(out["y"].values, 2 * x[x > 0])  # type: ignore[union-attr]
        assert out["x"].values.tolist() == x[x > 0].tolist()  # type: ignore[union-attr]


def test_units_stay_with_their_columns() -> None:
    from hpcmr.data.schema import Field

    plain = Batch.of({"x": np.ones(2), "y": np.ones(2)}).schema
    schema = Schema((Field("x", plain["x"].type, (("units", "cm"),)), plain["y"]))
    out = Evaluate(filter_move(c("x") > 0), select_move([("z", c("x")), ("w", c("x") * 2)]), ).bind(schema)
    assert out["z"].attrs == (("units", "cm"),) and out["w"].attrs == ()


def test_fingerprints_are_by_value() -> None:
    def tree(**change: Any) -> Expr:
        at = {"name": "x", "number": 1, "text": "a", "index": 0, "to": "int8", "among": (1, 2)} | change
        return mr.when(c(at["name"]) > at["number"]).then(c("s") == at["text"]).otherwise(c("p")[:, at["index"]].cast(at["to"]).is_in(at["among"]))

    same = {digest_of(filter_move(tree()).fingerprint()) for _ in range(3)}
    others = [tree(name="y"), tree(number=2), tree(number=1.0), tree(number=True), tree(number=np.int64(1)), tree(text="b"), tree(text=b"a"),
              tree(index=1), tree(to="int16"), tree(among=(1, 3)), tree(number=-0.0), tree(number=0.0)]
    assert len(same) == 1 and len(same | {digest_of(filter_move(t).fingerprint()) for t in others}) == 1 + len(others)
    assert digest_of(with_columns_move({"a": tree()}).fingerprint()) != digest_of(with_columns_move({"b": tree()}).fingerprint())


# ---- what is refused ---------------------------------------------------------------------------------------------------------

SCHEMA = Batch.of({"x": np.ones(1), "i": np.ones(1, int), "b": np.ones(1, bool), "s": ["a"], "p": np.ones((1, 3)), "z": np.ones(1, complex),
                   "d": np.array(["2024-01-01"], "M8[D]"), "l": [[1]]}).schema


@pytest.mark.parametrize(("expr", "words"), [
    (c("ex") > 0, "no column 'ex'; the columns are 'x', 'i'"), (c("x"), "float64 and not true or false"), (c("p") > 0, "take a component"),
    (c("s") + 1 > 0, r"\(s \+ 1\) in \(\(s \+ 1\) > 0\): \+ of text makes no sense"), (c("s") > 1, "text and int64 cannot be compared"),
    ((c("x") > 1) & c("i"), "comparisons need parentheses"), (c("b") & c("x"), "not bool and float64"), (c("z") < 1, "have no order"),
    (c("x")[:, 0] > 0, "has no components"), (c("p")[:, 3] > 0, r"within \(3,\)"), (c("p")[:, 3:] > 0, "no component"),
    (c("p") + c("x")[:, 0] > 0, "no components"), (c("d") > 3, "give a date"), (c("d") > "soon", "'soon' is no date"),
    (c("d") * 2 > 1, "makes no sense"),
    (c("i") ** -1 > 0, "negative power"), (c("s").sqrt() > 0, "takes real numbers"), (c("x").str.length() > 0, "takes? text or bytes|take text"),
    (-c("b"), "write ~x"), (c("x").cast("int65") > 0, "unknown column type"), (c("s").cast("int64") > 0, "make numbers of text"),
    (c("i").fill_null(0.5) > 0, "does not fit in int64"), (c("p").cast("int8")[:, 0] > 0, "take components"), (c("p") // 2 == c("p"), None),
    (c("i").is_in(["a"]), "compared with numbers only"), (c("s").is_in([1]), "compared with str and bytes only"),
    (c("i") + 2 ** 70 > 0, "does not fit in 64 bits"), (mr.when(c("x")).then(1) > 0, "must be true or false"),
    (mr.when(c("b")).then(1).otherwise("a") == 1, "give them one type"), (c("l") == 1, "cannot be compared"),
])
def test_what_makes_no_sense_is_refused_at_bind(expr: Expr, words: str | None) -> None:
    with pytest.raises(JobSpecError, match=words or "true or false") as caught:
        Evaluate(filter_move(expr)).bind(SCHEMA)
    assert caught.value.exit_code == EXIT_REFUSED and str(caught.value).startswith("filter")


@pytest.mark.parametrize(("make", "words"), [
    (lambda: c("x") > 0 and c("b"), "write & | ~"), (lambda: 0 < c("x") < 1, "between"), (lambda: c("x") in [1], "write & | ~"),
    (lambda: list(c("x")), "iterated"),
    (lambda: c("x") == None, "is_null"), (lambda: c("x") + [1], "no constant"), (lambda: c("x") + np.ones(3), "no constant"),  # noqa: E711, RUF005
    (lambda: c("p")[0], r"p\[:, 0\]"), (lambda: c("p")[:, c("i")], "integers and slices"), (lambda: c("s").str.contains(3), "str or bytes"),
    (lambda: c(3), "name of a column"), (lambda: c("x").is_in("abc"), "list of constants"), (lambda: c("x").is_in([None]), "is_null"),
    (lambda: c("x").alias(""), "a name is a str"), (lambda: c("x").round(-1), "from 0 to 22"), (lambda: as_expr(mr.when(c("b"))), "then"),
])
def test_what_cannot_be_meant_is_refused_at_once(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(JobSpecError, match=words):
        make()


# ---- through the engine ------------------------------------------------------------------------------------------------------


def mine(world: Any, columns: dict[str, Any]) -> mr.Table:
    """Columns that lie in unequal parts on the ranks, some with no row at all."""
    n = len(next(iter(columns.values())))
    cuts = [n * i * i // (world.size * world.size) for i in range(world.size + 1)]
    low, high = cuts[world.rank:world.rank + 2]
    return mr.from_arrays(None, {name: v[low:high] for name, v in columns.items()})


@pytest.mark.mpi
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_verbs_on_ranks(world: Any, n: int) -> None:
    rng = np.random.default_rng(7)
    columns = {"k": rng.integers(-50, 50, n), "v": rng.standard_normal(n) / 3, "pos": rng.random((n, 3)),
               "s": np.array([f"Name {i % 13}" for i in range(n)], "S7")}
    table = mine(world, columns)
    rows = table.filter((c("v") > 0) & (c("s").str.length() == 6)).with_columns(e=c("v") ** 2 * c("k"), x=c("pos")[:, 0], low=c("s").str.lower())
    keep = (columns["v"] > 0) & np.array([len(s) == 6 for s in columns["s"]], bool)
    found = rows.select("low", "k", half=c("e") / 2, up=c("x") * 2).drop("k").rename(half="h").collect()
    assert found.columns == ("low", "h", "up")
    np.testing.assert_array_equal(found["h"], (columns["v"] ** 2 * columns["k"])[keep] / 2)
    np.testing.assert_array_equal(found["up"], columns["pos"][keep, 0] * 2)
    assert list(found["low"]) == [s.lower() for s, ok in zip(columns["s"], keep, strict=True) if ok]

    by_cell = table.group_by(c("k") // 10, odd=c("k") % 2 == 1)
    result = by_cell.agg(mr.count(), mr.sum(c("v") * c("v")), top=mr.max(c("pos")[:, 2] + 1), low=mr.min("k")).collect()
    assert result.columns == ("k", "odd", "count", "v_sum", "top", "low")
    keys = list(zip((columns["k"] // 10).tolist(), (columns["k"] % 2 == 1).tolist(), strict=True))
    assert sorted(zip(result["k"].tolist(), result["odd"].tolist(), strict=True)) == sorted(set(keys))
    for i in range(len(result)):
        here = np.array([key == (result["k"][i], result["odd"][i]) for key in keys])
        assert result["count"][i] == here.sum() and result["v_sum"][i] == math.fsum((columns["v"][here] ** 2).tolist())
        assert result["top"][i] == (columns["pos"][here, 2] + 1).max() and result["low"][i] == columns["k"][here].min()


@pytest.mark.mpi
def test_sorted_and_grouped_by_expressions(world: Any) -> None:
    v = np.random.default_rng(8).permutation(500) - 250
    table = mine(world, {"v": v, "w": v * 0.5})
    found = table.sort_by(c("v").abs() // 10, -c("w")).collect()
    order = np.lexsort((-v * 0.5, np.abs(v) // 10))
    assert found.columns == ("v", "w") and found["v"].tolist() == v[order].tolist()
    sizes = table.group_by(cell=c("v") // 100).apply(mr.batch(lambda cols: {"n": len(cols["w"])}), out={"n": "int64"}).collect()
    assert dict(zip(sizes["cell"].tolist(), sizes["n"].tolist(), strict=True)) == {cell: 100 if cell < 2 else 50 for cell in range(-3, 3)} | {-3: 50}
    with pytest.raises(JobSpecError, match=r"a key and a column would both be called 'v'; .*group_by\(cell"):
        table.group_by(c("v") // 100).apply(mr.batch(lambda cols: {"n": 1})).collect()


@pytest.mark.mpi
def test_functions_and_expressions_together(world: Any) -> None:
    n = 300
    table = mine(world, {"x": np.arange(n), "y": np.arange(n) * 0.5})
    found = table.with_columns(x=lambda row: row.x * 2, z=c("x") + 1, k=7, b=mr.batch(lambda cols: cols["y"] + 1)).filter(c("z") % 2 == 0).collect()
    keep = np.arange(n)[np.arange(1, n + 1) % 2 == 0]
    assert found.columns == ("x", "y", "z", "k", "b")
    assert found["x"].tolist() == (keep * 2).tolist() and found["z"].tolist() == (keep + 1).tolist()
    assert found["k"].tolist() == [7] * len(keep) and found["b"].tolist() == (keep * 0.5 + 1).tolist()


@pytest.mark.mpi
def test_nulls_go_through(world: Any) -> None:
    n = 600
    x = np.ma.MaskedArray(np.arange(n), np.arange(n) % 5 == 0)
    table = mine(world, {"x": x, "g": np.arange(n) % 3})
    found = table.with_columns(q=c("x") // (c("g") - 1), f=c("x").fill_null(-1)).filter(c("q").is_null() | (c("q") > 100)).collect()
    q = [None if i % 5 == 0 or i % 3 == 1 else i // (i % 3 - 1) for i in range(n)]
    rows = [i for i in range(n) if q[i] is None or q[i] > 100]  # type: ignore[operator]
    assert found["q"].tolist() == [q[i] for i in rows] and found["f"].tolist() == [-1 if i % 5 == 0 else i for i in rows]


@pytest.mark.mpi
def test_a_misspelt_column_is_refused_on_all_ranks(world: Any) -> None:
    table = mine(world, {"value": np.arange(10.0)})
    with pytest.raises(JobSpecError, match=r"filter: valeu in \(valeu > 0\): there is no column 'valeu'; .*did you mean 'value'"):
        table.filter(c("valeu") > 0).collect()
    with pytest.raises(JobSpecError, match="called 'x'; give one another name"):
        table.select(c("x"), x=c("y"))


def test_plans_differ_where_expressions_do() -> None:
    from hpcmr.plan.fingerprint import plan_fingerprint

    def plan(t: mr.Table) -> str:
        return plan_fingerprint(t._node)

    t = mr.read_text("a.txt")
    assert plan(t.filter(c("line") == "a")) == plan(t.filter(c("line") == "a")) != plan(t.filter(c("line") == "b"))
    assert plan(t.group_by(c("line").str.length()).agg(mr.count())) != plan(t.group_by(c("line").str.lower()).agg(mr.count()))
    assert plan(t.words()) == plan(t.words("line", "word")) != plan(t.words(lowercase=True))


@pytest.mark.mpi
def test_words_of_tables(world: Any) -> None:
    lines = ["The quick, the slow", "", "(the) é-mail"] * 40
    table = mine(world, {"text": lines, "n": np.arange(len(lines))})
    found = table.words("text", "w", lowercase=True, strip_punctuation=True, keep=["n"]).collect()
    want = [(w.strip("(),-").lower(), i) for i, line in enumerate(lines) for w in line.split()]
    assert list(zip(found["w"], found["n"].tolist(), strict=True)) == want
