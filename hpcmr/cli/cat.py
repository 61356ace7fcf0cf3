"""``hpcmr cat``: the rows of an output, in their order, on stdout."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

EPILOG = """\
csv has a header line; nulls are empty cells, lists and values of several dimensions are JSON in a cell, and bytes that
are no UTF-8 come out as they are. jsonl has an object per row; there they come out as \\udcXX, and nulls as null.
Non-finite numbers are NaN, Infinity and -Infinity in both.

examples:
  python -m hpcmr cat counts --limit 10
  python -m hpcmr cat stats --format jsonl --columns key,total | head
"""


def add_parser(subparsers: Any) -> None:
    """Add ``cat`` to the commands."""
    parser = subparsers.add_parser("cat", help="print the rows of an output", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Print the rows of an output in their order.")
    parser.add_argument("path", metavar="PATH", help="folder that a job has written")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="csv with a header (the default), or one JSON object per row")
    parser.add_argument("--columns", metavar="A,B", help="columns to print, in this order (default: all of them)")
    parser.add_argument("--limit", metavar="N", type=_count, help="print the first N rows only")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print; the reader of the other end may stop at any time."""
    from hpcmr.api.output import open as open_output
    from hpcmr.store.texts import csv_bytes, csv_header, jsonl_bytes

    with open_output(args.path) as output:
        names = output.schema.select(_names(args.columns, output.columns)).names
        stop = output.rows if args.limit is None else min(args.limit, output.rows)
        sys.stdout.flush()
        with stdout_errors():
            if args.format == "csv":
                _write(csv_header(names))
            for batch in output.batches(names, stop=stop, reuse=True):
                _write(csv_bytes(batch) if args.format == "csv" else jsonl_bytes(batch))
            sys.stdout.buffer.flush()
    return 0


def _names(chosen: str | None, every: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that ``--columns`` names. A name that has a comma in it can be given alone."""
    if chosen is None:
        return every
    return (chosen,) if chosen in every else tuple(chosen.split(","))


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)


@contextlib.contextmanager
def stdout_errors() -> Iterator[None]:
    """Leave the body quietly when nobody reads stdout any more, for example behind ``| head``; other errors become a `StorageError`."""
    from hpcmr.store.files import storage_error

    try:
        yield
    except OSError as error:
        # What is still buffered must not raise again when the interpreter closes stdout.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise storage_error(error, "standard output", safe="the output itself is as it was") from None
