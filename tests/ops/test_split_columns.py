"""Fields of lines as columns, against ``split``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.schema import FLOAT64, INT64, TEXT, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.split_columns import SplitColumns

AT = Origin(0, 0)


def batch_of(rows: list[bytes | None], text: bool = False) -> Batch:
    return Batch({"line": BytesColumn.from_list(rows, text), "i": FixedColumn(np.arange(len(rows)))})


@given(st.lists(st.text("ab, \t", max_size=12).map(str.encode), min_size=1, max_size=10), st.sampled_from([None, b",", b"\t", " "]),
       st.integers(1, 3), st.integers(1, 3))
def test_fields(rows: list[bytes], separator: bytes | str | None, one: int, two: int) -> None:
    step = SplitColumns({"one": one, "two": two}, separator=separator, keep=("i",))
    batch = batch_of(rows)
    sep = separator.encode() if isinstance(separator, str) else separator
    want = [(f[one - 1], f[two - 1], i) for i, row in enumerate(rows) if len(f := row.split(sep)) >= max(one, two)]
    got = step.apply(batch, AT)
    got.check(step.bind(batch.schema))
    assert list(zip(*(got[n].to_list() for n in ("one", "two", "i")), strict=True)) == want


def test_numbers() -> None:
    step = SplitColumns({"k": 2, "x": 3, "n": 1}, separator=",", types={"x": "float64", "n": "int64"})
    batch = batch_of([b"1,a, 2.5 ", b"", b"-7,b,nan", b"3,c,1e400", b"4,d,0.1000000000000000055511151231257827"], text=True)
    got = step.apply(batch, AT)
    got.check(Schema.of({"k": TEXT, "x": FLOAT64, "n": INT64}))
    assert got["k"].to_list() == ["a", "b", "c", "d"] and got["n"].to_list() == [1, -7, 3, 4]
    assert repr(got["x"].to_list()) == repr([2.5, float("nan"), float("inf"), 0.1])
    assert isinstance(step, Step)


@pytest.mark.parametrize(("kind", "good", "bad"), [
    ("int8", b"-128", b"128"), ("uint8", b"255", b"-1"), ("uint32", b"4294967295", b"4294967296"), ("int64", b"-9223372036854775808", b"1.5"),
    ("float64", b"-1.5e3", b"1_0"), ("float32", b"0.1", b""), ("float64", b"Infinity", b"0x10"),
])
def test_every_width(kind: str, good: bytes, bad: bytes) -> None:
    step = SplitColumns({"x": 1}, separator=";", types={"x": kind})
    got = step.apply(batch_of([good]), AT)["x"]
    assert got.type.dtype == kind and got.to_list() == [np.dtype(kind).type(good.decode()).item()]
    with pytest.raises(DataError, match=rf"field 1 is '{bad.decode()}' at record 41 of the split, which is no {kind}") as caught:
        step.apply(batch_of([good, bad]), Origin(1, 40))
    assert caught.value.record == 41


def test_nulls_are_lines_without_fields() -> None:
    for separator in (None, " "):
        assert SplitColumns({"x": 1}, separator=separator).apply(batch_of([b"a b", None, b"c"]), AT)["x"].to_list() == [b"a", b"c"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SplitColumns({"x": 0}), "numbered from 1"),
    (lambda: SplitColumns({}), "no field is asked for"),
    (lambda: SplitColumns({"x": 1}, separator="--"), "has 2 bytes"),
    (lambda: SplitColumns({"x": 1}, types={"y": "int64"}), "types names 'y'"),
    (lambda: SplitColumns({"x": 1}, types={"x": "bool"}).bind(Schema.of({"line": TEXT})), "not as 'bool'"),
    (lambda: SplitColumns({"x": 1}, types={"x": "int65"}).bind(Schema.of({"line": TEXT})), "unknown column type 'int65'"),
    (lambda: SplitColumns({"i": 1}, keep=("i",)).bind(Schema.of({"line": TEXT, "i": INT64})), "two columns would be called 'i'"),
])
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(JobSpecError, match=message):
        make()  # type: ignore[operator]
