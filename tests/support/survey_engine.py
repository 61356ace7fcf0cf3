"""The engine in small for operators that see all rows twice: a thread for each pretended rank."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned, owner_bounds
from hpcmr.kernels.jit import compile_imported
from hpcmr.ops.contract import Origin
from tests.support.small_engine import Context, Splits


class Ranks:
    """A `Collective` of threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.said: list[Any] = [None] * size


class One:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def allgather(self, obj: Any) -> list[Any]:
        self.ranks.said[self.rank] = obj
        self.ranks.barrier.wait()
        out = list(self.ranks.said)
        self.ranks.barrier.wait()
        return out

    def allreduce(self, array: Any, op: str = "sum") -> Any:
        return {"sum": np.sum, "max": np.max, "min": np.min}[op](np.stack(self.allgather(array)), axis=0)

    def allgather_batch(self, batch: Batch) -> Batch:
        return Batch.concat(self.allgather(batch))


def copied(part: Partitioned, first: int, stop: int) -> Partitioned:
    """Partitions of a sealed state in memory of their own."""
    a, b = int(part.starts[first]), int(part.starts[stop])
    return Partitioned(part.batch.take(np.arange(a, b)).compact(), part.starts[first:stop + 1] - a, first)


def run(make: Callable[[], Any], splits: Splits, partitions: int, ranks: int = 1, seals: int = 1) -> list[Batch]:
    """Splits dealt to ranks and taken from the last to the first, in so many rounds; the finished partitions in order."""
    together = Ranks(ranks)
    out: list[list[Batch]] = [[] for _ in range(ranks)]
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            out[rank] = _work(make(), splits, One(together, rank), Context(partitions), seals)
        except BaseException as error:
            errors.append(error)
            together.barrier.abort()

    make().import_kernels()
    compile_imported()                  # loading a kernel is not for several threads at once
    threads = [threading.Thread(target=one, args=(r,)) for r in range(ranks)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return [batch for part in out for batch in part]


def _work(op: Any, splits: Splits, me: One, ctx: Context, seals: int) -> list[Batch]:
    op.bind(splits[0][0].schema)
    op.open(ctx, None)
    mine = [(s, j) for s in range(len(splits))[::-1] if s % me.size == me.rank for j in range(len(splits[s]))]
    origins = {(s, j): Origin(s, sum(b.nrows for b in splits[s][:j])) for s, j in mine}
    for s, j in mine:
        op.observe(splits[s][j], origins[s, j])
    op.settle(me)
    bounds = owner_bounds(me.allreduce(op.weights()), me.size)
    for a, b in itertools.pairwise(np.linspace(0, len(mine), seals + 1).astype(int)):
        for s, j in mine[a:b]:
            op.consume(splits[s][j], origins[s, j])
        op.drain()
        part = op.seal()
        for parts in me.allgather([copied(part, int(bounds[r]), int(bounds[r + 1])) for r in range(me.size)]):
            op.merge(parts[me.rank])
    found = [op.finish(p) for p in range(int(bounds[me.rank]), int(bounds[me.rank + 1]))]
    op.close()
    assert ctx.taken == 0
    return found
