"""The benchmark's peers: ``python tests/bench/peers.py duckdb|polars W1|W2a|W2b|W2c DATA``. Prints one line of JSON.

Seconds are those of the work, from files in the page cache to the result in memory; imports and start-up are not in them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

THREADS = os.environ.get("HPCMR_BENCH_CORES", "2")
os.environ["POLARS_MAX_THREADS"] = THREADS


def duckdb(work: str, data: Path) -> tuple[float, str]:
    import duckdb as db

    con = db.connect()
    con.execute(f"SET threads={THREADS}; SET preserve_insertion_order=false")
    if work == "W1":
        query = f"""SELECT w, count(*) c FROM (SELECT unnest(string_split(line, ' ')) w FROM read_csv('{data}/W1/*.txt', columns={{'line':'VARCHAR'}},
            header=false, delim='\\t', quote='', escape='', auto_detect=false)) GROUP BY w"""
        check = "SELECT count(*), sum(c), max(c), sum(c) FILTER (WHERE strlen(w)=7) FROM r"
    else:
        query = f"SELECT k, sum(v) s, count(v) c, min(v) mn, max(v) mx FROM '{data}/{work}.parquet/*.parquet' GROUP BY k"
        check = "SELECT count(*), sum(c), sum(s), sum(mn), sum(mx), sum(s*(k%97)) FROM r"
    began = time.perf_counter()
    con.execute("CREATE OR REPLACE TEMP TABLE r AS " + query)
    seconds = time.perf_counter() - began
    return seconds, _said(con.execute(check).fetchone())


def polars(work: str, data: Path) -> tuple[float, str]:
    import polars as pl

    began = time.perf_counter()
    if work == "W1":
        lines = pl.scan_csv(f"{data}/W1/*.txt", has_header=False, separator="\t", quote_char=None, new_columns=["l"], schema={"l": pl.String})
        r = lines.select(pl.col("l").str.split(" ").list.explode().alias("w")).group_by("w").agg(pl.len().alias("c")).collect(engine="streaming")
        seconds = time.perf_counter() - began
        return seconds, _said((len(r), r["c"].sum(), r["c"].max(), r.filter(pl.col("w").str.len_bytes() == 7)["c"].sum()))
    v = pl.col("v")
    r = pl.scan_parquet(f"{data}/{work}.parquet/*.parquet").group_by("k").agg(
        v.sum().alias("s"), v.count().alias("c"), v.min().alias("mn"), v.max().alias("mx")).collect(engine="streaming")
    seconds = time.perf_counter() - began
    weighted = (r["s"].to_numpy() * (r["k"].to_numpy() % 97)).sum()
    return seconds, _said((len(r), r["c"].sum(), r["s"].sum(), r["mn"].sum(), r["mx"].sum(), weighted))


def _said(row: Any) -> str:
    counts, rest = (row, ()) if len(row) == 4 else (row[:2], row[2:])
    return "|".join([*(str(int(x)) for x in counts), *(f"{float(x):.3f}" for x in rest)])


def _peak_mb() -> float:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    peer, work, data = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    seconds, check = {"duckdb": duckdb, "polars": polars}[peer](work, data)
    print(json.dumps({"peer": peer, "work": work, "seconds": seconds, "check": check, "peak_mb": _peak_mb()}))
