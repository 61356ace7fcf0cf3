"""The power goes, at every point of a job and with every part of what was not synced: what is found afterwards is right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.jobs import content, write
from tests.support.crashes import Recorder, State, Tree, states

LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
SEED = int(os.environ.get("HPCMR_TEST_SEED", "1"))


@dataclass(frozen=True)
class Job:
    """What is recorded, what is asked of each state, and how many states of it are looked at, here and in `make test-faults`."""

    run: Callable[[Recorder], None]
    check: Callable[[Path, State], None]
    count: int
    count_long: int


def new_output(record: Recorder) -> None:
    write(record.root / "out", 1)
    record.mark("1")


def check_new_output(folder: Path, state: State) -> None:
    assert content(folder / "out") in ((1,) if state.marks else (0, 1))


JOBS = {
    "a new output": Job(new_output, check_new_output, 150, 2000),
}


def looked_at(job: Job, tmp_path: Path) -> Iterator[tuple[State, Tree]]:
    """States of a job, spread over all points at which the power may go."""
    watched = tmp_path / "watched"
    watched.mkdir()
    with Recorder(watched) as record:
        job.run(record)
    record.check()
    count = job.count_long if LONG else job.count
    found = list(states(record.ops, SEED, 16 if LONG else 4))
    print(len(record.ops), len(found))
    step = max(1.0, len(found) / count)
    yield from (found[int(i * step)] for i in range(min(count, len(found))))


@pytest.mark.parametrize("name", JOBS)
def test_power_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, count = JOBS[name], 0
    for state, tree in looked_at(job, tmp_path):
        folder = tmp_path / "found"
        folder.mkdir()
        state.write(folder, tree)
        try:
            job.check(folder, state)
        except BaseException as error:
            error.add_note(f"{name}, seed {SEED}: {state}\nfound: {sorted(tree)}")
            raise
        shutil.rmtree(folder)
        count += 1
    assert count >= (job.count_long if LONG else job.count)
