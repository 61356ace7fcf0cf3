"""Make links between pages: python generate.py FILE [--pages N] [--links M]. 16 bytes a link; the same links on every call."""

import argparse
from pathlib import Path

import h5py
import numpy as np


def generate(path: Path, pages: int, links: int) -> None:
    """Write ``/edges/{source, target} (links,) int64``: few pages get most of the links, and some have none."""
    rng = np.random.default_rng(20260103)
    with h5py.File(path, "w") as file:
        group = file.create_group("edges")
        group["source"] = (pages * rng.random(links) ** 1.5).astype(np.int64) * 7
        group["target"] = (pages * rng.random(links) ** 4).astype(np.int64)[::-1] * 7 + 7


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--links", type=int, default=2_000_000, help="number of links (default 2,000,000: 32 MB)")
    args = parser.parse_args()
    generate(args.file, args.pages, args.links)
