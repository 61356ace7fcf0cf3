"""The command line: finds the command, and loads nothing but what that command needs.

A command is a module of this folder with ``add_parser(subparsers)`` and ``run(args) -> exit code``; only the standard library
stands at its top, so that ``--help`` loads neither NumPy nor MPI.

Under a launcher every rank runs this. What is said about a wrong command line is said by rank 0, while the exit code is the
same on all ranks.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from hpcmr._version import __version__
from hpcmr.comm.launcher import env_rank
from hpcmr.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, HpcmrError

COMMANDS = ("job", "cat", "export", "inspect", "digest", "verify", "clean", "launch", "bench", "doctor",
            "submit", "status", "logs", "cancel", "resume", "site", "attempt")
SILENT_RANK_DELAY_S = 1.0

DESCRIPTION = "MapReduce for MPI clusters: HDF5 and text in, HDF5 out, the same bits on any number of ranks."
EXAMPLES = """\
examples:
  python -m hpcmr job                                   run ./job.toml, else ./job.py, on one rank
  mpirun -n 4 python -m hpcmr job wordcount.toml        run a job file on four ranks
  mpirun -n 4 python -m hpcmr job stats.py --set input="'events.h5'" --set output.stats=out
  python -m hpcmr launch -n 4 job wordcount.toml        the same, finding the launcher and its flags
  python -m hpcmr cat out --limit 10                    look at the result
  python -m hpcmr submit stats.py --nodes 4             run it as a batch job of Slurm
  python -m hpcmr COMMAND --help                        more about one command
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser that speaks on rank 0 only, and exits with the same code everywhere."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        if env_rank() == 0:
            super()._print_message(message, file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        leave_together(status)
        raise SystemExit(status)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"{self.prog}: {message}\n{self.format_usage()}more: {self.prog} --help\n")


def leave_together(status: int) -> None:
    """Let rank 0 finish what it says: the first rank to leave with an error makes the launcher end the others."""
    if status and env_rank() > 0:
        time.sleep(SILENT_RANK_DELAY_S)


def make_parser(commands: Sequence[str] = COMMANDS) -> Parser:
    """The parser with the options of `commands`, whose modules are loaded for it."""
    parser = Parser(prog="hpcmr", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"hpcmr {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True, parser_class=Parser)
    for name in commands:
        module = importlib.import_module(f"hpcmr.cli.{name}")
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 refused before any work, 75 resumable, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Only the command that is asked for is loaded; anything else is for the full parser to answer.
    parser = make_parser(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS)
    args = parser.parse_args(words)
    module = importlib.import_module(f"hpcmr.cli.{args.command}")
    try:
        return int(module.run(args))
    except HpcmrError as error:
        return complain(f"hpcmr {args.command}: {error}", error.exit_code)
    except BrokenPipeError:
        # The reader of our output has seen enough, for example `hpcmr cat out | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        return 130


def complain(message: str, code: int = EXIT_FAILED) -> int:
    """Say on rank 0 what is wrong, and return the exit code."""
    if env_rank() == 0:
        print(message, file=sys.stderr, flush=True)
    leave_together(code)
    return code if code != EXIT_DONE else EXIT_FAILED
