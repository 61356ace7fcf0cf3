"""The same maps from NumPy and `math.fsum`, on one core, with all particles in one place."""

from __future__ import annotations

import math

import physics

Map = dict[int, tuple[int, float, float]]      # cell -> particles, mass, energy


def maps(n: int, steps: int, every: int) -> dict[int, Map]:
    """The map of every step that is analysed."""
    p = physics.start(n)
    found = {}
    for step in range(1, steps + 1):
        physics.move(p)
        if step % every == 0:
            found[step] = sums(p)
    return found


def sums(p: physics.Particles) -> Map:
    cells, energies = physics.cells(p), physics.energies(p)
    found = {}
    for cell in sorted(set(cells.tolist())):
        here = cells == cell
        found[cell] = int(here.sum()), math.fsum(p["mass"][here]), math.fsum(energies[here])
    return found
