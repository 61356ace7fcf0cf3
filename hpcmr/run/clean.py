"""What runs have left on disk and nobody needs any more: found first, and removed when it is asked for.

A run is claimed before anything of it is removed, as an attempt does: a start that comes meanwhile sees an owner that lives, and an
attempt that was stopped can commit nothing afterwards. Outputs are never touched, and neither is a run whose owner lives.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmr.errors import InputError, Refused
from hpcmr.run.owner import life_of, show_owner, this_owner
from hpcmr.run.verify import is_run, outputs_of
from hpcmr.store import files, paths
from hpcmr.store.journal import Entry, Journal, files_of, values_of
from hpcmr.store.scratch import Scratch
from hpcmr.store.verify import is_output

KEPT = 2
"""Checkpoints that a run needs until it is done."""
_DRAFT = re.compile(r"\.(status\.json|spec|now)\.[A-Za-z0-9_.-]{1,60}\.tmp")
"""What an attempt that was killed leaves in a run directory."""

Say = Callable[[str], None]


@dataclass
class Waste:
    """What may go, of one run or of scratch. `why` says what it is, `paths` what goes, `kept` why a run is left alone."""

    folder: Path
    why: str
    paths: list[Path] = field(default_factory=list)
    kept: str = ""

    @property
    def nbytes(self) -> int:
        return sum(size_of(p) for p in self.paths)


def find(path: Path, say: Say = lambda text: None) -> list[Waste]:
    """What may be removed of the run at `path`, or of all runs in that folder. Nothing is changed.

    Raises
    ------
    InputError
        There is no run at `path`.
    Refused
        It is an output.

    Notes
    -----
    Where the owner of a run is on another machine, its heartbeat is watched for up to `hpcmr.run.owner.SILENT_S`.
    """
    if is_run(path):
        runs = [path]
    elif is_output(path):
        raise Refused(f"{str(path)!r} is an output, and is not touched; remove it yourself if it is needed no more")
    else:
        runs = [path / n for n in files.names_in(path) if is_run(path / n)] if path.is_dir() else []
        if not runs:
            raise InputError(f"{str(path)!r} is no run directory, and holds none")
    return [_of_run(run, say) for run in runs]


def find_scratch(option: str | None = None) -> Waste:
    """What dead processes have left on this node's scratch."""
    scratch = Scratch(option)
    return Waste(scratch.base, "scratch of processes that are dead, on this node", scratch.dead())


def remove(waste: Waste) -> int:
    """Remove what `find` found, if it may still go; returns the bytes that went.

    Raises
    ------
    Superseded
        An attempt has begun meanwhile; nothing was removed.
    StorageError
        The file system does not let it go.
    """
    if not waste.paths:
        return 0
    nbytes = waste.nbytes
    if is_run(waste.folder):
        _remove_of_run(waste.folder)
    else:
        for folder in waste.paths:
            shutil.rmtree(folder, ignore_errors=True)
        files.remove_empty_folder_quietly(waste.paths[0].parent)
    return nbytes - waste.nbytes


# -- a run ------------------------------------------------------------------------------------------------------------------------


def _of_run(run_dir: Path, say: Say) -> Waste:
    journal = Journal(run_dir)
    state = _state(journal)
    alive = _alive(journal, say)
    if alive:
        return Waste(run_dir, "", kept=alive)
    why = {"done": "checkpoints of a run that is done"}.get(state, "older checkpoints, and what dead attempts have left")
    return Waste(run_dir, why, sorted({*_unneeded(journal, state), *_drafts(journal), *_staging(journal)}))


def _alive(journal: Journal, say: Say) -> str:
    """Why a run must not be touched; empty: nobody works at it."""
    claim = journal.owner
    if claim is None or journal.ended is not None:
        return ""
    owner = claim.body.get("owner")
    owner = owner if isinstance(owner, Mapping) else {}
    life = life_of(owner, journal.run_dir, say)
    return f"{show_owner(owner)} works at it: {life.why}" if life.alive else ""


def _state(journal: Journal) -> str:
    return str(journal.ended.body.get("state")) if journal.ended is not None else ""


def _unneeded(journal: Journal, state: str) -> Iterator[Path]:
    """Files of checkpoints and results that no start would read, and entries that were not published."""
    kept = list(journal.generations())[:0 if state == "done" else KEPT]
    needed = {name for e in kept for name in files_of(e.body)}
    for folder in paths.run_folders(journal.run_dir):
        for name in files.names_in(folder):
            place = f"{folder.name}/{name}"
            if paths.is_run_file(place.removesuffix(".tmp")) and place not in needed:
                yield folder / name
    for name in files.names_in(journal.folder):
        if paths.is_draft(name):
            yield journal.folder / name


def _drafts(journal: Journal) -> Iterator[Path]:
    """Temporary files and folders of the run directory."""
    inputs = paths.spec_folder(journal.run_dir) / "inputs"
    yield from (journal.run_dir / n for n in files.names_in(journal.run_dir) if _DRAFT.fullmatch(n))
    yield from (inputs / n for n in files.names_in(inputs) if paths.is_draft(n))


def _staging(journal: Journal) -> Iterator[Path]:
    """Folders beside outputs in which dead attempts wrote, but for those that a checkpoint names or that are still to be published."""
    named = {a for e in journal.generations() for a in values_of(e.body, "attempt")}
    due = {(p.name, a) for p, a in _intents(journal.entries)}
    for output in _places(journal):
        with contextlib.suppress(OSError):
            for path, attempt in paths.stale_staging(output, files.names_in(output.parent), journal.run, _epoch(journal)):
                if attempt not in named and (output.name, attempt) not in due:
                    yield path


def _places(journal: Journal) -> list[Path]:
    """Where outputs of a run lie, or were to lie."""
    default = journal.run_dir.absolute() / "output"
    inside = {default / n.split(".")[1] for n in files.names_in(default) if n.startswith(".") and n.count(".") >= 3}
    return sorted({*outputs_of(journal), *inside})


def _intents(entries: Iterable[Entry]) -> Iterator[tuple[Path, str]]:
    for entry in entries:
        if entry.kind == "publish":
            with contextlib.suppress(ValueError, TypeError, KeyError):
                yield Path(os.fsdecode(bytes.fromhex(entry.body["path"]))), str(entry.body["attempt"])


def _epoch(journal: Journal) -> int:
    return journal.owner.epoch if journal.owner is not None else 0


def _remove_of_run(run_dir: Path) -> None:
    journal = Journal(run_dir)
    alive = _alive(journal, lambda text: None)
    if alive:
        raise Refused(f"{str(run_dir)!r} is not touched: {alive}")
    state, ended = _state(journal), journal.ended
    journal.claim(this_owner())
    extra = [*_drafts(journal), *_staging(journal)]
    try:
        journal.collect(keep=0 if state == "done" else KEPT)
        journal.sweep()
        for path in extra:
            _remove_any(path)
    finally:
        journal.append("end", ended.body if ended is not None else _left(journal))


def _left(journal: Journal) -> dict[str, Any]:
    """The end of an attempt that could not say so itself."""
    has = next(iter(journal.generations()), None) is not None
    return {"state": "checkpointed" if has else "failed", "reason": "the attempt died; `hpcmr clean` has removed what it left", "outputs": []}


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        files.remove_quietly(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(size_of(path / n) for n in os.listdir(path))
        return os.lstat(path).st_size
    except OSError:
        return 0
