#!/usr/bin/env python3
"""A Slurm cluster of four nodes on this one machine, for tests and for trying things out.

::

    python3 slurm/box/box.py up              start it; installs Slurm and munge as root on Debian where they are missing
    export SLURM_CONF=/tmp/hpcmr-box-0/slurm.conf
    sbatch -N2 --wrap 'srun hostname; echo $SLURMD_NODENAME'
    python3 slurm/box/box.py kill node2      as if the node had lost power: its daemon and all that runs on it
    python3 slurm/box/box.py start node2     bring it back
    python3 slurm/box/box.py down            stop it and remove its folder

Everything lies in one folder (``--folder``, ``$HPCMR_BOX``, else ``hpcmr-box-<uid>`` in the temporary folder): the configuration, a munge of its own
with a fresh key, state, logs, and for each process that was started its id and start time. Only these, and what Slurm started below
them, are ended. Needs the standard library only. Exit code 3: Slurm is not here and cannot be installed, for the reason given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("node1", "node2", "node3", "node4")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "srun")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
HERE = Path(__file__).resolve().parent
MARK = "HPCMR_BOX_MARK"
MARK_NODE = "HPCMR_BOX_NODE"
NOT_POSSIBLE = 3
POLICY = Path("/usr/sbin/policy-rc.d")


class BoxError(Exception):
    """What is wrong, for people."""


class NotPossible(BoxError):
    """There is no Slurm on this machine, and it cannot be installed."""


def default_folder() -> Path:
    return Path(os.environ.get("HPCMR_BOX") or Path(tempfile.gettempdir()) / f"hpcmr-box-{os.getuid()}")


# -- what must be there ------------------------------------------------------------------------------------------------

def find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"]))


def missing() -> list[str]:
    return [p for p in PROGRAMS if find(p) is None]


def install() -> None:
    """Install what is missing. Raises `NotPossible`."""
    lacks = missing()
    if not lacks:
        return
    if os.geteuid() != 0 or find("apt-get") is None:
        raise NotPossible(f"{', '.join(lacks)} not found; only root on Debian can install them here: apt-get install {' '.join(PACKAGES)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for words in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(["apt-get", *words], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode or missing():
            said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise NotPossible(f"apt-get could not install {' '.join(PACKAGES)}: {said}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep the packages from starting services of the system: the box has daemons of its own."""
    made = not POLICY.exists()
    if made:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if made:
            POLICY.unlink(missing_ok=True)


# -- processes ---------------------------------------------------------------------------------------------------------

def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if there is none (or only its exit code is left)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


