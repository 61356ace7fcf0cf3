"""What happens between two attempts of a batch job: may it begin, and does it go on later. Standard library and the journal only.

::

    run_dir/slurm/batch.sh         the script, as it was submitted
                  batch.json       what was submitted: jobs, spec, options; whether it was cancelled
                  attempts.json    when an attempt began, in which job, and how far the run was then
                  1234.out         what the script said

Everything that decides is a function of plain values (`verdict`, `stalled`); the others read and write these files and call Slurm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmr.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, EXIT_RESUMABLE, HpcmrError, InputError
from hpcmr.run import slurm
from hpcmr.run.batch import notice_s
from hpcmr.run.status import new_status, read_status, write_status
from hpcmr.store import files, paths
from hpcmr.store.journal import Journal

FORMAT, VERSION = "hpcmr-batch", 1
NBYTES_MAX = 16 << 20
IDLE_ATTEMPTS = 2
"""A run stops when so many attempts in a row have left it where it was."""
GO_ON, STOP, LEAVE = "go on", "stop", "leave"


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job whose ranks have ended: it goes on later, it stops for a reason, or there is nothing to do."""

    do: str
    code: int
    reason: str = ""


def verdict(code: int, state: str | None, job_state: str | None, idle: str | None, restarts: int, max_restarts: int) -> Verdict:
    """What becomes of a batch job.

    Parameters
    ----------
    code : int
        Exit code of the ranks.
    state : str or None
        What ``status.json`` says that this attempt came to; None: it said nothing.
    job_state : str or None
        What Slurm says of the job while its script still runs; None: it does not answer.
    idle : str or None
        Why going on is of no use, from `stalled`.
    restarts, max_restarts : int
        How often it has gone on already, and may at most.
    """
    # A launcher that lost a node may well say 0: what counts is that the run says it is done.
    if code == EXIT_DONE and state == "done":
        return Verdict(LEAVE, code)
    if code == EXIT_REFUSED or (state == "failed" and code not in (EXIT_DONE, EXIT_RESUMABLE)):
        return Verdict(LEAVE, code)
    if job_state is not None and job_state not in ("RUNNING", "TIMEOUT", "PREEMPTED"):
        return Verdict(LEAVE, EXIT_RESUMABLE, f"Slurm says that the job is {job_state}: it was cancelled, or is back in the queue already")
    if idle is not None:
        return Verdict(STOP, EXIT_FAILED, idle)
    if restarts >= max_restarts:
        return Verdict(STOP, EXIT_FAILED, f"it was restarted {restarts} times, and may be {max_restarts} times; `hpcmr resume` goes on")
    return Verdict(GO_ON, EXIT_RESUMABLE)


def stalled(marks: Sequence[str], now: str) -> str | None:
    """Why another attempt is of no use: the last ones that began found the run where it is `now`. None: it may begin.

    Parameters
    ----------
    marks : sequence of str
        `mark` at the beginning of each attempt so far.
    """
    if len(marks) >= IDLE_ATTEMPTS and all(m == now for m in marks[-IDLE_ATTEMPTS:]):
        return (f"{IDLE_ATTEMPTS} attempts in a row ended without a newer checkpoint: the time limit is too short for a piece of the work, or the "
                "job dies at the same place each time; see `hpcmr logs`, then `hpcmr resume` tries again")
    return None


