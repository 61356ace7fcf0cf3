"""The same work on many more ranks than cores: ``python tests/bench/many_ranks.py [--rows 10000000] [--ranks 2 64]``.

Groups ten million rows by a million keys (W2a at a tenth of its size), once on each number of ranks, and compares digests and memory. What
counts is the memory beyond the bare interpreters: the sum over ranks of the most that each ever had, less the same for a job of a few
rows that loads the same kernels. The last line says whether the digests agree and the bar is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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


def run(folder: Path, name: str, n: int, limit_s: float) -> tuple[str, float, float]:
    """Digest of the output, MiB over all ranks, seconds."""
    out, log = folder / f"out-{name}-{n}", folder / "peaks.json"
    settings = [f"input={folder / name}.h5", f"log={log}", f"output.path={out}"]
    began = time.monotonic()
    check(run_job(["job", folder / "job.py", "-q", *(w for s in settings for w in ("--set", s))], n=n, timeout_s=limit_s, cwd=folder))
    seconds = time.monotonic() - began
    return check(run_job(["digest", out], n=0)).stdout.split()[0], sum(json.loads(log.read_text())) / 1024, seconds


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
            _, bare, _ = run(folder, "few", n, args.limit_s)
            digest, peak, seconds = run(folder, "rows", n, args.limit_s)
            digests.append(digest)
            beyond.append(peak - bare)
            print(f"{n:4} ranks: {seconds:6.1f} s, {peak:8.0f} MiB in all, {bare:8.0f} MiB bare, {peak - bare:8.0f} MiB beyond", flush=True)
    same, ratio = digests[0] == digests[1], beyond[1] / beyond[0]
    print(f"digests {'agree' if same else 'DIFFER'}; memory beyond the bare interpreters {ratio:.2f} times, bar {BAR}")
    return int(not same or ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
