"""``hpcmr cancel``: end a run, and keep it from going on by itself."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

EPILOG = """\
What the run has committed stays: `hpcmr resume RUN` goes on with it. A run that Slurm knows nothing of is asked to stop at its next cut, as by
SIGUSR1, if it is one of this machine.

examples:
  hpcmr cancel stats-1f00c2b1aa
  hpcmr cancel 1234
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("cancel", help="end a run", epilog=EPILOG, description="End a run's jobs; it is not put back into the queue.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory, a name in ./hpcmr-runs, or a Slurm job's id")


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.submit import cancel
    from hpcmr.errors import Refused
    from hpcmr.run import runs

    run_dir = runs.find_run(args.run)
    folders = runs.tasks_of(run_dir) or [run_dir]
    before = runs.views(folders, runs.Queue())
    if all(v.over and not any(j.alive for j in v.jobs) for v in before):
        raise Refused(f"{run_dir} is not under way: it is {before[0].state}" + (f" ({before[0].reason})" if before[0].reason else ""))
    ids = cancel(run_dir)
    for v in before:
        if v.state == "running" and not v.jobs:
            _stop_here(v.status)
    print(f"{run_dir}: cancelled" + (f", job{'s' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else "") + f"; `hpcmr resume {args.run}` goes on")
    return 0


def _stop_here(status: dict[str, Any]) -> None:
    """Ask rank 0 to commit and stop, if its process is one of this machine."""
    from hpcmr.errors import Refused
    from hpcmr.run import owner

    if status["boot"] != owner.boot_id() or owner.started_at(status["pid"]) != status["start"]:
        raise Refused(f"it runs on {status['host']} as process {status['pid']}, without Slurm: end it there, with `kill -USR1 {status['pid']}`")
    os.kill(status["pid"], signal.SIGUSR1)
