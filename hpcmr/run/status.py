"""``status.json``: how a run stands, for people and programs that look at it from outside. Neither NumPy nor MPI is needed.

Rank 0 rewrites the file (a temporary file, then a rename) at most once a second, and at each change of state. In between a thread
touches it every `BEAT_S`: its time is the heartbeat of the attempt that owns the run. The file is advice; what counts is the journal.

::

    {"format": "hpcmr-status", "version": 1,
     "run": "/scratch/me/hpcmr-runs/halos-1f00c2b1aa",   run directory, absolute
     "name": "halos", "spec": "/home/me/halos.py",       job, and its file
     "state": "running",                  queued | running | checkpointed | done | failed | cancelled
     "attempt": 2,                        epoch of the attempt; 0: none has begun
     "pid": 4711, "host": "n17", "boot": "...", "start": 123456,      rank 0, as in the journal's claim
     "ranks": 64, "nodes": 4,
     "began_at": 1760000000.0,            of this attempt; seconds since 1970, as all times here
     "stage": {"number": 2, "of": 5, "name": "read_hdf5('e.h5') -> group", "done": 0.42} | null,
     "rates": {"rows_s": 1.2e6, "nbytes_s": 9.6e6} | null,            of the stage
     "eta_s": 12.5 | null,                time left of the stage
     "checkpoint": {"generation": 7, "committed_at": 1760000100.0, "age_s": 3.2, "nbytes": 1048576, "seconds": 0.8} | null,
     "slurm_jobs": ["1234", "1240"],      of all attempts, the newest last
     "reason": "notice: SIGUSR1" | null,  why the last attempt ended, or what is wrong
     "exit_code": 75 | null,
     "outputs": [{"name": "counts", "path": "/.../out", "rows": 17}],
     "updated_at": 1760000103.2}

``checkpoint.age_s`` is the age at ``updated_at``; ``eta_s`` counts from there as well.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmr.errors import InputError
from hpcmr.store import paths

FORMAT, VERSION = "hpcmr-status", 1
ENDED = ("checkpointed", "done", "failed", "cancelled")
STATES = ("queued", "running", *ENDED)
EVERY_S = 1.0
BEAT_S = 5.0
NBYTES_MAX = 1 << 20

Kinds = tuple[type, ...]
_TEXT: Kinds = (str,)
_COUNT: Kinds = (int,)
_REAL: Kinds = (int, float)
_STAGE = {"number": _COUNT, "of": _COUNT, "name": _TEXT, "done": _REAL}
_RATES = {"rows_s": _REAL, "nbytes_s": _REAL}
_CHECKPOINT = {"generation": _COUNT, "committed_at": _REAL, "age_s": _REAL, "nbytes": _COUNT, "seconds": _REAL}
_OUTPUT = {"name": _TEXT, "path": _TEXT, "rows": _COUNT}
_PLAIN: dict[str, tuple[Kinds, Any]] = {
    "run": (_TEXT, ""), "name": (_TEXT, ""), "spec": (_TEXT, ""), "state": (_TEXT, "queued"), "attempt": (_COUNT, 0), "pid": (_COUNT, 0),
    "host": (_TEXT, ""), "boot": (_TEXT, ""), "start": (_COUNT, 0), "ranks": (_COUNT, 0), "nodes": (_COUNT, 0), "began_at": (_REAL, 0.0),
    "eta_s": (_REAL, None), "reason": (_TEXT, None), "exit_code": (_COUNT, None), "updated_at": (_REAL, 0.0)}
_NESTED: dict[str, dict[str, Kinds]] = {"stage": _STAGE, "rates": _RATES, "checkpoint": _CHECKPOINT}


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """What ``status.json`` of a run says, with all keys of the schema; None if there is none.

    Raises
    ------
    InputError
        It is damaged, or of a newer hpcmr.
    """
    path = paths.status(Path(run_dir))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            content = file.read(NBYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    try:
        return _checked(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not a usable status: {error}; the run itself may be whole, `hpcmr verify {run_dir}` looks") from None


def _checked(content: bytes) -> dict[str, Any]:
    if len(content) > NBYTES_MAX:
        raise ValueError(f"it has more than {NBYTES_MAX:,} bytes")
    value = json.loads(content.decode("ascii"), parse_constant=_no_constant)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if value.get("version") != VERSION:
        raise ValueError(f"its version is {str(value.get('version'))[:20]}, and this hpcmr reads version {VERSION}")
    out = {key: _of(value.get(key, default), kinds, key, default is None) for key, (kinds, default) in _PLAIN.items()}
    for key, inner in _NESTED.items():
        out[key] = None if value.get(key) is None else _record(value[key], inner, key)
    out["slurm_jobs"] = [_of(j, _TEXT, "slurm_jobs") for j in _of(value.get("slurm_jobs", []), (list,), "slurm_jobs")]
    out["outputs"] = [_record(o, _OUTPUT, "outputs") for o in _of(value.get("outputs", []), (list,), "outputs")]
    if out["state"] not in STATES:
        raise ValueError(f"its state is {out['state'][:20]!r}")
    return out


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _of(value: Any, kinds: Kinds, key: str, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{key} is a {type(value).__name__}")
    return value


def _record(value: Any, inner: Mapping[str, Kinds], key: str) -> dict[str, Any]:
    found = _of(value, (dict,), key)
    return {k: _of(found.get(k), kinds, f"{key}.{k}") for k, kinds in inner.items()}


def new_status(run_dir: Path, **fields: Any) -> dict[str, Any]:
    """A status with all keys, for example ``new_status(run_dir, name="halos", state="queued", slurm_jobs=["1234"])``."""
    value = {key: default for key, (_, default) in _PLAIN.items()}
    value.update(dict.fromkeys(_NESTED), slurm_jobs=[], outputs=[], run=str(Path(run_dir).absolute()))
    unknown = set(fields) - set(value)
    if unknown:
        raise TypeError(f"a status has no {', '.join(sorted(unknown))}")
    return {**value, **fields}


def write_status(run_dir: Path, value: Mapping[str, Any]) -> int:
    """Put `value` in the place of ``status.json``, at once and whole. Returns a descriptor of the new file, for `StatusWriter`.

    Raises
    ------
    OSError
        The file that was there is as it was.
    """
    path = paths.status(Path(run_dir))
    body = {"format": FORMAT, "version": VERSION, **value, "updated_at": time.time()}
    content = json.dumps(_finite(body), indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"
    wait = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident():x}.tmp")
    fd = os.open(wait, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        done = 0
        while done < len(content):
            done += os.write(fd, content[done:])
        os.rename(wait, path)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(wait)
        raise
    return fd


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity; a time left that is not known is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


class StatusWriter:
    """Keeps ``status.json`` of one attempt up to date: on rank 0, from one thread, with a heartbeat of its own.

    A disk that takes no status does not end a job: errors are kept in `error`, and the next write tries again. Where a newer attempt
    has written its own status, this one falls silent for good.

    Parameters
    ----------
    run_dir : Path
    value : mapping
        Of `new_status`; ``attempt`` tells who we are.
    beat_s : float
        Seconds between two touches; 0: no thread.

    Attributes
    ----------
    value : dict
        What was said last.
    error : OSError or None
        Of the last write.
    """

    def __init__(self, run_dir: Path, value: Mapping[str, Any], beat_s: float = BEAT_S) -> None:
        self.run_dir, self.value = Path(run_dir), dict(value)
        self.error: OSError | None = None
        self._fd = -1
        self._silent = False
        self._wrote_s = -math.inf
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, args=(beat_s,), name="hpcmr heartbeat", daemon=True) if beat_s else None
        if self._thread:
            self._thread.start()

    def due(self) -> bool:
        """Whether `update` would write now; asked before figures are made."""
        return time.monotonic() - self._wrote_s >= EVERY_S

    def update(self, *, now: bool = False, **fields: Any) -> None:
        """Take in `fields`; write if the last time was `EVERY_S` ago, if the state changes, or if it shall be `now`."""
        with self._lock:
            changed = fields.get("state", self.value["state"]) != self.value["state"]
            self.value.update(fields)
            if now or changed or self.due():
                self._write()

    def _write(self) -> None:
        self._wrote_s = time.monotonic()
        if self._silent or self._superseded():
            return
        kept = self.value.get("checkpoint")
        if kept:
            kept = {**kept, "age_s": max(0.0, time.time() - kept["committed_at"])}
        try:
            fd = write_status(self.run_dir, {**self.value, "checkpoint": kept})
        except OSError as error:
            self.error = error
            return
        self.error = None
        self._fd, before = fd, self._fd
        if before >= 0:
            os.close(before)

    def _superseded(self) -> bool:
        """Whether a newer attempt has written its own status, or another rank has said how this one ended while we say that it runs.

        Between this look and the rename lie microseconds, and whoever runs writes again in a second.
        """
        there = None
        with contextlib.suppress(InputError):
            there = read_status(self.run_dir)
        self._silent = there is not None and there["attempt"] > self.value["attempt"]
        ended = there is not None and there["attempt"] == self.value["attempt"] and there["state"] in ENDED
        return self._silent or (ended and self.value["state"] not in ENDED)

    def _beat(self, beat_s: float) -> None:
        """Touch the file that we wrote: where a newer attempt has put its own in the place, ours is touched in vain, as it should be."""
        while not self._ended.wait(beat_s):
            with self._lock, contextlib.suppress(OSError):
                if self._fd >= 0:
                    os.utime(self._fd)

    def close(self, **fields: Any) -> None:
        """The last word of this attempt; the heartbeat stops. Again: nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread:
            self._thread.join()
        self.update(now=True, **fields)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Stop without a word: the run is another attempt's now."""
        self._silent = True
        self.close()
