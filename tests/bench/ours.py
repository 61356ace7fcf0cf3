"""The benchmark's jobs for hpcmr: ``mpirun -n 2 python -m hpcmr job tests/bench/ours.py --set work=W2a --set data=DIR --set log=FILE``.

``end=keep`` leaves the result in the ranks' memory, as the peers do, and checks it; ``end=write`` publishes it. The clock runs from
the start of ``job``; as with the peers, loading the library and its compiled code is not in it (it is in ``wall``). A line of JSON
goes to ``log``.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import h5py  # noqa: F401
import numpy.ma  # noqa: F401

import hpcmr as mr
import hpcmr.io.hdf5
import hpcmr.io.hdf5_links
import hpcmr.io.text
import hpcmr.kernels.count_strings
import hpcmr.kernels.extra
import hpcmr.kernels.finish
import hpcmr.kernels.join
import hpcmr.kernels.scatter
import hpcmr.kernels.sort
import hpcmr.kernels.sort_keys
import hpcmr.kernels.sort_rows
import hpcmr.kernels.words
import hpcmr.ops.aggregate
from hpcmr.kernels.jit import compile_imported
from hpcmr.store import files

compile_imported()          # loads them: the first, unmeasured run has compiled them


class Keep:
    """An outlet that keeps each rank's rows where they are."""

    name = "keep"
    root = None
    ascending = False

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name,)

    def begin(self, ctx: Any) -> None: ...

    def open(self, ctx: Any, schema: Any) -> None: ...

    def take(self, piece: int, batch: Any) -> None:
        self.batches.append(batch)          # what group_by finishes lies in memory of its own

    def enough(self, piece: int) -> bool:
        return False

    def local(self) -> None: ...

    def combine(self, payloads: list[Any]) -> bool:
        return True

    def abandon(self) -> None: ...


class Drop(Keep):
    """An outlet that looks at the rows and lets them go: what is left to memory is the job's own."""

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work
        self.sums: list[float] = []

    def take(self, piece: int, batch: Any) -> None:
        more = partial_check(self.work, [batch])
        self.sums = [a + b for a, b in zip(self.sums, more, strict=True)] if self.sums else more


def table(work: str, data: Path) -> mr.Table:
    if work == "W1":
        return mr.read_text(str(data / "W1" / "*.txt")).words().group_by("word").agg(n=mr.count())
    if work == "W3a":
        return mr.read_hdf5(str(data / "W3a.h5"), "/", columns=["k", "p"]).sort_by("k")
    if work == "W3b":
        return mr.read_hdf5(str(data / "W3b.h5"), "rec").sort_by(mr.col("rec")[:, :10])
    if work == "W4":
        fact, dim = (mr.read_hdf5(str(data / f"W4_{name}.h5"), "/") for name in ("fact", "dim"))
        return fact.join(dim, on="k").group_by("g").agg(s=mr.sum(mr.col("v") * mr.col("w")))
    rows = mr.read_hdf5(str(data / f"{work}.h5"), "/", columns=["k", "v"])
    return rows.group_by("k").agg(s=mr.sum("v"), c=mr.count(), mn=mr.min("v"), mx=mr.max("v"))


