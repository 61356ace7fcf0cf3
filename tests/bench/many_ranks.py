"""The same work on many more ranks than cores: ``python tests/bench/many_ranks.py [--rows 10000000] [--ranks 2 64]``.

Groups ten million rows by a million keys (W2a at a tenth of its size), once on each number of ranks, and compares digests and memory. What
counts is the memory beyond the bare interpreters: the most that all ranks together have at any moment (what they share counts once),
looked at ten times a second, less the same for a job of a few rows that loads the same kernels. The sum of the most that each rank ever
had, at whatever moment, is printed beside it. The last line says whether the digests agree and the bar is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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
import json
import resource

import hpcmr as mr

def job(ctx):
    rows = mr.read_hdf5(ctx.params["input"], "/rows", columns=["k", "v"])
    rows.group_by("k").agg(n=mr.count(), total=mr.sum("v"), low=mr.min("v"), high=mr.max("v")).write_hdf5(ctx.output("out"))
    peaks = ctx.comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if peaks is not None:
        with open(ctx.params["log"], "w") as file:
            json.dump(peaks, file)
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
        self.peak_kib = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.peak_kib = max(self.peak_kib, sum(pss_kib(pid) for pid in mpirun.descendants(os.getpid())))

    def end(self) -> float:
        self._over.set()
        self.join()
        return self.peak_kib / 1024


def pss_kib(pid: int) -> int:
    """Memory of a process, of what it shares its share."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def run(folder: Path, name: str, n: int, limit_s: float) -> tuple[str, float, float, float]:
    """Digest of the output, MiB of all ranks together, MiB as the sum of what each had at most, seconds."""
    out, log = folder / f"out-{name}-{n}", folder / "peaks.json"
    settings = [f"input={folder / name}.h5", f"log={log}", f"output.path={out}"]
    watch = Watch()
    watch.start()
    began = time.monotonic()
    check(run_job(["job", folder / "job.py", "-q", *(w for s in settings for w in ("--set", s))], n=n, timeout_s=limit_s, cwd=folder))
    seconds, peak = time.monotonic() - began, watch.end()
    return check(run_job(["digest", out], n=0)).stdout.split()[0], peak, sum(json.loads(log.read_text())) / 1024, seconds


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
        make(folder / "few.h5", 1000, 100)
        run(folder, "few", 1, args.limit_s)          # compiles
        for n in args.ranks:
            _, bare, bare_sum, _ = run(folder, "few", n, args.limit_s)
            digest, peak, peak_sum, seconds = run(folder, "rows", n, args.limit_s)
            digests.append(digest)
            beyond.append(peak - bare)
            print(f"{n:4} ranks: {seconds:6.1f} s, {peak:8.0f} MiB, {bare:8.0f} MiB bare, {peak - bare:8.0f} MiB beyond "
                  f"(each at its worst moment: {peak_sum - bare_sum:.0f} MiB)", flush=True)
    same, ratio = digests[0] == digests[1], beyond[1] / beyond[0]
    print(f"digests {'agree' if same else 'DIFFER'}; memory beyond the bare interpreters {ratio:.2f} times, bar {BAR}")
    return int(not same or ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
