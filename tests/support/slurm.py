"""What tests do with the cluster-in-a-box: submit, look, wait, disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcmr.run.status import read_status
from tests.support import mpirun
from tests.support.launch import ROOT

BOX = ROOT / "slurm" / "box" / "box.py"
SLOW = ROOT / "tests" / "slurm" / "slow.py"
PIECES = 24
LIMIT_S = 200.0


class Cluster:
    """The cluster, and a folder to work in.

    Attributes
    ----------
    folder : Path
    conf : Path
        Of ``SLURM_CONF``.
    env : dict
        For every command.
    apart : Lock
        Held by who uses nodes 3 and 4, where runs end that are in the way.
    """

    def __init__(self, folder: Path, box: Sequence[str], conf: Path) -> None:
        self.folder, self.box, self.conf = folder, list(box), conf
        self.apart = threading.Lock()
        for name in ("home", "in", "work"):
            (folder / name).mkdir()
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        cache = os.environ.get("HPCMR_KERNEL_CACHE") or str(Path("~/.cache/hpcmr").expanduser())
        self.env = mpirun.clean_env({"SLURM_CONF": str(conf), "HOME": str(folder / "home"), "PYTHONPATH": paths, "HPCMR_KERNEL_CACHE": cache})
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HPCMR_SITE"):
            self.env.pop(name, None)
        self._write_inputs()

    def _write_inputs(self) -> None:
        import h5py
        import numpy as np

        for i in range(PIECES):
            rng = np.random.default_rng(i)
            with h5py.File(self.folder / "in" / f"{i:03d}.h5", "w") as file:
                group = file.create_group("events")
                group["piece"], group["key"], group["value"] = np.full(50, i), rng.integers(0, 20, 50), rng.normal(size=50) / 3

    def run(self, *words: str, code: int | None = 0, limit_s: float = 120) -> str:
        """Run a command; what it prints on stdout."""
        done = subprocess.run(words, env=self.env, cwd=self.folder / "work", capture_output=True, text=True, timeout=limit_s,
                              stdin=subprocess.DEVNULL)
        assert code is None or done.returncode == code, f"{' '.join(words)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if code else "")

    def hpcmr(self, *words: str, code: int | None = 0, limit_s: float = 120) -> str:
        return self.run(sys.executable, "-m", "hpcmr", *words, code=code, limit_s=limit_s)

    def submit(self, name: str, *words: str, pause: float = 0.1, nodes: int = 2, time: str = "10", where: str = "node1,node2") -> Submitted:
        """Submit `slow.py`, one rank on each node, on the nodes of `where`."""
        run_dir = self.folder / "work" / name
        others = ",".join(sorted({"node1", "node2", "node3", "node4"} - set(where.split(","))))
        said = self.hpcmr("submit", str(SLOW), "--nodes", str(nodes), "--ntasks-per-node", "1", "--time", time, "--run-dir", str(run_dir),
                          "--sbatch", f"exclude={others}", "--set", f"input='{self.folder}/in/*.h5'", "--set", f"pause={pause}",
                          "--set", f"trace='{run_dir}.trace'", *words)
        return Submitted(self, run_dir, said.split()[0])

    def digest(self, output: Path) -> str:
        return self.hpcmr("digest", str(output)).split()[0]

    def queue(self) -> dict[str, str]:
        """State of all jobs in the queue, by id."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)


class Submitted:
    """A run on the cluster."""

    def __init__(self, cluster: Cluster, run_dir: Path, job: str) -> None:
        self.cluster, self.run_dir, self.job = cluster, run_dir, job

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.hpcmr("status", str(self.run_dir), "--json"))
        return found

    def told(self) -> dict[str, Any]:
        """What status.json says."""
        return read_status(self.run_dir) or {"state": "none", "attempt": 0, "stage": None, "checkpoint": None}

    def until(self, what: str, ready: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        while not ready():
            assert time.monotonic() < end, f"{self.run_dir.name}: not {what} within {limit_s:g} s\n{self.report()}"
            time.sleep(0.2)

    def until_pieces(self, n: int, attempt: int = 1) -> None:
        """Wait until an attempt has read so many pieces."""
        self.until(f"{n} pieces in attempt {attempt}", lambda: self.told()["attempt"] >= attempt and len(self.trace(attempt)) >= n)

    def until_done(self, limit_s: float = LIMIT_S) -> None:
        self.until("done", lambda: self.told()["state"] in ("done", "failed"), limit_s)
        assert self.told()["state"] == "done", self.report()

    def until_left(self) -> None:
        """Wait until the queue has no job of this run."""
        self.until("out of the queue", lambda: not [j for j in self.cluster.queue() if j.partition("_")[0] in self.jobs()])

    def jobs(self) -> list[str]:
        record = json.loads((self.run_dir / "slurm" / "batch.json").read_text())
        return [str(j).partition("_")[0] for j in record["jobs"]]

    def starts(self) -> int:
        """How often its batch script has begun."""
        return len(json.loads((self.run_dir / "slurm" / "attempts.json").read_text())["attempts"])

    def trace(self, attempt: int | None = None) -> list[int]:
        """Pieces that were read by attempts from this one on; what is read to find out the types counts for none."""
        path = Path(f"{self.run_dir}.trace")
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        began = [k for k, line in enumerate(lines) if line[0] == "begin"]
        first = 0 if attempt is None else began[attempt - 1] if len(began) >= attempt else len(lines)
        return [int(line[0]) for line in lines[first:] if line[0] != "begin"]

    def digest(self) -> str:
        return self.cluster.digest(self.run_dir / "output" / "stats")

    def report(self) -> str:
        """All that is known, for a test that failed."""
        said = [f"--- {p}\n{p.read_text()}" for p in sorted(self.run_dir.rglob("*.out")) + sorted(self.run_dir.rglob("*.log"))]
        return "\n".join([json.dumps(self.told()), self.cluster.run("squeue", code=None), *said])
