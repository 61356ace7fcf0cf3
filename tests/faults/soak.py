"""A loop of jobs under random faults: kills, stops, full disks, flipped bits. `make soak MINUTES=30 SEED=1`.

Each run is a job of `verbs.py` that is disturbed a few times, then left alone; its output must have the digest of an undisturbed run.
A damaged file may make a start refuse, by name; then the job is begun anew. Ends non-zero on the first wrong bit, and prints the seed
of the run, which with ``--only`` runs again alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.data import write_events, write_texts
from tests.support.killing import Attempt, Run
from tests.support.launch import has_launcher

VERBS = ("words", "agg", "sort", "join", "iterate", "only", "fold", "several")
PAUSE_S = 0.02
FAULTS_MAX = 4


class Wrong(Exception):
    """What must not happen."""


class Soak:
    """The runs, and what was done to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counter[str]()
        self.ranks = (0, 0, 1, 2, 3) if has_launcher() else (0,)
        self.calm: dict[str, str] = {}
        self.data = folder / "data"
        self.data.mkdir()
        write_events(self.data / "events.h5", n=24_000, keys=300)
        write_texts(self.data / "texts", files=3, lines=300)

    def digest_of(self, verb: str) -> str:
        """Of an undisturbed run."""
        if verb not in self.calm:
            run = Run(self.folder / f"calm-{verb}", self.data, verb, 0)
            run.whole(0)
            self.calm[verb] = run.digest()
        return self.calm[verb]

    def one(self, seed: str) -> None:
        """One run: some faults, then the end of the job in peace."""
        rng = random.Random(seed)
        verb = rng.choice(VERBS)
        wanted = self.digest_of(verb)
        run = Run(self.folder / seed, self.data, verb, PAUSE_S)
        try:
            for _ in range(rng.randint(1, FAULTS_MAX)):
                fault = rng.choice((self.kill, self.kill, self.stop, self.flip, self.fill))
                fault(run, rng)
            self.finish(run, rng, wanted)
        finally:
            run.sweep()
            shutil.rmtree(run.folder, ignore_errors=True)

    def begun(self, run: Run, rng: random.Random) -> Attempt:
        """An attempt that has run for a while; perhaps it has ended already."""
        attempt = run.start(rng.choice(self.ranks))
        if rng.random() < 0.8:
            attempt.until_generation(run.generations() + 1)
        attempt.sleep(rng.uniform(0, 0.5))
        return attempt

    def kill(self, run: Run, rng: random.Random) -> None:
        attempt = self.begun(run, rng)
        how = attempt.kill(rng)
        self.counts[f"killed: {how}" if attempt.process.returncode else "killed: too late"] += 1

    def stop(self, run: Run, rng: random.Random) -> None:
        """An attempt is stopped; the next one takes over, and the old one wakes up and must not commit anything."""
        attempt = self.begun(run, rng)
        victims = run.processes()
        for pid in victims:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        second = run.start(0)
        second.until_generation(run.generations() + 1)
        for pid in victims:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        codes = {attempt.wait(), second.wait()}
        self.counts["stopped, and superseded"] += 1
        if not codes & {0, 2}:
            raise Wrong(f"neither of two attempts went on: {codes}\n{attempt.told()}\n{second.told()}")

    def flip(self, run: Run, rng: random.Random) -> None:
        """One bit of a file of a run that was killed."""
        self.begun(run, rng).kill(rng)
        files = [p for name in ("journal", "pieces", "results", "spec") for p in sorted((run.run_dir / name).rglob("*")) if p.is_file()]
        files = [p for p in files if p.stat().st_size]
        if not files:
            return
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        self.counts[f"flipped: {path.relative_to(run.run_dir).parts[0]}"] += 1

    def fill(self, run: Run, rng: random.Random) -> None:
        """The disk of the run is full after a while."""
        size = rng.choice((128, 256, 384, 768, 2048))
        if any(run.folder.iterdir()):
            return        # only a run that begins there
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(run.folder)]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            self.counts["full disk: cannot be made here"] += 1
            return
        try:
            attempt = run.start(rng.choice(self.ranks))
            code = attempt.wait()
            if code not in (0, 1, 2) or (code and "ENOSPC" not in attempt.told()):
                raise Wrong(f"a full disk of {size} KiB, and no error that says so: {attempt.told()}")
            subprocess.run(["mount", "-o", "remount,size=200m", str(run.folder)], check=True)
            self.counts["full disk" if code else "full disk: was large enough"] += 1
            last = run.whole(0)
            if run.digest() != self.digest_of(run.verb):
                raise Wrong(f"another digest after a full disk: {last.told()}")
        finally:
            run.sweep()
            subprocess.run(["umount", "-l", str(run.folder)], check=True)

    def finish(self, run: Run, rng: random.Random, wanted: str) -> None:
        """Without faults the job ends, and its output is right. What was damaged may be refused, by name, once."""
        last = run.start(rng.choice(self.ranks))
        code = last.wait()
        told = last.told()
        for _ in range(3):
            if code == 0:
                break
            if "damaged" not in told and "does not tell what this run is" not in told:
                raise Wrong(f"it does not end: {told}")
            self.counts["damage named"] += 1
            if "start the job again" not in told:
                shutil.rmtree(run.run_dir)
                shutil.rmtree(run.folder / "out", ignore_errors=True)
            last = run.start(rng.choice(self.ranks))
            code, told = last.wait(), last.told()
        if code:
            raise Wrong(f"it does not end: {told}")
        if run.digest() != wanted:
            raise Wrong(f"another digest: {told}")
        self.counts["ended with the right digest"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of one run, as it was printed")
    args = parser.parse_args()
    until, number, failed = time.monotonic() + 60 * args.minutes, args.only or 0, ""
    with tempfile.TemporaryDirectory(prefix="hpcmr-soak-") as name:
        soak = Soak(Path(name))
        while not failed and (number == args.only or (args.only is None and time.monotonic() < until)):
            try:
                soak.one(f"{args.seed}-{number}")
            except (Wrong, AssertionError) as error:
                failed = f"run {number}: {error}"
            number += 1
    print(f"seed {args.seed}, {number} runs:")
    for kind, count in sorted(soak.counts.items()):
        print(f"  {count:6,}  {kind}")
    if failed:
        print(f"FAILED: {failed}\nagain: tests/faults/soak.py --seed {args.seed} --only {number - 1}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
