"""``hpcmr.submit``: hand a job to Slurm, and look at it from the outside. Loads neither NumPy nor MPI."""

from __future__ import annotations

import ast
import math
import os
import re
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.api.jobfile import read_job_file, task_settings
from hpcmr.api.jobspec import default_run_dir, find_spec
from hpcmr.comm.launcher import package_env
from hpcmr.errors import HpcmrError, JobSpecError, Refused
from hpcmr.run import restarts, runs, slurm
from hpcmr.run.batch import Batch, notice_s, read_prologue, render
from hpcmr.run.site import Site, read_site, toml_string
from hpcmr.run.status import new_status, read_status, write_status
from hpcmr.store import files, paths

if TYPE_CHECKING:
    from hpcmr.api.output import Output

WATCH_EVERY_S = 2.0
OPTIONS = ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "time", "time_min", "partition", "account", "qos", "mem", "mem_per_cpu", "array",
           "dependency")
"""Options that sbatch has as well, under the same names."""


def submit(spec: str | os.PathLike[str] | None = None, *, params: Mapping[str, Any] | None = None, run_dir: str | os.PathLike[str] | None = None,
           modules: Sequence[str] = (), sbatch: Sequence[str] = (), prologue: str | os.PathLike[str] | None = None, fresh: bool = False,
           recover: bool = False, max_restarts: int | None = None, job_options: Sequence[str] = (), **options: Any) -> Run:
    """Submit a job to Slurm: ``hpcmr submit`` from Python.

    Parameters
    ----------
    spec : path, optional
        The job: a ``.toml`` or a ``.py`` file; None: ``./job.toml``, else ``./job.py``.
    params : mapping, optional
        What ``--set`` sets: strings, numbers, bools, lists of these; nested mappings make dotted keys, for example
        ``{"output": {"stats": "out"}}``.
    run_dir : path, optional
    modules, sbatch : sequence of str
        ``--module`` and ``--sbatch KEY=VALUE``, several.
    prologue : path, optional
        A file of shell lines that the batch script runs before the ranks.
    fresh, recover : bool
        ``--fresh`` and ``--recover`` of ``hpcmr job``.
    max_restarts : int, optional
    job_options : sequence of str
        Further words for ``hpcmr job``, for example ``["--memory=2GiB"]``.
    **options
        ``nodes``, ``ntasks``, ``ntasks_per_node``, ``cpus_per_task``, ``time``, ``time_min``, ``partition``, ``account``, ``qos``, ``mem``,
        ``mem_per_cpu``, ``array``, ``dependency``: as sbatch has them.

    Returns
    -------
    Run

    Raises
    ------
    Refused
        Something would not reach Slurm or the job as it was given, or the run is under way.
    HpcmrError
        Slurm refuses it.

    Examples
    --------
    >>> run = hpcmr.submit("job.py", nodes=4, time="2:00:00", params={"run": 42})      # doctest: +SKIP
    >>> run.wait()["state"], run.outputs["stats"]                                      # doctest: +SKIP
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise JobSpecError(f"submit has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}")
    words = [*job_options, *(["--recover"] if recover else [])]
    batch, site = plan(None if spec is None else os.fspath(spec), settings_of(params or {}), words, run_dir=run_dir, options=options, modules=modules,
                       sbatch=sbatch, prologue=prologue, fresh=fresh, max_restarts=max_restarts)
    return hand_in(batch, site)


def plan(spec: str | None, settings: list[str], words: Sequence[str], *, run_dir: str | os.PathLike[str] | None = None,
         options: Mapping[str, Any] | None = None, modules: Sequence[str] = (), sbatch: Sequence[str] = (),
         prologue: str | os.PathLike[str] | None = None, fresh: bool = False, max_restarts: int | None = None) -> tuple[Batch, Site]:
    """What the batch script of a job is made of. Reads the spec, the site file and the prologue. Raises `JobSpecError`."""
    given = {k.replace("_", "-"): str(v) for k, v in (options or {}).items() if v not in (None, "")}
    path = find_spec(spec).absolute()
    name = _checked(path, settings, given.get("array", ""))
    folder = Path(run_dir).absolute() if run_dir else default_run_dir(path, name, settings).absolute()
    site = read_site()
    title = re.sub(r"[^\x20-\x7e]", "?", path.name)
    batch = Batch(title, ["job", str(path), *(f"--set={s}" for s in settings), *words], folder, os.path.abspath(sys.executable), os.getcwd(), given,
                  tuple(modules), tuple(sbatch), read_prologue(Path(prologue)) if prologue else "", package_env(), _measured_s(folder), fresh,
                  "--recover" in words, max_restarts)
    return batch, site


def _checked(path: Path, settings: list[str], array: str) -> str:
    """The job's name, after a look at the spec that finds here what would else be found in the queue."""
    first = next(iter(runs.task_ids(array)), 0) if array else None
    parsed = task_settings(settings, first)
    if path.suffix == ".toml":
        return str(read_job_file(path, parsed)["job.name"])
    try:
        ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise JobSpecError(f"{path}: this is no Python: {error}") from None
    except OSError as error:
        raise JobSpecError(f"{path}: cannot be read: {error.strerror}") from None
    return path.stem


