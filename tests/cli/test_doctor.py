"""The doctor: says what is there, and a fix for each thing that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hpcmr.cli import doctor
from hpcmr.comm import launcher
from tests.support.launch import needs_launcher

ROOT = Path(__file__).resolve().parents[2]


def ask(*words, **env):
    done = subprocess.run(
        [sys.executable, "-m", "hpcmr", *words],
        env={**launcher.clean_env(), "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, (json.loads(done.stdout) if "--json" in words else None)


@needs_launcher
def test_one_line_per_fact():
    done, _ = ask("doctor")
    names = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"hpcmr", "numpy", "numba", "h5py", "mpi", "launcher", "mpirun", "ranks", "shm", "kernel", "scratch", "threads", "memory", "slurm"} <= set(
        names
    )
    assert all(("fix: " in line) == line.startswith("wrong") for line in done.stdout.splitlines())
    assert done.returncode == int("wrong " in done.stdout)


@needs_launcher
def test_ranks_that_were_started_are_the_ones_checked():
    done, _ = ask("launch", "-n", "2", "doctor")
    assert "2 ranks on 1 node see one another" in done.stdout and done.stdout.count("hpcmr  ") == 1


@needs_launcher
def test_wrong_things_have_fixes_and_exit_code_1(tmp_path):
    fake = tmp_path / "mpirun"
    fake.write_text("#!/bin/sh\necho 'Intel(R) MPI Library for Linux, Version 2021'\n")
    fake.chmod(0o755)
    done, said = ask("doctor", "--json", PATH=f"{tmp_path}:{os.environ['PATH']}", OMP_NUM_THREADS="5000")
    facts = {f["name"]: f for f in said["facts"]}
    assert done.returncode == 1 and not said["ok"]
    assert facts["mpirun"]["status"] == "wrong" and "Intel MPI" in facts["mpirun"]["value"] and "hpcmr launch" in facts["mpirun"]["fix"]
    assert facts["threads"]["status"] == "wrong" and "export OMP_NUM_THREADS" in facts["threads"]["fix"]
    assert all(f["fix"] for f in said["facts"] if f["status"] == "wrong")


def test_a_foreign_launcher_is_a_fact(capsys):
    fact = doctor._ranks(None, None, [], "two copies; use the other mpirun")
    assert (fact.status, fact.value, fact.fix) == (doctor.WRONG, "two copies", "use the other mpirun")


def test_cache_that_cannot_be_written_or_is_shared(monkeypatch, tmp_path):
    monkeypatch.setattr("hpcmr.comm.limits.file_system", lambda path: "lustre")
    assert "HPCMR_KERNEL_CACHE" in doctor._cache({"cache": [str(tmp_path), ""]}).fix
    assert doctor._cache({"cache": ["/proc/none", ""]}).status == doctor.WRONG
    assert doctor._cache({}).status == doctor.WRONG


def test_sizes_for_people():
    assert [doctor.size(n) for n in (0, 1023, 1536, 5 << 30, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB", "3.0 TiB"]
