"""PageRank of an edge list. --set input=FILE [--set damping=0.85] [--set tolerance=1e-9]"""

import hpcmr as mr


def one(table, aggregate):
    """An aggregate over all rows; 0 of no rows."""
    found = table.with_columns(everything=0).group_by("everything").agg(value=aggregate).collect()
    return float(found["value"][0]) if len(found) else 0.0


def job(ctx):
    damping, tolerance = ctx.params.get("damping", 0.85), ctx.params.get("tolerance", 1e-9)
    edges = mr.read_hdf5(ctx.params["input"], "/edges", columns=["source", "target"]).persist(key="source")
    degrees = edges.group_by("source").agg(degree=mr.count()).rename(source="page")
    ends = edges.select(page=mr.col("source")).union(edges.select(page=mr.col("target"))).distinct()
    pages = ends.join(degrees, on="page", how="left").with_columns(degree=mr.col("degree").fill_null(0)).persist(key="page")
    n = one(pages, mr.count())

    def step(ranks):
        lost = one(ranks.filter(mr.col("degree") == 0), mr.sum("rank"))          # pages without links give to all
        givers = ranks.filter(mr.col("degree") > 0).select("page", share=mr.col("rank") / mr.col("degree"))
        given = edges.join(givers, left_on="source", right_on="page").group_by("target").agg(given=mr.sum("share"))
        rank = (1 - damping) / n + damping * lost / n + damping * mr.col("given").fill_null(0.0)
        moved = ranks.join(given, left_on="page", right_on="target", how="left").with_columns(new=rank)
        return moved.select("page", "degree", rank=mr.col("new"), change=(mr.col("new") - mr.col("rank")).abs())

    def settled(before, after):
        return one(after, mr.max("change")) < tolerance

    ranks = mr.iterate(pages.with_columns(rank=1.0 / n), step, count=100, until=settled)
    ranks.select("page", "rank").sort_by("rank", "page", descending=[True, False]).write_hdf5(ctx.output("ranks"))