def _measured_s(run_dir: Path) -> float | None:
    """How long checkpoints of this run took; None: none was measured."""
    try:
        kept = (read_status(run_dir) or {}).get("checkpoint")
    except HpcmrError:
        return None
    return None if kept is None else float(kept["seconds"])


def settings_of(params: Mapping[str, Any], before: str = "") -> list[str]:
    """Parameters as ``KEY=VALUE`` of ``--set``. Raises `JobSpecError`."""
    found = []
    for key, value in params.items():
        if not isinstance(key, str) or re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) is None:
            raise JobSpecError(f"{key!r} cannot name a parameter; letters, digits, - and _ can")
        if isinstance(value, Mapping):
            found += settings_of(value, f"{before}{key}.")
        else:
            found.append(f"{before}{key}={_toml(value, before + key)}")
    return found


def _toml(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{'-' if value < 0 else ''}inf"
    if isinstance(value, str | os.PathLike):
        return toml_string(os.fspath(value))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return "[" + ", ".join(_toml(v, key) for v in value) + "]"
    raise JobSpecError(f"parameter {key!r} is a {type(value).__name__}; a batch job takes strings, numbers, bools and lists of these")


# -- handing in ----------------------------------------------------------------------------------------------------------

def hand_in(batch: Batch, site: Site) -> Run:
    """Write the script into the run directory and submit it. Raises `Refused`, `SlurmError`."""
    text = render(batch, site)
    run_dir = batch.run_dir
    array = batch.options.get("array", "")
    folders = [run_dir / str(i) for i in runs.task_ids(array)] if array else [run_dir]
    _refuse_twice(run_dir)
    script = paths.batch_script(run_dir)
    restarts.write_text(script, text, 0o700)
    for folder in folders:
        files.make_folder(folder)
        restarts.forget_attempts(folder)
        restarts.change(folder, jobs=restarts.jobs_of(folder), cancelled=False)
    told = {"array": array, "spec": batch.words[1], "words": list(batch.words), "submitted_at": clock.time()}
    restarts.change(run_dir, cancelled=False, jobs=restarts.jobs_of(run_dir), **told)
    job = slurm.sbatch(script)
    _note(run_dir, folders, job, batch)
    runs.register(run_dir)
    return Run(run_dir)


def _refuse_twice(run_dir: Path) -> None:
    """A run has one job at a time."""
    if not runs.is_run(run_dir):
        return
    alive = [j for d in (runs.tasks_of(run_dir) or [run_dir]) for j in runs.view(d, runs.Queue()).jobs if j.alive]
    if alive:
        raise Refused(f"{run_dir} has job {alive[-1].id} in the queue already ({alive[-1].state}); `hpcmr status {run_dir}` shows it, "
                      f"`hpcmr cancel {run_dir}` ends it, and another --run-dir makes it another run")


def _note(run_dir: Path, folders: Sequence[Path], job: str, batch: Batch) -> None:
    """Write down in which job a run is; a run that is new says that it is queued."""
    array = bool(batch.options.get("array"))
    for folder in folders:
        own = f"{job}_{folder.name}" if array else job
        restarts.change(folder, jobs=[*restarts.jobs_of(folder), own])
        if read_status(folder) is None:
            os.close(write_status(folder, new_status(folder, name=run_dir.name, spec=batch.words[1], state="queued", slurm_jobs=[own])))
    if array:
        restarts.change(run_dir, jobs=[*restarts.jobs_of(run_dir), job])


def resume(run_dir: Path, options: Mapping[str, Any] | None = None) -> list[str]:
    """Submit the script of an unfinished run again, with other `options` where given; ids of the jobs, empty if all of it is done.

    Raises
    ------
    Refused
        It was never submitted, or is under way.
    """
    tasks = runs.tasks_of(run_dir)
    folders = tasks or [run_dir]
    home = run_dir if paths.batch_script(run_dir).exists() else run_dir.parent
    script = paths.batch_script(home)
    if not script.exists():
        raise Refused(f"{run_dir} was not started by `hpcmr submit`, so there is no batch script to submit again; give the command of the job "
                      "again: it goes on where it stopped")
    views = runs.views(folders, runs.Queue())
    busy = [v for v in views if any(j.alive for j in v.jobs)]
    if busy and len(busy) == len([v for v in views if v.state != "done"]):
        raise Refused(f"{run_dir} has job {busy[0].jobs[-1].id} in the queue ({busy[0].jobs[-1].state}); it goes on by itself")
    rest = [v.run_dir for v in views if v.state != "done" and v not in busy]
    if not rest:
        return []
    words = _overrides(script, options or {})
    is_task = bool(tasks) or home != run_dir
    for folder in rest:
        restarts.forget_attempts(folder)
        restarts.change(folder, cancelled=False)
    restarts.change(home, cancelled=False)
    if is_task:
        words.append(f"--array={','.join(d.name for d in rest)}")
    job = slurm.sbatch(script, words)
    for folder in rest:
        restarts.change(folder, jobs=[*restarts.jobs_of(folder), f"{job}_{folder.name}" if is_task else job])
        before = read_status(folder)
        if before is not None and before["state"] in ("failed", "cancelled"):
            os.close(write_status(folder, {**before, "state": "checkpointed" if before["checkpoint"] else "queued", "reason": None}))
    return [job]


def _overrides(script: Path, options: Mapping[str, Any]) -> list[str]:
    """Options of sbatch that come before those in the script. Raises `JobSpecError`."""
    from hpcmr.run.batch import check_option

    given = {k.replace("_", "-"): str(v) for k, v in options.items() if v not in (None, "")}
    for key, value in given.items():
        check_option(key, value)
    limit = given.get("time", restarts.directive(script, "time"))
    home = script.parent.parent
    restarts.set_notice(script, notice_s(_measured_s(home), limit))
    return [f"--{k}={v}" for k, v in given.items()]


class Run:
    """A run that was submitted, seen from outside: its folder and Slurm are asked, nothing is kept here.

    Parameters
    ----------
    run_dir : path

    Attributes
    ----------
    run_dir : Path
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir).absolute()
        self._queue = runs.Queue()

    def __repr__(self) -> str:
        return f"Run({str(self.run_dir)!r})"

    @property
    def jobs(self) -> list[str]:
        """Ids of its Slurm jobs, the newest last."""
        return restarts.jobs_of(self.run_dir)

    @property
    def tasks(self) -> list[Run]:
        """The runs of an array's tasks; empty for a run that is none."""
        return [Run(d) for d in runs.tasks_of(self.run_dir)]

    def status(self) -> dict[str, Any]:
        """How it stands: ``run, state, attempt, stage, done, rates, eta_s, checkpoint, slurm_jobs, reason``; of an array, its tasks under ``tasks``.

        Slurm is asked at most every 30 s.
        """
        tasks = runs.tasks_of(self.run_dir)
        if not tasks:
            return runs.view(self.run_dir, self._queue).as_json()
        views = runs.views(tasks, self._queue)
        return {"run": str(self.run_dir), "state": overall([v.state for v in views]), "tasks": [v.as_json() for v in views]}

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until it has ended, and return its status.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Raises
        ------
        TimeoutError
            It has not ended by then.
        """
        until = None if timeout is None else clock.monotonic() + timeout
        folders = runs.tasks_of(self.run_dir) or [self.run_dir]
        while not all(v.over for v in runs.views(folders, self._queue)):
            if until is not None and clock.monotonic() > until:
                raise TimeoutError(f"{self.run_dir} has not ended within {timeout:g} s; it is {self.status()['state']}")
            clock.sleep(WATCH_EVERY_S)
        return self.status()

    @property
    def outputs(self) -> Outputs:
        """Its outputs by name, each opened when it is asked for."""
        return Outputs(self.run_dir)

    def cancel(self) -> None:
        """End it; what it has committed stays, and `resume` goes on."""
        cancel(self.run_dir)

    def resume(self, **options: Any) -> None:
        """Submit it again, with other options (``nodes=8``) where given."""
        resume(self.run_dir, options)


class Outputs(Mapping[str, "Output"]):
    """Outputs of a run by name."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def _paths(self) -> dict[str, str]:
        status = read_status(self.run_dir)
        return {} if status is None else {o["name"]: o["path"] for o in status["outputs"]}

    def __getitem__(self, name: str) -> Output:
        from hpcmr.api.output import open

        found = self._paths()
        if name not in found:
            raise KeyError(f"{name!r}: {self.run_dir} has the outputs {', '.join(map(repr, found)) or 'none yet'}")
        return open(found[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths())

    def __len__(self) -> int:
        return len(self._paths())


def overall(states: Sequence[str]) -> str:
    """State of an array from those of its tasks: what asks for attention first."""
    order = ("running", "queued", "lost", "failed", "cancelled", "checkpointed", "done")
    return next((s for s in order if s in states), "queued")


def cancel(run_dir: Path) -> list[str]:
    """End a run's jobs, and keep them from being put back into the queue. Returns their ids. Raises `SlurmError`."""
    folders = runs.tasks_of(run_dir) or [run_dir]
    ids = []
    for found in runs.views(folders, runs.Queue()):
        if found.state != "done":
            restarts.change(found.run_dir, cancelled=True)
        ids += [j.id for j in found.jobs if j.alive]
    if ids:
        slurm.cancel(ids)
    return ids
