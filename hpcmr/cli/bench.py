"""``hpcmr bench``: what this machine and its MPI can do, beside what we make of it. To run on your own cluster.

A benchmark is a function that takes the parsed arguments and returns figures; ``@bench`` puts it into the registry. It runs on
every rank that the launcher started, and rank 0 prints what it returns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = list[tuple[str, float, str]]        # what, value, unit


@dataclass(frozen=True)
class Bench:
    name: str
    summary: str
    function: Callable[[argparse.Namespace], Figures]


BENCHES: dict[str, Bench] = {}


def bench(name: str, summary: str) -> Callable[[Callable[[argparse.Namespace], Figures]], Callable[[argparse.Namespace], Figures]]:
    """Register a benchmark: ``@bench("read", "reading HDF5 columns")`` on a function of the arguments that returns figures."""

    def add(function: Callable[[argparse.Namespace], Figures]) -> Callable[[argparse.Namespace], Figures]:
        BENCHES[name] = Bench(name, summary, function)
        return function

    return add


def add_parser(subparsers: Any) -> None:
    names = "\n".join(f"  {b.name:10s} {b.summary}" for b in BENCHES.values())
    parser = subparsers.add_parser("bench", help="measure this machine", formatter_class=argparse.RawDescriptionHelpFormatter,
                                   description="Measure what this machine can do and what hpcmr makes of it.\n\nbenchmarks:\n" + names,
                                   epilog="for example: python -m hpcmr launch -n 4 bench exchange")
    parser.add_argument("name", choices=sorted(BENCHES), metavar="NAME", help="which benchmark")
    parser.add_argument("--size", type=size_of, default=1 << 30, metavar="SIZE", help="bytes per rank, for example 256M (default 1G)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measurements of each kind; the median counts (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def size_of(text: str) -> int:
    """Bytes of ``256M``, ``1GiB``, ``4096``."""
    number = text.rstrip("iBb").rstrip("KMGTkmgt")
    unit = text[len(number):].rstrip("iBb").upper()
    try:
        return int(float(number) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; for example 256M, 1G, 4096") from None


def run(args: argparse.Namespace) -> int:
    from hpcmr.comm.world import World

    world = World.of()
    figures = BENCHES[args.name].function(args)
    if world.rank == 0 and args.json:
        said = {what: {"value": value, "unit": unit} for what, value, unit in figures}
        print(json.dumps({"bench": args.name, "ranks": world.size, "nodes": world.node_count, **said}))
    elif world.rank == 0:
        for what, value, unit in figures:
            print(f"{what:52s} {value:10.3f} {unit}")
        sys.stdout.flush()
    return 0


def seconds_of(world: Any, function: Callable[[], object]) -> float:
    """Wall-clock seconds that `function` takes on all ranks together."""
    world.barrier()
    began = time.perf_counter()
    function()
    world.barrier()
    return time.perf_counter() - began


@bench("exchange", "rows to their owners, against a raw MPI Alltoallv of the same bytes")
def exchange(args: argparse.Namespace) -> Figures:
    """One int64 and one float64 column, rows grouped by destination; planning, counts, checks and placement are inside the clock."""
    import numpy as np

    from hpcmr.comm.buffers import Buffers
    from hpcmr.comm.exchange import exchange as send
    from hpcmr.comm.world import World
    from hpcmr.data.batch import Batch, FixedColumn
    from hpcmr.data.partitioning import Partitioned, owner_bounds, partition_count

    world = World.of()
    rows = max(world.size, args.size // 16)
    partitions = max(world.size, partition_count(16 * rows * world.size))
    key, value = np.arange(rows, dtype=np.int64), np.ones(rows)
    part = Partitioned(Batch({"key": FixedColumn(key), "value": FixedColumn(value)}), rows * np.arange(partitions + 1, dtype=np.int64) // partitions)
    pool = Buffers(64 * rows)

    def ours() -> None:
        bounds = owner_bounds(world.allreduce(np.diff(part.starts) * 16), world.size)
        got = send(world, part, bounds, copy_self=True, buffers=pool)
        assert sum(p.batch.nrows for p in got) > 0

    bounds = owner_bounds(np.diff(part.starts), world.size)
    counts = np.diff(part.starts[bounds])
    recvcounts = world.alltoall(counts.reshape(-1, 1))[:, 0]

    def raw() -> None:
        for column in (key, value):
            out = pool.take(int(recvcounts.sum()), column.dtype)
            if world.comm is None:
                np.copyto(out, column)
            else:
                world.comm.Alltoallv([column, counts], [out, recvcounts])
            kept.append(out)
        kept.clear()

    kept: list[Any] = []
    packed = (np.empty_like(key), np.empty_like(value))
    destination = np.random.default_rng(world.rank).permutation(np.repeat(np.arange(world.size, dtype=np.uint16), counts))

    def packing() -> None:
        _pack((key, value), destination, counts, packed)

    times: dict[str, list[float]] = {"raw": [], "ours": [], "packing": []}
    for turn in range(args.repeat + 1):           # the first turn touches the memory
        for name, function in (("raw", raw), ("ours", ours), ("packing", packing)):
            taken = seconds_of(world, function)
            if turn:
                times[name].append(taken)
    nbytes = 16.0 * rows * world.size
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return [("raw Alltoallv", nbytes / seconds["raw"] / 1e9, "GB/s of all ranks"),
            ("hpcmr exchange", nbytes / seconds["ours"] / 1e9, "GB/s of all ranks"),
            ("hpcmr / raw", 100 * seconds["raw"] / seconds["ours"], "%"),
            ("packing of rows in random order, beside it", nbytes / seconds["packing"] / 1e9, "GB/s of all ranks"),
            ("exchange with packing", nbytes / (seconds["ours"] + seconds["packing"]) / 1e9, "GB/s of all ranks")]


def _pack(columns: tuple[Any, ...], destination: Any, counts: Any, out: tuple[Any, ...]) -> None:
    """Group rows by destination, in order, as a shuffle does."""
    from hpcmr.comm.blocks import displs_of
    from hpcmr.data.scatter import scatter_fixed

    for column, place in zip(columns, out, strict=True):
        scatter_fixed(column, destination, displs_of(counts), place)


@bench("text", "text files in lines and in words, against a plain read of the same bytes")
def text(args: argparse.Namespace) -> Figures:
    """A file per rank in the temporary folder, in the page cache; each rank reads its own."""
    import tempfile
    from pathlib import Path

    import numpy as np

    from hpcmr.comm.world import World
    from hpcmr.io.text import BLOCK_NBYTES, TextSource
    from hpcmr.ops.contract import Origin
    from hpcmr.ops.words import Words

    world = World.of()
    alphabet = np.frombuffer(b"etaoinshrdlucm" * 6 + b" " * 15 + b"\n", np.uint8)
    letters = np.random.default_rng(world.rank).choice(alphabet, 1 << 20)
    with tempfile.TemporaryDirectory(prefix="hpcmr-bench-") as folder:
        path = Path(folder) / "text.txt"
        with open(path, "wb") as file:
            for done in range(0, args.size, letters.size):
                file.write(letters[:args.size - done].data)
        lines, blocks, step = TextSource(path), TextSource(path, whole_blocks=True), Words()
        splits = lines.survey()[1]
        target = memoryview(bytearray(BLOCK_NBYTES))

        def plain() -> int:
            with open(path, "rb", buffering=0) as raw:
                return sum(iter(lambda: raw.readinto(target), 0))

        def read_lines() -> int:
            return sum(batch.nrows for split in splits for batch in lines.read(split))

        def read_words() -> int:
            return sum(step.apply(batch, Origin(split.index, 0)).nrows for split in splits for batch in blocks.read(split))

        works: dict[str, Callable[[], int]] = {"plain read": plain, "lines": read_lines, "words": read_words}
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(args.repeat + 1):       # the first turn loads the kernels and touches the memory
            for name, work in works.items():
                taken = seconds_of(world, work)
                if turn:
                    times[name].append(taken)
    return [(name, args.size * world.size / statistics.median(taken) / 1e9, "GB/s of all ranks") for name, taken in times.items()]


from hpcmr.cli import bench_read  # noqa: E402, F401  (registers itself)
