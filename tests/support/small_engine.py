"""The engine in small: a keyed operator driven by hand on pretended ranks, with books that must balance."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.ops.contract import KeyedOperator, Origin

Splits = list[list[Batch]]


class Context:
    """A stage context that keeps the books."""

    def __init__(self, partitions: int = 8) -> None:
        self.partitions = partitions
        self.seed = 0
        self.rank, self.size, self.attempt, self.provenance, self.journal = 0, 1, "a", {}, None
        self.taken = 0

    def take(self, nbytes: int, what: str) -> None:
        assert nbytes >= 0 and what
        self.taken += nbytes

    def give(self, nbytes: int) -> None:
        self.taken -= nbytes
        assert self.taken >= 0

    def available(self) -> int:
        return 1 << 30

    def count(self, name: str, n: int) -> None: ...

    def log(self, message: str, once: str | None = None) -> None: ...


def reused(batch: Batch) -> Batch:
    """A copy whose memory the test overwrites after it was consumed, as sources do."""
    return pickle.loads(pickle.dumps(batch))


def spoil(batch: Batch) -> None:
    for column in batch.columns.values():
        while hasattr(column, "child"):
            column = column.child
        array = column.values if hasattr(column, "values") else column.data
        if array.flags.writeable:
            array[...] = array.dtype.type() if array.dtype.kind != "S" else b"?"


def run(make: Callable[[], Any], splits: Splits, ranks: int = 1, seal_every: int | None = None, partitions: int = 8,
        sampled: bool = False) -> Batch:
    """The engine in small: splits dealt to ranks, sealed at the end or after every so many, exchanged by partition, finished in order."""
    schema = splits[0][0].schema
    ops, contexts = [], []
    for _ in range(ranks):
        op = make()
        assert isinstance(op, KeyedOperator)
        if op.bind(schema) is None:
            found = op.infer(splits[0][0], Origin(0, 0))
            op.fix(found)
        contexts.append(Context(partitions))
        op.open(contexts[-1], splits[0][0] if sampled else None)
        ops.append(op)

    def exchange() -> None:
        while exchange_once():
            pass

    def exchange_once() -> bool:
        parts = []
        for op in ops:
            op.drain()
            part = op.seal()
            rows = np.arange(part.batch.nrows)
            parts.append(Partitioned(part.batch.take(rows), part.starts) if part.reused else part)
        for r, op in enumerate(ops):
            lo, hi = partitions * r // ranks, partitions * (r + 1) // ranks
            for p in parts:
                op.merge(Partitioned(p.batch.slice(int(p.starts[lo]), int(p.starts[hi])), p.starts[lo:hi + 1] - p.starts[lo], lo))
        return any(hasattr(op, "pending") and op.pending() for op in ops)

    for index, split in enumerate(splits):
        row = 0
        for batch in split:
            given = reused(batch)
            ops[index % ranks].consume(given, Origin(index, row))
            spoil(given)
            row += batch.nrows
        if seal_every and (index + 1) % seal_every == 0:
            exchange()
    exchange()
    out = [ops[min(r for r in range(ranks) if p < partitions * (r + 1) // ranks)].finish(p) for p in range(partitions)]
    ops[0].check(sum(op.rows_in for op in ops), sum(op.rows_out for op in ops))
    assert sum(op.rows_in for op in ops) == sum(b.nrows for s in splits for b in s)
    for op, ctx in zip(ops, contexts, strict=True):
        assert op.pressure() >= 0
        op.close()
        assert ctx.taken == 0
    return Batch.concat(out)


def cut(columns: dict[str, list[Any]], splits: int, batch_rows: int = 5) -> Splits:
    whole = Batch.of(columns)
    n = whole.nrows
    bounds = [n * i // splits for i in range(splits + 1)]
    return [[whole.slice(r, min(r + batch_rows, b)) for r in range(a, b, batch_rows)] for a, b in itertools.pairwise(bounds) if b > a]