def job(ctx: Any) -> None:
    began = time.monotonic()
    work, data = ctx.params["work"], Path(ctx.params["data"])
    if work == "W3b":           # the peers do not wait for the disk either
        files.sync_file = files.sync_folder = lambda *args, **named: None
    t = table(work, data)
    end = ctx.params.get("end", "keep")
    keep = Drop(work) if end == "drop" else Keep()
    if end in ("keep", "drop"):
        from hpcmr.run.session import current

        current(None).execute(t._node, keep)
    else:
        t.write_hdf5(ctx.output("result"))
    seconds = time.monotonic() - began
    peak = _peak_mb()
    found = ctx.comm.gather((seconds, peak, keep.sums if isinstance(keep, Drop) and keep.sums else partial_check(work, keep.batches)), 0)
    checked = sort_check(ctx, work, keep.batches) if work.startswith("W3") and end != "drop" else ""
    if ctx.rank == 0:
        line = {"peer": "hpcmr", "work": work, "end": ctx.params.get("end", "keep"), "ranks": ctx.size, "seconds": max(f[0] for f in found),
                "peak_mb": sum(f[1] for f in found), "check": checked or check(work, [f[2] for f in found])}
        with open(ctx.params["log"], "a") as log:
            log.write(json.dumps(line) + "\n")


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def partial_check(work: str, batches: list[Any]) -> list[float]:
    """What this rank's rows add to the check; every sum is of multiples of a power of two, and exact."""
    import numpy as np

    if work.startswith("W3"):         # rows, those that are not in order, and sums modulo 2^64; see `sort_check` for rows that are kept
        columns = [(b["k"].values, b["p"].values) for b in batches] if work == "W3a" else []
        return [sum(len(k) for k, _ in columns), sum(int((k[1:] < k[:-1]).sum()) for k, _ in columns),
                sum(int(k.sum() >> 40) for k, _ in columns), sum(int(p.sum()) for _, p in columns)]
    if work == "W4":
        sums = [(b.nrows, b["s"].values.sum(), (b["s"].values * (b["g"].values % 7)).sum()) for b in batches]
        return [float(sum(s[i] for s in sums)) for i in range(3)]
    if work == "W1":
        out = [0, 0, 0, 0]
        for b in batches:
            n, word = b["n"].values, b["word"]
            lengths = word.ends - word.starts
            out = [out[0] + len(n), out[1] + int(n.sum()), max(out[2], int(n.max())), out[3] + int(n[lengths == 7].sum())]
        return out
    sums = np.zeros(6)
    for b in batches:
        k, s, c, mn, mx = (b[x].values for x in ("k", "s", "c", "mn", "mx"))
        sums += [len(k), c.sum(), s.sum(), mn.sum(), mx.sum(), (s * (k % 97)).sum()]
    return sums.tolist()


def sort_check(ctx: Any, work: str, batches: list[Any]) -> str:
    """The check of a sort, on rank 0: as the peers print it. Of what was published it is made of the published rows."""
    import numpy as np

    if work == "W3b":
        if ctx.rank:
            return ""
        records = mr.open(ctx.output("result"))["rec"][:]
        high, low = records[:, :8].copy().view(">u8").ravel(), records[:, 8:10].copy().view(">u2").ravel()
        done = bool(((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] >= low[:-1]))).all())
        return f"{done}|{len(records)}|{int(records.reshape(-1).view('<u4').sum(dtype=np.uint64))}"
    if ctx.params.get("end", "keep") != "keep":
        return "published"
    step, k = 1000003, [b["k"].values for b in batches]
    done = all(bool((x[1:] >= x[:-1]).all()) for x in k) and all(a[-1] <= b[0] for a, b in itertools.pairwise(k))
    sizes = ctx.comm.allgather(sum(map(len, k)))
    row = sum(sizes[:ctx.rank])
    edges = ctx.comm.gather((done, int(k[0][0]), int(k[-1][-1])), 0)
    sums = [0, 0]
    for b in batches:
        chosen = slice(-row % step, None, step)
        sums = [s + sum(b[name].values[chosen].tolist()) for s, name in zip(sums, ("k", "p"), strict=True)]
        row += b.nrows
    told = ctx.comm.gather(sums, 0)
    if ctx.rank:
        return ""
    done = all(e[0] for e in edges) and all(a[2] <= b[1] for a, b in itertools.pairwise(edges))
    return f"{done}|{sum(sizes)}|{sum(t[0] for t in told)}|{sum(t[1] for t in told)}"


def check(work: str, parts: list[list[float]]) -> str:
    """The benchmark's check string, as the peers print it."""
    if work == "W1" or work.startswith("W3"):
        return "|".join(str(int(x)) for x in (sum(p[0] for p in parts), sum(p[1] for p in parts), max(p[2] for p in parts), sum(p[3] for p in parts)))
    if work == "W4":
        return "{:.0f}|{:.3f}|{:.3f}".format(*(sum(p[i] for p in parts) for i in range(3)))
    n, c, s, mn, mx, ws = (sum(p[i] for p in parts) for i in range(6))
    return f"{int(n)}|{int(c)}|{s:.3f}|{mn:.3f}|{mx:.3f}|{ws:.3f}"
