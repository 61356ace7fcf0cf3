"""``hpcmr clean``: removes what runs have left and nobody needs any more; says first what that is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmr.run.clean import Waste

SHOWN = 5

EPILOG = """\
Without PATH all runs in ./hpcmr-runs are looked at. Of a run that is done all checkpoints go, of another one all but
the two newest, and what dead attempts have left; of this node's scratch what dead processes have left. Outputs, and
runs that somebody works at, are not touched. Without --yes nothing is removed.

examples:
  python -m hpcmr clean                                tell what could go
  python -m hpcmr clean --yes                          and remove it
  python -m hpcmr clean hpcmr-runs/halos-1f00c2b1aa --yes

exit codes: 0 done, or nothing to do; 1 something could not be removed; 2 there is no such run
"""


def add_parser(subparsers: Any) -> None:
    """Add ``clean`` to the commands."""
    parser = subparsers.add_parser("clean", help="remove what runs have left and nobody needs any more", epilog=EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Remove old checkpoints, leftovers of dead attempts, and old scratch; tell what would go first.")
    parser.add_argument("path", nargs="?", metavar="PATH", help="a run directory, or a folder of them (default: hpcmr-runs)")
    parser.add_argument("--yes", action="store_true", help="remove it; without, it is only told")
    parser.add_argument("--scratch", metavar="DIR", help="where jobs of this node had their --scratch (default: as jobs choose it)")


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from hpcmr.errors import EXIT_DONE, EXIT_FAILED, HpcmrError
    from hpcmr.run.clean import find, find_scratch, remove
    from hpcmr.run.memory import show_nbytes

    found = find(Path(args.path or "hpcmr-runs"), lambda text: print(text, file=sys.stderr)) if args.path or Path("hpcmr-runs").is_dir() else []
    found.append(find_scratch(args.scratch))
    for waste in found:
        for line in _lines(waste, show_nbytes):
            print(line, flush=True)
    nbytes, code = sum(w.nbytes for w in found), EXIT_DONE
    if not any(w.paths for w in found):
        print("nothing to remove")
    elif not args.yes:
        print(f"{show_nbytes(nbytes)} would be removed; --yes removes them")
    else:
        gone = 0
        for waste in found:
            try:
                gone += remove(waste)
            except HpcmrError as error:
                print(f"hpcmr clean: {error}", file=sys.stderr)
                code = EXIT_FAILED
        print(f"{show_nbytes(gone)} removed")
    return code


def _lines(waste: Waste, show: Callable[[float], str]) -> list[str]:
    """What there is to say of a run, or of scratch."""
    from hpcmr.run.clean import size_of

    if waste.kept:
        return [f"{waste.folder}: not touched, {waste.kept}"]
    if not waste.paths:
        return []
    lines = [f"{waste.folder}: {waste.why}: {len(waste.paths):,} {'path' if len(waste.paths) == 1 else 'paths'}, {show(waste.nbytes)}"]
    lines += [f"  {path}  {show(size_of(path))}" for path in waste.paths[:SHOWN]]
    return [*lines, *([f"  and {len(waste.paths) - SHOWN:,} more"] if len(waste.paths) > SHOWN else [])]
