"""Who started this process, and how to start many: launchers, their environment variables and their flags.

Owns the knowledge about `mpirun`, `srun` and what they leave in the environment. Imports the standard library only, so that
it can be asked before MPI, or without it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcmr.errors import Refused

MPIS = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "Intel MPI", "mvapich": "MVAPICH"}
FAMILIES = {**MPIS, "slurm": "srun", "pmix": "a PMIx launcher", "pmi": "a PMI launcher"}
# What a launcher, or an MPI that was initialised without one, leaves behind; a child that inherits it takes itself for a rank.
LAUNCH_VARIABLES = ("OMPI_", "OPAL_", "PMI_", "PMIX_", "PRTE_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_", "MV2_COMM_",
                    "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
KEPT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_", "PMIX_MCA_", "PRTE_MCA_", "MPIR_CVAR_", "OPAL_PREFIX")


@dataclass(frozen=True)
class Started:
    """What the launcher that started this process left in the environment: its kind, and the size and rank it meant."""

    family: str
    size: int
    rank: int

    @property
    def by(self) -> str:
        name = FAMILIES[self.family]
        return name if self.family in ("slurm", "pmix", "pmi") else f"the mpirun of {name}"


def _number(env: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        if re.fullmatch(r"\d+", env.get(name, "")):
            return int(env[name])
    return None


def started(env: Mapping[str, str] | None = None) -> Started | None:
    """How this process was started, from the environment alone; None without a launcher.

    A batch script of Slurm is no launcher, nor is a Slurm step of one task without PMI.
    """
    env = os.environ if env is None else env
    slurm_size, slurm_rank = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_PROCID") or 0
    size = _number(env, "OMPI_COMM_WORLD_SIZE")
    if size is not None:
        return Started("openmpi", size, _number(env, "OMPI_COMM_WORLD_RANK") or 0)
    size = _number(env, "MV2_COMM_WORLD_SIZE")
    if size is not None:
        return Started("mvapich", size, _number(env, "MV2_COMM_WORLD_RANK") or 0)
    size = _number(env, "PMI_SIZE")
    if size is not None:
        hydra = any(name in env for name in ("HYDI_CONTROL_FD", "MPI_LOCALNRANKS", "HYDRA_LAUNCHER"))
        intel = "I_MPI_INFO_NP" in env or ("I_MPI_HYDRA_BOOTSTRAP" in env and hydra)
        kind = "intel" if intel else "mpich" if hydra else "slurm" if slurm_size else "pmi"
        return Started(kind, size, _number(env, "PMI_RANK", "PMI_ID") or 0)
    if "PMIX_RANK" in env:
        return Started("slurm" if slurm_size else "pmix", slurm_size or 1, _number(env, "PMIX_RANK") or 0)
    if slurm_size is not None and slurm_size > 1:
        return Started("slurm", slurm_size, slurm_rank)
    return None


def env_rank(env: Mapping[str, str] | None = None) -> int:
    """Rank that the launcher gave to this process, without asking MPI; 0 without a launcher."""
    found = started(env)
    return 0 if found is None else found.rank


def clean_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what a launcher put there, to start a process that is no rank of ours."""
    env = os.environ if env is None else env
    return {k: v for k, v in env.items() if not k.startswith(LAUNCH_VARIABLES) or k.startswith(KEPT_VARIABLES)}


def mismatch(library: str, size: int | None = None, env: Mapping[str, str] | None = None) -> str | None:
    """Why the launcher and the MPI library do not fit, and the fix; None if they do.

    Parameters
    ----------
    library : str
        What ``MPI.Get_library_version()`` says.
    size : int, optional
        Size of COMM_WORLD; None before MPI is initialised.
    """
    found = started(env)
    if found is None:
        return None
    kind = library_family(library)
    mine = FAMILIES.get(kind, library.split("\n")[0][:40])
    # MPICH and those made from it understand each other's launchers; Open MPI and they do not.
    crossed = found.family in MPIS and kind in MPIS and (found.family == "openmpi") != (kind == "openmpi")
    if not crossed and (size is None or size > 1 or found.size <= 1):
        return None
    why = f"{found.by} started {found.size} processes, but mpi4py is bound to {mine}: each would be rank 0 of 1 and do the whole job"
    if found.family in ("slurm", "pmi", "pmix"):
        kinds = "--mpi=pmix" if kind == "openmpi" else "--mpi=pmi2"
        return (f"{why}; start it with `srun {kinds}` (`srun --mpi=list` names those there are) "
                f"or with `{sys.executable} -m hpcmr launch -n {found.size} ...`")
    return f"{why}; use the mpirun of {mine}, or `{sys.executable} -m hpcmr launch -n {found.size} ...`, which finds it"


