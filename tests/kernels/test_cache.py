"""Where compiled code lies: it is loaded as it is, so nobody else may put any there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numba
import pytest

from hpcmr.kernels import cache
from hpcmr.kernels.jit import compile_into


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files, and no home to write to."""
    monkeypatch.delenv("HPCMR_KERNEL_CACHE", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)        # root may write anywhere
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_cache_is_a_private_folder(shared: Path) -> None:
    assert cache.cache_root() == cache.cache_root() == shared / f"hpcmr-{os.getuid()}"
    assert (shared / f"hpcmr-{os.getuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_others_can_write_to_is_not_used(shared: Path, kind: str) -> None:
    taken = shared / f"hpcmr-{os.getuid()}"
    if kind == "open to others":
        taken.mkdir()
        taken.chmod(0o777)
    elif kind == "a link":
        (shared / "elsewhere").mkdir()
        taken.symlink_to(shared / "elsewhere")
    else:
        taken.touch()
    found = cache.cache_root()
    assert found != taken
    assert found.parent == shared
    assert found.stat().st_mode & 0o777 == 0o700


def twice(x):
    return 2 * x


def test_a_kernel_that_a_caller_has_compiled_is_not_loaded_once_more(tmp_path: Path) -> None:
    """Another process may have put it into the cache meanwhile."""
    elsewhere, called = numba.njit(twice), numba.njit(twice)
    compile_into(tmp_path, elsewhere, ["int64(int64)"])
    called.compile("int64(int64)")              # as a part of a kernel that calls it
    compile_into(tmp_path, called, ["int64(int64)"])
    called.disable_compile()
    assert called(21) == 42
    assert len(called.nopython_signatures) == 1
