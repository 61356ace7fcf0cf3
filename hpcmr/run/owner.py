"""Who owns a run, and whether that one still lives. Neither NumPy nor MPI is needed.

An attempt writes its owner into the journal when it claims the run. Another one that wants the run looks whether the owner lives:
on the same machine by its process id and the time at which that process started, on others by what Slurm says of its job, and else
by the heartbeat of ``status.json``. A wrong answer costs work, never the result: the journal lets no superseded attempt commit.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmr.store import paths

SILENT_S = 30.0
"""A heartbeat that has not moved for so long has stopped: six times what lies between two."""
LOOK_EVERY_S = 1.0
SQUEUE_LIMIT_S = 20.0
_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "PENDING", "REQUEUED")


@dataclass(frozen=True)
class Life:
    """Whether an owner lives, and why we think so. `stopped`: it lives, but does nothing (state T), and may be superseded."""

    alive: bool
    why: str
    stopped: bool = False


def this_owner(ranks: int = 1, nodes: int = 1) -> dict[str, Any]:
    """The record of this process: host, pid, boot, start, user, slurm_job, slurm_restart, ranks, nodes."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id(), "start": started_at(os.getpid()) or 0, "user": _user(),
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""), "slurm_restart": _restart(), "ranks": ranks, "nodes": nodes}


def boot_id() -> str:
    """Tells apart the boots of a machine, and the worlds of process ids on it; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + "/" + str(os.stat("/proc/self/ns/pid").st_ino)
    return ""


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since the boot; with its id this names it for good. None: there is none."""
    found = _stat(pid)
    return None if found is None else int(found[19])


def state_of(pid: int) -> str:
    """State of a process, a letter: R, S, D, T, Z, ...; empty: there is none."""
    found = _stat(pid)
    return "" if found is None else found[0]


def _stat(pid: int) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the state on; the name before them may hold anything."""
    try:
        return Path(f"/proc/{pid:d}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _restart() -> int:
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def show_owner(owner: Mapping[str, Any]) -> str:
    """``process 4711 of ann on n17 (Slurm job 1234)``."""
    job = f" (Slurm job {owner['slurm_job']})" if owner.get("slurm_job") else ""
    return f"process {owner.get('pid')} of {owner.get('user') or 'an unknown user'} on {owner.get('host') or 'an unknown host'}{job}"


def life_of(owner: Mapping[str, Any], run_dir: Path, say: Callable[[str], None] = lambda text: None, silent_s: float = SILENT_S) -> Life:
    """Whether the process of an owner record lives; may watch the heartbeat for up to `silent_s`.

    Parameters
    ----------
    owner : mapping
        Of `this_owner`, made by whoever owns the run.
    run_dir : Path
    say : callable, optional
        Told before it takes long.
    silent_s : float
        A heartbeat older than this has stopped.

    Notes
    -----
    Collective: no; on one rank.
    """
    here = this_owner()
    if here["boot"] and owner.get("boot") == here["boot"]:
        return _here(owner)
    job = str(owner.get("slurm_job") or "")
    if job and job == here["slurm_job"] and _count(owner.get("slurm_restart")) < here["slurm_restart"]:
        return Life(False, f"Slurm has started job {job} anew since")
    if job and job != here["slurm_job"]:
        found = ask_slurm(job)
        if found is not None and found in (*_ENDED, ""):
            return Life(False, f"Slurm says that job {job} {'is ' + found if found else 'is not there any more'}")
    return watch_heartbeat(run_dir, say, silent_s)


def _here(owner: Mapping[str, Any]) -> Life:
    pid, start = _count(owner.get("pid")), owner.get("start")
    state = state_of(pid) if pid > 0 else ""
    if not state or state in "ZX" or started_at(pid) != start:
        return Life(False, f"process {pid} is gone")
    if state == "T":
        return Life(True, f"process {pid} is stopped (state T)", stopped=True)
    return Life(True, f"process {pid} runs")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def ask_slurm(job: str) -> str | None:
    """State of a Slurm job, such as RUNNING; empty: Slurm does not know it (any more). None: there is no answer."""
    squeue = shutil.which("squeue")
    if squeue is None or not job.isdecimal():
        return None
    try:
        done = subprocess.run([squeue, "--noheader", "--jobs", job, "--states", "all", "--format", "%T"], capture_output=True, text=True,
                              timeout=SQUEUE_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return (done.stdout.split() or [""])[0]


def watch_heartbeat(run_dir: Path, say: Callable[[str], None] = lambda text: None, silent_s: float = SILENT_S) -> Life:
    """Whether ``status.json`` is touched: returns at once if that was long ago, else when it moves or has not moved for `silent_s`.

    Ages are by the file system's clock: the file is compared with one that is written now, so that clocks of nodes do not matter.
    """
    first = _beat(run_dir)
    if first is None:
        return Life(False, "it has no heartbeat (no status.json)")
    left_s = silent_s - (_now_there(run_dir) - first) / 1e9
    if left_s > 2 * LOOK_EVERY_S:
        say(f"whether the owner of {str(run_dir)!r} lives is seen by its heartbeat: watching for {left_s:.0f} s at most")
    until = time.monotonic() + min(left_s, silent_s)
    while time.monotonic() < until:
        time.sleep(min(LOOK_EVERY_S, silent_s / 10))
        if _beat(run_dir) != first:
            return Life(True, "its heartbeat goes on")
    return Life(False, f"its heartbeat (the time of status.json) has stood still for {max(silent_s, silent_s - left_s):.0f} s")


def _beat(run_dir: Path) -> int | None:
    """Time of the file in ns; opened, because network file systems tell old times else."""
    try:
        fd = os.open(paths.status(Path(run_dir)), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def _now_there(run_dir: Path) -> int:
    """The time by the clock of the run directory's file system, in ns."""
    path = Path(run_dir) / f".now.{os.getpid()}.tmp"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, b".")
            os.utime(fd)
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
            os.unlink(path)
    except OSError:
        return time.time_ns()
