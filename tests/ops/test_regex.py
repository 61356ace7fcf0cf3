"""Matches of a pattern as rows, against ``re`` on each row."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.schema import FLOAT64, INT64, TEXT, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.regex import Regex

AT = Origin(0, 0)
PATTERNS = [b"a+", b"^a", b"a$", rb"\ba", rb"(a)|(b)", rb"(?P<x>a+)(?P<y>b*)", rb"(?<=a)b", rb"\A.", b"", b".*"]


def batch_of(rows: list[bytes | None], text: bool = False) -> Batch:
    return Batch({"line": BytesColumn.from_list(rows, text), "i": FixedColumn(np.arange(len(rows)))})


@given(st.lists(st.text("ab \n", max_size=8).map(str.encode) | st.none(), min_size=1, max_size=8), st.sampled_from(PATTERNS),
       st.randoms(use_true_random=False))
def test_matches(rows: list[bytes | None], pattern: bytes, random: object) -> None:
    count = re.compile(pattern).groups
    step = Regex(pattern, {f"g{g}": g for g in range(count + 1)}, keep=("i",))
    order = np.arange(len(rows))
    random.shuffle(order)  # type: ignore[attr-defined]
    batch = batch_of(rows).take(order)
    want = [(i, [m.group(g) for g in range(count + 1)]) for i in order for m in re.finditer(pattern, rows[i] or b"")]
    got = step.apply(batch, AT)
    got.check(step.bind(batch.schema))
    assert got["i"].to_list() == [i for i, _ in want]
    for g in range(count + 1):
        assert got[f"g{g}"].to_list() == [groups[g] for _, groups in want]


def test_default_columns() -> None:
    assert tuple(Regex("a").groups) == ("match",)
    assert tuple(Regex("(a)(b)").groups) == ("group1", "group2")
    assert Regex("(?P<year>a)(b)(?P<day>c)").groups == {"year": 1, "day": 3}
    assert Regex("(?P<year>a)(b)", {"y": "year", "all": 0, "two": 2}).groups == {"y": 1, "all": 0, "two": 2}


def test_a_log_line() -> None:
    step = Regex(r'^(?P<host>\S+) .*" (?P<status>\d+) (?P<size>\d+|-)$', {"host": "host", "status": "status"}, types={"status": "int64"})
    lines = ['1.2.3.4 - [x] "GET /é" 200 17', "nonsense", '::1 - "POST /" 404 -']
    batch = batch_of([line.encode() for line in lines], text=True)
    assert step.bind(batch.schema) == Schema.of({"host": TEXT, "status": INT64})
    assert step.apply(batch, AT).to_pydict() == {"host": ["1.2.3.4", "::1"], "status": [200, 404]}
    assert isinstance(step, Step)


def test_numbers_and_absent_groups() -> None:
    step = Regex(r"(\d+)(\.\d+)?", {"n": 1, "f": 2}, types={"n": "int64", "f": "float64"})
    batch = batch_of([b"1.5 7", b"x"])
    got = step.apply(batch, AT)
    got.check(Schema.of({"n": INT64, "f": FLOAT64}))
    assert got.to_pydict() == {"n": [1, 7], "f": [0.5, None]}


def test_a_value_that_is_no_number_names_the_record() -> None:
    step = Regex(r"=(.*)", types={"group1": "int32"})
    with pytest.raises(DataError, match=r"group 1 of the pattern is 'x' at record 102 of the split, which is no int32") as caught:
        step.apply(batch_of([b"=1", b"none", b"=x"]), Origin(3, 100))
    assert caught.value.record == 102


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Regex("(a"), r"the pattern '\(a' is no regular expression: missing \), unterminated subpattern at character 0"),
    (lambda: Regex("(a)", {"x": 2}), "has no group 2; it has 0 .* to 1"),
    (lambda: Regex("(?P<one>a)", {"x": "two"}), "has no group 'two'.*'one'"),
    (lambda: Regex("(a)", types={"x": "int64"}), "types names 'x', and the columns of the pattern are 'group1'"),
    (lambda: Regex("(a)", types={"group1": "complex128"}).bind(Schema.of({"line": TEXT})), "not as 'complex128'"),
    (lambda: Regex("(a)", column="n").bind(Schema.of({"n": INT64})), "regex reads text"),
])
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(JobSpecError, match=message):
        make()  # type: ignore[operator]
