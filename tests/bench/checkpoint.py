"""How fast shards of checkpoints are written and read, beside plain writes of the same bytes: prints a table.

    python tests/bench/checkpoint.py [FOLDER] [MiB]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.store import files, paths
from hpcmr.store.pieces import PieceFile, sync_names, write_pieces

TIMES = 5
PARTITIONS = 64


def state(nbytes: int, parts: int, strings: bool) -> list[Partitioned]:
    """What rounds of a shuffle have brought: `parts` pieces of the same partitions, of a key and three sums, or of a key and words."""
    rng = np.random.default_rng(1)
    rows = nbytes // parts // (40 if strings else 32)
    made = []
    for _ in range(parts):
        columns = {"k": FixedColumn(rng.integers(0, 1 << 60, rows))}
        if strings:
            lengths = rng.integers(16, 33, rows)
            ends = np.cumsum(lengths)
            columns["s"] = BytesColumn(ends - lengths, ends, rng.integers(97, 123, int(ends[-1]), dtype=np.uint8), False)
        else:
            columns.update({c: FixedColumn(rng.random(rows)) for c in "abc"})
        made.append(Partitioned(Batch(columns, rows), np.linspace(0, rows, PARTITIONS + 1).astype(np.int64)))
    return made


def plain(folder: Path, nbytes: int, block: np.ndarray) -> None:
    """The least that makes so many bytes durable: blocks of 4 MiB, and one fsync."""
    fd = files.create(folder / "plain")
    for at in range(0, nbytes, len(block)):
        files.write_all(fd, [block[:min(len(block), nbytes - at)]], at)
    files.sync(fd)
    os.close(fd)
    os.unlink(folder / "plain")


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def held(work: Callable[[], None]) -> float:
    """Share of the time in which another thread that wants to run cannot."""
    done, count = threading.Event(), 0
    alone = spins(0.2)

    def other() -> None:
        work()
        done.set()

    thread = threading.Thread(target=other)
    start = time.perf_counter()
    thread.start()
    while not done.is_set():
        count += 1
    took = time.perf_counter() - start
    thread.join()
    return 1 - count / took / alone


def spins(seconds: float) -> float:
    """Turns a second of a loop that has the interpreter for itself."""
    never, count, start = threading.Event(), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(1000):
            if not never.is_set():
                count += 1
    return count / (time.perf_counter() - start)


def measure(folder: Path, name: str, parts: list[Partitioned]) -> None:
    file, infos = paths.piece_file(1, 1, 0, 0), []

    def write() -> None:
        infos.append(write_pieces(folder, file, parts))
        sync_names(folder)

    write()
    nbytes = infos[0]["nbytes"]
    block = np.random.default_rng(2).integers(0, 256, 4 << 20, dtype=np.uint8)
    plain(folder, nbytes, block)
    plains, ours = [], []
    for _ in range(TIMES):
        os.unlink(folder / file)
        plains.append(timed(lambda: plain(folder, nbytes, block)))
        ours.append(timed(write))
    found = PieceFile(folder, infos[0])
    reads = [timed(lambda: found.read(0, PARTITIONS)) for _ in range(3)]
    verifies = [timed(found.verify) for _ in range(3)]
    ones = timed(lambda: [found.read(p, p + 1) for p in range(PARTITIONS)])      # type: ignore[arg-type,return-value]
    busy = held(lambda: found.read(0, PARTITIONS))      # type: ignore[arg-type,return-value]
    os.unlink(folder / file)
    busy_write = held(write)
    os.unlink(folder / file)
    gb = nbytes / 1e9
    rate, base = gb / statistics.median(ours), gb / statistics.median(plains)
    print(f"{name:34} {nbytes / 2**20:5.0f} MiB  plain {base:5.2f}  ours {rate:5.2f} GB/s = {rate / base:4.0%}   read {gb / min(reads):5.2f}  "
          f"by partition {gb / ones:5.2f}  verify {gb / min(verifies):5.2f} GB/s   others wait: write {busy_write:4.0%} read {busy:4.0%}", flush=True)


def main() -> None:
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else "."))
    nbytes = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else 512 << 20
    try:
        for name, parts, strings in (("numbers, one part", 1, False), ("numbers, 16 parts in turn", 16, False), ("words, 4 parts in turn", 4, True)):
            measure(folder, name, state(nbytes, parts, strings))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
