"""Whether the compile cache of this node holds what a stage needs, as far as marks tell that earlier stages left there.

A mark saves time only: with it all ranks of a node load their kernels at once, without it one rank compiles before the others.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


def mark_of(key: str) -> Path:
    """The file that says that the kernels of the stage with this fingerprint have been compiled on this node."""
    from hpcmr.kernels.cache import CACHE

    return CACHE / f"warm-{key}"


def leave_mark(mark: Path) -> None:
    """Say that they are; a cache that cannot be written has no marks."""
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark.touch(mode=0o600)
