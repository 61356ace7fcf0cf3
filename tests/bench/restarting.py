"""The job of `restart.py`: statistics by key, then a sort, both to files. ``scale`` is how often the rows of the statistics are read, and eight
times as often as those of the sort; ``work`` which rows.

A line of JSON at the end: when the job began and ended, and what checkpoints took.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import hpcmr as mr
from hpcmr.run.session import current


def job(ctx: Any) -> None:
    began = time.time()
    data, scale = Path(ctx.params["data"]), int(ctx.params["scale"])
    stats = mr.read_hdf5([str(data / f"{ctx.params['work']}.h5")] * scale, "/", columns=["k", "v"])
    aggs = {"s": mr.sum("v"), "c": mr.count(), "mn": mr.min("v"), "mx": mr.max("v"), "m": mr.mean("v"), "sd": mr.std("v")}
    stats.group_by("k").agg(**aggs).write_hdf5(ctx.output("stats"))
    middle = time.time()
    rows = mr.read_hdf5([str(data / "W3a.h5")] * max(1, scale // 8), "/", columns=["k", "p"])
    rows.sort_by("k").write_hdf5(ctx.output("sorted"))
    kept = current(None).checkpoints
    told = {"rank": ctx.rank, "began": began, "middle": middle, "ended": time.time(), "pid": os.getpid(),
            "committed": kept.committed if kept else 0, "blocked_s": kept.blocked_s if kept else 0.0, "writing_s": kept.writing_s if kept else 0.0}
    with Path(ctx.params["log"]).open("a") as log:
        log.write(json.dumps(told) + "\n")
