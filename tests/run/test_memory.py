"""Sizes, budgets and where they come from."""

import pytest

from hpcmr.errors import JobSpecError, MemoryTooSmall
from hpcmr.run.memory import MemoryBudget, budget_of, parse_nbytes, show_nbytes, status_nbytes


@pytest.mark.parametrize(("text", "nbytes"), [("1", 1), ("64M", 64 << 20), ("64MiB", 64 << 20), ("64 mib", 64 << 20), ("1.5GiB", 3 << 29),
                                              ("2GB", 2_000_000_000), ("1T", 1 << 40), ("10kB", 10_000), ("512B", 512), (4096, 4096)])
def test_sizes(text, nbytes):
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "-1G", "1X", "iB", "5i", "1 GiB more", "0x10"])
def test_no_sizes(text):
    with pytest.raises(JobSpecError, match="is no size; for example 4GiB"):
        parse_nbytes(text)


def test_take_and_give():
    budget = MemoryBudget(100 << 20, "--memory 100M")
    budget.take(60 << 20, "a")
    budget.take(40 << 20, "b")
    assert budget.available() == 0
    said = r"c needs 1 B, and of this rank's 100 MiB only 0 B are left \(--memory 100M\); give at least --memory 101MiB"
    with pytest.raises(MemoryTooSmall, match=said):
        budget.take(1, "c")
    budget.give(60 << 20)
    assert budget.available() == 60 << 20 and budget.peak_nbytes == 100 << 20


def test_ranks_of_a_node_share_its_limit(monkeypatch):
    monkeypatch.setattr("hpcmr.run.memory.memory_per_rank", lambda n: ((8 << 30) // n, "cgroup"))
    monkeypatch.setattr("hpcmr.run.memory.status_nbytes", lambda name: 100 << 20)
    assert budget_of(None, 4).limit_nbytes == int((2 << 30) * 0.8) - (180 << 20)
    monkeypatch.setattr("hpcmr.run.memory.status_nbytes", lambda name: 300 << 20)
    assert budget_of(None, 4).limit_nbytes == int((2 << 30) * 0.8) - (300 << 20)
    assert "a share of the cgroup limit, 4 ranks on this node" in budget_of(None, 4).why
    with pytest.raises(MemoryTooSmall, match="start fewer ranks per node"):
        budget_of(None, 200)


def test_what_the_process_holds():
    assert 1 << 20 < status_nbytes("VmRSS") <= status_nbytes("VmHWM")
    assert status_nbytes("VmNothing") == 0


def test_sizes_for_people():
    assert [show_nbytes(n) for n in (0, 1023, 1536, 5 << 30, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "5 GiB", "3 TiB"]
