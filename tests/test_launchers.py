"""The launch helper itself: environment, exit codes, and that a hang ends with the stacks of all ranks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import mpirun
from tests.support.launch import ROOT, check, needs_launcher, run_ranks

SLEEP_ON_RANK_1 = """
import time
from mpi4py import MPI
def stuck_in_a_loop():
    time.sleep(60)
if MPI.COMM_WORLD.rank == 1:
    stuck_in_a_loop()
MPI.COMM_WORLD.Barrier()
"""


def test_clean_env_hides_a_launcher_from_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("PMI_SIZE", "4")
    env = mpirun.clean_env({"X": "1"})
    assert "OMPI_COMM_WORLD_RANK" not in env
    assert "PMI_SIZE" not in env
    assert env["X"] == "1"


@needs_launcher
def test_ranks_see_one_another() -> None:
    done = check(run_ranks(["-c", "from mpi4py import MPI; print('of', MPI.COMM_WORLD.size)"], n=3))
    assert done.stdout.split().count("3") == 3


@needs_launcher
@pytest.mark.parametrize("code", [1, 2, 75])
def test_exit_code_passes_through_the_launcher(code: int) -> None:
    check(run_ranks(["-c", f"import sys; from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); sys.exit({code})"], n=2), code)


@needs_launcher
def test_a_hang_prints_the_stacks_of_all_ranks_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(SLEEP_ON_RANK_1)
    line = [sys.executable, str(ROOT / "tests/support/mpirun.py"), "-n", "2", "--limit-s", "4", "--", str(script)]
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=mpirun.clean_env())
    assert done.returncode == mpirun.TIMED_OUT
    assert "stuck_in_a_loop" in done.stderr
    assert "stacks of rank 0" in done.stderr
    assert "stacks of rank 1" in done.stderr
    assert done.stderr.count("most recent call first") >= 2
    assert time.monotonic() - began < 30
