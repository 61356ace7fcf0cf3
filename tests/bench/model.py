"""A cost model of ranks that work together: measured on 2 to 64 ranks of one machine, fitted, evaluated for a cluster.

``python tests/bench/model.py [--ranks 2 4 8 16 32 64] [--seconds 0.5] [--save FILE]`` starts the ranks, which run the package's own collectives
and exchange on small data, then looks in one process at what grows with the number of ranks, and prints the tables of
`docs/explanation/performance.md`. ``--load FILE`` prints them from saved measurements.

More ranks than cores take turns, so seconds are those of one rank alone times ranks / cores: what is fitted is the time of a core, waiting and
changing between processes included. Ranks with a core each wait far less than that, which two ranks show. What the model adds for a network,
and a cluster's figures, are assumptions (`Cluster`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RANKS = (2, 4, 8, 16, 32, 64)
PAIR_NBYTES = (0, 1 << 10, 16 << 10)       # of an exchange, for each pair of ranks
NODES = (4, 8)                             # pretended: ranks of one machine that exchange as if they were on several
SIZES = (64, 1024, 16384)
TREES = ("agree", "bcast 100 B")           # calls whose cost grows with the logarithm of ranks: no rank hears of each other one
WEIGHTS = 65536                            # partitions whose weights are added up
LIMIT_S = 100
ROUND_CALLS = 9                            # collective calls of a further round of an exchange
START_FILE_CALLS = 4230                    # of a rank until it can work: strace -f -c -e trace=file python -c "import ..."
Figures = dict[str, Any]


# ---- on ranks ------------------------------------------------------------------------------------------------------------------


def timed(world: Any, work: Callable[[], object], budget_s: float) -> float:
    """Median seconds of a collective call: of three runs or more, about `budget_s` in all, of up to ten calls each."""
    world.barrier()
    began = time.perf_counter()
    work()
    first = time.perf_counter() - began
    times = world.bcast(max(1, min(10, int(budget_s / 10 / first))))
    taken: list[float] = []
    while True:
        world.barrier()
        began = time.perf_counter()
        for _ in range(times):
            work()
        world.barrier()
        taken.append((time.perf_counter() - began) / times)
        if world.bcast(len(taken) >= 3 and (sum(taken) * times > budget_s or len(taken) == 40)):
            return statistics.median(taken)


def collectives(world: Any, budget_s: float) -> dict[str, float]:
    from hpcmr.comm.tick import Tick
    from hpcmr.run.drive import WIDTH

    tick, status = Tick(world, WIDTH), np.zeros(WIDTH, np.int64)
    weights, row, note = np.ones(WEIGHTS, np.int64), np.zeros((world.size, 1), np.int64), "x" * 100

    def one_tick() -> None:
        tick.post(status)
        tick.wait()

    calls: dict[str, Callable[[], object]] = {
        "agree": lambda: world.agree(None), "bcast 100 B": lambda: world.bcast(note), "allreduce 512 KiB": lambda: world.allreduce(weights),
        "allgather 100 B": lambda: world.allgather(note), "alltoall 8 B": lambda: world.alltoall(row), "tick": one_tick,
        "gather 100 B": lambda: world.gather(note)}
    return {name: timed(world, call, budget_s) for name, call in calls.items()}


def exchanges(world: Any, budget_s: float) -> list[Figures]:
    """Two columns of 8 bytes, every rank to every rank: directly, and through the leaders of pretended nodes."""
    from hpcmr.comm.mpi_world import MpiWorld

    out = [one_exchange(world, nbytes, budget_s) for nbytes in PAIR_NBYTES]
    for nodes in NODES:
        if world.size >= 4 * nodes:
            through = MpiWorld(world.comm, node=world.rank * nodes // world.size, leaders=True)
            out += [one_exchange(through, nbytes, budget_s) for nbytes in PAIR_NBYTES]
            world.barrier()
            through.free()
    return out


def one_exchange(world: Any, pair_nbytes: int, budget_s: float) -> Figures:
    from hpcmr.comm.buffers import Buffers
    from hpcmr.comm.exchange import exchange
    from hpcmr.comm.travel import Stats
    from hpcmr.data.batch import Batch, FixedColumn
    from hpcmr.data.partitioning import Partitioned

    n = pair_nbytes // 16 * world.size
    batch = Batch({"k": FixedColumn(np.arange(n)), "v": FixedColumn(np.ones(n))})
    part = Partitioned(batch, np.arange(world.size + 1, dtype=np.int64) * (n // world.size))
    bounds, pool, stats = np.arange(world.size + 1, dtype=np.int64), Buffers(64 << 20), Stats()
    exchange(world, part, bounds, copy_self=True, buffers=pool, stats=stats)          # which also makes connections
    seconds = timed(world, lambda: exchange(world, part, bounds, copy_self=True, buffers=pool), budget_s)
    sums = world.allreduce(np.array([stats.messages], np.int64))
    return {"ranks": world.size, "nodes": world.node_count, "leaders": bool(world.leaders), "pair_nbytes": pair_nbytes, "seconds": seconds,
            "messages": int(sums[0]) / world.size, "nbytes": stats.nbytes_sent}


def whole_job(world: Any, budget_s: float) -> Figures:
    """A group by of a few rows, rows and result in memory: what an action costs that has nothing to do, and the calls that it makes."""
    import hpcmr as mr
    from hpcmr.comm.tick import Tick

    rng = np.random.default_rng(world.rank)
    columns = {"k": rng.integers(0, 1000, 2000), "v": rng.random(2000)}

    def action() -> None:
        mr.from_arrays(None, columns).group_by("k").agg(s=mr.sum("v")).collect(root=0)

    action()
    calls = {"collective calls": 0, "ticks": 0}
    was = {"collective calls": (type(world), "wait"), "ticks": (Tick, "post")}
    kept = {name: getattr(*place) for name, place in was.items()}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            calls[name] += 1
            return kept[name](*args, **named)
        return call

    for name, place in was.items():
        setattr(*place, counting(name))
    action()
    for name, place in was.items():
        setattr(*place, kept[name])
    fewest = world.allreduce(np.array(list(calls.values()), np.int64), "min")         # the root of a gather waits for each rank
    return {"seconds": timed(world, action, budget_s), **dict(zip(calls, fewest.tolist(), strict=True))}


def measure(launched: float, budget_s: float) -> Figures:
    """All figures of as many ranks as there are; on every rank, the same on all but for times."""
    began, cpu = time.time(), time.process_time()
    import hpcmr
    from hpcmr.comm.world import World

    world = World.of()
    made = time.time()
    from hpcmr.kernels import accumulate, exact_sum, finish, keys, sort, table  # noqa: F401
    from hpcmr.ops import aggregate  # noqa: F401

    told = world.allgather((made - launched, time.process_time(), time.time() - began, time.process_time() - cpu))
    assert hpcmr.__version__
    return {"ranks": world.size, "cores": len(os.sched_getaffinity(0)), "started_s": max(t[0] for t in told),
            "cpu_s": statistics.mean(t[1] for t in told), "collectives": collectives(world, budget_s),
            "exchanges": exchanges(world, budget_s), "job": whole_job(world, budget_s)}


def launch(ranks: int, args: argparse.Namespace) -> Figures:
    from tests.support import mpirun

    with tempfile.TemporaryDirectory(prefix="hpcmr-model-") as folder:
        log = Path(folder) / "log"
        words = [os.fspath(Path(__file__).resolve()), "--measure", str(time.time()), "--seconds", str(args.seconds), "--save", str(log)]
        if mpirun.run(args.python, ranks, words, LIMIT_S):
            raise SystemExit(f"{ranks} ranks failed")
        return dict(json.loads(log.read_text()))


# ---- in one process ------------------------------------------------------------------------------------------------------------


def alone(size: int) -> Figures:
    """Seconds and bytes of what one rank, or rank 0, does by itself and what grows with the number of ranks; a GiB of input for each."""
    import pickle

    from hpcmr.data.partitioning import owner_bounds, partition_count
    from hpcmr.data.source import SPLIT_NBYTES, Split
    from hpcmr.run.deal import deal, redeal

    splits = size * (1 << 30) // SPLIT_NBYTES
    listed = [Split(i, SPLIT_NBYTES, f"snapshot_{i // 32:05d}.h5:/particles rows {i * 2097152} to {(i + 1) * 2097152}",
                    (i // 32, i % 32 * 2097152, (i % 32 + 1) * 2097152)) for i in range(splits)]
    raw = pickle.dumps(listed, protocol=5)
    pickled = time.perf_counter()
    pickle.loads(raw)
    loaded = time.perf_counter()
    tracemalloc.start()
    held = pickle.loads(raw)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del held
    began = time.perf_counter()
    weights = np.full(splits, SPLIT_NBYTES, np.int64)
    queues = deal(weights, size)
    dealt = time.perf_counter()
    kept = [min(len(q), 2) for q in queues]
    redeal([q[1:] for q in queues], kept, [2.0 * SPLIT_NBYTES] * size, [1e9] * size, weights)
    again = time.perf_counter()
    partitions = partition_count(size << 30)
    owner_bounds(np.full(partitions, 1 << 20, np.int64), size)
    cut = time.perf_counter()
    return {"ranks": size, "splits": splits, "splits_nbytes": len(raw), "splits_read_s": loaded - pickled, "splits_memory_nbytes": memory,
            "deal_s": dealt - began,
            "redeal_s": again - dealt, "partitions": partitions, "owners_s": cut - again, **manifest(size)}


def manifest(shards: int) -> dict[str, float]:
    """A manifest with a shard of two columns for each rank, and four segments of each."""
    from hpcmr.data.schema import ColumnType, Schema
    from hpcmr.store.manifest import Manifest, Shard, parse, shard_digest

    frame, arrays = "0" * 32, (("k", 2048, 1 << 29, "0" * 32), ("v", 2048 + (1 << 29), 1 << 29, "0" * 32))
    files = tuple(Shard(f"part-{i:05d}.h5", 1 << 26, (1 << 30) + 2048, shard_digest(frame, arrays), frame, arrays) for i in range(shards))
    segments = tuple((i, j << 24, 1 << 24) for i in range(shards) for j in range(4))
    made = Manifest(Schema.of({"k": ColumnType.fixed("int64"), "v": ColumnType.fixed("float64")}), files, segments)
    began = time.perf_counter()
    raw = made.to_bytes()
    written = time.perf_counter()
    parse(raw, "the manifest")
    return {"manifest_nbytes": len(raw), "manifest_write_s": written - began, "manifest_read_s": time.perf_counter() - written}


# ---- the fit -------------------------------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """Seconds of one rank = sum of coefficients times features, none below zero."""

    names: tuple[str, ...]
    factors: np.ndarray
    off: float               # by which factor a measurement is off, typically (the median)
    most: float              # and at most

    def __call__(self, *features: float) -> float:
        return float(np.dot(self.factors, features))


def fit(names: tuple[str, ...], features: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> Fit:
    """Least squares of the logarithm of model / measured, over all sets of features that leave no coefficient below zero."""
    a, b = np.array(features, float), np.array(seconds, float)
    best: tuple[float, Fit] | None = None
    for chosen in (c for n in range(1, len(names) + 1) for c in itertools.combinations(range(len(names)), n)):
        if not a[:, chosen].any(0).all():
            continue
        made, found = b, np.zeros(len(chosen))
        for _ in range(50):                       # (made - b)^2 / (made b) is nearly the square of log(made / b)
            scale = np.sqrt(made * b)
            found = np.linalg.lstsq(a[:, chosen] / scale[:, None], b / scale, rcond=None)[0]
            made = a[:, chosen] @ found
            if (found < 0).any() or (made <= 0).any():
                break
        else:
            off = np.abs(np.log(made / b))
            if best is None or (off**2).sum() < best[0] - 1e-9:
                whole = np.zeros(len(names))
                whole[list(chosen)] = found
                best = float((off**2).sum()), Fit(names, whole, float(np.exp(np.median(off))), float(np.exp(off.max())))
    assert best is not None
    return best[1]


class Model:
    """What was measured, as functions of ranks, messages and bytes: seconds of a rank that has a core of its own."""

    def __init__(self, measured: list[Figures]) -> None:
        def of_one(run: Figures, seconds: float) -> float:
            return seconds / max(1.0, run["ranks"] / run["cores"])

        self.calls: dict[str, Fit] = {}
        for name in measured[0]["collectives"]:
            tree = name in TREES
            self.calls[name] = fit(("call", "log2(ranks)", "rank"), [(1, math.log2(r["ranks"]), 0 if tree else r["ranks"]) for r in measured],
                                   [of_one(r, r["collectives"][name]) for r in measured])
        direct = [(r, e) for r in measured for e in r["exchanges"] if not e["leaders"]]
        self.direct = fit(("exchange", "message", "byte"), [(1, e["messages"], e["nbytes"]) for _, e in direct],
                          [of_one(r, e["seconds"]) for r, e in direct])
        led = [(r, e) for r in measured for e in r["exchanges"] if e["leaders"]]
        self.leaders = fit(("exchange", "peer", "byte"), [(1, e["ranks"], e["nbytes"]) for _, e in led],
                           [of_one(r, e["seconds"]) for r, e in led]) if led else None
        self.start = fit(("launch", "rank"), [(1, max(1.0, r["ranks"] / r["cores"])) for r in measured], [r["started_s"] for r in measured])
        self.job_calls = statistics.median(r["job"]["collective calls"] for r in measured)
        self.job_ticks = statistics.median(r["job"]["ticks"] for r in measured)
        self.action_s = 0.0
        self.action_s = statistics.median(max(0.0, of_one(r, r["job"]["seconds"]) - self.small_job(r["ranks"])) for r in measured)

    def small_job(self, ranks: int) -> float:
        """Seconds of a group by with nothing to do, on ranks with a core each: its one partition goes to one rank."""
        exchange = self.direct(1, 2 * (ranks - 1), 0)
        return self.action_s + self.job_calls * self.call("agree", ranks) + self.job_ticks * self.call("tick", ranks) + exchange

    def call(self, name: str, ranks: int) -> float:
        return self.calls[name](1, math.log2(ranks), ranks)


# ---- a cluster -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Assumed, not measured."""

    node_ranks: int = 64
    latency_s: float = 2e-6              # of a message between nodes, and before a node can send the next one
    node_nbytes_s: float = 25e9          # network, each way
    files_nbytes_s: float = 5e9          # the shared file system, for each node
    meta_calls_s: float = 50e3           # calls on file names that the shared file system answers in a second; a node asks once for all its ranks
    memory_nbytes_s: float = 3e9         # of a rank, where all of a node copy at once

    def nodes(self, ranks: int) -> int:
        return -(-ranks // self.node_ranks)


@dataclass(frozen=True)
class Work:
    """Rows of a rank, and what is done with each: nanoseconds by itself, bytes read, bytes that leave it."""

    name: str
    rows: int
    own_ns: float
    read_nbytes: int
    sent_nbytes: float
    columns: int
    passes: int = 1


def call_s(model: Model, cluster: Cluster, name: str, ranks: int) -> float:
    """A collective call on a cluster: as fitted, and the latency of each step between nodes, there and back."""
    return model.call(name, ranks) + 2 * math.log2(max(1, cluster.nodes(ranks))) * cluster.latency_s


def exchange_s(model: Model, cluster: Cluster, ranks: int, nbytes: float, streams: int, leaders: bool) -> float:
    """An exchange of `nbytes` of each rank, evenly to all others."""
    nodes = cluster.nodes(ranks)
    away = nbytes * (1 - 1 / nodes) * cluster.node_ranks / cluster.node_nbytes_s
    if leaders:
        assert model.leaders is not None
        turns = max(1.0, nbytes * cluster.node_ranks / (8 << 20))
        fixed = model.leaders(1, ranks, 0) + 2 * nbytes / cluster.memory_nbytes_s + turns * 3 * model.call("agree", cluster.node_ranks)
        return fixed + max(turns, nodes) * (2 * model.direct.factors[1] + cluster.latency_s) + away
    messages = streams * max(0, ranks - cluster.node_ranks) * cluster.node_ranks      # that leave a node
    return model.direct(1, 2 * streams * (ranks - 1), 0) + messages * cluster.latency_s + nbytes / cluster.memory_nbytes_s + away


def phases(model: Model, cluster: Cluster, work: Work, ranks: int, one: Figures, manifest_s: float) -> dict[str, float]:
    """Seconds of each phase of a job, every rank with as many rows whatever the number of ranks."""
    from hpcmr.comm.leaders import worth_leaders

    nodes, sent = cluster.nodes(ranks), work.rows * work.sent_nbytes
    rounds = max(1, math.ceil(sent / (96 << 20)))
    led = worth_leaders(ranks, nodes, int(sent / rounds) * ranks)
    reading = work.passes * work.rows * work.read_nbytes * cluster.node_ranks / cluster.files_nbytes_s
    exchange = rounds * exchange_s(model, cluster, ranks, sent / rounds, work.columns + 1, led)
    together = (model.job_calls + ROUND_CALLS * (rounds - 1)) * call_s(model, cluster, "agree", ranks)
    together += call_s(model, cluster, "allreduce 512 KiB", ranks) + 2 * call_s(model, cluster, "gather 100 B", ranks)
    together += (3 + rounds) * call_s(model, cluster, "alltoall 8 B", ranks)            # allgathers of a plan, and the counts of each exchange
    ticks = max(1, min(20, int((work.rows * work.own_ns * 1e-9) / 0.5))) * (call_s(model, cluster, "tick", ranks) + one["redeal_s"])
    listing = one["splits_read_s"] + one["deal_s"] + one["splits_nbytes"] * cluster.node_ranks / cluster.node_nbytes_s
    return {"start-up, imports from the shared file system": model.start(1, 1) + START_FILE_CALLS * nodes / cluster.meta_calls_s,
            "list of splits to every rank, dealing": listing, "reading": reading, "work of the rank alone": work.rows * work.own_ns * 1e-9,
            "planning and preparing, of an action": model.action_s, "collective calls": together,
            "ticks": ticks, "exchange": exchange, "manifest, on rank 0": manifest_s}


# ---- tables --------------------------------------------------------------------------------------------------------------------


# Nanoseconds a row and rank of what a rank does by itself, and bytes a row, from the tables of docs/explanation/performance.md.
WORKS = (Work("W2a, grouped by a million keys", 50_000_000, 48, 16, 1.3, 1), Work("W2c, grouped by keys met twice", 50_000_000, 97, 16, 16, 1),
         Work("W3a, sorted", 50_000_000, 118, 16, 16, 1, passes=2))


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(r) + " |" for r in rows)]
    return "\n".join(lines) + "\n"


