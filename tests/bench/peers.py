"""The benchmark's peers: ``python tests/bench/peers.py duckdb|polars|numpy W1|W2a|W2b|W2c|W3a|W3b|W4 DATA``. Prints one line of JSON.

Seconds are those of the work, from files in the page cache to the result in memory; imports and start-up are not in them. W3b goes from file to
file, without fsync; NumPy takes part in the sorts only, on one core.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

THREADS = os.environ.get("HPCMR_BENCH_CORES", "2")
os.environ["POLARS_MAX_THREADS"] = THREADS


def duckdb(work: str, data: Path) -> tuple[float, str]:
    import duckdb as db

    con = db.connect()
    con.execute(f"SET threads={THREADS}; SET preserve_insertion_order={str(work.startswith('W3')).lower()}")
    if work == "W3a":
        began = time.perf_counter()
        table = con.execute(f"SELECT k, p FROM '{data}/W3a.parquet/*.parquet' ORDER BY k").to_arrow_table()
        return time.perf_counter() - began, sorted_check(table["k"].to_numpy(), table["p"].to_numpy())
    if work == "W3b":
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            began = time.perf_counter()
            con.execute(f"COPY (SELECT k, p FROM '{data}/W3b.parquet/*.parquet' ORDER BY k) TO '{folder}/out' "
                        "(FORMAT parquet, COMPRESSION uncompressed)")
            return time.perf_counter() - began, records_check(parquet_records(f"{folder}/out"))
    if work == "W4":
        began = time.perf_counter()
        con.execute(f"""CREATE OR REPLACE TEMP TABLE r AS SELECT g, sum(v * w) s FROM '{data}/W4_fact.parquet/*.parquet' f
            JOIN '{data}/W4_dim.parquet/*.parquet' d ON f.k = d.k GROUP BY g""")
        seconds = time.perf_counter() - began
        return seconds, "{}|{:.3f}|{:.3f}".format(*con.execute("SELECT count(*), sum(s), sum(s * (g % 7)) FROM r").fetchone())
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
    if work == "W3a":
        r = pl.scan_parquet(f"{data}/W3a.parquet/*.parquet").sort("k").collect(engine="streaming")
        return time.perf_counter() - began, sorted_check(r["k"].to_numpy(), r["p"].to_numpy())
    if work == "W4":
        fact, dim = (pl.scan_parquet(f"{data}/W4_{name}.parquet/*.parquet") for name in ("fact", "dim"))
        r = fact.join(dim, on="k").group_by("g").agg((pl.col("v") * pl.col("w")).sum().alias("s")).collect(engine="streaming")
        return time.perf_counter() - began, f"{len(r)}|{r['s'].sum():.3f}|{(r['s'].to_numpy() * (r['g'].to_numpy() % 7)).sum():.3f}"
    if work == "W3b":
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            began = time.perf_counter()
            pl.scan_parquet(f"{data}/W3b.parquet/*.parquet").sort("k").sink_parquet(f"{folder}/out", compression="uncompressed")
            return time.perf_counter() - began, records_check(parquet_records(f"{folder}/out"))
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


def numpy(work: str, data: Path) -> tuple[float, str]:
    import h5py
    import numpy as np

    began = time.perf_counter()
    if work == "W3a":
        with h5py.File(data / "W3a.h5") as f:
            k, p = f["k"][:], f["p"][:]
        order = np.argsort(k)
        k, p = k[order], p[order]
        return time.perf_counter() - began, sorted_check(k, p)
    if work != "W3b":
        raise SystemExit("NumPy takes part in W3a and W3b only")
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        began = time.perf_counter()
        records = np.fromfile(data / "W3b.dat", "V100")
        raw = records.view(np.uint8).reshape(-1, 100)
        keys = raw[:, :8].copy().view(">u8").ravel().astype(np.uint64)
        order = np.argsort(keys)
        keys = keys[order]
        for j in np.flatnonzero(keys[1:] == keys[:-1]):          # the last two bytes of the key
            if bytes(raw[order[j], :10]) > bytes(raw[order[j + 1], :10]):
                order[j], order[j + 1] = order[j + 1], order[j]
        records[order].tofile(f"{folder}/out")
        return time.perf_counter() - began, records_check(np.fromfile(f"{folder}/out", np.uint8).reshape(-1, 100))


def sorted_check(k: Any, p: Any) -> str:
    """Whether sorted, rows, and sums of keys and payloads at every so many rows."""
    step = 1000003
    return f"{bool((k[1:] >= k[:-1]).all())}|{len(k)}|{sum(k[::step].tolist())}|{sum(p[::step].tolist())}"


def records_check(records: Any) -> str:
    """Whether sorted by the first ten bytes, rows, and the sum of all words of four bytes."""
    import numpy as np

    high, low = records[:, :8].copy().view(">u8").ravel(), records[:, 8:10].copy().view(">u2").ravel()
    done = bool(((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] >= low[:-1]))).all())
    return f"{done}|{len(records)}|{int(records.reshape(-1).view('<u4').sum(dtype=np.uint64))}"


def parquet_records(path: str) -> Any:
    """Records of columns k (10 bytes) and p (90 bytes)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = []
    for column, width in zip(pq.read_table(path, columns=["k", "p"]).columns, (10, 90), strict=True):
        chunks = [c.cast(pa.binary(width)) for c in column.chunks if len(c)]
        raw = [np.frombuffer(c.buffers()[1], np.uint8)[c.offset * width:][:len(c) * width] for c in chunks]
        columns.append(np.concatenate([r.reshape(-1, width) for r in raw]))
    return np.ascontiguousarray(np.hstack(columns))


def _said(row: Any) -> str:
    counts, rest = (row, ()) if len(row) == 4 else (row[:2], row[2:])
    return "|".join([*(str(int(x)) for x in counts), *(f"{float(x):.3f}" for x in rest)])


def _peak_mb() -> float:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    peer, work, data = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    seconds, check = {"duckdb": duckdb, "polars": polars, "numpy": numpy}[peer](work, data)
    print(json.dumps({"peer": peer, "work": work, "seconds": seconds, "check": check, "peak_mb": _peak_mb()}))
