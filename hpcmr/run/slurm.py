"""What Slurm is asked and told: one small function for each of its commands. Standard library only; every word is an argument, no shell.

A command that is not there, fails or does not answer is a `SlurmError` where its answer is needed, and None where it only helps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmr.errors import HpcmrError

LIMIT_S = 60.0
LOOK_LIMIT_S = 10.0
"""For what only helps: a run is shown without its queue when Slurm is down."""
ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "REVOKED"})
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
KEPT = ("SLURM_CONF", "SLURM_TIME_FORMAT")
"""Variables of Slurm that speak of the cluster, and not of the job that we are in."""


class SlurmError(HpcmrError):
    """A command of Slurm failed, or is not here."""


@dataclass(frozen=True)
class Job:
    """A job of the queue. `id` is ``1234``, or ``1234_7`` of an array's task; `state` such as RUNNING; `reason` why it waits."""

    id: str
    state: str
    reason: str = ""
    left: str = ""
    start: str = ""
    name: str = ""

    @property
    def alive(self) -> bool:
        return self.state not in ENDED and self.state != ""


def here() -> bool:
    """Whether Slurm's commands are on the path."""
    return shutil.which("squeue") is not None


def clean_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what describes the job that we may be in: a job that is submitted from here shall not inherit it."""
    env = os.environ if env is None else env
    return {k: v for k, v in env.items() if not k.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "PMI_", "PMIX_", "PMI2_")) or k in KEPT}


def call(words: Sequence[str], what: str, env: Mapping[str, str] | None = None, limit_s: float = LIMIT_S) -> str:
    """Run a command of Slurm and return what it prints.

    Raises
    ------
    SlurmError
        It is not here, fails, or does not answer.
    """
    program = shutil.which(words[0])
    if program is None:
        raise SlurmError(f"cannot {what}: there is no {words[0]} on the path; is this a login node of the cluster, and is its Slurm module loaded?")
    try:
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=limit_s,
                              env=None if env is None else dict(env), check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"cannot {what}: {words[0]} does not answer ({error})") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        raise SlurmError(f"cannot {what}: {' / '.join(said[-3:])} ({words[0]} ended with {done.returncode})")
    return done.stdout


def sbatch(script: Path, options: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
    """Submit a script; the id of the job. Raises `SlurmError`."""
    said = call(["sbatch", "--parsable", *options, str(script)], f"submit {script}", clean_env() if env is None else env)
    return said.strip().splitlines()[-1].partition(";")[0]


def queue(ids: Iterable[str]) -> dict[str, Job] | None:
    """The jobs of these ids that Slurm knows, one call for all; of an array its tasks. None: there is no answer."""
    # A job that Slurm has forgotten makes squeue fail if it is asked for by its id alone; a second id keeps it silent about that.
    wanted = sorted({i.partition("_")[0] for i in ids if re.fullmatch(r"\d+(_\d+)?", i)})
    if not wanted:
        return {}
    try:
        said = call(["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join([*wanted, wanted[0]])}", "--format=%i|%T|%r|%L|%S|%j"],
                    "look into the queue", limit_s=LOOK_LIMIT_S)
    except SlurmError as error:
        return {} if "Invalid job id" in str(error) else None
    found = {}
    for line in said.splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) == 6:
            found[parts[0]] = Job(*parts)
    return found


def state_of(job: str) -> str | None:
    """State of one job or task, as `scontrol` has it this moment; None: there is no answer, or it is forgotten."""
    try:
        said = call(["scontrol", "show", "job", "--oneliner", job], "look at the job")
    except SlurmError:
        return None
    match = re.search(r"\bJobState=([A-Z_]+)", said)
    return match[1] if match else None


def out_of_time(job: str) -> bool:
    """Whether a job has used up its time."""
    try:
        said = call(["scontrol", "show", "job", "--oneliner", job], "look at the job")
    except SlurmError:
        return False
    ran, limit = (seconds_of(m[1]) if (m := re.search(rf"\b{key}=(\S+)", said)) else None for key in ("RunTime", "TimeLimit"))
    return ran is not None and limit is not None and ran >= limit


def requeue(job: str) -> None:
    """Put a running job back into the queue; where it worked, Slurm ends us soon. Raises `SlurmError`."""
    call(["scontrol", "requeue", job], f"put job {job} back into the queue")


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs. Raises `SlurmError`."""
    call(["scancel", *ids], f"cancel {', '.join(ids)}")


@dataclass(frozen=True)
class Partition:
    """What ``sinfo`` says of a partition."""

    name: str
    default: bool
    time_limit: str
    nodes: int
    cores: int
    memory_mib: int
    preempt: str


def partitions() -> list[Partition]:
    """All partitions. Raises `SlurmError`."""
    found: dict[str, Partition] = {}
    for line in call(["sinfo", "--noheader", "--format=%P|%l|%D|%c|%m|%M"], "ask for partitions").splitlines():
        parts = line.strip().split("|")
        if len(parts) == 6:
            name = parts[0].rstrip("*")
            nodes, cores, memory = (int(re.sub(r"\D.*", "", p) or 0) for p in parts[2:5])
            before = found.get(name)
            found[name] = Partition(name, parts[0].endswith("*"), parts[1], nodes + (before.nodes if before else 0), cores, memory, parts[5])
    return list(found.values())


def config() -> dict[str, str]:
    """What ``scontrol show config`` says. Raises `SlurmError`."""
    lines = call(["scontrol", "show", "config"], "ask for the configuration").splitlines()
    return {k.strip(): v.strip() for k, _, v in (line.partition("=") for line in lines) if v}


def seconds_of(text: str) -> int | None:
    """Seconds of a time as Slurm writes it: ``90``, ``10:30`` (minutes), ``2:00:00``, ``1-12``, ``1-12:30``; None: it is none, or has no end."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, *rest = match.groups()
    a, b, c = (None if x is None else int(x) for x in rest)
    if days is not None:
        return int(days) * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if b is None:
        return (a or 0) * 60
    return (a or 0) * 60 + b if c is None else (a or 0) * 3600 + b * 60 + c
