"""How runs stand, seen from outside: the run directory and Slurm's queue, put together. Needs neither NumPy nor MPI.

Runs of a user are found in ``hpcmr-runs`` of the working directory and in a small registry of what was submitted,
``$XDG_STATE_HOME/hpcmr/runs`` (``~/.local/state/hpcmr/runs``): one file for each, with its path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmr.errors import HpcmrError, InputError, Refused
from hpcmr.run import owner, restarts, slurm
from hpcmr.run.batch import job_name
from hpcmr.run.status import new_status, read_status
from hpcmr.store import files, paths

ASK_EVERY_S = 30.0
"""Slurm is asked at most so often, for all jobs at once."""
RUNS = "hpcmr-runs"
KEYS = ("run", "state", "attempt", "stage", "done", "rates", "eta_s", "checkpoint", "slurm_jobs", "reason")
ENDED = ("done", "failed", "cancelled")
_REGISTRY_MAX = 10_000


@dataclass(frozen=True)
class View:
    """How one run stands.

    Attributes
    ----------
    run_dir : Path
    state : str
        ``queued``, ``running``, ``checkpointed``, ``done``, ``failed``, ``cancelled`` or ``lost``.
    status : dict
        What ``status.json`` says; see `hpcmr.run.status`.
    jobs : list of Job
        Its Slurm jobs, the newest last, as far as Slurm knows them.
    reason : str or None
    """

    run_dir: Path
    state: str
    status: dict[str, Any]
    jobs: list[slurm.Job] = field(default_factory=list)
    reason: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing will change any more by itself: ended, lost, or checkpointed with nobody who goes on."""
        return self.state in (*ENDED, "lost") or (self.state == "checkpointed" and not any(j.alive for j in self.jobs))

    def as_json(self) -> dict[str, Any]:
        """The object of ``status --json``."""
        stage = self.status["stage"]
        jobs = [{"id": j.id, "state": j.state, "reason": j.reason} for j in self.jobs]
        values = (str(self.run_dir), self.state, self.status["attempt"], None if stage is None else {k: stage[k] for k in ("number", "of", "name")},
                  None if stage is None else stage["done"], self.status["rates"], self.status["eta_s"], self.status["checkpoint"], jobs, self.reason)
        return dict(zip(KEYS, values, strict=True))


class Queue:
    """What Slurm says of jobs, asked at most every `ASK_EVERY_S` and for all jobs at once."""

    def __init__(self, ask: Callable[[Iterable[str]], dict[str, slurm.Job] | None] = slurm.queue) -> None:
        self._ask, self._asked_s, self._known = ask, float("-inf"), set[str]()
        self._answer: dict[str, slurm.Job] | None = None

    def jobs(self, ids: Iterable[str]) -> dict[str, slurm.Job] | None:
        """State of these jobs by id; None: there is no Slurm here, or it does not answer."""
        wanted = set(ids)
        if not wanted or not slurm.here():
            return {} if not wanted else None
        # A job that was never asked for (submitted a moment ago) does not wait for the time to pass.
        if time.monotonic() - self._asked_s >= ASK_EVERY_S or not wanted <= self._known:
            self._known |= wanted
            self._answer, self._asked_s = self._ask(self._known), time.monotonic()
        return self._answer


def view(run_dir: Path, queue: Queue) -> View:
    """How a run stands."""
    return views([run_dir], queue)[0]


def views(run_dirs: Sequence[Path], queue: Queue) -> list[View]:
    """How several runs stand, with one question to Slurm."""
    ids = {d: _ids(d) for d in run_dirs}
    answer = queue.jobs([i for found in ids.values() for i in found])
    return [_view(d, ids[d], answer) for d in run_dirs]


def _ids(run_dir: Path) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(HpcmrError):
        found += restarts.jobs_of(run_dir)
    with contextlib.suppress(HpcmrError):
        bases = {f.partition("_")[0] for f in found}
        found = [i for i in (read_status(run_dir) or {}).get("slurm_jobs", []) if i not in bases and i not in found] + found
    return found


