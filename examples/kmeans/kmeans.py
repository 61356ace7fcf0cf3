"""K-means clustering of points in the plane.

mpirun -n 4 python -m hpcmr job kmeans.py --set input=points.h5 --set k=8 --set output.path=clusters
"""

import numpy as np

import hpcmr as mr


def nearest(centres):
    """A function of the columns x and y that gives the number of the nearest centre, the lowest one of several."""

    @mr.batch
    def cluster(columns):
        x, y = columns["x"], columns["y"]
        distances = np.array([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres])
        return np.argmin(distances, axis=0)

    return cluster


def clusters(points, centres):
    """Points of each cluster, and their mean."""
    found = points.with_columns(cluster=nearest(centres)).group_by("cluster").agg(n=mr.count(), x=mr.sum("x"), y=mr.sum("y"))
    return found.with_columns(x=mr.col("x") / mr.col("n"), y=mr.col("y") / mr.col("n"))


def moved(points, centres):
    """Each centre in the middle of its cluster; one without points stays where it is."""
    found = clusters(points, centres).collect()
    centres = centres.copy()
    centres[found["cluster"]] = np.column_stack([found["x"], found["y"]])
    return centres


def job(ctx):
    points = mr.read_hdf5(ctx.params["input"], "/points", columns=["x", "y"]).persist()
    first = points.head(ctx.params.get("k", 8))
    start = np.column_stack([first["x"], first["y"]])
    centres = mr.iterate(start, lambda before: moved(points, before), count=100, until=np.array_equal)
    clusters(points, centres).write_hdf5(ctx.output("clusters"))
