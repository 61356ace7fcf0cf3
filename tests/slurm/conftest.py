"""The cluster-in-a-box for tests, started once; they are skipped, with the reason, where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import BOX, Cluster

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes of Slurm on this machine, with a home and inputs of their own."""
    lacks = [p for p in PROGRAMS if shutil.which(p, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None]
    if lacks and os.environ.get("HPCMR_TEST_SLURM") != "install":
        pytest.skip(f"no Slurm: there is no {', '.join(lacks)} here; `make slurm-up` installs it, as root on Debian")
    folder = tmp_path_factory.mktemp("slurm")
    box = [sys.executable, str(BOX), "--folder", str(folder / "box")]
    up = subprocess.run([*box, "up"], capture_output=True, text=True, timeout=300)
    if up.returncode == 3:
        pytest.skip(f"no Slurm: {up.stderr.strip()}")
    assert up.returncode == 0, up.stderr
    try:
        yield Cluster(folder, box, Path(up.stdout.splitlines()[0]))
    finally:
        down = subprocess.run([*box, "down"], capture_output=True, text=True, timeout=120)
        assert down.returncode == 0, down.stderr
