"""``hpcmr job``: run a job file, or a Python file that defines ``job(ctx)``.

Every rank runs this. All that can be wrong is agreed on by all ranks, so that each failure is reported once and every rank
leaves with the same exit code.
"""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
SPEC is a .toml job file or a .py file that defines job(ctx); without it ./job.toml, else ./job.py.
VALUE is read as a TOML value, else as a plain string. Dotted keys reach into the job file; a .py job finds
the values in ctx.params. Paths given here are relative to the working directory.

When the job is done, stdout has one line for each output: its path, a tab, and the number of rows.

examples:
  mpirun -n 4 python -m hpcmr job wordcount.toml
  mpirun -n 4 python -m hpcmr job wordcount.toml --set input.paths="['a/*.txt']" --set output.path=counts
  mpirun -n 4 python -m hpcmr job stats.py --set input="'events.h5'" --set output.stats=stats --memory 2GiB
  python -m hpcmr job wordcount.toml --explain

exit codes: 0 done (also: was done already), 1 failed, 2 refused before any work, 75 stopped and resumable
"""


def add_parser(subparsers: Any) -> None:
    """Add ``job`` to the commands."""
    parser = subparsers.add_parser("job", help="run a job file, or a .py file that defines job(ctx)", epilog=EPILOG,
                                   description="Run a job on the ranks that the launcher started, or on one without a launcher.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="the job: a .toml or a .py file")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE",
                        help="set a key of the job file, or a parameter of the job")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of this run (default: hpcmr-runs/<name>-<hash of SPEC and --set>)")
    parser.add_argument("--memory", metavar="SIZE", help="memory for all ranks of a node together, for example 8GiB or 500MB")
    parser.add_argument("--explain", action="store_true", help="print the plan and run nothing")
    parser.add_argument("--fresh", action="store_true", help="discard what an earlier run left: its run directory and its outputs")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors on stderr")
    loud.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
