"""Whether an output, a checkpoint or a whole run directory is what was written, and which checkpoint a start would continue.

Nothing is changed, and the run may go on meanwhile: what it collects while we look is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcmr.errors import HpcmrError, InputError
from hpcmr.run import identity as identities
from hpcmr.run.status import read_status
from hpcmr.store import manifest, paths
from hpcmr.store.journal import Entry, Journal
from hpcmr.store.pieces import PieceFile, infos_in
from hpcmr.store.publish import existing
from hpcmr.store.verify import Findings, is_output, verify_output


def verify(path: Path) -> dict[str, Any]:
    """Compare every digest and count of what lies at `path`.

    Returns
    -------
    dict
        ``path``, ``kind`` ("output", "checkpoint" or "run"), ``whole``, ``files``, ``nbytes`` and ``damaged`` (a list of
        ``{"path", "what"}``). Of an output also ``rows`` and ``shards``; of the others ``generations``, each with its ``slot`` and whether
        it is ``whole``, and ``good``, the slot of the newest whole one, from which a start goes on; of a run ``outputs`` as well.

    Raises
    ------
    InputError
        There is no such thing at `path`.

    Notes
    -----
    Collective: no. Cost: every byte is read and digested once, on one core; memory for one block.
    """
    found = Findings()
    if not os.path.lexists(path):
        raise InputError(f"{str(path)!r} does not exist")
    if paths.slot_number(path.name) and path.absolute().parent.name == paths.journal(path).name:
        kind, more = "checkpoint", _checkpoint(path, found)
    elif is_run(path):
        kind, more = "run", _run(path, found)
    elif is_output(path):
        kind, more = "output", verify_output(path, found)
    else:
        raise InputError(f"{str(path)!r} is no output, no run directory and no entry of a run's journal")
    return {"path": str(path), "kind": kind, "whole": not found.damaged, "files": found.files, "nbytes": found.nbytes,
            "damaged": [{"path": p, "what": w} for p, w in found.damaged], **more}


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run directory."""
    return paths.journal(folder).is_dir() or paths.status(folder).is_file() or paths.identity(folder).is_file()


# -- checkpoints ------------------------------------------------------------------------------------------------------------------


def _checkpoint(path: Path, found: Findings) -> dict[str, Any]:
    """One entry of a journal, and the files that it names."""
    journal = Journal(path.absolute().parent.parent)
    slot = paths.slot_number(path.name)
    entry = next((e for e in journal.entries if e.slot == slot), None)
    if entry is None:
        found.add(path, next((n for n in journal.notes if repr(str(journal.folder / path.name)) in n), f"{str(path)!r} is not readable"))
        return {"generations": [], "good": None}
    if entry.kind != "generation":
        raise InputError(f"{str(path)!r} is no checkpoint: it is an entry of the kind {entry.kind!r}")
    told = list(_generations(journal, [entry], found))
    return {"generations": told, "good": next((g["slot"] for g in told if g["whole"]), None)}


def _generations(journal: Journal, entries: list[Entry], found: Findings) -> Iterator[dict[str, Any]]:
    """Read every byte of the files of generations; a file that several name is read once. The newest first."""
    known: dict[str, tuple[int, str | None]] = {}
    for entry in entries:
        told = {"slot": entry.slot, "epoch": entry.epoch, "written": entry.written}
        infos = list(infos_in(entry.body))
        faults = []
        for info in infos:
            name = str(info["file"])
            if name not in known:
                known[name] = _read(journal.run_dir, info)
            if known[name][1] is not None:
                faults.append((journal.run_dir / name, str(known[name][1])))
        if faults and not _still_there(journal.run_dir, entry):
            continue
        for path, what in faults:
            if (str(path), what) not in found.damaged:
                found.add(path, what)
        yield {**told, "files": len(infos), "nbytes": sum(known[str(i["file"])][0] for i in infos), "whole": not faults}
    for nbytes, fault in known.values():
        found.count(nbytes if fault is None else 0)


def _read(run_dir: Path, info: Mapping[str, Any]) -> tuple[int, str | None]:
    """Bytes of a file of pieces, and what is wrong with it."""
    try:
        PieceFile(run_dir, dict(info)).verify()
    except HpcmrError as error:
        return int(info["nbytes"]) if isinstance(info["nbytes"], int) else 0, str(error)
    return int(info["nbytes"]), None


def _still_there(run_dir: Path, entry: Entry) -> bool:
    """Whether a generation has not been collected meanwhile, by a run that goes on."""
    return any(e.slot == entry.slot and e.kind == "generation" for e in Journal(run_dir).entries)


# -- a run ------------------------------------------------------------------------------------------------------------------------


def _run(run_dir: Path, found: Findings) -> dict[str, Any]:
    journal = Journal(run_dir)
    for slot, why in sorted(journal.damaged.items()):
        path = journal.folder / paths.slot_name(slot)
        found.add(path, f"{str(path)!r} {why}")
    for entry in journal.entries:
        found.count(_size(journal.folder / paths.slot_name(entry.slot)))
    generations = list(_generations(journal, list(journal.generations()), found))
    for path, what in identities.damages(run_dir):
        found.add(path, what)
    status = found.attempt(paths.status(run_dir), lambda: read_status(run_dir))
    owner = journal.owner
    return {"state": status["state"] if status else None, "attempt": owner.epoch if owner else 0, "generations": generations,
            "good": next((g["slot"] for g in generations if g["whole"]), None),
            "outputs": [_output(path, identity, found) for path, identity in outputs_of(journal).items()]}


def outputs_of(journal: Journal) -> dict[Path, str]:
    """Outputs that a run says it has published, by path, with the digest of their manifests."""
    out: dict[Path, str] = {}
    for entry in journal.entries:
        told = entry.body.get("outputs", ()) if entry.kind == "end" else [entry.body] if entry.kind == "publish" else ()
        for one in told:
            if isinstance(one, Mapping) and isinstance(one.get("path"), str) and isinstance(one.get("identity"), str):
                with contextlib.suppress(ValueError):
                    out[Path(os.fsdecode(bytes.fromhex(one["path"])))] = one["identity"]
    return out


def _output(path: Path, identity: str, found: Findings) -> dict[str, Any]:
    """An output of a run, wherever it lies: whole, damaged, gone, or another one in its place, which is nobody's damage."""
    told: dict[str, Any] = {"path": str(path)}
    if not is_output(path):
        return {**told, "state": "gone"}
    before = len(found.damaged)
    told.update(verify_output(path, found))
    if len(found.damaged) > before:
        return {**told, "state": "damaged"}
    made = existing(path)
    return {**told, "state": "whole" if made is not None and manifest.identity(made) == identity else "replaced"}


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0
