"""What a run is: its job, its code, its inputs, and the format of its checkpoints. A start over an earlier run must be the same run.

Kept in the run directory::

    spec/identity.json       job and code: each key of the job, a digest of each file of code
    spec/halos.py, ...       the job's file and its local modules, as they were
    spec/inputs/<key>.json   each input as it was first surveyed: files, sizes, times, digests of samples

Ranks, memory, scratch, the interval of checkpoints and recovery are no part of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hpcmr.errors import InputError, Refused
from hpcmr.io.files import FileInfo, find_files
from hpcmr.store import files, paths, sealed
from hpcmr.store.manifest import plain, unplain

FORMAT, INPUT_FORMAT = "hpcmr-run", "hpcmr-input"
VERSION = 1
"""Of the run directory and all that checkpoints hold: one that differs is not continued."""
NBYTES_MAX = 1 << 28
KEYS = ("format", "version", "made", "python", "token", "name", "kind", "job", "files", "code")
INPUT_KEYS = ("format", "version", "kind", "paths", "files", "samples")

SAMPLED_FILES = 64
SAMPLED_S = 5.0
"""Files of an input that are sampled: so many, spread over the list, and as far as one gets in this time. Which ones is written down."""
BLOCK_NBYTES, BLOCKS = 16 << 10, 16
SHOWN = 20

Identity = dict[str, Any]


def identity_of(spec: Path, name: str, values: Mapping[str, Any], modules: Sequence[Path], code: str) -> Identity:
    """What makes a run this run, but for its inputs.

    Parameters
    ----------
    spec : Path
    name : str
        The job's name.
    values : mapping
        Keys of the job file with those that were set, or the ``--set`` values of a ``.py`` job.
    modules : sequence of Path
        Files of the user's code besides `spec`.
    code : str
        Fingerprint of the code with what functions captured.
    """
    texts = {place: hashlib.sha256(path.read_bytes()).hexdigest()[:32] for place, path in _places(spec, modules) if path.suffix != ".toml"}
    return {"format": FORMAT, "version": VERSION, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}", "token": secrets.token_hex(6), "name": name, "kind": spec.suffix,
            "job": plain(_flat(values)), "files": texts, "code": code}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; what was not given is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{above}{key}."))
        elif value is not None:
            found[f"{above}{key}"] = value
    return found


def _places(spec: Path, modules: Sequence[Path]) -> list[tuple[str, Path]]:
    """Where each file of the code lies in ``spec/``: as it lies beside the job's file, or, from elsewhere, under ``elsewhere/``."""
    home = spec.resolve().parent
    found = {spec.name: spec}
    for path in modules:
        resolved = path.resolve()
        if resolved == spec.resolve():
            continue
        if resolved.is_relative_to(home):
            place = resolved.relative_to(home).as_posix()
        else:
            place = f"elsewhere/{hashlib.sha256(os.fsencode(resolved.parent)).hexdigest()[:8]}/{resolved.name}"
        if place not in ("identity.json", "inputs"):
            found[place] = path
    return sorted(found.items())


# -- what is kept ------------------------------------------------------------------------------------------------------


def store_identity(run_dir: Path, identity: Identity, spec: Path, modules: Sequence[Path]) -> None:
    """Put a copy of the job and its identity into ``spec/``, at once; what was there is gone.

    Raises
    ------
    StorageError
    """
    folder = paths.spec_folder(run_dir)
    wait = run_dir / f".spec.{secrets.token_hex(4)}.tmp"
    safe = "the run has not begun"
    try:
        with files.storing(wait, "copy the job to", safe):
            for place, path in _places(spec, modules):
                target = wait / place
                _private_folders(wait, target.parent)
                files.write_file(target, path.read_bytes())
            _private_folders(wait, wait / "inputs")
            files.write_file(wait / paths.identity(run_dir).name, sealed.render(identity, KEYS))
            files.sync_folder(wait, safe)
            shutil.rmtree(folder, ignore_errors=True)
            files.rename(wait, folder)
            files.sync_folder(run_dir, safe)
    except BaseException:
        shutil.rmtree(wait, ignore_errors=True)
        raise


def _private_folders(top: Path, folder: Path) -> None:
    for path in reversed([p for p in (folder, *folder.parents) if p == top or p.is_relative_to(top)]):
        files.make_folder(path)


def read_identity(run_dir: Path) -> Identity | None:
    """The identity of an earlier start; None: there was none.

    Raises
    ------
    Refused
        It is damaged, or of another format.
    """
    return _read(paths.identity(run_dir), KEYS, FORMAT)


