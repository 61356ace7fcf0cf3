"""The power goes, at every point of a job and with every part of what was not synced: what is found afterwards is right."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hpcmr.store.journal import Journal
from tests.faults.jobs import STEPS, content, found_step, run_steps, stray, write
from tests.support.crashes import Recorder, State, Tree, states

LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
EACH = 300
"""States of one record."""
RESUMED_EVERY = 8
SEED = int(os.environ.get("HPCMR_TEST_SEED", "1"))


@dataclass(frozen=True)
class Job:
    """What is recorded, what is asked of each state, and how many states of it are looked at, here and in `make test-faults`."""

    run: Callable[[Recorder, int], None]
    check: Callable[[Path, State, bool], None]
    count: int
    count_long: int


def new_output(record: Recorder, seed: int) -> None:
    write(record.root / "out", 1)
    record.mark("1")


def check_new_output(folder: Path, state: State, resumed: bool) -> None:
    assert content(folder / "out") in ((1,) if state.marks else (0, 1))


def steps(record: Recorder, seed: int) -> None:
    run_steps(record.root / "run", record.mark, together=functools.partial(record.together, np.random.default_rng(seed)))


def two_attempts(record: Recorder, seed: int) -> None:
    together = functools.partial(record.together, np.random.default_rng(seed))
    run_steps(record.root / "run", record.mark, until=3, together=together)
    run_steps(record.root / "run", record.mark, together=together)


def check_steps(folder: Path, state: State, resumed: bool) -> None:
    """The newest generation that was promised is there, or the one that was being committed; from it the run goes on to its end."""
    promised = int(state.marks[-1]) if state.marks else 0
    found = found_step(folder / "run")
    assert found in (promised, promised + 1), f"step {found} was found"
    assert Journal(folder / "run").damaged == {}, "an entry appeared that was not whole"
    if resumed:
        run_steps(folder / "run")
        assert found_step(folder / "run") == STEPS
        assert stray(folder / "run") == []


JOBS = {
    "a new output": Job(new_output, check_new_output, 150, 2000),
    "checkpoints": Job(steps, check_steps, 600, 8000),
    "checkpoints of two attempts": Job(two_attempts, check_steps, 500, 7000),
}


def looked_at(job: Job, folder: Path, count: int) -> Iterator[tuple[str, State, Tree]]:
    """States of a job, spread over all points at which the power may go; ranks that work at once do so in other orders each time."""
    seed, left = SEED, count
    while left > 0:
        watched = folder / f"watched-{seed}"
        watched.mkdir()
        with Recorder(watched) as record:
            job.run(record, seed)
        record.check()
        chosen = list(states(record.ops, seed, min(left, EACH), 12 if LONG else 4))
        yield from ((f"seed {seed}", *one) for one in chosen)
        seed, left = seed + 1, left - len(chosen)


@pytest.mark.parametrize("name", JOBS)
def test_power_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, count = JOBS[name], 0
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    wanted = job.count_long if LONG else job.count
    for seed, state, tree in looked_at(job, tmp_path, wanted):
        folder = tmp_path / "found"
        folder.mkdir()
        state.write(folder, tree)
        try:
            job.check(folder, state, count % RESUMED_EVERY == 0)
        except BaseException as error:
            error.add_note(f"{name}, {seed}: {state}\nfound: {sorted(tree)}")
            raise
        shutil.rmtree(folder)
        count += 1
    assert count >= wanted
