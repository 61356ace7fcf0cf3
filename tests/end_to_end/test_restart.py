"""All ranks of a job are killed half-way, and it is started again on fewer: it goes on from its newest checkpoint, to the same digest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.data import write_events
from tests.support.killing import Run
from tests.support.launch import has_launcher

pytestmark = [pytest.mark.launcher, pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_events(folder / "events.h5", n=24_000, keys=300)
    return folder


def tells_of_pieces(run: Run) -> bool:
    """Whether a checkpoint has pieces of input of a stage behind it."""
    bodies = [e["body"] for e in run.entries() if e["kind"] == "generation"]
    return any(record["ledger"] for b in bodies if b["action"] for record in b["action"]["records"].values())


@pytest.mark.parametrize("verb", ["agg", "sort", "join", "only"])
def test_three_ranks_are_killed_and_two_go_on(tmp_path: Path, data: Path, verb: str) -> None:
    calm = Run(tmp_path / "calm", data, verb, 0.0)
    calm.whole(0)
    run = Run(tmp_path / "run", data, verb, 0.04)
    first = run.start(3)
    assert first.until_generation(2), first.told()
    while first.running() and not tells_of_pieces(run):         # the first ones of a sort may hold what its first pass came to, and no more
        first.sleep(0.01)
    assert first.running(), first.told()
    for pid in run.ranks():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert first.wait(30) != 0
    run.sweep()
    assert not (run.folder / "out").exists()
    second = run.start(2)
    assert second.wait() == 0, second.told()
    told = second.told()
    assert run.continued() and run.digest() == calm.digest()
    assert re.search(r"continuing the run .* from the checkpoint of", told), told
    # What is in the checkpoint is neither read nor made again.
    assert re.search(r"in the checkpoint(, the rest is done now|.*; nothing below it runs)", told), told