class Box:
    """The cluster that lives in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.conf = self.folder / "slurm.conf"

    # What was started is written down: name -> process id and start time, so that a number that was given anew is left alone.

    def pids(self) -> dict[str, int]:
        """Process ids of the daemons that live, by name."""
        found = {}
        for path in sorted((self.folder / "pids").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                told = json.loads(path.read_text())
                if told["start"] and start_time(told["pid"]) == told["start"]:
                    found[path.stem] = told["pid"]
        return found

    def _launch(self, name: str, words: list[str], node: str = "") -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "OMPI_", "PMI", "PRTE_"))}
        env |= {"SLURM_CONF": str(self.conf), MARK: self._mark(), MARK_NODE: node}
        with open(self.folder / "logs" / f"{name}.out", "ab") as log:
            child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.folder, start_new_session=True)
        (self.folder / "pids" / f"{name}.json").write_text(json.dumps({"pid": child.pid, "start": start_time(child.pid)}))

    def _mark(self) -> str:
        return (self.folder / "mark").read_text().strip()

    def _marked(self, node: str | None = None) -> list[int]:
        """Daemons and their step daemons (what the user's job runs has another environment), of one node or of all."""
        wanted = f"{MARK}={self._mark()}".encode()
        place = None if node is None else f"{MARK_NODE}={node}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    words = Path("/proc", entry, "environ").read_bytes().split(b"\0")
                    if wanted in words and (place is None or place in words):
                        found.append(int(entry))
        return found

    # -- up ----

    def up(self) -> None:
        """Start what does not run yet, and wait until all nodes are idle."""
        install()
        if self.conf.exists() and "slurmctld" in self.pids():
            for node in NODES:
                self.start(node)
            self._wait_idle()
            return
        if self.folder.exists():
            self.down()
        self._make()
        self._launch("munged",
                     [str(find("munged")), "--foreground", "--force", f"--key-file={self.folder}/munge/key", f"--socket={self.folder}/munge/socket",
                                f"--pid-file={self.folder}/munge/pid", f"--log-file={self.folder}/logs/munged.log",
                      f"--seed-file={self.folder}/munge/seed",
                                "--num-threads=2"])
        self._wait("munge", lambda: (self.folder / "munge" / "socket").exists())
        self._launch("slurmctld", [str(find("slurmctld")), "-D", "-f", str(self.conf)])
        for node in NODES:
            self.start(node)
        self._wait_idle()

    def start(self, node: str) -> None:
        """Start the daemon of a node if it does not run."""
        if node not in NODES:
            raise BoxError(f"there is no {node!r}; the nodes are {', '.join(NODES)}")
        if node not in self.pids():
            self._launch(node, [str(find("slurmd")), "-D", "-N", node, "-f", str(self.conf)], node)

    def _make(self) -> None:
        self.folder.mkdir(mode=0o755, parents=True)
        for name in ("munge", "state", "logs", "pids", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "mark").write_text(secrets.token_hex(16))
        key = os.open(self.folder / "munge" / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(key, secrets.token_bytes(128))
        os.close(key)
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(1 + len(NODES))
        values = {"folder": self.folder, "host": host, "user": _user(), "port": ports[0], "cpus": 4}
        text = (HERE / "slurm.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        nodes = [f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN"
                 for node, port in zip(NODES, ports[1:], strict=True)]
        self.conf.write_text(text + "\n".join(nodes) + "\n")
        # The one rule of this "site": a partition whose jobs are never put back into the queue, whatever they ask for.
        shutil.copy(HERE / "job_submit.lua", self.folder / "job_submit.lua")

    def _wait_idle(self, limit_s: float = 40) -> None:
        def idle() -> bool:
            done = self.run("sinfo", "-h", "-N", "-o", "%N %T")
            states = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
            return all(states.get(n, "").rstrip("*") in ("idle", "mixed", "allocated") and not states[n].endswith("*") for n in NODES)
        self._wait("the four nodes", idle, limit_s)

    def _wait(self, what: str, ready: object, limit_s: float = 20) -> None:
        assert callable(ready)
        end = time.monotonic() + limit_s
        while not ready():
            if time.monotonic() > end:
                raise BoxError(f"{what} did not come up within {limit_s:g} s; see {self.folder}/logs")
            time.sleep(0.1)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        env = {**os.environ, "SLURM_CONF": str(self.conf)}
        return subprocess.run(list(words), capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=60, check=False)

    # -- down ----

    def kill(self, node: str) -> None:
        """End a node as a loss of power does: its daemon, its steps, and every process of a job on it, at once."""
        if node not in NODES:
            raise BoxError(f"there is no {node!r}; the nodes are {', '.join(NODES)}")
        self._end(self._marked(node))

    def down(self) -> None:
        """Stop everything that was started, and remove the folder."""
        if not self.folder.exists():
            return
        if not (self.folder / "mark").exists():
            raise BoxError(f"{self.folder} is no folder of this program: it is left alone")
        daemons = self.pids()
        if "slurmctld" in daemons:
            self._cancel_all()
        self._end(self._marked() + list(daemons.values()))
        shutil.rmtree(self.folder)

    def _cancel_all(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--quiet", f"--user={_user()}", "--full", "--signal=KILL")
            self.run("scancel", "--quiet", f"--user={_user()}")
            end = time.monotonic() + 5
            while time.monotonic() < end and self.run("squeue", "-h", "-t", "RUNNING,COMPLETING").stdout.strip():
                time.sleep(0.2)

    @staticmethod
    def _end(pids: list[int]) -> None:
        """Kill processes and what runs below them. A tree is stopped first, so that nothing is started meanwhile."""
        seen: dict[int, int] = {}
        for _ in range(3):
            for pid in [p for root in pids for p in (root, *descendants(root))]:
                if pid not in seen and start_time(pid):
                    seen[pid] = start_time(pid)
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGSTOP)
        for pid, start in seen.items():
            if start_time(pid) == start:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while any(start_time(p) == s for p, s in seen.items()) and time.monotonic() < end:
            for pid in seen:
                with contextlib.suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)


def descendants(root: int) -> list[int]:
    """Process ids below `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                children.setdefault(int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def free_ports(n: int) -> list[int]:
    """Ports that nobody uses now, below those that the system gives out by itself."""
    found: list[int] = []
    port = 17000 + os.getpid() % 1000
    while len(found) < n:
        port += 1
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("", port))
            found.append(port)
    return found


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where all of it lies (default: %(default)s)")
    parser.add_argument("command", choices=("up", "down", "kill", "start"))
    parser.add_argument("node", nargs="?", default="", help="node1 to node4, for kill and start")
    args = parser.parse_args()
    box = Box(args.folder)
    try:
        if args.command in ("kill", "start"):
            getattr(box, args.command)(args.node)
        elif args.command == "down":
            box.down()
        else:
            box.up()
            print(f"{box.conf}\nexport SLURM_CONF={box.conf}")
    except BoxError as error:
        print(f"box: {error}", file=sys.stderr)
        return NOT_POSSIBLE if isinstance(error, NotPossible) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
