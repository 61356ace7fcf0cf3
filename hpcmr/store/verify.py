"""What is on disk against what was written: every byte of an output is read, and every digest and count compared.

All damage is listed, not only the first. Nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmr.errors import HpcmrError
from hpcmr.store import paths
from hpcmr.store.publish import read_manifest
from hpcmr.store.reader import StoredTable


@dataclass
class Findings:
    """What was looked at, and what of it is damaged: (path, what is wrong with it)."""

    files: int = 0
    nbytes: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)

    def count(self, nbytes: int) -> None:
        """A file was read, as far as it goes."""
        self.files += 1
        self.nbytes += nbytes

    def add(self, path: Path | str, what: str) -> None:
        self.damaged.append((str(path), what))

    def attempt(self, path: Path | str, check: Callable[[], Any]) -> Any:
        """What `check` gives; None if it raises, which is damage at `path`."""
        try:
            return check()
        except HpcmrError as error:
            self.add(path, str(error))
        except OSError as error:
            self.add(path, f"{str(path)!r} cannot be read: {error.strerror or error}")
        return None


def is_output(folder: Path) -> bool:
    """Whether `folder` is an output, or what is left of one: it has a manifest, or shards."""
    with contextlib.suppress(OSError):
        return any(n == paths.MANIFEST or paths.is_part_name(n) for n in os.listdir(folder))
    return False


def verify_output(folder: Path, found: Findings) -> dict[str, Any]:
    """Read every byte of an output. What is damaged is added to `found`; returns rows, bytes and shards as the manifest says.

    Notes
    -----
    Collective: no. Cost: every byte is read and digested once, on one core; memory for one block.
    """
    made = found.attempt(paths.manifest(folder), lambda: read_manifest(folder))
    if made is None:
        return {"rows": None, "nbytes": None, "shards": None}
    found.count(os.stat(paths.manifest(folder)).st_size)
    with StoredTable(folder, made) as table:
        for index, shard in enumerate(made.shards):
            before = len(found.damaged)
            for what in table.damages(index):
                found.add(folder / shard.name, what)
            found.count(shard.nbytes if len(found.damaged) == before else 0)
    for name in sorted(filter(paths.is_part_name, set(os.listdir(folder)) - {s.name for s in made.shards})):
        found.add(folder / name, f"{str(folder / name)!r} is no part of this output: the manifest does not name it; remove it")
    return {"rows": made.rows, "nbytes": made.nbytes, "shards": len(made.shards)}
