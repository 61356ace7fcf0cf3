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

from hpcmr.errors import HpcmrError
from hpcmr.store import files
from hpcmr.store.journal import Journal
from hpcmr.store.settle import settle
from tests.faults.jobs import STEPS, content, found_step, publish_next, run_steps, stray, write
from tests.support.crashes import Recorder, State, states

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
    found = found_step(folder / "run", deep=resumed)
    assert found in (promised, promised + 1), f"step {found} was found"
    assert Journal(folder / "run").damaged == {}, "an entry appeared that was not whole"
    if resumed:
        run_steps(folder / "run")
        assert found_step(folder / "run") == STEPS
        assert stray(folder / "run") == []


def outputs(record: Recorder, seed: int) -> None:
    publish_next(record.root / "run", record.root / "out", 3, record.mark)


def check_outputs(folder: Path, state: State, resumed: bool) -> None:
    """The next start finds the output that was promised, or the next one, as soon as it has claimed the run; and it can go on."""
    promised = int(state.marks[-1]) if state.marks else 0
    run_dir = folder / "run"
    journal = Journal(run_dir)
    journal.claim({"host": "n2", "pid": 2})
    settle(journal)
    found = content(folder / "out")
    assert found in (promised, promised + 1), f"output {found} was found"
    assert journal.damaged == {}
    if resumed:
        publish_next(run_dir, folder / "out", 3)
    assert not [n for n in os.listdir(folder) if n.endswith(".old")]
    assert not resumed or sorted(os.listdir(folder)) == ["out", "run"]


JOBS = {
    "a new output": Job(new_output, check_new_output, 120, 2000),
    "outputs of a run": Job(outputs, check_outputs, 350, 5000),
    "checkpoints": Job(steps, check_steps, 600, 8000),
    "checkpoints of two attempts": Job(two_attempts, check_steps, 450, 7000),
}


def looked_at(job: Job, place: Path, count: int) -> Iterator[tuple[str, State]]:
    """States of a job, each made at `place`, spread over all points at which the power may go.

    Ranks that work at once do so in another order each time that the job is recorded.
    """
    seed, left = SEED, count
    while left > 0:
        place.mkdir()
        with Recorder(place) as record:
            job.run(record, seed)
        record.check()
        for state, tree in states(record.ops, seed, min(left, EACH), 12 if LONG else 4):
            shutil.rmtree(place)
            place.mkdir()
            state.write(place, tree)
            yield f"seed {seed}", state
            left -= 1
        shutil.rmtree(place)
        seed += 1


@pytest.mark.parametrize("name", JOBS)
def test_power_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, count = JOBS[name], 0
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    wanted = job.count_long if LONG else job.count
    for seed, state in looked_at(job, tmp_path / "disk", wanted):
        try:
            job.check(tmp_path / "disk", state, count % RESUMED_EVERY == 0)
        except BaseException as error:
            error.add_note(f"{name}, {seed}: {state}\nfound: {sorted(state.tree())}")
            raise
        count += 1
    assert count >= wanted


@pytest.mark.parametrize("lie", ["files", "folders"])
def test_a_sync_that_is_left_out_is_noticed(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests can fail: of a store that forgets to sync files, or folders, a power cut loses something."""
    if lie == "files":
        monkeypatch.setattr(files, "sync", lambda fd: None)
    else:
        monkeypatch.setattr(files, "sync_folder", lambda path, safe="": None)
    with pytest.raises((AssertionError, HpcmrError)):
        for _, state in looked_at(JOBS["checkpoints"], tmp_path / "disk", 200):
            check_steps(tmp_path / "disk", state, False)
