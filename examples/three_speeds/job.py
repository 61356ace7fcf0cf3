"""Energy by shell of radius, with the same function in three speeds.

mpirun -n 4 python -m hpcmr job job.py --set input=snapshot.h5 --set speed=kernel --set output.path=shells
"""

import math

import numpy as np

import hpcmr as mr

SHELLS = 20.0


@mr.kernel(out={"shell": "int64", "energy": "float64"})
def shell_kernel(row, emit):
    x = row.position[0] - 0.5
    y = row.position[1] - 0.5
    z = row.position[2] - 0.5
    emit(int(SHELLS * math.sqrt(x * x + y * y + z * z)), row.energy)


@mr.batch
def shell_batch(cols):
    x, y, z = (cols["position"] - 0.5).T
    return {"shell": (SHELLS * np.sqrt(x * x + y * y + z * z)).astype("int64"), "energy": cols["energy"]}


def shell_plain(row):
    x, y, z = row.position[0] - 0.5, row.position[1] - 0.5, row.position[2] - 0.5
    return {"shell": int(SHELLS * math.sqrt(x * x + y * y + z * z)), "energy": row.energy}


SPEEDS = {"kernel": shell_kernel, "batch": shell_batch, "plain": shell_plain}


def job(ctx):
    speed = SPEEDS[ctx.params.get("speed", "kernel")]
    particles = mr.read_hdf5(ctx.params["input"], "/particles", columns=["energy", "position"])
    moved = particles.flat_map(speed) if speed is shell_kernel else particles.map(speed)
    moved.group_by("shell").agg(n=mr.count(), energy=mr.sum("energy")).write_hdf5(ctx.output("shells"))
