"""Make a particle snapshot: python generate.py FILE [--rows N]. About 40 bytes a row; the same rows on every call."""

import argparse
from pathlib import Path

import h5py
import numpy as np

BLOCK = 1 << 20
CELLS = 64     # along each axis of the box


def generate(path: Path, rows: int) -> None:
    """Write ``/particles/{cell (n,) int64, energy (n,) float64, position (n, 3) float64}``: clusters in a box of side 1."""
    rng = np.random.default_rng(20260101)
    centres = rng.random((200, 3))
    with h5py.File(path, "w") as file:
        header = file.create_group("Header")
        header.attrs["Redshift"] = 0.5
        group = file.create_group("particles")
        cell = group.create_dataset("cell", (rows,), "int64")
        energy = group.create_dataset("energy", (rows,), "float64")
        position = group.create_dataset("position", (rows, 3), "float64")
        energy.attrs["units"] = "erg"
        position.attrs["units"] = "Mpc"
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            place = (centres[rng.integers(0, len(centres), n)] + 0.02 * rng.standard_normal((n, 3))) % 1.0
            grid = (place * CELLS).astype(np.int64) % CELLS
            cell[start:start + n] = (grid[:, 0] * CELLS + grid[:, 1]) * CELLS + grid[:, 2]
            energy[start:start + n] = rng.lognormal(sigma=2.0, size=n)
            position[start:start + n] = place


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=8_000_000, help="number of particles (default 8,000,000: 320 MB)")
    args = parser.parse_args()
    generate(args.file, args.rows)
