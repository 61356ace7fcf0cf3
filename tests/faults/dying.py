"""A job whose ranks die where `DEATHS` says: messages of the user's, reading, two exchanges, aggregation, a sort, two outputs, a collected result."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import hpcmr as mr
from hpcmr import count, mean
from hpcmr import sum as total
from hpcmr.api.table import Table
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.plan.nodes import Read
from tests.support import deaths

SPLIT_NBYTES = 64 << 10      # 18 pieces

deaths.arm()


@mr.batch
def look(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.01)        # so that every rank has its share of the pieces
    deaths.here("reading")
    return batch


def ring(ctx: Any) -> None:
    """Each rank waits for the one before it, most of them for one that lives."""
    if ctx.rank:
        ctx.comm.recv(source=ctx.rank - 1)
    if ctx.rank + 1 < ctx.size:
        ctx.comm.send(None, dest=ctx.rank + 1)


def job(ctx: Any) -> None:
    deaths.here("user")
    ring(ctx)
    part = {"key": np.arange(ctx.rank, 1000, ctx.size) % 7}
    mr.from_arrays(ctx.comm, part).group_by("key").agg(n=count()).write_hdf5(ctx.output("held"))        # of rows that die with their ranks
    source = Hdf5Source(ctx.params["input"], "/events", ["key", "hard", "value"], split_nbytes=SPLIT_NBYTES)
    rows = Table(Read("events", "dying.py", source)).map(look)
    rows.group_by("key").agg(total=total("hard"), n=count(), m=mean("value")).write_hdf5(ctx.output("stats"))
    ctx.log.info("%d keys", len(rows.group_by("key").agg(n=count()).collect()))
    rows.sort_by("value").write_hdf5(ctx.output("sorted"))
