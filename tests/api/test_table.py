"""Tables as plans: what each operation adds, what is refused at once. Rows are tested in `test_actions.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.errors import JobSpecError
from hpcmr.plan.fingerprint import plan_fingerprint
from hpcmr.plan.nodes import Apply, Keyed, walk


def lines() -> mr.Table:
    return mr.read_text("a.txt")


def labels(table: mr.Table) -> list[str]:
    return [n.label for n in walk(table._node)]


def half(row: Any) -> Any:
    return row / 2


def test_operations_are_lazy_and_leave_the_table_alone() -> None:
    one = mr.read_text(["no such file", "nor this"], file="doc")
    two = one.filter(half).select("line").with_columns(n=1, h=half).rename(n="m").drop("h")
    assert labels(one) == ["read_text('no such file' and 1 more)"]
    assert labels(two)[1:] == ["filter(half)", "select(line)", "with_columns(n=1, h=half)", "rename(n=m)", "drop(h)"]
    assert repr(two) == "<Table: drop(h)>"


def test_every_node_knows_the_line_that_made_it() -> None:
    table = lines().map(half)
    assert [n.where.partition(":")[0] for n in walk(table._node)] == ["test_table.py"] * 2
    assert walk(table._node)[1].where.rpartition(":")[2].isdigit()


def test_aggregates_and_their_names() -> None:
    table = lines().group_by("a", "b").agg(mr.count(), mr.sum("x"), mr.count("x"), total=mr.sum("x"), s=mr.std("x", ddof=0))
    node = table._node
    assert isinstance(node, Keyed)
    assert [a.name for a in node.operator.aggs] == ["count", "x_sum", "x_count", "total", "s"]  # type: ignore[attr-defined]
    assert node.label == "group_by(a, b).agg(count=count(), x_sum=sum(x), x_count=count(x), total=sum(x), s=std(x))"
    assert node.operator.aggs[-1].option("ddof", 1) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [
    lambda: lines().group_by(),
    lambda: lines().group_by(3),  # type: ignore[arg-type]
    lambda: lines().group_by("a", "a"),
    lambda: lines().group_by("a").agg(),
    lambda: lines().group_by("a").agg("x"),  # type: ignore[arg-type]
    lambda: lines().group_by("a").agg(n=sum),  # type: ignore[arg-type]
    lambda: lines().group_by("a").agg(a=mr.count()),
    lambda: lines().group_by("a").agg(mr.sum("x"), x_sum=mr.count()),
    lambda: mr.sum(3),  # type: ignore[arg-type]
    lambda: mr.var("x", ddof=-1),
    lambda: lines().select(),
    lambda: lines().select("a", "a"),
    lambda: lines().with_columns(),
    lambda: lines().with_columns(a=[1, 2]),
    lambda: lines().map(3),  # type: ignore[arg-type]
    lambda: lines().head(-1),
    lambda: mr.read_text(3),  # type: ignore[arg-type]
    lambda: mr.read_text([3]),  # type: ignore[list-item]
    lambda: mr.read_text("a", encoding="latin-1"),
    lambda: mr.read_text("a", file="line"),
])
def test_what_cannot_be_meant_is_refused_at_once(make: Any) -> None:
    with pytest.raises(JobSpecError) as caught:
        make()
    assert len(str(caught.value)) > 20
    assert not str(caught.value).endswith(".")


def test_fingerprints_of_tables() -> None:
    def above(limit: float) -> mr.Table:
        return lines().filter(lambda row: row > limit)

    assert plan_fingerprint(above(1)._node) == plan_fingerprint(above(1)._node)
    assert plan_fingerprint(above(1)._node) != plan_fingerprint(above(2)._node)
    by_key = lines().group_by("a")
    assert plan_fingerprint(by_key.agg(mr.var("x"))._node) != plan_fingerprint(by_key.agg(mr.var("x", ddof=0))._node)


def test_a_marked_function_keeps_its_fingerprint_after_use() -> None:
    marked = mr.batch(lambda cols: {"a": cols["a"]})
    before = plan_fingerprint(lines().map(marked)._node)
    marked.memo["anything"] = object()
    assert plan_fingerprint(lines().map(marked)._node) == before


def test_marked_functions_can_be_called() -> None:
    @mr.kernel(out={"k": "int64"})
    def twice(row: Any) -> Any:
        return 2 * row

    @mr.batch
    def double(cols: Any) -> Any:
        return {"k": 2 * cols["k"]}

    assert twice(4) == 8
    assert double({"k": np.arange(2)})["k"].tolist() == [0, 2]
    node = lines().flat_map(twice)._node
    assert isinstance(node, Apply)
    assert "twice" in node.label


def test_explain() -> None:
    told = lines().map(half).group_by("value").agg(n=mr.count()).explain()
    assert [part for part in ("read_text('a.txt')", "map(half)", "group_by(value)", "n=count()", "test_table.py:") if part not in told] == []
