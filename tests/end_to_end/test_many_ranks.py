"""A job on 64 ranks that share a few cores gives what it gives on two. For `make test-all`."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.launch import check, needs_launcher, run_job

RANKS = 64
JOB = """
import hpcmr as mr

def job(ctx):
    events = mr.read_hdf5(ctx.params["input"], "/events")
    sums = events.group_by("key").agg(n=mr.count(), total=mr.sum("value"))
    sums.write_hdf5(ctx.output("groups"))
    events.sort_by("value", descending=True).zip_with_index().write_hdf5(ctx.output("sorted"))
    events.join(sums, on="key", how="outer").write_hdf5(ctx.output("joined"))
    events.join(sums.filter(mr.col("n") > 3), on="key").sort_by("total", "value").scan("value").write_hdf5(ctx.output("running"))
"""
OUTPUTS = ("groups", "sorted", "joined", "running")


@needs_launcher
@pytest.mark.slow
def test_group_sort_and_join_on_64_ranks(tmp_path: Path) -> None:
    if os.environ.get("HPCMR_TEST_LONG") != "1":
        pytest.skip("one of the long tests; HPCMR_TEST_LONG=1 runs them, as make test-all does")
    rng = np.random.default_rng(64)
    with h5py.File(tmp_path / "events.h5", "w") as file:
        file["events/key"] = np.where(rng.random(300_000) < 0.2, 7, rng.integers(0, 50_000, 300_000))
        file["events/value"] = rng.standard_normal(300_000) * 10.0 ** rng.integers(-9, 9, 300_000)
    (tmp_path / "job.py").write_text(JOB)
    digests = []
    for n in (2, RANKS):
        paths = {name: tmp_path / f"{name}-{n}" for name in OUTPUTS}
        settings = [f"input={tmp_path / 'events.h5'}", *(f"output.{name}={path}" for name, path in paths.items())]
        check(run_job(["job", tmp_path / "job.py", "-q", *(w for s in settings for w in ("--set", s))], n=n, timeout_s=400, cwd=tmp_path))
        digests.append([check(run_job(["digest", path], n=0)).stdout.split()[0] for path in paths.values()])
    assert digests[0] == digests[1]
