"""What checkpoints cost and what they save: ``python tests/bench/restart.py [--scale 16] [--ranks 4] [--runs 3] [--work W2a] [KIND ...]``.

Needs W2a (or W2c) and W3a of `tests/bench/generate.py` in ``$HPCMR_BENCH/data``. Statistics by key are followed by a sort, both written to files:

off      checkpoints off
rule     checkpoints by the rule, with an --mtbf for which several are committed
recover  as `rule`, able to go on when ranks die
restart  as `rule`; one rank is killed half-way (the launcher ends), and the job is started again
survive  as `recover`; one rank is killed half-way, and the others go on

Prints seconds of the job (launch and import apart), what checkpoints took on the slowest rank, and the time from the death to the end against
the time from nothing. Digests of all outputs must be the same: exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench"))
KINDS = ("off", "rule", "recover", "restart", "survive")
STEP_S = 0.02


class Setting:
    """The words of the command line, and one folder for what runs leave."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.log = args, folder, folder / "log"

    def start(self, kind: str, fresh: bool) -> subprocess.Popen[bytes]:
        words = [self.args.python, "-m", "hpcmr", "launch", "-n", str(self.args.ranks), "job", str(HERE / "restarting.py"), "-q",
                 "--run-dir", str(self.folder / "run")]
        words += ["--checkpoint-every", "0"] if kind == "off" else ["--mtbf", self.args.mtbf]
        words += [] if kind in ("recover", "survive") else ["--no-recover"]
        words += ["--memory", self.args.memory] if self.args.memory else []
        words += ["--fresh"] if fresh else []
        for key, value in {"data": f"'{ROOT / 'data'}'", "scale": self.args.scale, "work": f"'{self.args.work}'", "log": f"'{self.log}'",
                           "output.stats": f"'{self.folder / 'stats'}'", "output.sorted": f"'{self.folder / 'sorted'}'"}.items():
            words += ["--set", f"{key}={value}"]
        env = dict(os.environ, PYTHONPATH=str(HERE.parent.parent))
        return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def told(self) -> list[dict[str, Any]]:
        """What ranks said at the end of their job; the log is emptied."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def clear(self) -> None:
        for name in ("run", "stats", "sorted"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def digests(self) -> str:
        said = [subprocess.run([self.args.python, "-m", "hpcmr", "digest", str(self.folder / name)], capture_output=True, text=True, check=True,
                               env=dict(os.environ, PYTHONPATH=str(HERE.parent.parent))).stdout.split()[0] for name in ("stats", "sorted")]
        return " ".join(said)


def ended(process: subprocess.Popen[bytes], codes: tuple[int, ...] = (0,)) -> None:
    _, err = process.communicate(timeout=900)
    if codes and process.returncode not in codes:
        raise SystemExit(f"exit code {process.returncode}:\n{err.decode()[-3000:]}")


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks below a launcher."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below = {launcher}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(pid for pid in below - {launcher} if b"restarting.py" in _words(pid) and b"mpirun" not in _words(pid))


def _words(pid: int) -> bytes:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""


def measure(setting: Setting, kind: str, half_s: float | None) -> dict[str, Any]:
    """One run from nothing; with `half_s` one rank is killed so long after the job began."""
    setting.clear()
    setting.told()
    launched = time.time()
    process = setting.start(kind, True)
    killed = None
    if half_s is not None:
        began = wait_for_work(setting, process)
        while time.time() < began + half_s:
            time.sleep(STEP_S)
        os.kill(ranks_of(process.pid)[-1], signal.SIGKILL)
        killed = time.time()
        if kind == "restart":
            ended(process, ())
            setting.told()
            process = setting.start(kind, False)
    ended(process)
    finished = time.time()
    ranks = setting.told()
    job_s = max(r["ended"] for r in ranks) - min(r["began"] for r in ranks)
    found = {"kind": kind, "job_s": job_s, "wall_s": finished - launched, "committed": max(r["committed"] for r in ranks),
             "stats_s": max(r["middle"] for r in ranks) - min(r["began"] for r in ranks),
             "blocked_s": max(r["blocked_s"] for r in ranks), "writing_s": max(r["writing_s"] for r in ranks)}
    if killed is not None:
        found["after_s"] = finished - killed
    return found


def wait_for_work(setting: Setting, process: subprocess.Popen[bytes]) -> float:
    """Until the run has been claimed, which is when the job begins."""
    while not list((setting.folder / "run" / "journal").glob("*.json")):
        if process.poll() is not None:
            ended(process)
        time.sleep(STEP_S)
    return time.time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    parser.add_argument("--scale", type=int, default=16, help="how often the input is read: 16 make about a minute on two cores")
    parser.add_argument("--work", default="W2a")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mtbf", default="30min")
    parser.add_argument("--memory")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--no-digest", action="store_true", help="do not compare the outputs")
    args = parser.parse_args()
    seen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in args.kinds}
    digests = set()
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        setting = Setting(args, Path(folder))
        measure(setting, args.kinds[0], None)         # warms the page cache and the kernels
        for run in range(args.runs):
            for kind in args.kinds:
                calm = seen.get("rule") or seen.get("off") or [{"job_s": 2 * args.scale}]
                found = measure(setting, kind, statistics.median(r["job_s"] for r in calm) / 2 if kind in ("restart", "survive") else None)
                seen[kind].append(found)
                print(f"{run} {kind:8} " + " ".join(f"{k} {v:.2f}" for k, v in found.items() if k != "kind"), flush=True)
                if run == 0 and not args.no_digest:
                    digests.add(setting.digests())
    tell(seen)
    return int(len(digests) > 1)


def tell(seen: dict[str, list[dict[str, Any]]]) -> None:
    def middle(kind: str, key: str) -> float:
        return statistics.median(r[key] for r in seen[kind]) if seen.get(kind) else float("nan")

    off, rule, able = (middle(kind, "job_s") for kind in ("off", "rule", "recover"))
    blocked, writing = middle("rule", "blocked_s"), middle("rule", "writing_s")
    print(f"\njob: off {off:.2f} s, by rule {rule:.2f} s: {rule / off - 1:+.1%}, {middle('rule', 'committed'):.0f} checkpoints; "
          f"ranks blocked {blocked:.2f} s of {writing:.2f} s of writing: {blocked / max(1e-9, writing):.0%}")
    print(f"able to recover: {able:.2f} s, {able / rule - 1:+.1%}")
    for kind, against in (("restart", "rule"), ("survive", "recover")):
        nothing, after = middle(against, "wall_s"), middle(kind, "after_s")
        print(f"{kind}: {after:.2f} s from the death to the end, from nothing {nothing:.2f} s: {1 - after / nothing:.0%} less")


if __name__ == "__main__":
    sys.exit(main())
