"""A disk that is really full: for checkpoints, scratch and outputs, on a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.store import files, paths
from hpcmr.store.journal import Journal
from hpcmr.store.pieces import write_pieces
from hpcmr.store.scratch import Scratch
from hpcmr.store.spill import Spool
from tests.faults.jobs import content, found_step, publish_next, run_steps, stray

pytestmark = pytest.mark.disk_full
NBYTES = 2 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={NBYTES}", "tmpfs", str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Another user of the disk takes all but `left` bytes."""
    path = disk / "somebody else's"
    about = os.statvfs(disk)
    path.write_bytes(bytes(max(0, about.f_bavail * about.f_frsize - left)))
    return path


@pytest.mark.parametrize("left", [0, 4096, 20_000, 60_000, 100_000])
def test_checkpoints(disk: Path, left: int) -> None:
    run_dir = disk / "run"
    run_steps(run_dir, until=2)
    other = fill(disk, left)
    with pytest.raises(StorageError, match=r"ENOSPC.*as they were.*free some space"):
        for _ in range(20):
            run_steps(run_dir)
            fill(disk / "run", left)
    assert found_step(run_dir) >= 2 and not list(run_dir.rglob("*.tmp"))
    other.unlink()
    (run_dir / "somebody else's").unlink(missing_ok=True)
    run_steps(run_dir)
    assert found_step(run_dir) == 6 and stray(run_dir) == []


def test_a_checkpoint_that_is_larger_than_the_disk(disk: Path) -> None:
    run_dir = disk / "run"
    run_steps(run_dir, until=2)
    rows = Batch.of({"x": np.zeros(NBYTES // 8)})
    with pytest.raises(StorageError, match="ENOSPC") as caught:
        write_pieces(run_dir, paths.piece_file(1, 7, 0, 0), [Partitioned(rows, np.array([0, rows.nrows], np.int64))])
    assert str(run_dir) in str(caught.value)
    assert found_step(run_dir) == 2 and stray(run_dir) == []


@pytest.mark.parametrize("left", [0, 8192, 30_000])
def test_outputs(disk: Path, left: int) -> None:
    run_dir, out = disk / "run", disk / "out"
    publish_next(run_dir, out, 1)
    other = fill(disk, left)
    with pytest.raises(StorageError, match="ENOSPC"):
        publish_next(run_dir, out, 50)
    assert content(out) >= 1 and sorted(os.listdir(disk)) == ["out", "run", other.name]
    other.unlink()
    publish_next(run_dir, out, content(out) + 1)
    assert sorted(os.listdir(disk)) == ["out", "run"]


def test_scratch(disk: Path) -> None:
    scratch = Scratch(disk)
    spool = Spool(scratch)
    rows = Batch.of({"x": np.arange(NBYTES // 40)})
    part = Partitioned(rows, np.array([0, rows.nrows], np.int64))
    with pytest.raises(StorageError, match=r"ENOSPC.*MiB are free.*--scratch"):
        for _ in range(10):
            spool.append([part])
    assert sum(p.batch.nrows for p in spool.read(0)) == len(spool) * rows.nrows > 0
    spool.close()
    scratch.close()
    assert os.listdir(disk) == []


def test_the_claim_itself(disk: Path) -> None:
    """No room even for an entry of the journal."""
    run_steps(disk / "run", until=2)
    other = fill(disk, 0)
    with pytest.raises(StorageError, match="ENOSPC"):
        Journal(disk / "run").claim({"host": "n1"})
    assert found_step(disk / "run") == 2
    files.unlink(other)
    Journal(disk / "run").claim({"host": "n1"})