def show(measured: list[Figures], singles: list[Figures]) -> None:
    model, cluster = Model(measured), Cluster()
    print(f"Measured, ranks on {measured[0]['cores']} cores; medians\n")
    names = list(measured[0]["collectives"])
    rows = [[n, *(duration(r["collectives"][n]) for r in measured), formula(model.calls[n]), off(model.calls[n])] for n in names]
    for nodes, nbytes in [(1, b) for b in PAIR_NBYTES] + [(n, b) for n in NODES for b in PAIR_NBYTES]:
        found = {e["ranks"]: e["seconds"] for r in measured for e in r["exchanges"]
                 if e["pair_nbytes"] == nbytes and (e["nodes"] if e["leaders"] else 1) == nodes}
        way, how = ("directly", model.direct) if nodes == 1 else (f"leaders of {nodes} nodes", model.leaders)
        if found and how is not None:
            cells = [duration(found[r["ranks"]]) if r["ranks"] in found else "" for r in measured]
            rows.append([f"exchange, {nbytes >> 10} KiB a pair, {way}", *cells, formula(how), off(how)])
    rows.append(["group by of 2,000 rows a rank", *(duration(r["job"]["seconds"]) for r in measured),
                 f"{duration(model.action_s)}, {model.job_calls:.0f} collective calls, {model.job_ticks:.0f} ticks", ""])
    loads = [max(1.0, r["ranks"] / r["cores"]) for r in measured]
    rows.append(["the same, as the model has it", *(duration(f * model.small_job(r["ranks"])) for f, r in zip(loads, measured, strict=True)), "", ""])
    rows.append(["start to a communicator", *(duration(r["started_s"]) for r in measured), formula(model.start), off(model.start)])
    print(table(["", *(f"{r['ranks']} ranks" for r in measured), "one rank with a core of its own", "off by, typically and at most"], rows))
    print("In one process, as many ranks pretended, 1 GiB of input for each\n")
    keys = {"splits": "splits", "splits_nbytes": "their list, bytes to every rank", "splits_read_s": "unpickling it",
            "splits_memory_nbytes": "in memory, bytes on every rank", "deal_s": "dealing them",
            "redeal_s": "dealing again at a tick", "partitions": "partitions", "owners_s": "cutting owners",
            "manifest_nbytes": "manifest, a shard a rank, bytes", "manifest_write_s": "writing it", "manifest_read_s": "reading and checking it"}
    print(table(["", *(f"{s['ranks']:,} ranks" for s in singles)],
                [[what, *(duration(s[k]) if k.endswith("_s") else f"{s[k]:,}" for s in singles)] for k, what in keys.items()]))
    if model.leaders is not None:
        show_cluster(model, cluster, singles)


