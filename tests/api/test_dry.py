"""A dry run tells the plan of every action up to the first result that the job wants."""

from __future__ import annotations

import pytest

import hpcmr as mr
from hpcmr.api.dry import dry_run, is_dry


def test_actions_are_told_in_order() -> None:
    told: list[str] = []
    table = mr.read_text("no such file")
    with dry_run(told.append):
        assert is_dry()
        table.write_hdf5("out")
        table.write_hdf5("more")
        table.head(3)
        pytest.fail("a result was made up")
    assert not is_dry()
    last = [t.splitlines()[-1].strip() for t in told]
    assert last == ["=> write_hdf5('out')", "=> write_hdf5('more')", "=> head(3)", "what follows depends on these rows"]


def test_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), dry_run(print):
        _ = 1 / 0
    assert not is_dry()
