"""The plan as text."""

from __future__ import annotations

from hpcmr.plan.explain import explain
from tests.plan.support import apply, keyed, read


def test_every_operation_and_its_line_is_named() -> None:
    text = explain(apply(keyed(apply(read(), label="filter(hot)"), label="group_by(key)"), label="select(key)"), "write_hdf5 out")
    lines = text.splitlines()
    assert lines[0].startswith("plan ")
    assert [line for line in lines if line.startswith("stage")] == ["stage 1 over splits of the input", "stage 2 over partitions, rows in key order"]
    assert any("filter(hot)" in line and "# job.py:2" in line for line in lines)
    assert lines[-1].strip() == "=> write_hdf5 out"


def test_without_an_action() -> None:
    assert explain(keyed(read())).splitlines()[-1].strip().startswith("exchange")
