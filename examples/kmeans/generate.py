"""Make points in clouds: python generate.py FILE [--rows N]. 16 bytes a row; the same rows on every call."""

import argparse
from pathlib import Path

import h5py
import numpy as np

BLOCK = 1 << 20
CLOUDS = 12


def generate(path: Path, rows: int) -> None:
    """Write ``/points/{x, y} (n,) float64``: round clouds of different sizes."""
    rng = np.random.default_rng(20260102)
    centres, widths = rng.uniform(-10, 10, (CLOUDS, 2)), rng.uniform(0.2, 2, CLOUDS)
    with h5py.File(path, "w") as file:
        group = file.create_group("points")
        columns = [group.create_dataset(name, (rows,), "float64") for name in ("x", "y")]
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            cloud = rng.integers(0, CLOUDS, n)
            points = centres[cloud] + widths[cloud, None] * rng.standard_normal((n, 2))
            for axis, column in enumerate(columns):
                column[start:start + n] = points[:, axis]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=4_000_000, help="number of points (default 4,000,000: 64 MB)")
    args = parser.parse_args()
    generate(args.file, args.rows)
