"""One sequence of slots: who owns a run, what it has committed, and that nobody else commits."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError, Superseded
from hpcmr.store import files, paths, sealed
from hpcmr.store.journal import KEYS, Journal, files_of
from hpcmr.store.pieces import fault_of, sync_names, write_pieces

OWNER = {"host": "n17", "pid": 4711, "boot": "b", "start": 1, "user": "ann", "slurm_job": "1234", "ranks": 4, "nodes": 1}


def claimed(run_dir, **owner) -> Journal:
    journal = Journal(run_dir)
    journal.claim({**OWNER, **owner})
    return journal


def generation(journal: Journal, number: int, earlier: list[str] = ()) -> dict:
    """Commit a generation of one new file and of earlier ones."""
    file = paths.piece_file(journal.epoch, number, 0, 0)
    rows = Batch.of({"k": np.arange(number, number + 50)})
    info = write_pieces(journal.run_dir, file, [Partitioned(rows, np.array([0, 20, 50]))])
    sync_names(journal.run_dir)
    body = {"number": number, "records": {".0": {"pieces": [*earlier, info]}}}
    journal.append("generation", body)
    return info


def kinds(journal):
    return [e.kind for e in journal.entries]


def names(run_dir, folder="pieces"):
    return sorted(os.listdir(run_dir / folder))


def test_a_run_from_claim_to_end(tmp_path):
    run = tmp_path / "deep" / "run"
    assert Journal(run).entries == [] and not run.exists()
    journal = claimed(run)
    assert journal.epoch == 1 and journal.continued is None and journal.owner.body["owner"] == OWNER
    info = generation(journal, 1)
    journal.append("end", {"state": "checkpointed", "reason": "SIGUSR1"})
    again = Journal(run)
    assert again.entries == journal.entries and again.run == journal.run and again.notes == []
    assert again.ended.body["state"] == "checkpointed"
    assert again.claim(OWNER, lambda e: fault_of(run, e.body, deep=True)) == 2
    assert again.continued.body["records"][".0"]["pieces"] == [info] and again.owner.body["continues"] == again.continued.slot == 2
    assert again.ended is None
    for path in [run, *run.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert names(run, "journal") == [f"{n:06d}.json" for n in (1, 2, 3, 4)]


def test_a_superseded_attempt_commits_nothing(tmp_path):
    old = claimed(tmp_path)
    generation(old, 1)
    new = claimed(tmp_path, pid=99)
    for _ in range(2):
        with pytest.raises(Superseded, match=r"belongs to attempt 2, process 99 of ann on n17 \(Slurm job 1234\), since 20.*superseded"):
            old.append("publish", {"path": "/out"})
    for call in (old.collect, old.sweep, old.check):
        with pytest.raises(Superseded):
            call()
    new.append("end", {"state": "done"})
    assert kinds(Journal(tmp_path)) == ["claim", "generation", "claim", "end"]
    with pytest.raises(Superseded):
        Journal(tmp_path).adopt(1)
