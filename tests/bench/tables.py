"""The tables of docs/explanation/performance.md as Markdown: ``python tests/bench/tables.py [works|limits] [--last 5]``.

``works`` takes the medians of the newest `--last` lines of each work and program from ``$HPCMR_BENCH/results.jsonl``, which
`tests/bench/run.py` writes.
``limits`` sets the bytes that each phase moves beside them: what the memory of this machine would take for these bytes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench"))
WORKS = {"W1": "words of 1 GB of text, counted", "W2a": "100 M rows, 1 M keys: sum, count, min, max", "W2b": "the same, 10 M keys, Zipf 1.2",
         "W2c": "the same, 50 M keys met twice", "W3a": "100 M rows sorted by int64, with a payload",
         "W3b": "10 M records of 100 bytes sorted, file to file", "W4": "50 M rows joined to 5 M, then grouped"}
Medians = dict[str, dict[str, dict[str, float]]]


def medians(path: Path, last: int) -> Medians:
    """Median seconds and MB of the newest lines, by work and program; of ours those that keep the result as the peers do."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["name"] != "hpcmr, published":
            found.setdefault(row["work"], {}).setdefault(row["name"], []).append(row)
    return {work: {name: {k: statistics.median(r[k] for r in rows[-last:]) for k in ("seconds", "peak_mb")} for name, rows in names.items()}
            for work, names in found.items()}


def works(found: Medians) -> str:
    """A line for each work: ours, the peers, and the fastest peer's seconds divided by ours."""
    lines = ["| work | hpcmr, 2 ranks: s | MB | peers, 2 threads: s (MB) | fastest peer / hpcmr |", "|---|---|---|---|---|"]
    for work, what in WORKS.items():
        names = dict(found.get(work, {}))
        ours = names.pop("hpcmr", None)
        if ours is None:
            lines.append(f"| {work}, {what} | not measured | | | |")
            continue
        peers = sorted(names.items(), key=lambda item: item[1]["seconds"])
        told = ", ".join(f"{name} {m['seconds']:.2f} ({m['peak_mb']:,.0f})" for name, m in peers)
        ratio = f"{peers[0][1]['seconds'] / ours['seconds']:.1f}" if peers else ""
        lines.append(f"| {work}, {what} | {ours['seconds']:.2f} | {ours['peak_mb']:,.0f} | {told} | {ratio} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Phase:
    """Bytes that memory takes in and gives out for each row of the input, on all ranks together."""

    name: str
    read: float
    written: float
    fresh: float = 0         # of those written, bytes of memory that nobody has touched before


def moved(ranks: int = 2) -> dict[str, tuple[float, list[Phase]]]:
    """Rows, and phases in order, of each work. What stays in the caches (batches of 1 MiB, a bucket's stretch of a table) is not counted."""
    import numpy as np

    from hpcmr.data.keys import KeyLayout
    from hpcmr.data.records import RecordLayout
    from hpcmr.data.schema import ColumnType, Schema
    from hpcmr.data.sort_keys import SortLayout
    from hpcmr.ops.accumulators import Agg, compile_program
    from hpcmr.ops.rows import BUCKET_ROWS
    from hpcmr.ops.table import LOAD_DENSE, GroupTable

    rows, away = 100e6, (ranks - 1) / ranks
    values = Schema.of({"k": ColumnType.fixed("int64"), "v": ColumnType.fixed("float64")})
    program = compile_program(values, tuple(Agg(f, None if f == "count" else "v", f) for f in ("sum", "count", "min", "max")))
    state = 8 * GroupTable(KeyLayout.of(values, ("k",)), program, 1024, dense=True).words
    pairs = Schema.of({"k": ColumnType.fixed("int64"), "p": ColumnType.fixed("int64")})
    record = 8 * RecordLayout.of(pairs, SortLayout.of(pairs, ("k",)), set()).words
    result = 16 + 8 + 8 + 8                   # key, sum, count, min, max of a group
    keys_a, keys_c = ranks * 1e6 / rows, 0.5  # groups that a row stands for: W2a's are on all ranks until they are merged
    slots = 1 << int(np.ceil(np.log2(1e6 / LOAD_DENSE)))
    stretch = state * slots / 1024 / BUCKET_ROWS                                     # of the table, for each row of a full bucket
    index = 5e6 * 24 / 50e6                                                          # an entry of the join's index: key, w, g
    return {
        "W2a": (rows, [Phase("read", 16, 0), Phase("rows into buckets", 16, 16, 134e6 * ranks / rows),
                       Phase("buckets into the table", 16 + stretch, stretch),
                       Phase("states packed", state * keys_a, state * keys_a, state * keys_a), Phase("exchange", state * keys_a, state * keys_a),
                       Phase("merged, sorted, finished", 2 * state * keys_a, result * keys_a / ranks, result * keys_a / ranks)]),
        "W2c": (rows, [Phase("read", 16, 0), Phase("rows into chunks", 16, 16), Phase("chunks packed by partition", 16, 16),
                       Phase("exchange", 16, 16, 16), Phase("partitions sorted in pairs", 3 * 16, 2 * 16),
                       Phase("groups finished", 16, result * keys_c, result * keys_c)]),
        "W3a": (rows, [Phase("read, sampled", 16, 0), Phase("read again", 16, 0), Phase("records, partition of each", record, record + 2),
                       Phase("scattered by partition", record + 2, record), Phase("exchange", record, record, record),
                       Phase("partitions sorted", 2 * record, 2 * record, record)]),
        "W4": (50e6, [Phase("right side read, held, sent to all", 3 * 20 * 0.1 * ranks * away, 2 * 20 * 0.1 * ranks, 20 * 0.1 * ranks),
                      Phase("index", 20 * 0.1 * ranks + index * ranks, 2 * index * ranks, index * ranks), Phase("left side read", 16, 0),
                      Phase("looked up: a line of tags, one of an entry", 64 + 64, 0), Phase("joined rows grouped (in the cache)", 0, 0)]),
    }


def limits(found: Medians, copy_gb_s: float, fresh_gb_s: float) -> str:
    """What the bytes of each phase would take at the speed of a copy, beside the seconds measured."""
    lines = ["| work, phase | bytes a row: in | out | s at memory's speed |", "|---|---|---|---|"]
    for work, (rows, phases) in moved().items():
        total = 0.0
        for p in phases:
            # To write a line that is not in the cache is to read it first.
            seconds = rows * ((p.read + 2 * p.written) / copy_gb_s + p.fresh / fresh_gb_s) / 1e9
            total += seconds
            lines.append(f"| {work} {p.name} | {p.read:.1f} | {p.written:.1f} | {seconds:.2f} |")
        ours = found.get(work, {}).get("hpcmr")
        measured = f"measured **{ours['seconds']:.2f} s**, memory alone is {100 * total / ours['seconds']:.0f} %" if ours else "not measured"
        lines.append(f"| **{work}** | | | **{total:.2f}**; {measured} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("works", "limits"), default="works")
    parser.add_argument("--last", type=int, default=5, metavar="N", help="newest lines of each work and program that count (default 5)")
    parser.add_argument("--results", type=Path, default=ROOT / "results.jsonl")
    parser.add_argument("--copy", type=float, default=31, metavar="GB/S", help="bytes read and written a second by two ranks that copy")
    parser.add_argument("--fresh", type=float, default=13, metavar="GB/S", help="bytes of memory that two ranks touch for the first time in a second")
    args = parser.parse_args()
    found = medians(args.results, args.last) if args.results.exists() else {}
    print(works(found) if args.what == "works" else limits(found, args.copy, args.fresh))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
