"""``hpcmr inspect``: what an output holds, in which files, and who wrote it from what."""

from __future__ import annotations

import argparse
import json
from typing import Any

INPUTS_SHOWN = 10
SHARDS_SHOWN = 10


def add_parser(subparsers: Any) -> None:
    """Add ``inspect`` to the commands."""
    parser = subparsers.add_parser("inspect", help="describe an output: schema, rows, bytes, shards, who wrote it, from what",
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Describe an output: schema, rows, bytes, shards, who wrote it, from what. No row is read.")
    parser.add_argument("path", metavar="PATH", help="folder that a job has written")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.output import open as open_output

    with open_output(args.path) as output:
        facts = output.describe()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)).encode("utf-8", "backslashreplace").decode(), flush=True)
    return 0


def _lines(facts: dict[str, Any]) -> list[str]:
    shards, inputs = facts["shards"], facts["inputs"]
    lines = [f"path      {facts['path']}", f"format    {facts['format']} version {facts['version']}", f"rows      {facts['rows']:,}",
             f"bytes     {facts['nbytes']:,} in {len(shards)} {'shard' if len(shards) == 1 else 'shards'}", f"created   {facts['created']}"]
    lines += [f"{'writer' if i == 0 else '':9} {k}: {_shown(v)}" for i, (k, v) in enumerate(facts["writer"].items())]
    lines += [f"{'inputs' if i == 0 else '':9} {_shown(v)}" for i, v in enumerate(inputs[:INPUTS_SHOWN])]
    lines += [f"{'':9} and {len(inputs) - INPUTS_SHOWN:,} more"] if len(inputs) > INPUTS_SHOWN else []
    width = max([len(c["name"]) for c in facts["schema"]], default=0)
    lines += ["", "columns"] + [f"  {c['name']:{width}}  {c['type']}{_attributes(c['attrs'])}" for c in facts["schema"]]
    lines += ["", "shards"]
    lines += [f"  {s['name']}  {s['rows']:>14,} rows  {s['nbytes']:>16,} bytes  xxh3-128:{s['digest']}" for s in shards[:SHARDS_SHOWN]]
    return lines + ([f"  and {len(shards) - SHARDS_SHOWN:,} more"] if len(shards) > SHARDS_SHOWN else [])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _attributes(attrs: dict[str, Any]) -> str:
    return "  (" + ", ".join(f"{k}: {_shown(v)}" for k, v in attrs.items()) + ")" if attrs else ""
