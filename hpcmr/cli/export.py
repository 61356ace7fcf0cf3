"""``hpcmr export``: an output as one ordinary file."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

KINDS = ("h5", "csv", "tsv", "npz")

EPILOG = """\
h5    a data set per column; text as ordinary variable-length strings
csv   a header and a line per row, as `hpcmr cat` prints them; tsv with tabs instead of commas
npz   an array per column, for numpy.load

Nulls, lists and strings that a format has no word for become arrays beside the column: NAME.valid, NAME.offsets and
NAME.data (docs/reference/export.md). The file appears at once and complete, or not at all.

example:
  python -m hpcmr export stats stats.h5
"""


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the commands."""
    parser = subparsers.add_parser("export", help="write an output to one ordinary file: h5, csv, tsv or npz", epilog=EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Write an output to one ordinary file for other programs.")
    parser.add_argument("path", metavar="PATH", help="folder that a job has written")
    parser.add_argument("file", metavar="FILE", type=_file, help="file to write; its ending chooses the format: " + ", ".join(KINDS))
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def _file(text: str) -> str:
    if _kind(text) not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of " + ", ".join("." + k for k in KINDS))
    return text


def _kind(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.output import open as open_output

    with open_output(args.path) as output:
        for remark in output.export(args.file, _kind(args.file), replace=args.force):
            print(f"hpcmr export: {remark}", file=sys.stderr)
        print(f"{args.file}\t{output.rows}", flush=True)
    return 0
