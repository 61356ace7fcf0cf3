"""One job for each verb, slow enough to be killed: 30 splits and more from small files, a pause for each batch.

`FAULT_FILE` may name a place and a rank where a function raises: a file, so that the job that failed and the one that continues it are of the
same code.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import hpcmr as mr
from hpcmr.api.table import Table
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.io.text import TextSource
from hpcmr.plan.nodes import Read


def fault(place: str) -> None:
    """Raise if that is what the file says. What differs between ranks or starts is asked for in here: it is no part of the code."""
    told = Path(os.environ.get("FAULT_FILE", "") or "/")
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"
    if told.is_file() and told.read_text().split() == [place, rank]:
        raise ValueError(f"a fault at {place} on rank {rank}")


@mr.batch
def slow(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
    fault("map")
    return batch


def events(ctx: Any) -> Table:
    source = Hdf5Source(f"{ctx.params['input']}/events.h5", "/events", ["key", "hard", "value", "small"], split_nbytes=20_000)
    return Table(Read("events", "verbs.py", source)).map(slow)


def lines(ctx: Any) -> Table:
    return Table(Read("lines", "verbs.py", TextSource(f"{ctx.params['input']}/texts", split_nbytes=12_000))).map(slow)


def both(a: Any, b: Any) -> Any:
    fault("reduce")
    return a + b


def spread(key: int, rows: list[Any]) -> tuple[int, float]:
    fault("apply")
    return key, max(row.value for row in rows)


def words(ctx: Any) -> Table:
    return lines(ctx).words().group_by("word").agg(n=mr.count())


def agg(ctx: Any) -> Table:
    return events(ctx).group_by("key").agg(total=mr.sum("hard"), n=mr.count(), mean=mr.mean("value"), best=mr.argmax("value", "small"))


def fold(ctx: Any) -> Table:
    return events(ctx).select("key", "value").reduce_by_key(both, key="key")


def apply(ctx: Any) -> Table:
    return events(ctx).group_by("key").apply(spread)


def sort(ctx: Any) -> Table:
    return events(ctx).sort_by("small", "value")


def join(ctx: Any) -> Table:
    other = events(ctx).group_by("key").agg(total=mr.sum("hard")).filter(mr.col("key") > 0)
    return events(ctx).join(other, on="key", how="outer")


def iterate(ctx: Any) -> Table:
    def step(rows: Table) -> Table:
        fault("job")
        return rows.map(slow).group_by("key").agg(value=mr.mean("value"), small=mr.max("small")).with_columns(value=mr.col("value") * 1.01)

    return mr.iterate(events(ctx).select("key", "value", "small"), step, count=3)


def only(ctx: Any) -> Table:
    return events(ctx).filter(mr.col("small") > -50).with_columns(twice=mr.col("hard") * 2)


def several(ctx: Any) -> Table:
    rows = events(ctx)
    top = rows.top_k(5, by="value").collect()
    fault("job")
    middle = rows.quantile("value", [0.5])
    return rows.filter(mr.col("value") > float(top["value"][0]) - 3).with_columns(above=mr.col("value") - float(middle[0]))


def job(ctx: Any) -> None:
    globals()[ctx.params["verb"]](ctx).write_hdf5(ctx.output("out"))