def _view(run_dir: Path, ids: Sequence[str], answer: Mapping[str, slurm.Job] | None) -> View:
    damage, cancelled = None, False
    try:
        status = read_status(run_dir)
    except InputError as error:
        status, damage = None, str(error)
    with contextlib.suppress(HpcmrError):
        cancelled = bool(restarts.record(run_dir).get("cancelled"))
    jobs = [answer[i] for i in ids if i in answer and _is_of(answer[i], run_dir)] if answer is not None else []
    facts = Facts(None if status is None else status["state"], bool(status and status["checkpoint"]), any(j.alive for j in jobs),
                  any(j.state in ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED") for j in jobs), answer is not None or not ids, bool(ids),
                  cancelled,
                  lambda: _owner_lives(run_dir, status))
    state, why = judge(facts)
    told = status or new_status(run_dir)
    return View(run_dir, state, told, jobs, damage or why or told["reason"] or _waits_for(jobs))


def _is_of(job: slurm.Job, run_dir: Path) -> bool:
    """Whether a job is this run's: Slurm gives numbers out again after a while, and names of submitted runs are their own."""
    submitted = paths.batch_record(run_dir).exists()
    return not submitted or not job.name or any(job.name.startswith(job_name(d)) for d in (run_dir, run_dir.parent))


@dataclass(frozen=True)
class Facts:
    """What `judge` goes by: the state that was written down, what Slurm says of the run's jobs, and whether the owner's process lives."""

    told: str | None
    checkpoint: bool
    alive: bool
    started: bool
    answered: bool
    submitted: bool
    cancelled: bool
    lives: Callable[[], bool]


def judge(facts: Facts) -> tuple[str, str | None]:
    """State of a run, and why it is another one than the one that was written down."""
    if facts.told == "done":
        return "done", None
    if facts.cancelled and not facts.started:
        return "cancelled", "cancelled by hpcmr cancel"
    if facts.told in (None, "queued"):
        if facts.started:
            return "running", "the batch script runs, the ranks are starting"
        if facts.alive or not facts.answered:
            return "queued", None
        if facts.submitted:
            return "lost", "it was submitted, and Slurm has no job of it any more; `hpcmr logs` shows what the job said"
        return "queued", None
    if facts.told == "running":
        if facts.lives():
            return "running", None
        if facts.started:
            return "running", "the batch script runs, the ranks are starting or have ended"
        if facts.alive:
            return ("checkpointed" if facts.checkpoint else "queued"), "its job is back in the queue"
        return "lost", "it says running, but nobody runs it and no job of it is queued; `hpcmr resume` goes on"
    if facts.told == "checkpointed" and facts.started:
        return "running", "the batch script runs, the ranks are starting or have ended"
    return facts.told, None


def _owner_lives(run_dir: Path, status: Mapping[str, Any] | None) -> bool:
    """Whether rank 0 lives: by its process where it is of this machine, else by its heartbeat; never waits."""
    if status is None:
        return False
    if status["boot"] and status["boot"] == owner.boot_id():
        return status["pid"] > 0 and owner.started_at(status["pid"]) == status["start"] and owner.state_of(status["pid"]) not in ("Z", "X", "")
    try:
        return time.time() - paths.status(run_dir).stat().st_mtime < owner.SILENT_S
    except OSError:
        return False


def _waits_for(jobs: Sequence[slurm.Job]) -> str | None:
    waiting = [j for j in jobs if j.state == "PENDING" and j.reason not in ("", "None")]
    return f"job {waiting[-1].id} waits: {waiting[-1].reason}" if waiting else None


# -- finding runs --------------------------------------------------------------------------------------------------------

def find_run(text: str) -> Path:
    """The run that a word on the command line means: its folder, or its name in ``hpcmr-runs`` or in the registry, or a Slurm job's id.

    Raises
    ------
    Refused
        There is none, or several.
    """
    here = [Path(text), Path(RUNS) / text]
    found = next((p for p in here if is_run(p)), None)
    if found is not None:
        return found.absolute()
    known = registered()
    matches = [p for p in known if p.name == text or p.parent.name + "/" + p.name == text]
    if not matches and re.fullmatch(r"\d+(_\d+)?", text):
        matches = [p for p in known if text in _ids_quietly(p)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Refused(f"{text!r} may be any of {', '.join(map(str, matches))}; give the folder")
    raise Refused(f"there is no run {text!r}: neither a run directory, nor a name in {RUNS}, nor one that was submitted; "
                  "`hpcmr status` lists your runs")


def _ids_quietly(run_dir: Path) -> list[str]:
    with contextlib.suppress(HpcmrError):
        return restarts.jobs_of(run_dir)
    return []


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return any(p.exists() for p in (paths.status(path), paths.batch_record(path), paths.journal(path)))


def tasks_of(run_dir: Path) -> list[Path]:
    """Run directories of the tasks of an array; empty for a run that is none."""
    try:
        array = str(restarts.record(run_dir).get("array", ""))
    except HpcmrError:
        return []
    return [run_dir / str(i) for i in task_ids(array)] if array else []


def task_ids(array: str) -> list[int]:
    """The ids of ``--array``: ``0-9``, ``1,3``, ``0-10:2%4``."""
    found: list[int] = []
    for part in array.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            found += range(first, min(last, first + 1_000_000) + 1, max(1, int(match[3] or 1)))
    return list(dict.fromkeys(found))


def users_runs() -> list[Path]:
    """All runs that are known: those of this folder, then those that were submitted; of an array its tasks."""
    here = sorted(p.absolute() for p in Path(RUNS).glob("*") if is_run(p)) if Path(RUNS).is_dir() else []
    whole = list(dict.fromkeys([*here, *registered()]))
    return [p for run in whole for p in (tasks_of(run) or [run])]


def registry() -> Path:
    """Folder of the registry."""
    home = Path(os.environ.get("HOME") or Path("~").expanduser())
    return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "hpcmr" / "runs"


def register(run_dir: Path) -> None:
    """Remember a run that was submitted; a home that cannot be written is no reason to fail."""
    path = registry() / (hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16] + ".json")
    with contextlib.suppress(OSError, HpcmrError):
        files.make_folder(path.parent)
        wait = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        wait.write_text(json.dumps({"run": str(run_dir), "at": time.time()}))
        os.rename(wait, path)


def registered() -> list[Path]:
    """Runs that were submitted and are still there, the oldest first; the others are forgotten."""
    found: list[tuple[float, Path]] = []
    try:
        names = sorted(registry().glob("*.json"))[:_REGISTRY_MAX]
    except OSError:
        return []
    for path in names:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text())
            run = Path(told["run"])
            if is_run(run):
                found.append((float(told["at"]), run))
            elif run.parent.is_dir():        # not merely on a file system that is not mounted here
                path.unlink()
    return [run for _, run in sorted(found)]
