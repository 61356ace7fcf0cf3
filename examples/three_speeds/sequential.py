"""Energy by shell of radius on one core: python sequential.py FILE"""

import math
import sys
from pathlib import Path

import h5py
import numpy as np


def shells(path: Path) -> dict[int, tuple[int, float]]:
    """Number of particles and exact sum of their energy, by shell."""
    with h5py.File(path) as file:
        x, y, z = (file["particles/position"][:] - 0.5).T
        energy = file["particles/energy"][:]
    shell = (20.0 * np.sqrt(x * x + y * y + z * z)).astype(np.int64)
    return {int(s): (int((shell == s).sum()), math.fsum(energy[shell == s])) for s in np.unique(shell)}


if __name__ == "__main__":
    for shell, (n, energy) in shells(Path(sys.argv[1])).items():
        print(shell, n, energy, sep=",")
