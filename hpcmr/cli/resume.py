"""``hpcmr resume``: submit an unfinished run again."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
The batch script of the run is submitted once more, with other sizes where they are given; the run goes on from its newest checkpoint, on any number
of nodes. Of an array, the tasks that are not done.

examples:
  hpcmr resume stats-1f00c2b1aa
  hpcmr resume stats-1f00c2b1aa --nodes 8 --time 4:00:00
"""


def add_parser(subparsers: Any) -> None:
    from hpcmr.cli.submit import add_sizes

    parser = subparsers.add_parser("resume", help="submit an unfinished run again", epilog=EPILOG,
                                   description="Submit the batch script of an unfinished run again.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory, a name in ./hpcmr-runs, or a Slurm job's id")
    add_sizes(parser)
    parser.add_argument("--wait", action="store_true", help="wait for the end, and exit with its code")


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.submit import resume
    from hpcmr.cli.submit import sizes_of
    from hpcmr.run import runs

    run_dir = runs.find_run(args.run)
    ids = resume(run_dir, sizes_of(args))
    if not ids:
        print(f"{run_dir} is done")
        return 0
    print(f"{ids[-1]}\t{run_dir}", flush=True)
    if not args.wait:
        return 0
    from hpcmr.cli.status import exit_code, watch

    return exit_code(watch(run_dir))