def _read(path: Path, keys: tuple[str, ...], kind: str) -> dict[str, Any] | None:
    try:
        content = files.read_small(path, NBYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(f"{str(path)!r} cannot be read: {error.strerror}; --fresh starts over") from None
    try:
        found = sealed.parse(content, keys, NBYTES_MAX)
        if found["format"] != kind:
            raise sealed.Wrong(f"its format is {str(found['format'])[:40]!r}, not {kind!r}")
        if found["version"] == VERSION:
            for key in ("job", "files") if kind == FORMAT else ():
                sealed.mapping(found[key], key)
            for key in ("files", "samples", "paths") if kind == INPUT_FORMAT else ():
                sealed.items(found[key], key)
    except sealed.Wrong as wrong:
        raise Refused(f"{str(path)!r} does not tell what this run is: {wrong}; --fresh starts over") from None
    return found


def differences(before: Identity, now: Identity) -> list[str]:
    """How a job differs from the one that a run directory was made by, one line each; empty: it is the same."""
    if before["version"] != now["version"]:
        return [f"format: the run directory has version {before['version']}, and this hpcmr writes version {now['version']}"]
    out = []
    if before["python"] != now["python"]:
        out.append(f"code: Python was {before['python']}, is {now['python']}")
    if before["name"] != now["name"] or before["kind"] != now["kind"]:
        out.append(f"job: it was {before['name']!r} ({before['kind']}), is {now['name']!r} ({now['kind']})")
    # As text: 1, 1.0 and true are three values, and NaN is one.
    was, is_ = ({key: sealed.compact(value) for key, value in told["job"].items()} for told in (before, now))
    for key in sorted({*was, *is_}):
        if was.get(key) != is_.get(key):
            shown = [f"{word} {_show(told['job'][key]) if key in told['job'] else 'not set'}" for word, told in (("was", before), ("is", now))]
            out.append(f"job: {key} {shown[0]}, {shown[1]}")
    files_out = [f"code: {place} {_change(before['files'].get(place), now['files'].get(place))}"
                 for place in sorted({*before["files"], *now["files"]}) if before["files"].get(place) != now["files"].get(place)]
    if not files_out and not out and before["code"] != now["code"]:
        files_out = ["code: values that the functions captured, or functions from elsewhere, have changed"]
    return out + files_out


def _show(value: Any) -> str:
    text = repr(unplain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _change(before: str | None, now: str | None) -> str:
    return "is new" if before is None else "is not imported any more" if now is None else "was changed"


# -- inputs ------------------------------------------------------------------------------------------------------------


def remember_input(run_dir: Path, source: Any, check: Callable[[], None]) -> None:
    """Write down what an input is, once it was surveyed. On rank 0.

    What the job itself makes and reads may be other than it was at an earlier time: the newest survey counts.

    Parameters
    ----------
    run_dir : Path
    source : Source
    check : callable
        Raises unless this attempt still owns the run.

    Raises
    ------
    StorageError, Superseded

    Notes
    -----
    Collective: no. Cost: a ``stat`` for each file, and at the first time 256 KiB of at most `SAMPLED_FILES` of them.
    """
    told = _named(source)
    if told is None:
        return
    kind, named = told
    path = _input_path(run_dir, kind, named)
    found = find_files(named, kind)
    listed = [[_text(f.path), f.nbytes, f.mtime_ns] for f in found]
    with contextlib.suppress(Refused):
        before = _read(path, INPUT_KEYS, INPUT_FORMAT)
        if before is not None and before["files"] == listed:
            return
    check()
    value = {"format": INPUT_FORMAT, "version": VERSION, "kind": kind, "paths": [_text(p) for p in named], "files": listed,
             "samples": _sampled(found)}
    wait = path.with_name(f".{secrets.token_hex(8)}.tmp")
    files.make_folder(path.parent)
    try:
        files.write_file(wait, sealed.render(value, INPUT_KEYS))
        with files.storing(path, "write"):
            files.rename(wait, path)
    except BaseException:
        files.remove_quietly(wait)
        raise
    files.sync_folder(path.parent)


def changed_inputs(run_dir: Path) -> list[str]:
    """How the inputs of a run differ from what earlier attempts surveyed, one line each. On rank 0."""
    folder = paths.spec_folder(run_dir) / "inputs"
    out: list[str] = []
    for name in files.names_in(folder):
        found = None if name.startswith(".") else _read(folder / name, INPUT_KEYS, INPUT_FORMAT)
        if found is not None:
            out += _input_changes(found)
    return out


def damages(run_dir: Path) -> list[tuple[Path, str]]:
    """What in ``spec/`` is not as it was written: file, and what is wrong with it."""
    out: list[tuple[Path, str]] = []
    folder = paths.spec_folder(run_dir)
    try:
        for place, digest in sorted((read_identity(run_dir) or {"files": {}})["files"].items()):
            path = folder / place
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest()[:32] != digest:
                out.append((path, f"{str(path)!r} is not the copy that the run made of its code; what runs is the code where it lies"))
    except Refused as error:
        out.append((paths.identity(run_dir), str(error)))
    for name in files.names_in(folder / "inputs"):
        try:
            _read(folder / "inputs" / name, INPUT_KEYS, INPUT_FORMAT)
        except Refused as error:
            out.append((folder / "inputs" / name, str(error)))
    return out


def _named(source: Any) -> tuple[str, list[str]] | None:
    """Kind and names of a source's files, absolute; None where it is not made of files, or of those of this package, which are sealed."""
    named = getattr(source, "paths", None)
    if not isinstance(named, list):
        return None
    return str(source.name), [os.path.abspath(os.path.expanduser(os.fsdecode(p))) for p in named]


def _input_path(run_dir: Path, kind: str, named: Sequence[str]) -> Path:
    key = hashlib.sha256("\0".join([kind, *named]).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return paths.spec_folder(run_dir) / "inputs" / f"{key}.json"


def _text(path: str) -> Any:
    """A path as JSON can hold it, whatever its bytes."""
    return path if path.isprintable() and path.isascii() else {"$bytes": os.fsencode(path).hex()}


def _untext(path: Any) -> str:
    return os.fsdecode(bytes.fromhex(path["$bytes"])) if isinstance(path, dict) else str(path)


def _sampled(found: Sequence[FileInfo]) -> list[list[Any]]:
    """[place in the list, digest] of the files that are sampled: evenly spread, the last one too, as long as `SAMPLED_S` lasts."""
    until = time.monotonic() + SAMPLED_S
    step = max(1, (len(found) - 1) / (SAMPLED_FILES - 1))
    places = sorted({min(len(found) - 1, round(i * step)) for i in range(min(len(found), SAMPLED_FILES))})
    out: list[list[Any]] = []
    for at in places:
        if out and time.monotonic() > until:
            break
        out.append([at, sample_digest(found[at].path, found[at].nbytes)])
    return out


def sample_digest(path: str, nbytes: int) -> str:
    """Digest of `BLOCKS` blocks of a file, its beginning and its end among them; all of a file that is not larger than these."""
    whole = BLOCKS * BLOCK_NBYTES
    starts = [0] if nbytes <= whole else [i * (nbytes - BLOCK_NBYTES) // (BLOCKS - 1) for i in range(BLOCKS)]
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(whole if nbytes <= whole else BLOCK_NBYTES) or b"")
    return str(digest.hexdigest())


def _input_changes(before: Mapping[str, Any]) -> list[str]:
    if before["version"] != VERSION:
        return [f"format: what is known of the inputs has version {before['version']}, and this hpcmr writes version {VERSION}"]
    try:
        was = {_untext(p): (n, t) for p, n, t in before["files"]}
        order = [_untext(p) for p, _, _ in before["files"]]
        named = [_untext(p) for p in before["paths"]]
        samples = [(order[at], str(digest)) for at, digest in before["samples"]]
    except (ValueError, TypeError, KeyError, IndexError):
        return ["input: what is known of it cannot be understood"]
    try:
        now = {f.path: (f.nbytes, f.mtime_ns) for f in find_files(named, str(before["kind"]))}
    except InputError as error:
        return [f"input: {error}"]
    out = [f"input: {path} {_file_change(was.get(path), now.get(path))}" for path in dict.fromkeys([*order, *now]) if was.get(path) != now.get(path)]
    if out:
        return out
    return [f"input: {path} has the same size and time, and other content" for path, digest in samples if _resample(path, now[path][0]) != digest]


def _resample(path: str, nbytes: int) -> str:
    try:
        return sample_digest(path, nbytes)
    except OSError:
        return ""


def _file_change(was: tuple[int, int] | None, now: tuple[int, int] | None) -> str:
    if was is None or now is None:
        return "is new" if was is None else "is gone"
    if was[0] != now[0]:
        return f"had {was[0]:,} bytes, has {now[0]:,}"
    return f"was written anew ({_when(was[1])}, now {_when(now[1])})"


def _when(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mtime_ns / 1e9)) + f".{mtime_ns // 1_000_000 % 1000:03d}"


def refusal(run_dir: Path, changed: Sequence[str], state: str) -> str:
    """The message of a start over an earlier run that is not the same: what differs, how that run stands, and what to do."""
    more = [f"  ... and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    lines = [f"  {line}" for line in changed[:SHOWN]] + more
    return "\n".join([f"the run in {str(run_dir)!r}, {state}, was begun before {_kinds(changed)} changed:", *lines,
                      "put back what it was to go on, choose another --run-dir, or start over with --fresh, which discards what the run has"])


def _kinds(changed: Sequence[str]) -> str:
    said = list(dict.fromkeys(line.partition(":")[0] for line in changed))
    words = {"job": "its job was", "code": "its code was", "input": "its input was", "format": "the format was"}
    return " and ".join(words.get(kind, f"its {kind} was") for kind in said)

