"""What a rank does with its node before anything heavy is loaded. Standard library only."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from hpcmr.comm.limits import file_system, is_shared
from hpcmr.store import scratch

KERNEL_CACHE = "HPCMR_KERNEL_CACHE"


def kernel_cache(option: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> Path | None:
    """Where compiled kernels shall lie in a job of Slurm whose user has the cache on a file system that nodes share: on the node.

    One rank of each node compiles there before the others need it. None: where they lie anyway.

    Parameters
    ----------
    option : path, optional
        ``--scratch``.
    """
    env = os.environ if env is None else env
    if "SLURM_JOB_ID" not in env or env.get(KERNEL_CACHE):
        return None
    home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or "~").expanduser() / ".cache")
    if not is_shared(file_system(home)):
        return None
    base, _ = scratch.choose(option, env)
    folder = base / f"hpcmr-kernels-{os.geteuid()}"
    return folder if not is_shared(file_system(base)) and _private(folder) else None


def _private(folder: Path) -> bool:
    """Make a folder that is ours alone: what lies in a compiler's cache is run."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
