"""What a start does about outputs that were being published when the last attempt ended.

The journal's `publish` entry says that an output is complete in its staging folder. What was left to do were renames; whoever claims
the run does them::

    out       .out.A.tmp   .out.A.old      what was reached                             what is done
    -         whole        -               nothing                                      staging -> out
    earlier   whole        -               nothing, of a replacement                    out -> old, staging -> out, remove old
    -         whole        earlier         the earlier output was set aside             staging -> out, remove old
    new       -            earlier         the new one is there                         remove old
    -         -            earlier or new  staging was damaged, or taken by a late one  old -> out
    new       -            -               all                                          nothing

So an interrupted replacement is finished; it is undone only where the new output is not whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcmr.errors import HpcmrError, InputError, Refused
from hpcmr.store import files, manifest, paths, sealed
from hpcmr.store.journal import Entry, Journal
from hpcmr.store.publish import check_output, discard_quietly, read_manifest, sweep_beside

SAFE = "the output is whole in its folder, and the next start tries again"


@dataclass(frozen=True)
class Intent:
    """An output that an attempt had completed."""

    folder: Path
    attempt: str
    identity: str
    replace: bool

    @property
    def staging(self) -> Path:
        return paths.staging(self.folder, self.attempt)

    @property
    def aside(self) -> Path:
        return paths.set_aside(self.folder, self.attempt)


def settle(journal: Journal, say: Callable[[str], None] = lambda text: None) -> int:
    """Finish the publications that the journal tells of; returns how many outputs appeared. After `Journal.claim`, before any work.

    Raises
    ------
    Superseded
        This attempt does not own the run.
    StorageError
        A rename failed; nothing is lost, the next start tries again.
    """
    journal.check()
    count = 0
    newest: dict[Path, Intent] = {}
    for one in list(_intents(journal)):
        if one.folder not in newest:
            newest[one.folder] = one
            count += _settle(one, say)
            sweep_beside(one.folder, journal, journal.epoch - 1)
        elif _identity(one.folder) and one.aside != newest[one.folder].aside:
            discard_quietly(one.aside)       # an output was set aside for this one, which has been replaced itself since
    return count


def _intents(journal: Journal) -> Iterator[Intent]:
    """What the journal tells of, the newest first."""
    for entry in reversed(journal.entries):
        if entry.kind == "publish":
            with contextlib.suppress(sealed.Wrong, ValueError, Refused):
                yield _parsed(entry)


def _parsed(entry: Entry) -> Intent:
    """Held against limits: a journal must not lead anywhere but to outputs and the folders beside them."""
    body = entry.body
    folder = Path(os.fsdecode(bytes.fromhex(sealed.text(body.get("path"), "its path", 1 << 13))))
    if not folder.is_absolute() or ".." in folder.parts:
        raise sealed.Wrong("its path is not absolute")
    made = Intent(folder, sealed.text(body.get("attempt"), "its attempt", 64), sealed.hexadecimal(body.get("identity"), "its identity"),
                  body.get("replace") is True)
    assert made.staging.parent == made.aside.parent      # raises `Refused` if the attempt is no name
    return made


def _settle(one: Intent, say: Callable[[str], None]) -> int:
    name = repr(str(one.folder))
    here = _identity(one.folder)
    if here == one.identity:
        discard_quietly(one.aside)
        return 0
    with files.storing(one.folder, "publish", SAFE):
        if _whole(one):
            return _finish(one, say)
        if here is None and _identity(one.aside) and _is_output(one.aside):
            files.rename(one.aside, one.folder)
            files.sync_folder(one.folder.parent, SAFE)
            say(f"the output {name}, which an earlier attempt was about to replace, is back in its place")
    return 0


def _finish(one: Intent, say: Callable[[str], None]) -> int:
    name = repr(str(one.folder))
    if os.path.lexists(one.folder) and not _is_empty(one.folder):
        if not one.replace or not _is_output(one.folder):
            say(f"an earlier attempt has completed the output {name}, but something else is there now; it is not touched")
            return 0
        files.rename(one.folder, one.aside)
    files.rename(one.staging, one.folder)
    files.sync_folder(one.folder.parent, SAFE)
    discard_quietly(one.aside)
    say(f"the output {name}, which an earlier attempt had completed, is published")
    return 1


def _identity(folder: Path) -> str | None:
    """What is there: the identity of an output, empty if it is something else, None if nothing is."""
    if not os.path.lexists(folder) or _is_empty(folder):
        return None
    try:
        return manifest.identity(read_manifest(folder))
    except HpcmrError:
        return ""


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not files.names_in(folder)


def _is_output(folder: Path) -> bool:
    try:
        check_output(folder)
    except (HpcmrError, OSError):
        return False
    return True


def _whole(one: Intent) -> bool:
    """Whether the staging folder holds the output that was told of, and nothing else."""
    if not _is_output(one.staging):
        return False
    try:
        made = read_manifest(one.staging)
    except InputError:
        return False
    return manifest.identity(made) == one.identity and all(_nbytes(one.staging / s.name) == s.nbytes for s in made.shards)


def _nbytes(path: Path) -> int:
    try:
        about = os.lstat(path)
    except OSError:
        return -1
    return about.st_size
