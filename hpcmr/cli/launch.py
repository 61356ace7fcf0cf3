"""``hpcmr launch``: start ranks with the launcher, and the flags, that fit the MPI that mpi4py is bound to."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  python -m hpcmr launch -n 4 job wordcount.toml
  python -m hpcmr launch -n 4 --print job wordcount.toml      say which launcher and flags, start nothing
  python -m hpcmr launch -n 4 --mpirun-args="--hostfile nodes" job wordcount.toml
  python -m hpcmr launch -n 4 job wordcount.toml --no-recover

With Open MPI 5 a job survives the death of ranks: what that takes is given to mpirun, and --recover to the job. It means Open MPI's own
transports (ob1) in the place of UCX and the like; where these matter more, --no-recover (of launch, or of the job) leaves all as it is.

The exit code is that of the command: 0 done, 1 failed, 2 refused before any work, 75 resumable; 130 and 143 where launch itself
was interrupted or terminated.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("launch", help="start a command on several ranks", formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog=EPILOG,
                                   description="Find mpirun or srun for the MPI that mpi4py is bound to, "
                                               "and start `python -m hpcmr COMMAND ...` on N ranks.")
    parser.add_argument("-n", type=_positive, default=None, dest="ranks", metavar="N",
                        help="number of ranks (default: the tasks of the Slurm allocation, else the cores of this machine)")
    parser.add_argument("--print", action="store_true", dest="show", help="print the command line and why, start nothing")
    parser.add_argument("--no-recover", action="store_true", help="a rank that dies ends the job")
    parser.add_argument("--launcher", choices=("auto", "mpirun", "srun"), default="auto", help="what starts the ranks (default: what fits the MPI)")
    parser.add_argument("--mpirun-args", default="", metavar="ARGS", help="more words for the launcher, in one quoted string")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="for example: job wordcount.toml --set output.path=out")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of ranks; it must be 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from hpcmr.comm import allocation, launcher
    from hpcmr.errors import Refused

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise Refused("launch needs a command to start; for example `hpcmr launch -n 4 job wordcount.toml`")
    found = launcher.started()
    if found is not None and found.size > 1:
        raise Refused(f"this is already one of {found.size} ranks started by {found.by}; "
                      f"run `python -m hpcmr {words[0]}` there, or launch outside of it")
    n = args.ranks or launcher.default_ranks()
    bound = launcher.bound_mpi()
    wanted = words[0] == "job" and (n > 1 or "--recover" in words) and not args.no_recover and "--no-recover" not in words

    def command(n: int) -> launcher.Command:
        made = launcher.command(n, bound, launcher.find_launchers(bound), launcher.srun_kinds(), recover=wanted, prefer=args.launcher)
        made.words.extend(shlex.split(args.mpirun_args))
        return made

    start = command(n)
    if start.recovers and "--recover" not in words:
        words.append("--recover")
    line = ["-m", "hpcmr", *words]
    if args.show:
        print(shlex.join([*start.words, sys.executable, *line]))
        print(f"{start.why}; ranks: {n}", file=sys.stderr)
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")      # what a rank says before it is killed should be seen
    status = _status(words)
    while True:
        code = launcher.run_ranks(start, line, status=status)
        alive = _nodes_left(status) if start.recovers and status is not None else []
        if not alive:
            return code
        start = command(launcher.default_ranks())
        start.words.extend(allocation.mpirun_words(alive))


def _nodes_left(status: Path) -> list[str]:
    """The nodes that live, if the ranks ended because others of the Slurm job died; the environment speaks of these alone from now on.

    Open MPI's launcher ends with the first node that it loses, and its exit code may be 0.
    """
    from hpcmr.comm import allocation
    from hpcmr.errors import HpcmrError
    from hpcmr.run.status import read_status

    try:
        told = read_status(status.parent)
    except HpcmrError:
        return []
    nodes = allocation.nodes_of(os.environ) if told is not None and told["state"] == "running" else []
    alive = allocation.answering(nodes, os.environ) if len(nodes) > 1 else []
    if not alive or len(alive) == len(nodes):
        return []
    os.environ.update(allocation.reduced(os.environ, nodes, alive))
    print(f"hpcmr launch: degraded: {', '.join(n for n in nodes if n not in alive)} of this job's nodes do not answer; going on with "
          f"{', '.join(alive)}", file=sys.stderr, flush=True)
    return alive



def _status(words: list[str]) -> Path | None:
    """The status.json that the ranks of a job will write, where its run directory is named."""
    from hpcmr.store import paths

    given = [b for a, b in itertools.pairwise(words) if a == "--run-dir"]
    given += [w.partition("=")[2] for w in words if w.startswith("--run-dir=")]
    return paths.status(Path(given[-1])) if words[0] == "job" and given else None