def index_nbytes(one: Figures) -> dict[str, int]:
    """Bytes of a rank that grow with ranks, partitions or splits and not with its rows."""
    ranks, partitions = one["ranks"], one["partitions"]
    return {"list of splits": one["splits_memory_nbytes"], "starts, weights and counts of partitions": 3 * 8 * partitions,
            "rows of each partition from each rank": 8 * partitions, "counts, cuts and bounds by rank": 8 * 8 * ranks,
            "table of a tick": 2 * 80 * ranks, "chunks or runs of partitions in a round": max(96 << 20, 2 * partitions * 1200),
            "sample of a sort": 4 * min(4096 * partitions, 1 << 22) * 8,
            "right side of a broadcast join, at most, and its index": 2 * (128 << 20)}


def show_cluster(model: Model, cluster: Cluster, singles: list[Figures]) -> None:
    from hpcmr.comm.leaders import worth_leaders

    sizes = [s["ranks"] for s in singles]
    print(f"Evaluated: {cluster}\n")
    rows = []
    for pair in (64, 1 << 10, 16 << 10, 64 << 10):
        row = [f"{pair:,} bytes a pair"]
        for ranks in sizes:
            direct, led = (exchange_s(model, cluster, ranks, pair * ranks, 2, way) for way in (False, True))
            rule = "leaders" if worth_leaders(ranks, cluster.nodes(ranks), pair * ranks * ranks) else "direct"
            row.append(f"{duration(direct)} / {duration(led)}, {rule}" if cluster.nodes(ranks) > 1 else duration(direct))
        rows.append(row)
    print(table(["one exchange, directly / through leaders, the rule's choice", *(f"{r:,} ranks" for r in sizes)], rows))
    index = [index_nbytes(s) for s in singles]
    print(table(["bytes of a rank", *(f"{r:,} ranks" for r in sizes)], [[n, *(f"{i[n] / 2**20:,.1f} MiB" for i in index)] for n in index[0]]))
    for work in WORKS:
        columns = [phases(model, cluster, work, s["ranks"], s, s["manifest_write_s"]) for s in singles]
        rows = [[name, *(duration(c[name]) for c in columns)] for name in columns[0]]
        rows.append(["**all**", *(f"**{duration(sum(c.values()))}**" for c in columns)])
        print(f"{work.name}, {work.rows:,} rows a rank\n")
        print(table(["", *(f"{r:,} ranks" for r in sizes)], rows))


