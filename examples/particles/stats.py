"""Statistics of the particles in each cell of a snapshot.

mpirun -n 4 python -m hpcmr job stats.py --set input=snapshot.h5 --set output.path=stats
"""

import hpcmr as mr


def job(ctx):
    particles = mr.read_hdf5(ctx.params["input"], "/particles", columns=["cell", "energy"])
    stats = particles.group_by("cell").agg(n=mr.count(), total=mr.sum("energy"), mean=mr.mean("energy"),
                                           spread=mr.std("energy"), low=mr.min("energy"), high=mr.max("energy"))
    stats.write_hdf5(ctx.output("stats"))
