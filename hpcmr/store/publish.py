"""Making an output visible: all of it, by one rename, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.data.schema import Schema
from hpcmr.errors import HpcmrError, InputError, Refused
from hpcmr.store import files, manifest, paths
from hpcmr.store.manifest import Manifest, Shard
from hpcmr.store.writer import ShardInfo, cut_segments

if TYPE_CHECKING:
    from hpcmr.store.journal import Journal


def check_free(folder: Path) -> None:
    """Raise `Refused` unless `folder` can become an output: it is not there, or it is an empty folder. Call it before any work."""
    folder = Path(folder)
    paths.staging(folder, "x")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        _check_writable(folder)
        return
    except NotADirectoryError:
        raise Refused(f"the output {str(folder)!r} is a file; choose another path") from None
    except OSError as error:
        raise Refused(f"the output {str(folder)!r} cannot be looked at: {error.strerror}") from None
    if names:
        kind = "is there already" if paths.MANIFEST in names else "is a folder that holds other things"
        raise Refused(f"the output {str(folder)!r} {kind}; choose another path, or remove it")


def closed_above(folder: Path) -> Path | None:
    """The folder above an output that nobody but its owner may enter, so that it cannot be shared; None if there is none."""
    above = [p for p in Path(os.path.abspath(folder)).parents if p.exists()]
    return next((p for p in above if not p.stat().st_mode & 0o011), None)


def _check_writable(folder: Path) -> None:
    """Raise `Refused` if the nearest folder above `folder` takes no new files; a job that ran for hours must not find out at its end."""
    above = folder.absolute().parent
    while not above.exists():
        above = above.parent
    if not os.access(above, os.W_OK | os.X_OK):
        why = "is on a read-only file system" if os.statvfs(above).f_flag & os.ST_RDONLY else "is not writable for you"
        raise Refused(f"the output {str(folder)!r} cannot be made: {str(above)!r} {why}; choose another path")


def existing(folder: Path) -> Manifest | None:
    """The manifest of a published output, None if there is nothing at `folder`. Raises `InputError` if what is there is damaged."""
    return read_manifest(Path(folder)) if os.path.lexists(paths.manifest(Path(folder))) else None


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an output; `InputError` tells what is wrong."""
    path = paths.manifest(Path(folder))
    try:
        content = files.read_small(path, manifest.NBYTES_MAX)
    except FileNotFoundError:
        why = f"the folder has no {paths.MANIFEST}" if os.path.isdir(folder) else "it does not exist"
        raise InputError(f"{str(folder)!r} is no hpcmr output: {why}") from None
    except NotADirectoryError:
        raise InputError(f"{str(folder)!r} is no hpcmr output: it is not a folder") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return manifest.parse(content, repr(str(path)))


def publish(folder: Path, schema: Schema, shard_infos: Sequence[ShardInfo], provenance: Mapping[str, Any] | None = None, *,
            attempt: str, replace: bool = False, share: str | None = None, journal: Journal | None = None) -> Manifest:
    """Make the shards of all ranks the output at `folder`. On one rank only, when every rank's `TableWriter.close` has returned.

    Parameters
    ----------
    folder : Path
    schema : Schema
    shard_infos : sequence of dict
        What `TableWriter.close` returned on the ranks, all together, in any order.
    provenance : mapping, optional
        ``writer`` (a mapping: job, fingerprint, ...) and ``inputs`` (a list), kept in the manifest as plain JSON values.
    attempt : str
        As given to the writers.
    replace : bool
        Put the new output in the place of an earlier one, which is removed.
    share : {"group"}, optional
        Who else may read it. As given to the writers.
    journal : Journal, optional
        Of the run: the intent is committed before the output appears, so that a start after a crash finishes it (`settle`), and an
        attempt that was superseded publishes nothing.

    Raises
    ------
    Refused
        If there is something at `folder` already, and `replace` is False.
    StorageError
        If writing or renaming fails; an earlier output is then as it was.
    Superseded
        If another attempt has claimed the run.

    Notes
    -----
    Collective: no. On any error the shards of this attempt are removed, but for those that a checkpoint names (``kept``); what earlier
    attempts have left of shards that were taken over (``attempt``) is removed once the output is there.
    """
    folder = Path(folder)
    staging = paths.staging(folder, attempt)
    try:
        ordered, segments = cut_segments(list(shard_infos))
        files.make_folder(staging)
        shards = [_rename(staging, info, number) for number, info in enumerate(ordered)]
        given = dict(provenance or {})
        made = Manifest(schema, tuple(shards), tuple(segments), dict(given.get("writer", {})), list(given.get("inputs", [])),
                        datetime.now(UTC).isoformat(timespec="seconds"))
        files.write_file(paths.manifest(staging), made.to_bytes(), paths.file_mode(share))
        _complete(staging, [i["file"] for i in ordered if i.get("kept")], share)
        if journal is not None:
            journal.append("publish", intent(folder, attempt, made, replace))
        _appear(staging, folder, attempt, replace)
    except BaseException:
        if any(i.get("kept") for i in shard_infos):
            _take_back(staging, list(shard_infos))
        else:
            remove_attempt(folder, attempt)
        raise
    for earlier in {str(i["attempt"]) for i in shard_infos if "attempt" in i} - {attempt}:
        remove_attempt(folder, earlier)
    if journal is not None:
        sweep_beside(folder, journal, journal.epoch)
    return made