def mark(run_dir: Path) -> str:
    """How far a run is: another text once anything was committed that a restart finds; the same one for a checkpoint that holds no more."""
    if not paths.journal(run_dir).is_dir():
        return ""
    journal = Journal(run_dir)
    newest = journal.newest_generation()
    published = [e.body.get("path") for e in journal.entries if e.kind == "publish"]
    if newest is None and not published:
        return ""
    told = json.dumps([published, None if newest is None else behind(newest.body)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def behind(body: Mapping[str, Any]) -> list[Any]:
    """What a generation has behind it, and nothing of the files that hold it, which are others each time: actions, kept tables, pieces of input."""
    action = body.get("action") or {}
    records = {key: [r.get("complete"), r.get("ledger"), r.get("settled") is not None] for key, r in (action.get("records") or {}).items()}
    return [[f.get("ordinal") for f in body.get("finished", [])], sorted(body.get("kept", {})), action.get("ordinal"), records]


# -- what is written down ------------------------------------------------------------------------------------------------

def read_json(path: Path) -> dict[str, Any]:
    """One of this module's files; empty where there is none. Raises `InputError` where it is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            content = file.read(NBYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    try:
        value = json.loads(content)
        if len(content) > NBYTES_MAX or not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
            raise ValueError(f"it is not of the form {FORMAT} {VERSION}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}; remove it, and submit again") from None
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Put a file in its place at once and whole; folders of a run are made private."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **value}, indent=1)
    write_text(path, text + "\n")


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """The same for any text."""
    for folder in (path.parent.parent, path.parent):
        files.make_folder(folder)
    wait = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident():x}.tmp")
    fd = os.open(wait, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(wait, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(wait)
        raise


def record(run_dir: Path) -> dict[str, Any]:
    """``batch.json``: {"jobs": [...], "cancelled": bool, "array": "0-9" | "", ...}; empty for a run that was never submitted."""
    return read_json(paths.batch_record(run_dir))


def change(run_dir: Path, **fields: Any) -> dict[str, Any]:
    """Change fields of ``batch.json``; what it holds now."""
    value = {**record(run_dir), **fields}
    write_json(paths.batch_record(run_dir), value)
    return value


def jobs_of(run_dir: Path) -> list[str]:
    """Ids of all Slurm jobs of a run, the newest last."""
    return [str(j) for j in record(run_dir).get("jobs", [])]


def marks_of(run_dir: Path) -> list[str]:
    """`mark` at the beginning of each attempt since the run was submitted or resumed."""
    return [str(a.get("mark", "")) for a in read_json(paths.attempts(run_dir)).get("attempts", [])]


def forget_attempts(run_dir: Path) -> None:
    """Somebody wants it to go on: attempts are counted anew."""
    files.remove_quietly(paths.attempts(run_dir))


# -- the two moments -----------------------------------------------------------------------------------------------------

def begin(run_dir: Path, job: str) -> str | None:
    """Write down that an attempt begins. Returns why it may not: the run was cancelled, or does not move."""
    told = record(run_dir)
    if told.get("cancelled"):
        return "the run was cancelled; `hpcmr resume` goes on with it"
    now, marks = mark(run_dir), marks_of(run_dir)
    why = stalled(marks, now)
    if why is not None:
        say_failed(run_dir, why)
        return why
    attempts = read_json(paths.attempts(run_dir)).get("attempts", [])
    attempts.append({"job": job, "restart": os.environ.get("SLURM_RESTART_COUNT", "0"), "mark": now, "at": time.time()})
    write_json(paths.attempts(run_dir), {"attempts": attempts})
    if job not in told.get("jobs", []):
        change(run_dir, jobs=[*told.get("jobs", []), job])
    return None


@dataclass(frozen=True)
class End:
    """What the batch script tells when its ranks have ended."""

    run_dir: Path
    script: Path
    job: str
    code: int
    notice_s: int
    max_restarts: int
    resubmit: bool


def end(told: End) -> Verdict:
    """Decide what becomes of the job, and do it: put it back into the queue, submit it anew, or write down why not."""
    run_dir = told.run_dir
    if record(run_dir).get("cancelled"):
        return Verdict(LEAVE, EXIT_FAILED, "the run was cancelled")
    status = _status(run_dir)
    mine = status is not None and (status["state"] == "done" or (status["slurm_jobs"] or [""])[-1] in (told.job, os.environ.get("SLURM_JOB_ID", "")))
    marks = marks_of(run_dir)
    found = verdict(told.code, status["state"] if status is not None and mine else None, job_state(told.job), stalled(marks, mark(run_dir)),
                    max(0, len(marks) - 1), told.max_restarts)
    if found.do == STOP:
        say_failed(run_dir, found.reason)
    if found.do != GO_ON:
        return found
    wanted = wanted_notice_s(told.script, status)
    if told.resubmit or wanted > told.notice_s:
        return _anew(told, max(wanted, told.notice_s))
    try:
        slurm.requeue(told.job)
    except slurm.SlurmError:
        return _anew(told, told.notice_s)
    return Verdict(GO_ON, EXIT_RESUMABLE, f"job {told.job} is back in the queue")


def _status(run_dir: Path) -> dict[str, Any] | None:
    try:
        return read_status(run_dir)
    except HpcmrError:
        return None


def job_state(job: str) -> str | None:
    """What Slurm says of the job whose script this is. Of one that is ending it does not say why: then the time limit tells."""
    state = slurm.state_of(job)
    return "TIMEOUT" if state == "COMPLETING" and slurm.out_of_time(job) else state


def wanted_notice_s(script: Path, status: Mapping[str, Any] | None) -> int:
    """How early notice must come, now that checkpoints were measured."""
    kept = None if status is None else status["checkpoint"]
    return notice_s(None if kept is None else kept["seconds"], directive(script, "time"))


def directive(script: Path, key: str) -> str:
    """The value of an ``#SBATCH`` line; empty: there is none."""
    try:
        match = re.search(rf"^#SBATCH --{re.escape(key)}=(.*)$", script.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def _anew(told: End, notice: int) -> Verdict:
    """Submit the script as a job of its own that waits for this one to end."""
    set_notice(told.script, notice)
    array, _, task = told.job.partition("_")
    options = ["--dependency=singleton"]
    if task:
        # Tasks of an array share a name; alone, each waits for itself.
        options += [f"--array={task}", f"--job-name={directive(told.script, 'job-name')}-{task}", f"--dependency=singleton,afterany:{array}_{task}"]
    new = slurm.sbatch(told.script, options)
    new = f"{new}_{task}" if task else new
    change(told.run_dir, jobs=[*jobs_of(told.run_dir), new])
    return Verdict(GO_ON, EXIT_RESUMABLE, f"goes on as job {new}, with notice {notice} s before its limit")


def set_notice(script: Path, notice: int) -> None:
    """Have a script ask for notice so many seconds before the limit."""
    text = script.read_text()
    new = re.sub(r"^(#SBATCH --signal=B:USR1@)\d+$", rf"\g<1>{notice}", text, flags=re.MULTILINE)
    new = re.sub(r"^(notice_s=)\d+$", rf"\g<1>{notice}", new, flags=re.MULTILINE)
    if new != text:
        write_text(script, new, 0o700)


def say_failed(run_dir: Path, reason: str) -> None:
    """Why a run does not go on, where `hpcmr status` finds it."""
    with contextlib.suppress(OSError):
        fd = write_status(run_dir, {**(_status(run_dir) or new_status(run_dir)), "state": "failed", "reason": reason})
        os.close(fd)