def off(f: Fit) -> str:
    return f"{f.off:.1f} and {f.most:.1f} times"


def formula(f: Fit) -> str:
    parts = []
    for name, factor in zip(f.names, f.factors, strict=True):
        if factor:
            value = duration(factor) if factor >= 1e-6 else f"{factor * 1e9:.2g} ns"
            parts.append(value if name == f.names[0] else f"{value} a {name}" if "log" not in name else f"{value} {name}")
    return " + ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of ranks that the model is evaluated for")
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long each figure is measured")
    parser.add_argument("--python", default=sys.executable, help="Python that has hpcmr's dependencies and an MPI")
    parser.add_argument("--save", metavar="FILE", help="keep the measurements")
    parser.add_argument("--load", metavar="FILE", nargs="+", help="print from kept measurements; several files of different numbers of ranks are one")
    parser.add_argument("--measure", type=float, metavar="TIME", help=argparse.SUPPRESS)       # what a rank is started with
    args = parser.parse_args()
    if args.measure:
        figures = measure(args.measure, args.seconds)
        from hpcmr.comm.world import World

        if World.of().rank == 0:
            Path(args.save).write_text(json.dumps(figures))
        return 0
    if args.load:
        loaded = [json.loads(Path(name).read_text()) for name in args.load]
        kept = loaded[-1] | {"measured": sorted((m for one in loaded for m in one["measured"]), key=lambda m: int(m["ranks"]))}
    else:
        kept = {"measured": [launch(n, args) for n in args.ranks], "singles": [alone(n) for n in args.sizes]}
    if args.save:
        Path(args.save).write_text(json.dumps(kept))
    show(kept["measured"], kept["singles"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
