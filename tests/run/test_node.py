"""Compiled kernels lie on the node where the home does not, and in nobody else's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcmr.run import node


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A job of Slurm with a home on a file system that nodes share, and a disk in the node."""
    for name in ("home", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(node, "file_system", lambda path: "nfs4" if "home" in str(path) else "ext4")
    return {"SLURM_JOB_ID": "1", "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "disk")}


def test_on_the_node(env: dict[str, str], tmp_path: Path) -> None:
    found = node.kernel_cache(env=env)
    assert found == tmp_path / "disk" / f"hpcmr-kernels-{os.geteuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert node.kernel_cache(env=env) == found


@pytest.mark.parametrize("change", [{"SLURM_JOB_ID": None}, {"HPCMR_KERNEL_CACHE": "/x"}, {"XDG_CACHE_HOME": "/tmp"}, {"TMPDIR": "home"}])
def test_elsewhere(change: dict[str, str | None], env: dict[str, str], tmp_path: Path) -> None:
    told = {**env, **{k: str(tmp_path / v) if v == "home" else v for k, v in change.items() if v}}
    assert node.kernel_cache(env={k: v for k, v in told.items() if change.get(k, v) is not None}) is None


def test_a_folder_of_somebody_else_is_not_used(env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "disk" / f"hpcmr-kernels-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert node.kernel_cache(env=env) is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert node.kernel_cache(env=env) is None
