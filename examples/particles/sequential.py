"""Statistics per cell on one core, with exact sums: python sequential.py FILE"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np


class Stats(NamedTuple):
    n: int
    total: float
    mean: float
    low: float
    high: float


def statistics(path: Path) -> dict[int, Stats]:
    """By cell. `math.fsum` rounds once, as hpcmr does, so the sums must be equal to the last bit."""
    with h5py.File(path) as file:
        cell, energy = file["particles/cell"][:], file["particles/energy"][:]
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)
    groups = np.split(energy[order], starts[1:])
    return {int(c): Stats(len(g), math.fsum(g), _mean(g), float(g.min()), float(g.max())) for c, g in zip(cells, groups, strict=True)}


def _mean(values: np.ndarray) -> float:
    """The exact sum divided by the count, rounded once."""
    from fractions import Fraction

    return float(sum(map(Fraction, values.tolist())) / len(values))


if __name__ == "__main__":
    for cell, stats in statistics(Path(sys.argv[1])).items():
        print(cell, *stats, sep=",")
