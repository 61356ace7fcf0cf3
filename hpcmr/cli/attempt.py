"""``hpcmr attempt``: what a batch script asks before its ranks begin and after they have ended. Not for people."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    about = ("For batch scripts. begin: write down that an attempt begins; exit code 1 if it may not, with the reason. end: decide by the exit code "
             "of the ranks, the run directory and Slurm whether the job goes on, and put it back into the queue or submit it anew.")
    parser = subparsers.add_parser("attempt", help="for batch scripts: begin and end of an attempt", description=about)
    parser.add_argument("moment", choices=("begin", "end"))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--notice-s", type=int, default=0)
    parser.add_argument("--max-restarts", type=int, default=50)
    parser.add_argument("--resubmit", action="store_true")


def run(args: argparse.Namespace) -> int:
    from hpcmr.run import restarts

    if args.moment == "begin":
        why = restarts.begin(args.run_dir, args.job)
        if why is not None:
            print(f"hpcmr: this attempt does not begin: {why}", file=sys.stderr)
        return int(why is not None)
    found = restarts.end(restarts.End(args.run_dir, args.script, args.job, args.code, args.notice_s, args.max_restarts, args.resubmit))
    if found.reason:
        print(f"hpcmr: {found.reason}", file=sys.stderr)
    return found.code
