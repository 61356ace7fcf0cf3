"""The same work on many more ranks than cores: ``python tests/bench/many_ranks.py [--rows 10000000] [--ranks 2 64]``.

Groups ten million rows by a million keys (W2a at a tenth of its size), once on each number of ranks, and compares digests and memory. What
counts is the memory beyond the bare interpreters: the most memory of their own (resident, not shared with files or other ranks) that all
ranks together have at any moment, looked at every 10 ms where the watcher may go before the ranks, less what the same processes have when
the output is written and all that was freed has been given back to the system: imports, MPI started, kernels loaded. Ranks that read, own
or write nothing load less than others, so that a job of a few rows is no measure of them. The last line says whether the digests agree and
the bar is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import mpirun
from tests.support.launch import check, run_job

BAR = 1.5
JOB = """
import ctypes
import gc
import json
import resource

import hpcmr as mr

def job(ctx):
    rows = mr.read_hdf5(ctx.params["input"], "/rows", columns=["k", "v"])
    rows.group_by("k").agg(n=mr.count(), total=mr.sum("v"), low=mr.min("v"), high=mr.max("v")).write_hdf5(ctx.output("out"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        pages = [int(word) for word in file.read().split()]
    bare = (pages[1] - pages[2]) * resource.getpagesize()
    all_bare = ctx.comm.gather(bare)
    if all_bare is not None:
        with open(ctx.params["log"], "w") as file:
            json.dump(all_bare, file)
"""


def make(path: Path, rows: int, keys: int) -> None:
    rng = np.random.default_rng(20260103)
    with h5py.File(path, "w") as file:
        group = file.create_group("rows")
        group["k"] = rng.integers(0, keys, rows)
        group["v"] = rng.standard_normal(rows)


class Watch(threading.Thread):
    """Looks at the memory of all processes below this one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_nbytes = self.looks = 0
        self._over = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):       # before the ranks, which leave no processor idle
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        pids: list[int] = []
        while not self._over.wait(0.01):
            if self.looks % 50 == 0 or len(pids) < 2:
                pids = mpirun.descendants(os.getpid())
            self.peak_nbytes = max(self.peak_nbytes, sum(own_nbytes(pid) for pid in pids))
            self.looks += 1

    def end(self) -> int:
        self._over.set()
        self.join()
        return self.peak_nbytes


def own_nbytes(pid: int) -> int:
    """Resident memory of a process that it shares with nobody."""
    with contextlib.suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize()
    return 0


def run(folder: Path, n: int, limit_s: float) -> tuple[str, float, float, float]:
    """Digest of the output, MiB of all ranks together at most, MiB of the bare interpreters, seconds."""
    out, log = folder / f"out-{n}", folder / "bare.json"
    settings = [f"input={folder / 'rows.h5'}", f"log={log}", f"output.path={out}"]
    watch = Watch()
    watch.start()
    began = time.monotonic()
    check(run_job(["job", folder / "job.py", "-q", *(w for s in settings for w in ("--set", s))], n=n, timeout_s=limit_s, cwd=folder))
    seconds, peak = time.monotonic() - began, watch.end()
    return check(run_job(["digest", out], n=0)).stdout.split()[0], peak / 2**20, sum(json.loads(log.read_text())) / 2**20, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, nargs=2, default=[2, 64])
    parser.add_argument("--limit-s", type=float, default=600)
    args = parser.parse_args()
    digests, beyond = [], []
    with tempfile.TemporaryDirectory(prefix="hpcmr-many-") as name:
        folder = Path(name)
        (folder / "job.py").write_text(JOB)
        make(folder / "rows.h5", args.rows, args.rows // 10)
        run(folder, 1, args.limit_s)          # compiles
        for n in args.ranks:
            digest, peak, bare, seconds = run(folder, n, args.limit_s)
            digests.append(digest)
            beyond.append(peak - bare)
            print(f"{n:4} ranks: {seconds:6.1f} s, {peak:8.0f} MiB, {bare:8.0f} MiB bare, {peak - bare:8.0f} MiB beyond", flush=True)
    same, ratio = digests[0] == digests[1], beyond[1] / beyond[0]
    print(f"digests {'agree' if same else 'DIFFER'}; memory beyond the bare interpreters {ratio:.2f} times, bar {BAR}")
    return int(not same or ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
