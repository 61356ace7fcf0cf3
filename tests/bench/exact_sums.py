"""What exact sums cost: a group by with sum, min and max against the same one with plain additions, alternately.

``python tests/bench/exact_sums.py [--work W2a] [--reps 5]``. The plain twin is a copy of this package in a temporary folder whose
accumulator loop adds doubles as they come; its sums are of no use, only its time is. Needs the data of `tests/bench/generate.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent
ROOT = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench"))
EXACT = re.compile(r"                e = I\(\(b >> U\(52\)\) & U\(0x7FF\)\)\n.*?                    ns \+= 1\n", re.DOTALL)
PLAIN = "                F[o + U(1)] += bits_float(b)\n"
LOOPS = 2          # sum alone, and sum with min and max


def plain_twin(folder: Path) -> Path:
    """A copy of the package that adds doubles."""
    for name in ("hpcmr", "kernels", "slurm"):
        shutil.copytree(HOME / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "kernels" / "accumulate.py"
    text, found = EXACT.subn(PLAIN, path.read_text())
    if found != LOOPS:
        raise SystemExit(f"{path.name} has {found} loops that add exactly, this script knows {LOOPS}")
    path.write_text(text)
    return folder


def seconds(home: Path, work: str, python: str, ranks: int) -> float:
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        log = Path(folder) / "log"
        command = [python, "-m", "hpcmr", "launch", "-n", str(ranks), "job", str(HERE / "ours.py"), "-q", "--run-dir", f"{folder}/run"]
        for key, value in {"work": work, "data": ROOT / "data", "log": log, "end": "keep"}.items():
            command += ["--set", f"{key}='{value}'"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=home, env=os.environ | {"PYTHONPATH": str(home)})
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return float(json.loads(log.read_text())["seconds"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="W2a")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--python", default=sys.executable, help="Python that has hpcmr's dependencies and an MPI")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        homes = {"exact": HOME, "plain": plain_twin(Path(folder))}
        for home in homes.values():
            seconds(home, args.work, args.python, args.ranks)            # kernels are compiled, files read
        runs: dict[str, list[float]] = {name: [] for name in homes}
        for _ in range(args.reps):
            for name, home in homes.items():
                runs[name].append(seconds(home, args.work, args.python, args.ranks))
    median = {name: statistics.median(r) for name, r in runs.items()}
    for name, r in runs.items():
        print(f"{args.work} {name}: {median[name]:.3f} s   " + " ".join(f"{s:.2f}" for s in r))
    ratio = median["exact"] / median["plain"]
    print(f"exact / plain: {ratio:.2f} (bar 1.25: {'met' if ratio <= 1.25 else 'NOT met'})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
