"""``hpcmr digest``: one line that is the same for equal content, however many files hold it."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
The digest covers names, types and rows in their order, as they are read back; not the attributes of columns, nor how
many shards there are. It is defined in docs/reference/digest.md.

example:
  test "$(python -m hpcmr digest a)" = "$(python -m hpcmr digest b)" && echo equal
"""


def add_parser(subparsers: Any) -> None:
    """Add ``digest`` to the commands."""
    parser = subparsers.add_parser("digest", help="print a digest of the content of an output", epilog=EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Print xxh3-128:<32 hexadecimal digits> of an output's content.")
    parser.add_argument("path", metavar="PATH", help="folder that a job has written")


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.output import open as open_output

    with open_output(args.path) as output:
        print(output.digest(), flush=True)
    return 0
