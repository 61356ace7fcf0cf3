"""Ours on 2 ranks and each peer on 2 threads, alternately, every measurement in a fresh process: ``python tests/bench/run.py [W1 W2a W2b W2c
W3a W3b]``.

Needs the data of `tests/bench/generate.py` in ``$HPCMR_BENCH/data``. Input files are read once before, so that the page cache is warm,
and our kernels are compiled. Prints medians, ratios to the faster peer and the sums of peak memory; results go to
``$HPCMR_BENCH/results.jsonl``. Exit code 1 where a check differs from the peers'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench"))
WORKS = ("W1", "W2a", "W2b", "W2c", "W3a", "W3b", "W4")
BARS = {"W1": 5.0, "W2a": 2.5, "W2b": 2.0, "W2c": 2.5, "W3a": 2.5, "W3b": 1.2, "W4": 1.5}
PEERS = {"W3b": ["numpy", "duckdb"]}          # else --peers
FROM_FILE_TO_FILE = ("W3b",)
MEMORY_BAR = 3.0        # a budget of a tenth of the input, against no limit


def warm(work: str) -> None:
    """Read a work's files, so that they lie in the page cache."""
    for path in [*ROOT.glob(f"data/{work}/*"), *ROOT.glob(f"data/{work}.parquet/*"), ROOT / "data" / f"{work}.h5",
                 *ROOT.glob(f"data/{work}_*.parquet/*"), *ROOT.glob(f"data/{work}_*.h5")]:
        if path.exists():
            with path.open("rb", buffering=0) as f:
                while f.read(1 << 24):
                    pass


def ours(work: str, python: str, ranks: int, end: str, memory: str | None = None) -> dict[str, Any]:
    """One job in fresh processes; ``wall`` is from the launcher's start to its end."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        log = Path(folder) / "log"
        command = [python, "-m", "hpcmr", "launch", "-n", str(ranks), "job", str(HERE / "ours.py"), "-q", "--run-dir", f"{folder}/run"]
        command += ["--memory", memory, "--scratch", f"{folder}/scratch"] if memory else []
        for key, value in {"work": work, "data": ROOT / "data", "log": log, "end": end}.items():
            command += ["--set", f"{key}='{value}'"]
        began = time.perf_counter()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(HERE.parent.parent)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
        wall = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"hpcmr failed on {work}:\n{done.stderr[-3000:]}")
        return {**json.loads(log.read_text()), "wall": wall}


def peer(name: str, work: str, python: str) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run([python, str(HERE / "peers.py"), name, work, str(ROOT / "data")], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{name} failed on {work}:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout), "wall": time.perf_counter() - began}


def measure(work: str, args: argparse.Namespace) -> bool:
    """Alternate runs of one work; prints its table. Returns whether all checks agree."""
    warm(work)
    end = "write" if work in FROM_FILE_TO_FILE else "keep"
    peers = PEERS.get(work, args.peers)
    ours(work, args.python, args.ranks, end)
    found: dict[str, list[dict[str, Any]]] = {}
    for i in range(args.reps):
        runs = [("hpcmr", lambda: ours(work, args.python, args.ranks, end))]
        runs += [(p, lambda p=p: peer(p, work, args.peer_python)) for p in peers]
        if i < args.published and end == "keep":
            runs.append(("hpcmr, published", lambda: ours(work, args.python, args.ranks, "write")))
        for name, go in runs:
            result = go()
            found.setdefault(name, []).append(result)
            with (ROOT / "results.jsonl").open("a") as f:
                f.write(json.dumps({"name": name, "when": int(time.time()), **result}) + "\n")
    med = {name: {k: statistics.median(r[k] for r in rs) for k in ("seconds", "wall", "peak_mb")} for name, rs in found.items()}
    best = min((med[p]["seconds"] for p in peers), default=float("nan"))
    print(f"\n{work:5} {'':18} {'seconds':>8} {'faster peer /':>14} {'wall':>7} {'peak MB':>8}   runs")
    for name, m in sorted(med.items(), key=lambda i: i[1]["seconds"]):
        runs_s = " ".join(f"{r['seconds']:.2f}" for r in found[name])
        print(f"{'':5} {name:18} {m['seconds']:8.3f} {best / m['seconds']:13.2f}x {m['wall']:7.2f} {m['peak_mb']:8.0f}   {runs_s}", flush=True)
    checks = {r["check"] for name, rs in found.items() for r in rs if name != "hpcmr, published"}
    if len(checks) > 1:
        print(f"      checks differ: {checks}")
    ratio = best / med["hpcmr"]["seconds"]
    print(f"      bar {BARS[work]:.1f}x: {'met' if ratio >= BARS[work] else 'NOT met'} ({ratio:.2f}x)", flush=True)
    return len(checks) == 1


def measure_memory(work: str, args: argparse.Namespace) -> bool:
    """The same job with and without a budget, its rows looked at and let go; returns whether all checks agree."""
    warm(work)
    ours(work, args.python, args.ranks, "drop")
    budgets: list[str | None] = [None, args.memory]
    found: dict[str | None, list[dict[str, Any]]] = {m: [] for m in budgets}
    for _ in range(args.reps):
        for m in budgets:
            found[m].append(ours(work, args.python, args.ranks, "drop", m))
    med = {m: {k: statistics.median(r[k] for r in rs) for k in ("seconds", "wall", "peak_mb")} for m, rs in found.items()}
    for m in budgets:
        runs_s = " ".join(f"{r['seconds']:.2f}" for r in found[m])
        print(f"{work:5} {m or 'in memory':18} {med[m]['seconds']:8.3f} s {med[m]['wall']:7.2f} {med[m]['peak_mb']:8.0f} MB   {runs_s}", flush=True)
    ratio = med[args.memory]["seconds"] / med[None]["seconds"]
    print(f"      bar {MEMORY_BAR:.1f}x: {'met' if ratio <= MEMORY_BAR else 'NOT met'} ({ratio:.2f}x)", flush=True)
    return len({r["check"] for rs in found.values() for r in rs}) == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=list(WORKS))
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--published", type=int, default=1, metavar="N", help="also time N runs to the published output")
    parser.add_argument("--peers", nargs="*", default=["duckdb", "polars"])
    parser.add_argument("--python", default=sys.executable, help="Python that has hpcmr's dependencies and an MPI")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has duckdb and polars")
    parser.add_argument("--memory", metavar="SIZE", help="compare the job with this much memory for each rank with itself without a limit")
    args = parser.parse_args()
    agree = [(measure_memory if args.memory else measure)(work, args) for work in args.works]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    raise SystemExit(main())