def library_family(library: str) -> str:
    """``openmpi``, ``mpich``, ``intel``, ``mvapich`` or ``unknown``, from the text of ``MPI.Get_library_version()`` or of ``mpirun --version``."""
    known = {"openmpi": ("Open MPI", "OpenRTE", "PRRTE", "prterun"), "intel": ("Intel(R) MPI", "Intel MPI"), "mvapich": ("MVAPICH",),
             "mpich": ("MPICH", "HYDRA")}
    for family, words in known.items():
        if any(word in library for word in words):
            return family
    return "unknown"


# What Open MPI needs for ranks to survive deaths. The list of collective components on a command line takes the place of the preset's, so that
# hcoll and portals4 are left out here again; han goes on as if nothing had happened, cuda waits for ever.
FT_FLAGS = ("--with-ft", "ulfm", "--mca", "coll", "^han,cuda,hcoll,portals4")


# -- starting ranks ----------------------------------------------------------------------------------------------------

_PROBE = """
import ctypes, json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
maps = open("/proc/self/maps").read().split() if __import__("os").path.exists("/proc/self/maps") else []
paths = sorted({p for p in maps if "/libmpi" in p and ".so" in p}, key=lambda p: (not p.rpartition("/")[2].startswith("libmpi.so"), p))
ft = bool(paths) and hasattr(ctypes.CDLL(paths[0]), "ompi_ftmpi_enabled")
print(json.dumps({"library": MPI.Get_library_version().strip(), "vendor": MPI.get_vendor()[0], "version": ".".join(map(str, MPI.get_vendor()[1])),
                  "mpi4py": mpi4py.__version__, "path": paths[0] if paths else "", "ft": ft}))
"""


@dataclass(frozen=True)
class Bound:
    """The MPI that mpi4py is bound to."""

    library: str
    vendor: str
    version: str
    mpi4py: str
    path: str
    ft: bool = False         # built with ULFM, which lets ranks survive the death of others

    @property
    def family(self) -> str:
        return library_family(self.library)

    def __str__(self) -> str:
        return f"{self.vendor} {self.version}"


