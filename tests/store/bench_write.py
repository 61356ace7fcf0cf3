"""How fast an output is written, beside plain write + fsync of as many bytes. Run by hand: python tests/store/bench_write.py [FOLDER]

Each round writes both, one after the other, and puts what each leaves to the disk behind it before the clock starts again.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import h5py  # noqa: F401  (loaded before the clock starts)
import numpy as np

from hpcmr.data.batch import Batch, BytesColumn
from hpcmr.store.publish import publish
from hpcmr.store.writer import TableWriter

ROUNDS = 9
TOTAL = 1 << 30


def plain(folder: Path, block: bytes, count: int) -> float:
    start = time.perf_counter()
    fd = os.open(folder / "raw", os.O_CREAT | os.O_WRONLY, 0o600)
    for _ in range(count):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)
    taken = time.perf_counter() - start
    os.unlink(folder / "raw")
    os.sync()
    return taken


def ours(folder: Path, batch: Batch, count: int) -> float:
    start = time.perf_counter()
    writer = TableWriter(folder / "out", 0, batch.schema, attempt="bench")
    for i in range(count):
        writer.append(i, batch)
    publish(folder / "out", batch.schema, writer.close(), attempt="bench")
    taken = time.perf_counter() - start
    shutil.rmtree(folder / "out")
    os.sync()
    return taken


def batch_of(kind: str, nbytes: int) -> tuple[Batch, int]:
    rng = np.random.default_rng(1)
    if kind == "fixed":
        n = nbytes // 24
        return Batch.of({"key": rng.integers(0, 1 << 40, n), "x": rng.random(n), "y": rng.random(n)}), n * 24
    n = nbytes // 26
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 20, n))]).astype(np.int64)
    word = BytesColumn.from_offsets(offsets, rng.integers(97, 123, int(offsets[-1])).astype(np.uint8), True)
    return Batch({"word": word, "n": Batch.of({"n": np.arange(n)})["n"]}), 16 * n + int(offsets[-1])


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        for kind, mib in (("fixed", 1), ("fixed", 8), ("text", 1)):
            batch, nbytes = batch_of(kind, mib << 20)
            block = np.random.default_rng(0).bytes(nbytes)
            count = TOTAL // nbytes
            times = np.array([(plain(folder, block, count), ours(folder, batch, count)) for _ in range(ROUNDS)])
            low, middle = times.min(axis=0), np.median(times, axis=0)
            print(f"{kind}, batches of {mib} MiB: plain {middle[0]:.2f} s, ours {middle[1]:.2f} s (medians; ratio {middle[0] / middle[1]:.2f}); "
                  f"best {low[0]:.2f} and {low[1]:.2f} s (ratio {low[0] / low[1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
