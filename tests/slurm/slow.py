"""A job for tests under Slurm: many small inputs, a rest for each, sums that do not round exactly."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import hpcmr as mr
from hpcmr.io.hdf5 import Hdf5Source

# A piece of its own for each of the small inputs.
assert Hdf5Source.__init__.__kwdefaults__ is not None
Hdf5Source.__init__.__kwdefaults__["split_nbytes"] = 64 << 10


def job(ctx: Any) -> None:
    pause, trace, bad = float(ctx.params["pause"]), ctx.params.get("trace"), ctx.params.get("fail")
    factor = int(ctx.params.get("factor", 1))
    assert factor == (1 if ctx.array_id is None else ctx.array_id)

    @mr.batch
    def rest(cols: Any) -> dict[str, Any]:
        piece = int(cols["piece"][0])
        time.sleep(pause)
        if bad is not None and piece == bad:
            raise ValueError(f"piece {piece} is bad")
        if trace:
            with open(Path(trace), "a") as file:
                file.write(f"{piece} {os.environ.get('SLURM_JOB_ID')} {time.time():.2f}\n")
        return {"key": cols["key"], "value": cols["value"] * factor}

    if trace and ctx.rank == 0:
        with open(Path(trace), "a") as file:
            file.write("begin\n")
    table = mr.read_hdf5(ctx.params["input"], "/events").map(rest)
    table.group_by("key").agg(n=mr.count(), total=mr.sum("value"), mean=mr.mean("value")).write_hdf5(ctx.output("stats"))