def bound_mpi(python: str = sys.executable) -> Bound:
    """Ask a process of its own, so that this one stays free of MPI.

    Raises
    ------
    Refused
        mpi4py or its library cannot be loaded.
    """
    done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=120, env=clean_env(), check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Refused(f"mpi4py cannot load an MPI library in {python}: {said}; "
                      "install `hpcmr[openmpi]` or `hpcmr[mpich]`, or load your site's MPI module")
    return Bound(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Found:
    """A launcher: its path, and the family and first line of what it says about itself."""

    path: str
    family: str
    says: str


def find_launchers(bound: Bound, python: str = sys.executable, env: Mapping[str, str] | None = None) -> list[Found]:
    """All mpirun and mpiexec at hand: beside Python (the wheels of the package index put them there, and the environment need
    not be activated), beside the library, and on the path, in this order."""
    env = os.environ if env is None else env
    folders = [Path(python).parent, *([Path(bound.path).resolve().parent.parent / "bin"] if bound.path else []),
               *(Path(p) for p in env.get("PATH", "").split(os.pathsep) if p)]
    found: dict[str, Found] = {}
    for folder in dict.fromkeys(folders):
        for name in ("mpirun", "mpiexec"):
            path = str(folder / name)
            if path not in found and os.access(path, os.X_OK) and not any(f.startswith(f"{folder}{os.sep}") for f in found):
                found[path] = Found(path, *banner(path))
    return list(found.values())


def banner(path: str) -> tuple[str, str]:
    """Family of a launcher, and the first line of what it says about itself."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, env=clean_env(), check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return "unknown", f"does not run: {e}"
    text = done.stdout + done.stderr
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    version = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("Version:")), "")
    return library_family(text), f"{lines[0].rstrip(':')} {version}".strip() if lines else "says nothing"


def srun_kinds(env: Mapping[str, str] | None = None) -> list[str]:
    """What ``srun --mpi=list`` offers (for example pmi2, pmix); empty outside a Slurm allocation or without srun."""
    env = os.environ if env is None else env
    srun = shutil.which("srun", path=env.get("PATH"))
    if not srun or "SLURM_JOB_ID" not in env:
        return []
    try:
        done = subprocess.run([srun, "--mpi=list"], capture_output=True, text=True, timeout=30, env=clean_env(env), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    words = re.findall(r"[a-z][a-z0-9_]*", done.stdout + done.stderr)
    return [w for w in ("pmix", "pmi2", "cray_shasta", "openmpi") if w in words]


@dataclass(frozen=True)
class Command:
    """How to start ranks: the words before ``python``, variables to set, and why this launcher."""

    words: list[str]
    env: dict[str, str]
    why: str
    recovers: bool = False


def command(n: int, bound: Bound, launchers: list[Found], kinds: list[str], env: Mapping[str, str] | None = None, cores: int | None = None,
            root: bool | None = None, recover: bool = False, prefer: str = "auto") -> Command:
    """The launcher and the flags that fit the MPI that mpi4py is bound to. Pure: everything it goes by is an argument.

    Parameters
    ----------
    n : int
        Number of ranks.
    bound, launchers, kinds
        From `bound_mpi`, `find_launchers`, `srun_kinds`.
    cores : int, optional
        Cores of this machine that may be used.
    root : bool, optional
        Whether the user is root.
    recover : bool
        Ranks are to survive the death of others, where this MPI and its launcher can do that (`Command.recovers` tells).
    prefer : {"auto", "mpirun", "srun"}
        What the site wants.

    Raises
    ------
    Refused
        No launcher of this MPI was found.
    """
    env = os.environ if env is None else env
    root = os.geteuid() == 0 if root is None else root
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    in_slurm = "SLURM_JOB_ID" in env
    fits = next((f for f in launchers if f.family == bound.family), None)
    srun = {"openmpi": "pmix", "mpich": "pmi2", "intel": "pmi2", "mvapich": "pmi2"}.get(bound.family, "")
    if prefer == "srun" and (not in_slurm or srun not in kinds):
        why = f"`srun --mpi=list` lacks {srun or 'what'} {bound} needs" if in_slurm else "this is no job of Slurm"
        raise Refused(f"srun is wanted as the launcher, but {why}; use --launcher mpirun")
    if in_slurm and srun in kinds and prefer != "mpirun" and (bound.family != "openmpi" or fits is None or prefer == "srun"):
        return Command(["srun", f"--mpi={srun}", "-n", str(n)], {}, f"inside Slurm, whose srun speaks {srun} with {bound}")
    if fits is None:
        others = [f"{f.path} is {FAMILIES.get(f.family, 'of an MPI we do not know')}" for f in launchers]
        others = others or ["there is no mpirun beside Python or on the path"]
        raise Refused(f"mpi4py is bound to {bound} ({bound.path}), but no launcher of it was found: {', '.join(others)}; "
                      "put the bin folder of that MPI on the path")
    if bound.family != "openmpi":
        return Command([fits.path, "-n", str(n)], {}, f"the mpirun of {bound}, the MPI of mpi4py")
    slots = _number(env, "SLURM_NTASKS", "SLURM_NPROCS") or 0 if in_slurm else cores
    flags = ["--allow-run-as-root"] if root else []
    flags += ["--bind-to", "none"]        # ranks of two runs bound to the same cores, or to one core of a Slurm share, take turns
    # Open MPI counts cores, not hardware threads, hence half of what the system shows may be all it grants.
    flags += ["--oversubscribe"] if n > (slots if in_slurm else max(1, slots // 2)) else []
    recover = recover and bound.ft
    flags += FT_FLAGS if recover else ()
    why = f"the mpirun of {bound}, the MPI of mpi4py" + (", inside Slurm" if in_slurm else "") + (", with recovery" if recover else "")
    return Command([fits.path, "-n", str(n), *flags], _daemons(fits.path) if in_slurm else {}, why, recover)


def _daemons(mpirun: str) -> dict[str, str]:
    """Have Open MPI's daemons on other nodes, which Slurm takes for a step, leave its SIGTERM to the ranks: to these it is a notice."""
    prted, guard = Path(mpirun).parent / "prted", Path(__file__).resolve().with_name("daemon.py")
    words = [sys.executable, "-IS", str(guard), str(prted)]
    return {"PRTE_MCA_prte_launch_agent": " ".join(words)} if prted.exists() and not any(c.isspace() for w in words for c in w) else {}


def default_ranks(env: Mapping[str, str] | None = None) -> int:
    """Ranks to start where nobody says: the tasks of the Slurm allocation, else the cores that may be used."""
    env = os.environ if env is None else env
    if "SLURM_JOB_ID" in env:
        # "4(x2),3": tasks of each node, where their number was given for each node.
        told = re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_TASKS_PER_NODE", ""))
        n = _number(env, "SLURM_NTASKS", "SLURM_NPROCS") or sum(int(tasks) * int(times or 1) for tasks, times in told)
        if n:
            return n
    return len(os.sched_getaffinity(0))


def package_env() -> dict[str, str]:
    """PYTHONPATH with the folder of this package in front where it is not installed (a bare clone), so that ranks find it from any folder."""
    home = Path(__file__).resolve().parents[2]
    if home.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH", "")])])}


_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_ranks(start: Command, args: list[str], python: str = sys.executable, status: Path | None = None) -> int:
    """Start ``python args...`` on all ranks, pass signals on, and return the exit code.

    Parameters
    ----------
    status : Path, optional
        A file that the ranks write when they can take a notice (SIGUSR1, SIGUSR2); until then notices are held back.

    Returns
    -------
    int
        That of the launcher; 128 + signal where this process was told to end (130 for an interrupt, 143 for SIGTERM).

    Notes
    -----
    In a job of Slurm, SIGTERM means that its time is over in a moment: the ranks get a notice in its place, and commit.
    """
    env = {**clean_env(), **package_env(), **start.env}
    got: list[int] = []
    held: list[int] = []
    in_slurm = "SLURM_JOB_ID" in os.environ
    before_start = _changed_at(status)
    # A group of its own: an interrupt typed at the terminal reaches the launcher once, through us.
    child = subprocess.Popen([*start.words, python, *args], env=env, stdin=subprocess.DEVNULL, process_group=0,
                             preexec_fn=_leave_term_to_ranks if in_slurm else None)

    def forward(number: int, _frame: object) -> None:
        if number == signal.SIGTERM and in_slurm:
            number = signal.SIGUSR1
        got.append(number)
        if number in (signal.SIGUSR1, signal.SIGUSR2) and status is not None and _changed_at(status) == before_start:
            held.append(number)
        else:
            child.send_signal(number)

    before = {s: signal.signal(s, forward) for s in _FORWARDED}
    try:
        while True:
            try:
                code = child.wait(HELD_S if held else None)
                break
            except subprocess.TimeoutExpired:
                if _changed_at(status) != before_start:
                    child.send_signal(held[0])
                    held.clear()
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    ended = next((s for s in got if s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)), None)
    if code in (0, 75) or ended is None:        # a job that was told to end may finish or commit and end well
        return code if code >= 0 else 128 - code
    return 128 + ended


HELD_S = 0.5


def _changed_at(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


def _leave_term_to_ranks() -> None:
    """In the launcher before it starts: Slurm sends SIGTERM to all processes of a node at once, and a launcher that takes it kills its ranks."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