def _complete(staging: Path, kept: Sequence[str], share: str | None) -> None:
    """All is there and lasts. Names that a checkpoint has for shards go when the other ones are durable, and not after the output has appeared."""
    with files.storing(staging, "give its mode"):
        os.chmod(staging, paths.folder_mode(share))
    files.sync_folder(staging)
    if kept:
        with files.storing(staging, "remove names in"):
            for name in kept:
                files.unlink(staging / name)
        files.sync_folder(staging)


def intent(folder: Path, attempt: str, made: Manifest, replace: bool) -> dict[str, Any]:
    """Body of the journal's `publish`: what is going to appear where."""
    return {"path": os.fsencode(os.path.abspath(folder)).hex(), "attempt": attempt, "identity": manifest.identity(made), "replace": replace}


def sweep_beside(folder: Path, journal: Journal, epoch: int) -> None:
    """Remove what attempts at this run, up to an epoch, have left beside an output and no checkpoint names. Never raises."""
    from hpcmr.store.journal import values_of

    with contextlib.suppress(OSError):
        folder = Path(os.path.abspath(folder))
        stale = paths.stale_staging(folder, files.names_in(folder.parent), journal.run, epoch)
        named = {a for e in journal.generations() for a in values_of(e.body, "attempt")} if stale else set()
        for path, attempt in stale:
            if attempt not in named:
                files.remove_folder_quietly(path)


def _rename(staging: Path, info: ShardInfo, number: int) -> Shard:
    """Give a shard its name in the output; one that a checkpoint names keeps the other one too, until the output is complete."""
    name = paths.part_name(number)
    with files.storing(staging / info["file"], "rename"):
        (files.link if info.get("kept") else files.rename)(staging / info["file"], staging / name)
    arrays = tuple((str(a), int(b), int(c), str(d)) for a, b, c, d in info["arrays"])
    return Shard(name, info["rows"], info["nbytes"], info["digest"], info["frame"], arrays)


def _take_back(staging: Path, infos: list[ShardInfo]) -> None:
    """Of a publication that failed: shards that a checkpoint names have their old names again, what was added is removed. Never raises."""
    ordered, _ = cut_segments(infos)
    for number, info in enumerate(ordered):
        with contextlib.suppress(OSError):
            if info.get("kept") and not (staging / info["file"]).exists():
                files.link(staging / paths.part_name(number), staging / info["file"])
    with contextlib.suppress(OSError):
        for name in os.listdir(staging):
            if name == paths.MANIFEST or paths.is_part_name(name):
                files.remove_quietly(staging / name)


def _appear(staging: Path, folder: Path, attempt: str, replace: bool) -> None:
    aside = paths.set_aside(folder, attempt)
    moved = replace and os.path.lexists(folder)
    if moved:
        check_output(folder)
        with files.storing(folder, "set aside"):
            files.rename(folder, aside)
    try:
        with files.storing(folder, "publish"):
            files.rename(staging, folder)
    except HpcmrError as error:
        if moved:
            with files.storing(folder, "put back", safe=f"the earlier output is whole, and lies at {str(aside)!r}"):
                files.rename(aside, folder)
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_free(folder)
        raise
    try:
        files.sync_folder(folder.parent, safe="the output is there and complete, but might be gone again if the machine crashes now")
    finally:
        if moved:
            discard_quietly(aside)


def remove_attempt(folder: Path, attempt: str) -> None:
    """Remove what an attempt has left beside `folder`, its shards and their folder. Never raises. Not while a rank still writes."""
    files.remove_folder_quietly(paths.staging(Path(folder), attempt))


def check_output(folder: Path) -> list[str]:
    """Names in a folder that may be removed or replaced: those of an output, whole or not. `Refused` if there is anything else."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise Refused(f"{str(folder)!r} is no folder, and is neither replaced nor removed; choose another path, or remove it yourself")
    names = os.listdir(folder)
    foreign = [n for n in names if n != paths.MANIFEST and not paths.is_part_name(n)]
    if foreign:
        raise Refused(f"{str(folder)!r} holds {foreign[0]!r}, which is no part of an output, and is neither replaced nor removed; "
                      "choose another path, or remove it yourself")
    return names


def discard(folder: Path) -> None:
    """Remove an output. Refused if the folder holds anything that is no part of one."""
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    names = check_output(folder)
    with files.storing(folder, "remove", safe="other outputs are as they were"):
        # The manifest goes first: what is left when this is interrupted is not taken for an output.
        for name in sorted(names, key=lambda n: n != paths.MANIFEST):
            files.unlink(folder / name)
        files.rmdir(folder)


def discard_quietly(folder: Path) -> None:
    """`discard` as far as that can be done; what holds anything else is left alone."""
    with contextlib.suppress(HpcmrError, OSError):
        discard(folder)
