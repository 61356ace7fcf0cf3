"""Whether whoever owns a run lives: by process on this machine, by Slurm, by the heartbeat."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmr.run import owner as owners
from hpcmr.run.owner import life_of, show_owner, started_at, this_owner, watch_heartbeat
from hpcmr.store import paths

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER)
    yield process
    process.kill()
    process.wait()


def record(child: subprocess.Popen[bytes], **other: Any) -> dict[str, Any]:
    return {**this_owner(), "pid": child.pid, "start": started_at(child.pid), **other}


def test_a_process_of_this_machine(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    told = record(child)
    assert life_of(told, tmp_path).alive
    assert not life_of({**told, "start": told["start"] - 1}, tmp_path).alive, "its number was used again"
    os.kill(child.pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    while owners.state_of(child.pid) != "T" and time.monotonic() < until:
        time.sleep(0.005)
    life = life_of(told, tmp_path)
    assert life.alive and life.stopped and "state T" in life.why
    child.kill()
    child.wait()
    assert not life_of(told, tmp_path).alive
    assert str(child.pid) in show_owner(told)


@pytest.mark.parametrize("broken", [{}, {"pid": -1}, {"pid": "x", "boot": 7}, {"pid": 1 << 80}, {"slurm_job": ["a"], "slurm_restart": "b"}])
def test_a_record_that_makes_no_sense(broken: dict[str, Any], tmp_path: Path) -> None:
    assert not life_of(broken, tmp_path, silent_s=0.1).alive
    assert not life_of({**this_owner(), "start": 0, **broken}, tmp_path, silent_s=0.1).alive
    show_owner(broken)


def test_the_heartbeat_of_another_machine(tmp_path: Path) -> None:
    told = {"host": "other", "boot": "of another kernel", "pid": 1, "start": 1}
    said: list[str] = []
    path = paths.status(tmp_path)
    path.write_text("{}")
    began = time.monotonic()
    life = life_of(told, tmp_path, said.append, silent_s=0.5)
    assert not life.alive and "has stood still" in life.why
    assert 0.3 < time.monotonic() - began < 10
    os.utime(path, (1, 1))
    began = time.monotonic()
    assert not life_of(told, tmp_path, said.append, silent_s=60).alive
    assert time.monotonic() - began < 10, "a heartbeat that stopped long ago is not watched"
    os.utime(path)
    beat = threading.Timer(0.2, lambda: os.utime(path, (5, 5)))
    beat.start()
    assert watch_heartbeat(tmp_path, said.append, silent_s=5).alive
    beat.join()
    assert any("watching for" in line for line in said)
    assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize(("squeue", "alive"), [
    ("echo COMPLETED", False), ("echo PENDING", False), ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
    ("echo RUNNING", True), ("exit 1", True), ("exec sleep 5", True)])
def test_what_slurm_says(squeue: str, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm has no answer, or says that it runs, the heartbeat decides."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    (tools / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(owners, "SQUEUE_LIMIT_S", 0.5)
    monkeypatch.setattr(owners, "watch_heartbeat", lambda *args: owners.Life(True, "its heartbeat goes on"))
    told = {"host": "other", "boot": "other", "slurm_job": "4711"}
    assert life_of(told, tmp_path).alive is alive


def test_a_job_that_slurm_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(owners, "watch_heartbeat", lambda *args: owners.Life(True, "its heartbeat goes on"))
    told = {"host": "other", "boot": "other", "slurm_job": "4711", "slurm_restart": 1}
    assert not life_of(told, tmp_path).alive
    assert life_of({**told, "slurm_restart": 2}, tmp_path).alive
