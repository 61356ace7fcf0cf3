"""``status.json``: written whole, read with checks, silent once a newer attempt speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmr.errors import InputError
from hpcmr.run.status import StatusWriter, new_status, read_status, write_status
from hpcmr.store import paths


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    checkpoint = {"generation": 7, "committed_at": time.time() - 3, "age_s": 0.0, "nbytes": 4096, "seconds": 0.5}
    value = new_status(tmp_path, name="jöb", state="running", attempt=2, checkpoint=checkpoint, slurm_jobs=["12", "13"],
                       outputs=[{"name": "out", "path": "/a/out", "rows": 4}], rates={"rows_s": 1.5, "nbytes_s": 9}, eta_s=float("inf"))
    writer = StatusWriter(tmp_path, value, beat_s=0)
    found = read_status(tmp_path)
    assert found is not None
    assert found["run"] == str(tmp_path)
    assert found["name"] == "jöb"
    assert found["eta_s"] is None
    assert 2.9 < found["checkpoint"]["age_s"] < 60
    assert abs(found["updated_at"] - time.time()) < 60
    assert all(found[k] == value[k] for k in ("slurm_jobs", "outputs", "rates", "stage"))
    assert paths.status(tmp_path).stat().st_mode & 0o777 == 0o600
    writer.close(state="done", exit_code=0)
    writer.close(state="failed")
    assert (read_status(tmp_path) or {})["state"] == "done"
    assert os.listdir(tmp_path) == ["status.json"], "temporary files are left"


def test_figures_wait_and_states_do_not(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path, new_status(tmp_path, attempt=1, state="running"), beat_s=0)
    writer.update(eta_s=5.0)
    assert (read_status(tmp_path) or {})["eta_s"] is None
    writer.update(state="checkpointed")
    assert (read_status(tmp_path) or {})["eta_s"] == 5.0
    writer.close()


def test_the_heartbeat_is_the_time_of_the_file(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path, new_status(tmp_path, attempt=1, state="running"), beat_s=0.02)
    path = paths.status(tmp_path)
    os.utime(path, (1, 1))
    until = time.monotonic() + 10
    while path.stat().st_mtime < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert path.stat().st_mtime > 2
    writer.close()
    os.utime(path, (1, 1))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1, "it beats on after its end"


def test_an_older_attempt_falls_silent(tmp_path: Path) -> None:
    old = StatusWriter(tmp_path, new_status(tmp_path, attempt=1, state="running"), beat_s=0.02)
    new = StatusWriter(tmp_path, new_status(tmp_path, attempt=2, state="running"), beat_s=0)
    os.utime(paths.status(tmp_path), (1, 1))
    time.sleep(0.1)
    assert paths.status(tmp_path).stat().st_mtime == 1, "the old attempt's heartbeat reaches the new one's file"
    old.close(state="failed", reason="woke up")
    assert (read_status(tmp_path) or {})["attempt"] == 2
    assert (read_status(tmp_path) or {})["state"] == "running"
    new.close()


def test_what_another_rank_said_of_the_end_stays(tmp_path: Path) -> None:
    """Rank 0 was stopped, another rank ended the attempt, and rank 0 wakes up before it is killed."""
    writer = StatusWriter(tmp_path, new_status(tmp_path, attempt=1, state="running"), beat_s=0)
    os.close(write_status(tmp_path, new_status(tmp_path, attempt=1, state="failed", reason="rank 0 did not answer")))
    writer.update(now=True, eta_s=1.0)
    assert (read_status(tmp_path) or {})["reason"] == "rank 0 did not answer"
    writer.close(state="done")
    assert (read_status(tmp_path) or {})["state"] == "done"


def test_a_disk_that_takes_nothing_ends_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    writer = StatusWriter(folder, new_status(folder, attempt=1, state="running"), beat_s=0)
    folder.rename(tmp_path / "moved")
    writer.update(now=True, eta_s=1.0)
    assert isinstance(writer.error, FileNotFoundError)
    (tmp_path / "moved").rename(folder)
    writer.close()
    assert writer.error is None
    assert (read_status(folder) or {})["eta_s"] == 1.0


@pytest.mark.parametrize(("change", "says"), [
    (lambda v: b"{" * 100_000, "usable"), (lambda v: b"x" * (1 << 20 | 1), "more than"), (lambda v: b"\xff", "usable"),
    (lambda v: json.dumps({**v, "version": 9}).encode(), "version is 9"), (lambda v: json.dumps({**v, "ranks": "many"}).encode(), "ranks is a str"),
    (lambda v: json.dumps({**v, "state": "fine"}).encode(), "fine"), (lambda v: json.dumps({**v, "stage": {"number": 1}}).encode(), "stage.of"),
    (lambda v: json.dumps({**v, "eta_s": 1.0}).replace("1.0", "NaN").encode(), "NaN")])
def test_what_is_damaged_is_refused(tmp_path: Path, change, says: str) -> None:      # type: ignore[no-untyped-def]
    os.close(write_status(tmp_path, new_status(tmp_path, state="running")))
    value = json.loads(paths.status(tmp_path).read_bytes())
    paths.status(tmp_path).write_bytes(change(value))
    with pytest.raises(InputError, match=says):
        read_status(tmp_path)


def test_reading_loads_neither_numpy_nor_mpi(tmp_path: Path) -> None:
    code = ("import sys, hpcmr.run.status, hpcmr.run.owner\n"
            "print([m for m in ('numpy', 'mpi4py', 'h5py', 'numba', 'xxhash') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
