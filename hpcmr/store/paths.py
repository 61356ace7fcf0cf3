"""Names of files and folders, and of the arrays inside a shard. No other module makes one up.

::

    results/
      counts/                        an output: a folder that appears at once, complete
        manifest.json
        part-00000.h5
        part-00001.h5
      .counts.7f3a.tmp/              the same output while attempt 7f3a is writing it
        rank-00002-00000.h5.tmp      a shard that rank 2 is writing
        rank-00002-00000.h5          one that it has finished
      .counts.7f3a.old/              an earlier output while a new one takes its place
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hpcmr.errors import Refused

MANIFEST = "manifest.json"
OWNER = "owner"
"""Who uses a folder of scratch: see `hpcmr.store.scratch`."""
VALID = "%valid"
"""Suffix of the array that tells which rows are not null; `%` in a column's own name is escaped, so it cannot be mistaken."""

_PART = re.compile(r"part-[0-9]{5,9}\.h5")
_ATTEMPT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNSAFE = re.compile("[%/\x00\ud800-\udfff]")


def manifest(folder: Path) -> Path:
    return folder / MANIFEST


def part_name(number: int) -> str:
    """Name of a published shard."""
    return f"part-{number:05d}.h5"


def is_part_name(name: str) -> bool:
    """Whether `name` can be a published shard: a plain name of the one form, so that a manifest cannot lead elsewhere."""
    return _PART.fullmatch(name) is not None


def staged_name(rank: int, index: int) -> str:
    """Name of the `index`-th shard of a rank until it is published."""
    return f"rank-{rank:05d}-{index:05d}.h5"


def unfinished(path: Path) -> Path:
    """Where a file is written before it is renamed to `path`."""
    return path.with_name(path.name + ".tmp")


def staging(folder: Path, attempt: str) -> Path:
    """Folder beside `folder` in which one attempt writes; on the same file system, so that one rename publishes it."""
    return _beside(folder, attempt, "tmp")


def set_aside(folder: Path, attempt: str) -> Path:
    """Where an earlier output waits while a new one takes its place."""
    return _beside(folder, attempt, "old")


def export_staging(path: Path, attempt: str) -> Path:
    """Where an exported file is written before it is renamed to `path`."""
    return _beside(path, attempt, "tmp")


def scratch_home(base: Path) -> Path:
    """The folder of this user in a place that others use as well."""
    return base / f"hpcmr-{os.geteuid()}"


def scratch_run(home: Path, token: str) -> Path:
    """The folder of one process."""
    return home / f"run-{token}"


def spill_name(number: int) -> str:
    """A file of rows that did not fit in memory."""
    return f"spill-{number:06d}.h5"


def status(run_dir: Path) -> Path:
    """How a run stands; see `hpcmr.run.status`."""
    return run_dir / "status.json"


def spec_folder(run_dir: Path) -> Path:
    """Copy of the job: its file, its local modules, and what identifies the run."""
    return run_dir / "spec"


def identity(run_dir: Path) -> Path:
    """What a run is; see `hpcmr.run.identity`."""
    return spec_folder(run_dir) / "identity.json"


def logs(run_dir: Path) -> Path:
    """Folder of what the attempts said."""
    return run_dir / "logs"


def log_name(epoch: int, rank: int) -> str:
    """What a rank said in an attempt."""
    return f"e{epoch:04d}-r{rank:05d}.log"


def _beside(path: Path, attempt: str, suffix: str) -> Path:
    if _ATTEMPT.fullmatch(attempt) is None:
        raise Refused(f"{attempt!r} cannot name an attempt; 1 to 64 letters, digits, - and _ can")
    if path.name in ("", "..", "."):
        raise Refused(f"{str(path)!r} cannot be an output: it does not end in a name")
    return path.with_name(f".{path.name}.{attempt}.{suffix}")


def array_name(column: str) -> str:
    """Name of a column's object inside a shard: the column's own, with what HDF5 cannot hold as `%` and hexadecimal digits."""
    if column in ("", "."):
        return "%" + column.encode().hex()
    return _UNSAFE.sub(lambda m: f"%{ord(m.group()):02x}", column)
