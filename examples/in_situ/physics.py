"""Particles in a periodic box around fixed attractors.

Only additions, products, divisions and square roots, which round the same everywhere: a particle's path has the same bits on whichever rank it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Particles = dict[str, NDArray]

ATTRACTORS = ((0.3, 0.3, 0.02), (0.7, 0.4, 0.03), (0.5, 0.8, 0.01))      # x, y, strength
SOFT = 1e-3
DT = 0.05
CELLS = 16                                                                # along each side of the box


def start(n: int) -> Particles:
    """`n` particles at rest."""
    rng = np.random.default_rng(1)
    return {"id": np.arange(n), "mass": rng.lognormal(0, 2, n), "position": rng.random((n, 2)), "velocity": np.zeros((n, 2))}


def move(p: Particles) -> None:
    """One step in time, in place."""
    for x, y, strength in ATTRACTORS:
        away = np.array([x, y]) - p["position"]
        r2 = away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1] + SOFT
        p["velocity"] += away * (DT * strength / (r2 * np.sqrt(r2)))[:, None]
    p["position"] += DT * p["velocity"]
    p["position"] -= np.floor(p["position"])


def cells(p: Particles) -> NDArray[np.int64]:
    """Number of the cell that each particle is in."""
    x, y = np.minimum((p["position"] * CELLS).astype(np.int64), CELLS - 1).T
    return x * CELLS + y


def energies(p: Particles) -> NDArray[np.float64]:
    """Kinetic energy of each particle."""
    v = p["velocity"]
    return 0.5 * p["mass"] * (v[:, 0] * v[:, 0] + v[:, 1] * v[:, 1])
