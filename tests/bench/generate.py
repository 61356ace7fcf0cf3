"""The benchmark's inputs: ``python tests/bench/generate.py [W1 W2a W2b W2c W3a W3b W4] [--scale 1.0]``, about 17 GB in ``$HPCMR_BENCH/data``.

W1: 1 GB of words, Zipf over a million. W2a, b, c: 100 million rows of (k int64, v float64): a million even keys, Zipf 1.2 keys, 50 million
distinct keys; as HDF5 for us and Parquet for the peers. Values are multiples of 2^-10, so that every sum is exact and all results can be
compared; W2r has the keys of W2a and values whose sums do round. W3a: 100 million rows of a random key and a payload (k, p int64). W3b: 10
million records of 100 bytes with a key of 10, as text, HDF5 (``rec``) and Parquet (k, p). Needs numpy, h5py and pyarrow.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench"))
DATA = ROOT / "data"
FILES = 8
SEED = 20260101


def scrambled(ids: np.ndarray) -> np.ndarray:
    """Ids to keys all over int64, one to one (the finisher of splitmix64)."""
    x = ids.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(1)).view(np.int64)


def even_values(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 1 << 20, n).astype(np.float64) / 1024


def table(name: str, k: np.ndarray, v: np.ndarray) -> None:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = DATA / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    cuts = [len(k) * i // FILES for i in range(FILES + 1)]
    for i, (a, b) in enumerate(pairwise(cuts)):
        part = pa.table({"k": k[a:b], "v": v[a:b]})
        pq.write_table(part, folder / f"part{i:02d}.parquet", compression="none", use_dictionary=False, row_group_size=1 << 20)
    with h5py.File(DATA / f"{name}.h5", "w") as f:
        f["k"], f["v"] = k, v


def zipf_ids(rng: np.random.Generator, n: int, values: int, power: float) -> np.ndarray:
    weights = np.arange(1, values + 1, dtype=float) ** -power
    cdf = np.cumsum(weights / weights.sum())
    return np.concatenate([np.minimum(np.searchsorted(cdf, rng.random(m)), values - 1) for m in np.diff(np.linspace(0, n, 11).astype(int))])


def vocabulary(rng: np.random.Generator, n: int) -> list[bytes]:
    """Distinct words of letters; frequent ones are shorter."""
    words: dict[bytes, None] = {}
    rank = 0
    while len(words) < n:
        m = 1 << 18
        lengths = np.clip(np.rint(rng.normal(2.5 + 0.45 * np.log1p(np.arange(rank, rank + m)), 1.8)), 1, 20).astype(int)
        often = np.linspace(2, 0.1, 26)
        letters = rng.choice(np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", np.uint8), int(lengths.sum()), p=often / often.sum()).tobytes()
        ends = np.cumsum(lengths)
        words.update((letters[a:b], None) for a, b in zip(ends - lengths, ends, strict=True))
        rank += m
    return list(words)[:n]


def w1(scale: float) -> None:
    words = np.array(vocabulary(np.random.default_rng([SEED, 1]), 1_000_000), object)
    folder = DATA / "W1"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(FILES):
        rng = np.random.default_rng([SEED, 1, i])
        left = int(1e9 * scale) // FILES
        with (folder / f"text{i:02d}.txt").open("wb") as f:
            while left > 0:
                chosen = words[zipf_ids(rng, min(200_000, left // 4 + 1), len(words), 1.0)].tolist()
                lines = b"\n".join(b" ".join(chosen[j:j + 12]) for j in range(0, len(chosen), 12)) + b"\n"
                left -= f.write(lines)


def w2(name: str, scale: float) -> None:
    n = int(100e6 * scale)
    rng = np.random.default_rng([SEED, 2, ord(name[-1])])
    if name == "W2b":
        ids = zipf_ids(rng, n, 10_000_000, 1.2)
    elif name == "W2c":
        ids = rng.permutation(np.arange(n) % max(1, n // 2))
    else:
        ids = rng.integers(0, 1_000_000, n)
    table(name, scrambled(ids), rng.normal(size=n) if name == "W2r" else even_values(rng, n))


def w3a(scale: float) -> None:
    n = int(100e6 * scale)
    columns({"k": np.random.default_rng([SEED, 3, 1]).integers(0, 1 << 62, n), "p": np.arange(n)}, "W3a")


def columns(named: dict[str, np.ndarray], name: str) -> None:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = DATA / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    n = len(next(iter(named.values())))
    for i, (a, b) in enumerate(pairwise([n * i // FILES for i in range(FILES + 1)])):
        part = pa.table({k: v[a:b] for k, v in named.items()})
        pq.write_table(part, folder / f"part{i:02d}.parquet", compression="none", use_dictionary=False, row_group_size=1 << 20)
    with h5py.File(DATA / f"{name}.h5", "w") as f:
        for k, v in named.items():
            f[k] = v


def w4(scale: float) -> None:
    """50 million rows with a key, of which ten in eleven are among the 5 million of the other table."""
    n, m = int(50e6 * scale), int(5e6 * scale)
    rng = np.random.default_rng([SEED, 4])
    columns({"k": scrambled(rng.permutation(m)), "w": rng.integers(0, 64, m) / 8.0, "g": rng.integers(0, 1000, m).astype(np.int32)}, "W4_dim")
    columns({"k": scrambled(rng.integers(0, int(m * 1.1), n)), "v": even_values(rng, n)}, "W4_fact")


def w3b(scale: float) -> None:
    """Records as of gensort: 10 printable bytes of key, the row's number in hexadecimal, filler, CR LF."""
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = int(10e6 * scale)
    rng = np.random.default_rng([SEED, 3, 2])
    a = np.full((n, 100), 32, np.uint8)
    a[:, :10] = rng.integers(33, 127, (n, 10), dtype=np.uint8)
    digits, ids = np.frombuffer(b"0123456789ABCDEF", np.uint8), np.arange(n)
    a[:, 12:44] = 48
    for j in range(8):
        a[:, 43 - j] = digits[(ids >> (4 * j)) & 15]
    a[:, 46:98] = np.repeat(rng.integers(65, 91, (n, 13), dtype=np.uint8), 4, axis=1)
    a[:, 98:] = 13, 10
    a.tofile(DATA / "W3b.dat")
    with h5py.File(DATA / "W3b.h5", "w") as f:
        f["rec"] = a
    folder = DATA / "W3b.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(FILES):
        b = a[n * i // FILES:n * (i + 1) // FILES]
        k, v = (pa.Array.from_buffers(pa.binary(w), len(b), [None, pa.py_buffer(np.ascontiguousarray(c))]).cast(pa.binary())
                for w, c in ((10, b[:, :10]), (90, b[:, 10:])))
        pq.write_table(pa.table({"k": k, "p": v}), folder / f"part{i:02d}.parquet", compression="none", use_dictionary=False, row_group_size=1 << 18)


def main() -> None:
    makers: dict[str, Any] = {"W1": w1, **{n: (lambda s, n=n: w2(n, s)) for n in ("W2a", "W2b", "W2c", "W2r")}, "W3a": w3a, "W3b": w3b,
                              "W4": w4}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=list(makers))
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    for work in args.works:
        makers[work](args.scale)
        print(work, flush=True)


if __name__ == "__main__":
    main()
