"""Expressions on 100 M rows: ours on 2 ranks, DuckDB, Polars and NumPy on 2 threads, alternately: ``python tests/bench/expressions.py``.

Needs ``W2a`` of `tests/bench/generate.py` in ``$HPCMR_BENCH/data``; peers read it from Parquet, NumPy and we from HDF5. ``cells`` filters,
computes two columns and sums one by the other in 1,000 groups; ``math`` filters by a logarithm and a remainder and computes a root.
The clock runs over the work alone, from files in the page cache to the result; kernels are compiled. Prints medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("HPCMR_BENCH", Path(tempfile.gettempdir()) / "hpcmr-bench")) / "data"
HERE = Path(__file__).resolve()
PEERS = ("duckdb", "polars", "numpy")


def job(ctx: Any) -> None:
    """Ours; run by ``hpcmr job``. The second time counts: the first one compiles."""
    import hpcmr as mr

    k, v = mr.col("k"), mr.col("v")
    rows = mr.read_hdf5(str(DATA / "W2a.h5"), "/", columns=["k", "v"])
    works = {"cells": lambda: rows.filter(v > 500).with_columns(c=k % 1000, e=v * v).group_by("c").agg(s=mr.sum("e")),
             "math": lambda: rows.filter((v.log() > 5) & (k % 7 != 3)).with_columns(e=(v * 2 + 1).sqrt()).filter(mr.col("e") < 5)}
    found = {}
    for name, table in works.items():
        for _ in range(2):
            began = time.perf_counter()
            table().collect(root=0)
            found[name] = time.perf_counter() - began
    if ctx.rank == 0:
        Path(ctx.params["log"]).write_text(json.dumps(found))


def duckdb() -> dict[str, Callable[[], Any]]:
    import duckdb as db

    con = db.connect()
    con.execute("SET threads=2; SET preserve_insertion_order=false")
    rows = f"'{DATA}/W2a.parquet/*.parquet'"
    return {"cells": lambda: con.execute(f"SELECT k % 1000, sum(v * v) FROM {rows} WHERE v > 500 GROUP BY 1").fetchall(),
            "math": lambda: con.execute(f"SELECT * FROM {rows} WHERE ln(v) > 5 AND k % 7 != 3 AND sqrt(v * 2 + 1) < 5").fetchall()}


def polars() -> dict[str, Callable[[], Any]]:
    os.environ["POLARS_MAX_THREADS"] = "2"
    import polars as pl

    k, v, rows = pl.col("k"), pl.col("v"), pl.scan_parquet(f"{DATA}/W2a.parquet/*.parquet")
    cells = rows.filter(v > 500).with_columns(c=k % 1000, e=v * v).group_by("c").agg(pl.col("e").sum())
    math = rows.filter((v.log() > 5) & (k % 7 != 3)).with_columns(e=(v * 2 + 1).sqrt()).filter(pl.col("e") < 5)
    return {"cells": lambda: cells.collect(engine="streaming"), "math": lambda: math.collect(engine="streaming")}


def numpy() -> dict[str, Callable[[], Any]]:
    import h5py
    import numpy as np

    def read() -> tuple[Any, Any]:
        with h5py.File(DATA / "W2a.h5") as file:
            return file["k"][:], file["v"][:]

    def cells() -> Any:
        k, v = read()
        keep = v > 500
        return np.bincount(k[keep] % 1000, v[keep] ** 2)

    def math() -> Any:
        k, v = read()
        with np.errstate(all="ignore"):
            keep = (np.log(v) > 5) & (k % 7 != 3)
        e = np.sqrt(v[keep] * 2 + 1)
        return k[keep][e < 5], e[e < 5]

    return {"cells": cells, "math": math}


def measure(peer: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each work in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        if peer == "hpcmr":
            line = [args.python, "-m", "hpcmr", "launch", "-n", "2", "job", str(HERE), "-q", "--run-dir", f"{folder}/run",
                    "--set", f"log='{folder}/log'"]
            env = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
            subprocess.run(line, check=True, capture_output=True, timeout=300, env=env)
            return dict(json.loads(Path(folder, "log").read_text()))
        python = args.python if peer == "numpy" else args.peer_python
        done = subprocess.run([python, str(HERE), "--one", peer], check=True, capture_output=True, text=True, timeout=300)
        return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has duckdb and polars")
    parser.add_argument("--one", choices=PEERS, help="measure one peer in this process")
    args = parser.parse_args()
    if args.one:
        found = {}
        for name, work in globals()[args.one]().items():
            began = time.perf_counter()
            work()
            found[name] = time.perf_counter() - began
        print(json.dumps(found))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.reps):
        for peer in ("hpcmr", *PEERS):
            runs.setdefault(peer, []).append(measure(peer, args))
    for peer, found in runs.items():
        print(f"{peer:8}", *(f"{work} {statistics.median(f[work] for f in found):7.3f} s" for work in found[0]))


if __name__ == "__main__":
    main()
