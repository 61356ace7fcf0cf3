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

    hpcmr-runs/counts-1f00c2b1aa/    a run directory, 0700
      journal/000001.json            entries, see `hpcmr.store.journal`
      journal/.1c2d3e4f5a6b7c8d.tmp  an entry before it is linked to its slot
      pieces/e0002-000007-r00003-00.h5    a shard of a checkpoint: epoch, generation, rank, number
      results/e0002-a00004-00.h5     the result of an action
      status.json, spec/, logs/, output/
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hpcmr.errors import Refused

MANIFEST = "manifest.json"
OWNER = "owner"
"""Who uses a folder of scratch: see `hpcmr.store.scratch`."""
VALID = "%valid"
"""Suffix of the array that tells which rows are not null; `%` in a column's own name is escaped, so it cannot be mistaken."""

_PART = re.compile(r"part-[0-9]{5,9}\.h5")
_SLOT = re.compile(r"[0-9]{6,9}\.json")
_DRAFT = re.compile(r"\.[0-9a-f]{16}\.tmp")
_RUN_FILE = re.compile(r"pieces/e[0-9]{4,9}-[0-9]{6,9}-r[0-9]{5,9}-[0-9]{2,9}\.h5|results/e[0-9]{4,9}-a[0-9]{5,9}-[0-9]{2,9}\.h5")
_STAGED = re.compile(r"(rank|kept)-[0-9]{5,9}-[0-9]{5,9}\.h5")
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


def adopted_name(rank: int, index: int) -> str:
    """Name of a shard of an earlier attempt, which a rank takes over."""
    return f"kept-{rank:05d}-{index:05d}.h5"


def is_staged_name(name: str) -> bool:
    """Whether `name` can be a shard in a staging folder."""
    return _STAGED.fullmatch(name) is not None


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


def file_mode(share: str | None) -> int:
    """Of the files of an output: the group may read them if `share` is ``group``."""
    return 0o640 if share == "group" else 0o600


def folder_mode(share: str | None) -> int:
    return 0o750 if share == "group" else 0o700


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


def batch_folder(run_dir: Path) -> Path:
    """What belongs to Slurm: the batch script, what it says, and what is written down about its attempts."""
    return run_dir / "slurm"


def batch_script(run_dir: Path) -> Path:
    return batch_folder(run_dir) / "batch.sh"


def batch_record(run_dir: Path) -> Path:
    """What was submitted; see `hpcmr.run.restarts`."""
    return batch_folder(run_dir) / "batch.json"


def attempts(run_dir: Path) -> Path:
    """What is known when an attempt of a batch job begins; see `hpcmr.run.restarts`."""
    return batch_folder(run_dir) / "attempts.json"


def journal(run_dir: Path) -> Path:
    """Folder of the slots."""
    return run_dir / "journal"


def slot_name(number: int) -> str:
    """An entry of the journal."""
    return f"{number:06d}.json"


def slot_number(name: str) -> int:
    """Inverse of `slot_name`; 0: it is no such name."""
    number = int(name[:-5]) if _SLOT.fullmatch(name) else 0
    return number if slot_name(number) == name else 0


def slot_draft(token: str) -> str:
    """Where an entry is written before it is linked to its slot."""
    return f".{token}.tmp"


def is_draft(name: str) -> bool:
    return _DRAFT.fullmatch(name) is not None


def piece_file(epoch: int, generation: int, rank: int, number: int) -> str:
    """A shard of a checkpoint, relative to the run directory. No two attempts, ranks or generations share one."""
    return f"pieces/e{epoch:04d}-{generation:06d}-r{rank:05d}-{number:02d}.h5"


def result_file(epoch: int, action: int, number: int = 0) -> str:
    """The result of an action, relative to the run directory."""
    return f"results/e{epoch:04d}-a{action:05d}-{number:02d}.h5"


def is_run_file(name: str) -> bool:
    """Whether `name` can be a file that a generation names: one of the two forms above, so that it cannot lead elsewhere."""
    return _RUN_FILE.fullmatch(name) is not None


def run_folders(run_dir: Path) -> tuple[Path, Path]:
    """Folders whose files are named by generations."""
    return run_dir / "pieces", run_dir / "results"


def attempt_name(run: str, epoch: int, token: str) -> str:
    """Names an action of an attempt at a run, for its staging folders: a later attempt knows whose they are."""
    return f"{run}-e{epoch:04d}-{token}"


def stale_staging(folder: Path, names: Iterable[str], run: str, epoch: int) -> list[tuple[Path, str]]:
    """Of the `names` beside an output the staging folders of this run's attempts up to `epoch`, and the names of the attempts."""
    form = re.compile(rf"\.{re.escape(folder.name)}\.({re.escape(run)}-e([0-9]{{4,9}})-[A-Za-z0-9]{{1,32}})\.tmp", re.DOTALL)
    return [(folder.with_name(n), m[1]) for n in names if (m := form.fullmatch(n)) and int(m[2]) <= epoch]


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
