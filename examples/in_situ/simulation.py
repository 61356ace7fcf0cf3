"""A particle simulation on many ranks that is analysed while it runs: every few steps a map of the box is written, particles never are.

    mpirun -n 4 python simulation.py --particles 100000 --steps 40 --every 10 --out maps.h5
"""

from __future__ import annotations

import argparse

import h5py
import numpy as np
import physics
from mpi4py import MPI

import hpcmr as mr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--out", default="maps.h5")
    args = parser.parse_args()

    comm = MPI.COMM_WORLD.Split(0, MPI.COMM_WORLD.rank)             # any communicator of the program's own
    p = mr.scatter(comm, physics.start(args.particles) if comm.rank == 0 else None)
    for step in range(1, args.steps + 1):
        physics.move(p)
        # Each rank owns a slab of the box; particles that left it go to its owner.
        owner = np.minimum((p["position"][:, 0] * comm.size).astype(int), comm.size - 1)
        p = mr.shuffle(comm, p, dest=owner)
        if step % args.every == 0:
            analyse(comm, p, args.out, step)
    comm.Free()


def analyse(comm: MPI.Comm, p: physics.Particles, out: str, step: int) -> None:
    """Sums over the cells of the box: from all particles to a few rows, which rank 0 writes."""
    rows = {"cell": physics.cells(p), "mass": p["mass"], "energy": physics.energies(p)}
    sums = mr.reduce_by_key(comm, rows, key="cell", aggs={"n": mr.count(), "mass": mr.sum("mass"), "energy": mr.sum("energy")})
    sums = mr.sort(comm, sums, by="cell")
    everything = mr.gather(comm, sums, root=0)
    if everything is None:
        return
    with h5py.File(out, "a") as file:
        group = file.create_group(f"step-{step:05d}")
        for name, values in everything.items():
            group[name] = values
    print(f"step {step}: {len(everything['cell'])} cells, energy {everything['energy'].sum():.6g}", flush=True)


if __name__ == "__main__":
    main()
