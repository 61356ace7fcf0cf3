"""K-means with NumPy on one core, with sums that are rounded once: python sequential.py FILE [K]"""

import math
import sys
from pathlib import Path

import h5py
import numpy as np


def kmeans(path: Path, k: int = 8, steps: int = 100) -> dict[int, tuple[int, float, float]]:
    """Number of points and mean of each cluster that has points. The first `k` points are the centres to begin with."""
    with h5py.File(path) as file:
        x, y = file["points/x"][:], file["points/y"][:]
    centres = np.column_stack([x[:k], y[:k]])
    for _ in range(steps):
        before = centres.copy()
        for number, (_, cx, cy) in means(x, y, centres).items():
            centres[number] = cx, cy
        if np.array_equal(before, centres):
            break
    return means(x, y, centres)


def means(x: np.ndarray, y: np.ndarray, centres: np.ndarray) -> dict[int, tuple[int, float, float]]:
    distances = np.array([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres])
    numbers = np.argmin(distances, axis=0)
    found = {}
    for number in np.unique(numbers).tolist():
        mine = numbers == number
        n = int(mine.sum())
        found[number] = n, math.fsum(x[mine]) / n, math.fsum(y[mine]) / n
    return found


if __name__ == "__main__":
    for cluster, (n, x, y) in kmeans(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8).items():
        print(cluster, n, x, y, sep=",")
