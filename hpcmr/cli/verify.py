"""``hpcmr verify``: whether what is on disk is what was written."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
PATH is an output, a run directory, or a checkpoint (an entry DIR/journal/NNNNNN.json of a run directory). Every
digest and every count is compared; nothing is changed, and a run may go on meanwhile.

examples:
  python -m hpcmr verify results/counts && cp -r results/counts /archive
  python -m hpcmr verify hpcmr-runs/halos-1f00c2b1aa --json

exit codes: 0 all of it is whole, 1 something is damaged, 2 there is no such thing
"""


def add_parser(subparsers: Any) -> None:
    """Add ``verify`` to the commands."""
    parser = subparsers.add_parser("verify", help="check every digest and count of an output, a checkpoint or a run", epilog=EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Check every digest and count of an output, a checkpoint or a run directory.")
    parser.add_argument("path", metavar="PATH", help="an output, a run directory, or an entry of its journal")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    import json
    import time
    from pathlib import Path

    from hpcmr.errors import EXIT_DONE, EXIT_FAILED
    from hpcmr.run.verify import verify

    began = time.perf_counter()
    facts = verify(Path(args.path))
    facts["seconds"] = round(time.perf_counter() - began, 3)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)), flush=True)
    return EXIT_DONE if facts["whole"] else EXIT_FAILED


def _lines(facts: dict[str, Any]) -> list[str]:
    """What was found, the damage first."""
    lines = [d["what"] for d in facts["damaged"]]
    size = f"{facts['files']:,} files, {facts['nbytes']:,} bytes"
    if facts["kind"] == "output" and facts["rows"] is not None:
        size += f", {facts['rows']:,} rows"
    lines += [_generation(g) for g in facts.get("generations", ())]
    lines += [f"output {o['path']!r} is {_STATES[o['state']]}" for o in facts.get("outputs", ())]
    if facts.get("generations") and facts["damaged"]:
        good = facts["good"]
        lines.append(f"a start goes on from the checkpoint of entry {good}" if good is not None else
                     "no checkpoint is whole: a start begins anew")
    count = len(facts["damaged"])
    verdict = f"is damaged in {count:,} {'place' if count == 1 else 'places'}" if count else "is whole"
    return [*lines, f"{facts['path']}: the {facts['kind']} {verdict}: {size} were compared in {facts['seconds']:.1f} s"]


_STATES = {"whole": "whole", "damaged": "damaged", "gone": "gone: it was moved or removed since", "replaced": "another one: it was replaced since"}


def _generation(told: dict[str, Any]) -> str:
    return (f"checkpoint of entry {told['slot']} (attempt {told['epoch']}, {told['written']}) is {'whole' if told['whole'] else 'damaged'}: "
            f"{told['files']:,} files, {told['nbytes']:,} bytes")
