"""A job whose ranks die where `DEATHS` says: reading, two exchanges, aggregation, a sort, two outputs, a collected result."""

from __future__ import annotations

import time
from typing import Any

import hpcmr as mr
from hpcmr import count, mean
from hpcmr import sum as total
from tests.support import deaths

deaths.arm()


@mr.batch
def look(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.01)        # so that every rank has its share of the pieces
    deaths.here("reading")
    return batch


def job(ctx: Any) -> None:
    rows = mr.read_hdf5(ctx.params["input"], "/events").map(look)
    rows.group_by("key").agg(total=total("hard"), n=count(), m=mean("value")).write_hdf5(ctx.output("stats"))
    ctx.log.info("%d keys", len(rows.group_by("key").agg(n=count()).collect()))
    rows.sort_by("value").write_hdf5(ctx.output("sorted"))
