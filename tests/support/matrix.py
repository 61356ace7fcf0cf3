"""Run the test suite on several numbers of ranks and both MPIs, and say at the end how each run closed.

Needs the standard library only. A run that fails does not keep the others from running. The runs of `make test` go in two lanes side
by side: much of a test's time is one process, or the start of a few.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import mpirun

ROOT = Path(__file__).resolve().parents[2]
CLOSING = re.compile(r"\d+ (passed|failed|errors?|skipped|deselected)\b.* in [\d.]+s|no tests ran in")


@dataclass(frozen=True)
class Run:
    """One call of pytest: on `n` ranks of `mpi`, or without a launcher where `n` is 0."""

    mpi: str
    n: int
    args: tuple[str, ...] = ()
    limit_s: float = 900
    env: tuple[tuple[str, str], ...] = ()
    lane: int = 0           # runs of one lane come one after the other

    @property
    def name(self) -> str:
        return f"{self.mpi}, {f'{self.n} ranks' if self.n else 'no launcher'}" + (f", {' '.join(self.args)}" if self.args else "")


QUICK = [Run("openmpi", 0, ("-m", "not slow and not launcher")), Run("openmpi", 3)]
SLURM = "tests/slurm/test_box.py"
TEST = [
    Run("openmpi", 0, (f"--ignore={SLURM}", "--ignore=tests/faults"), limit_s=1400),
    Run("openmpi", 0, ("tests/faults",), lane=1),
    Run("openmpi", 3, lane=1),
    Run("mpich", 4, lane=1),
    Run("mpich", 0, ("-m", "launcher and not slow", f"--ignore={SLURM}", "--ignore=tests/faults"), lane=1),
    Run("openmpi", 2, ("tests/comm",), lane=1),
    Run("mpich", 2, ("tests/comm",), lane=1),
    Run("openmpi", 0, (SLURM,), lane=2),          # it mostly waits
]
LONG = (("HPCMR_TEST_LONG", "1"),)
# Many more ranks than cores: what of the exchange is worth it, and patience.
MANY = ("tests/comm/test_exchange.py", "tests/comm/test_leaders.py", "-k", "stats or validity or 300000 or messages or same_pieces or fuzz")
PATIENT = (("HPCMR_TEST_LIMIT_S", "900"), ("HPCMR_TEST_BARRIER_S", "900"), ("HPCMR_STALL_S", "900"))
ALL = [*(Run(mpi, n, limit_s=1800, env=LONG) for mpi in ("openmpi", "mpich") for n in (0, 1, 2, 3, 4, 7)),
       *(Run(mpi, 64, MANY, limit_s=3600, env=PATIENT) for mpi in ("openmpi", "mpich"))]
HARD = (*LONG, ("HPCMR_FAULT_KILLS", "400"), ("HPCMR_FAULT_RUNS", "60"), ("HPCMR_TEST_LIMIT_S", "3600"))
FAULTS = [Run("openmpi", 0, ("tests/faults", "tests/store", "tests/cli/test_verify.py", "tests/cli/test_clean.py"), limit_s=4 * 3600, env=HARD),
          Run("mpich", 0, ("tests/faults/test_kills.py",), limit_s=2 * 3600, env=(("HPCMR_FAULT_KILLS", "100"), ("HPCMR_TEST_LIMIT_S", "3600")))]
SLURMS = [Run("openmpi", 0, ("tests/slurm",)), Run("mpich", 0, (SLURM,))]
PLANS = {"quick": QUICK, "test": TEST, "all": ALL, "faults": FAULTS, "slurm": SLURMS}


def execute(run: Run, say: Callable[[str], Any] = sys.stdout.write) -> tuple[int, str, float]:
    """Exit code, closing line of pytest, and seconds; what it prints goes to `say`, line by line."""
    python = str(ROOT / f".venv-{run.mpi}" / "bin" / "python")
    words = ["-m", "pytest", "-q", "-rfE", "--color=no", "--with-mpi", "-p", "no:cacheprovider", *run.args]
    line, extra = mpirun.command(python, run.n, words) if run.n else ([python, *words], {})
    began = time.monotonic()
    process = subprocess.Popen(line, cwd=ROOT, env=mpirun.clean_env({**extra, **dict(run.env)}), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    closing: list[str] = []
    reader = threading.Thread(target=_copy, args=(process, closing, say), daemon=True)
    reader.start()
    try:
        code = process.wait(run.limit_s)
    except subprocess.TimeoutExpired:
        say(f"\n=== {run.name}: {run.limit_s:g} s have passed, stacks of all ranks:\n")
        mpirun.print_stacks(process.pid)
        code = mpirun.TIMED_OUT
    finally:
        if process.poll() is None:
            mpirun.end(process)
    reader.join(5)
    # Rank 0 speaks for all, unless another one failed: then its line comes as well.
    lines = [c for c in closing if "failed" in c or "error" in c] or closing
    return code, lines[-1].strip("= \n") if lines else "no closing line", time.monotonic() - began


def _copy(process: subprocess.Popen[str], closing: list[str], say: Callable[[str], Any]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        say(text)
        sys.stdout.flush()
        if CLOSING.search(text):
            closing.append(text)


def _lane(runs: list[Run], results: dict[Run, tuple[int, str, float]], speaks: bool) -> None:
    """Runs one after the other. Only one lane speaks while it runs, the others when a run is through."""
    for run in runs:
        said: list[str] = []
        if speaks:
            print(f"\n=== {run.name}", flush=True)
        results[run] = execute(run, sys.stdout.write if speaks else said.append)
        if not speaks:
            print(f"\n=== {run.name}\n{''.join(said)}", flush=True)


def main(plan: str) -> int:
    runs = PLANS[plan]
    done: dict[Run, tuple[int, str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hpcmr-session-") as session:      # through it runs compare their results with one another
        os.environ["HPCMR_TEST_SESSION"] = session
        lanes = [threading.Thread(target=_lane, args=([r for r in runs if r.lane == lane], done, lane == 0))
                 for lane in sorted({r.lane for r in runs})]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    results = [(run, *done.get(run, (1, "the run did not end", 0.0))) for run in runs]
    print("\n=== how each run closed")
    for run, code, closing, seconds in results:
        print(f"{'ok  ' if code == 0 else 'FAIL'} {run.name}: {closing} (exit code {code}, {seconds:.0f} s)")
    print(flush=True)
    return int(any(code for _, code, _, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
