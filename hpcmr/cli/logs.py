"""``hpcmr logs``: what the attempts of a run said."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

LOOK_EVERY_S = 0.5
ASK_EVERY_S = 5.0
EPILOG = """\
Shown is what the newest attempt said: rank 0's log, and what its batch script said. Other ranks speak where something went wrong.

examples:
  hpcmr logs stats-1f00c2b1aa
  hpcmr logs stats-1f00c2b1aa --follow
  hpcmr logs 1234 --rank 3
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("logs", help="what a run said", epilog=EPILOG, description="Print what the newest attempt of a run said.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory, a name in ./hpcmr-runs, or a Slurm job's id")
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank only")
    parser.add_argument("--follow", action="store_true", help="go on until the run ends")


def run(args: argparse.Namespace) -> int:
    from hpcmr.errors import Refused
    from hpcmr.run import runs

    run_dir = runs.find_run(args.run)
    if runs.tasks_of(run_dir):
        raise Refused(f"{run_dir} is an array: name a task, for example {run_dir}/{runs.tasks_of(run_dir)[0].name}")
    tails: dict[Path, BinaryIO] = {}
    queue, asked_s = runs.Queue(), float("-inf")
    over = not args.follow
    while True:
        for path in log_files(run_dir, args.rank):
            _print_rest(path, tails)
        if over:
            break
        if time.monotonic() - asked_s >= ASK_EVERY_S:
            over, asked_s = runs.view(run_dir, queue).over, time.monotonic()
        time.sleep(LOOK_EVERY_S)
    if not tails:
        who = "" if args.rank is None else f" of rank {args.rank}"
        print(f"there is no log{who} in {run_dir} yet", file=sys.stderr)
    return 0


def log_files(run_dir: Path, rank: int | None) -> list[Path]:
    """Files to show: the logs of the newest attempt (of one rank, or of all), and the newest output of the batch script."""
    from hpcmr.store import paths

    found: dict[int, list[Path]] = {}
    for path in sorted(paths.logs(run_dir).glob("e*-r*.log")):
        match = re.fullmatch(r"e(\d+)-r(\d+)\.log", path.name)
        if match and (rank is None or int(match[2]) == rank):
            found.setdefault(int(match[1]), []).append(path)
    logs = found[max(found)] if found else []
    return logs if rank is not None else [*logs, *_outputs(run_dir)]


def _outputs(run_dir: Path) -> list[Path]:
    """The newest file that Slurm wrote for the batch script; a task's lies in the folder of its array."""
    from hpcmr.run import restarts
    from hpcmr.store import paths

    home = run_dir if paths.batch_script(run_dir).exists() else run_dir.parent
    names = [paths.batch_folder(home) / f"{job}.out" for job in restarts.jobs_of(run_dir)]
    return [p for p in names if p.exists()][-1:]


def _print_rest(path: Path, tails: dict[Path, BinaryIO]) -> None:
    """Print what a file has that was not printed yet."""
    if path not in tails:
        try:
            tails[path] = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError:
            return
        if len(tails) > 1:
            print(f"--- {path.name}", flush=True)
    while part := tails[path].read(1 << 16):
        sys.stdout.buffer.write(part)
    sys.stdout.flush()
