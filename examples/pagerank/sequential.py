"""The same on one core, with NumPy and `math.fsum`: python sequential.py FILE"""

import math
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np


def sums(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Exact sums of each group, rounded once: ``(count,) float64``."""
    order = np.argsort(groups, kind="stable")
    cuts = np.searchsorted(groups[order], np.arange(count + 1))
    return np.array([math.fsum(values[order[a:b]]) for a, b in pairwise(cuts)])


def pagerank(path: Path, damping: float = 0.85, tolerance: float = 1e-9) -> list[tuple[int, float]]:
    """Pages and their ranks, the highest first."""
    with h5py.File(path) as file:
        source, target = file["edges/source"][:], file["edges/target"][:]
    pages = np.unique(np.concatenate([source, target]))
    n = float(len(pages))
    source, target = np.searchsorted(pages, source), np.searchsorted(pages, target)
    degree = np.bincount(source, minlength=len(pages))
    rank = np.full(len(pages), 1.0 / n)
    for _ in range(100):
        lost = math.fsum(rank[degree == 0])
        given = sums((rank / np.maximum(degree, 1))[source], target, len(pages))
        new = (1 - damping) / n + damping * lost / n + damping * given
        change = np.abs(new - rank).max()
        rank = new
        if change < tolerance:
            break
    order = np.lexsort((pages, -rank))
    return list(zip(pages[order].tolist(), rank[order].tolist(), strict=True))


if __name__ == "__main__":
    for page, rank in pagerank(Path(sys.argv[1]))[:10]:
        print(page, rank)
