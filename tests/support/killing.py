"""Attempts at one run that are killed, and started again on other numbers of ranks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hpcmr
from tests.support import mpirun
from tests.support.launch import ROOT

JOB = ROOT / "tests" / "faults" / "verbs.py"
MARK = "HPCMR_TEST_MARK"
LIMIT_S = 90.0


class Run:
    """One run of a verb: its folder, and the attempts at it."""

    def __init__(self, folder: Path, data: Path, verb: str, pause_s: float, every: str = "0.05s") -> None:
        folder.mkdir(parents=True)
        self.folder, self.data, self.verb, self.pause_s, self.every = folder, data, verb, pause_s, every
        self.mark = uuid.uuid4().hex
        self.fault = folder / "fault"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, ranks: int, env: Mapping[str, str] | None = None) -> Attempt:
        """Begin an attempt; 0 ranks: one process without a launcher."""
        words = ["-m", "hpcmr", "job", str(JOB), "--set", f"verb={self.verb}", "--set", f"input='{self.data}'", "--set",
                 f"output.out='{self.folder}/out'", "--run-dir", str(self.run_dir), "--checkpoint-every", self.every, "--memory", "1GiB"]
        line, extra = mpirun.command(sys.executable, ranks, words) if ranks else ([sys.executable, *words], {})
        paths = os.pathsep.join([str(mpirun.SITE), str(ROOT)])
        own = {"PYTHONPATH": paths, MARK: self.mark, "PAUSE_S": str(self.pause_s * max(1, ranks)), "FAULT_FILE": str(self.fault)}
        return Attempt(self, ranks, line, mpirun.clean_env({**extra, **(env or {})}) | own)

    def whole(self, ranks: int) -> Attempt:
        """An attempt that nobody disturbs, which must end well."""
        attempt = self.start(ranks)
        assert attempt.wait() == 0, attempt.told()
        return attempt

    def digest(self) -> str:
        return str(hpcmr.open(self.folder / "out").digest())

    def entries(self) -> list[dict[str, Any]]:
        """The journal as it is, read without the package."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.run_dir / "journal")):
                with contextlib.suppress(OSError, ValueError):
                    found.append(json.loads((self.run_dir / "journal" / name).read_bytes()))
        return found

    def generations(self) -> int:
        """Checkpoints that were committed so far; those that newer ones have replaced leave a stub."""
        return sum(e["kind"] in ("generation", "collected") for e in self.entries())

    def is_done(self) -> bool:
        return any(e["kind"] == "end" and e["body"]["state"] == "done" for e in self.entries())

    def continued(self) -> bool:
        """Whether the newest attempt went on from a checkpoint."""
        return [e["body"]["continues"] for e in self.entries() if e["kind"] == "claim"][-1] is not None

    def processes(self) -> list[int]:
        """All that an attempt has started and that is alive."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
        return found

    def ranks(self) -> list[int]:
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
                if b"hpcmr" in words and b"python" in os.path.basename(words[0]):
                    found.append(pid)
        return found

    def sweep(self) -> None:
        """End what is left, by number."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Attempt:
    """A launcher and its ranks."""

    def __init__(self, run: Run, ranks: int, line: list[str], env: Mapping[str, str]) -> None:
        self.run, self.ranks = run, ranks
        self.err = run.folder / f"err-{time.monotonic_ns()}"
        with self.err.open("wb") as err, (run.folder / "stdout").open("ab") as out:
            self.process = subprocess.Popen(line, env=env, cwd=run.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.began = time.monotonic()

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, limit_s: float = LIMIT_S) -> int:
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            mpirun.print_stacks(self.process.pid)
            self.run.sweep()
            self.process.wait()
            raise AssertionError(f"no end within {limit_s:g} s\n{self.told()}") from None

    def told(self) -> str:
        return f"exit code {self.process.returncode} on {self.ranks} ranks\n" + self.err.read_text(errors="replace")[-6000:]

    def until_generation(self, number: int = 1) -> bool:
        """Wait for a checkpoint; False if the attempt ends first."""
        while self.running():
            if self.run.generations() >= number:
                return True
            assert time.monotonic() - self.began < LIMIT_S, self.told()
            time.sleep(0.01)
        return False

    def sleep(self, seconds: float) -> bool:
        """Let it run; False if it ends meanwhile."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.running()

    def kill(self, rng: random.Random) -> str:
        """SIGKILL for one rank, all of them, or the launcher; then nothing of the attempt is left."""
        ranks = self.run.ranks()
        how = rng.choice(["rank", "rank", "all", "launcher"]) if self.ranks and ranks else "process"
        victims = {"rank": [rng.choice(ranks or [0])], "all": ranks, "launcher": [self.process.pid], "process": [self.process.pid]}
        for pid in victims[how]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if how == "launcher":
            time.sleep(rng.uniform(0, 0.3))       # ranks without a launcher go on for a while
            self.run.sweep()
        self.wait(30)
        self.run.sweep()
        deadline = time.monotonic() + 10
        while self.run.processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        return how
