"""A checkpoint is damaged while nobody runs: the next start finds that before it uses it, takes the older one, and ends with the right bits."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from hpcmr.store.journal import Journal
from hpcmr.store.pieces import PieceFile, infos_in
from tests.support.data import write_events
from tests.support.killing import Run
from tests.support.launch import has_launcher

pytestmark = [pytest.mark.launcher, pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")]


def flip(run_dir: Path) -> int:
    """One bit in the rows of a file that the newest checkpoint names, and the one before does not; returns the slot of the latter."""
    newest, older = list(Journal(run_dir).generations())[:2]
    known = {i["file"] for i in infos_in(older.body)}
    info = max((i for i in infos_in(newest.body) if i["file"] not in known), key=lambda i: i["rows"])
    at, nbytes = PieceFile(run_dir, info)._segment.arrays[0].place(0, info["count"])
    path = run_dir / info["file"]
    raw = bytearray(path.read_bytes())
    raw[at + nbytes // 2] ^= 4
    path.write_bytes(raw)
    return older.slot


def test_the_older_checkpoint_is_taken(tmp_path: Path) -> None:
    write_events(tmp_path / "events.h5", n=24_000, keys=300)
    calm = Run(tmp_path / "calm", tmp_path, "agg", 0.0)
    calm.whole(0)
    run = Run(tmp_path / "run", tmp_path, "agg", 0.02)
    first = run.start(2)
    assert first.until_generation(3), first.told()
    for pid in run.ranks():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    first.wait(30)
    run.sweep()
    older = flip(run.run_dir)
    second = run.start(2)
    assert second.wait() == 0, second.told()
    assert "a checkpoint is not whole: checkpoint " in second.told() and "are not those that were written" in second.told(), second.told()
    assert run.digest() == calm.digest()
    condemned = [e for e in Journal(run.run_dir).entries if e.kind == "condemned"]
    assert len(condemned) == 1 and condemned[0].body["slot"] > older
    assert "in the checkpoint" in second.told()        # of the older one: what it has is not done again
