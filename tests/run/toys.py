"""A source, steps, an operator and an outlet that are small enough to be understood at a glance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned, partition_bits
from hpcmr.data.schema import FLOAT64, INT64, Schema
from hpcmr.data.source import Split
from hpcmr.ops.contract import Origin
from hpcmr.plan.nodes import Apply, Keyed, Node, Read

SCHEMA = Schema.of({"k": INT64, "x": FLOAT64})
BATCH_ROWS = 100


def rows_of(split: int, n: int) -> dict[str, np.ndarray]:
    """Rows of a split, from its number alone."""
    rng = np.random.default_rng(split)
    return {"k": rng.integers(0, 50, n), "x": rng.normal(size=n) * 10.0 ** rng.integers(-5, 5, n)}


class Numbers:
    """Splits of random rows; `slow_s` seconds a batch, in `trouble` a rank raises."""

    name = "numbers"

    def __init__(self, sizes: list[int], slow_s: float = 0.0) -> None:
        self.sizes = sizes
        self.slow_s = slow_s
        self.closed = False
        self.read_here: list[int] = []

    def fingerprint(self) -> tuple[Any, ...]:
        return tuple(self.sizes)

    def survey(self) -> tuple[Schema, list[Split]]:
        return SCHEMA, [Split(i, 16 * n, f"numbers[{i}]", (n,)) for i, n in enumerate(self.sizes)]

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        assert schema == SCHEMA and len(splits) == len(self.sizes)

    def read(self, split: Split) -> Iterator[Batch]:
        self.read_here.append(split.index)
        columns = rows_of(split.index, split.part[0])
        whole = Batch.of(columns)
        for a in range(0, whole.nrows, BATCH_ROWS):
            time.sleep(self.slow_s)
            yield whole.slice(a, a + BATCH_ROWS)

    def close(self) -> None:
        self.closed = True


class Itself:
    """Actions use the object of the plan, not a copy, so that a test can look into it."""

    def __copy__(self) -> Any:
        return self


class Call(Itself):
    """A step that calls a function with a batch and its origin; the schema stays."""

    name = "call"

    def __init__(self, function: Any) -> None:
        self.function = function

    def fingerprint(self) -> tuple[Any, ...]:
        return ("call",)

    def bind(self, schema: Schema) -> Schema | None:
        return schema

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        raise AssertionError

    def fix(self, schema: Schema) -> None:
        raise AssertionError

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        assert batch.nrows
        return self.function(batch, origin)


class Guess(Call):
    """A step whose columns are found by running it."""

    name = "guess"

    def bind(self, schema: Schema) -> Schema | None:
        self.schema = None
        return None

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        found = self.function(sample, origin)
        return found.schema if found.nrows else None

    def fix(self, schema: Schema) -> None:
        self.schema = schema

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        assert self.schema is not None
        return super().apply(batch, origin)


class SumByKey(Itself):
    """Rows by key, added up in the order of their origin at the end. `often`: wants a round after every batch."""

    name = "sum_by_key"

    def __init__(self, often: bool = False) -> None:
        self.often = often

    def fingerprint(self) -> tuple[Any, ...]:
        return ("sum_by_key",)

    def bind(self, schema: Schema) -> Schema:
        return Schema.of({"k": INT64, "x": FLOAT64})

    def open(self, ctx: Any, estimate: Batch | None) -> None:
        self.ctx, self.estimate = ctx, estimate
        self.rows_in = self.rows_out = self.sealed = 0
        self.fresh: list[np.ndarray] = []
        self.merged: list[Partitioned] = []

    def consume(self, batch: Batch, origin: Origin) -> None:
        self.rows_in += batch.nrows
        order = (origin.split << 32) + origin.row + np.arange(batch.nrows)
        self.fresh.append(np.rec.fromarrays([batch["k"].values, batch["x"].values, order], names="k,x,o"))

    def pressure(self) -> float:
        return 1.0 if self.often and self.fresh else 0.0

    def drain(self) -> None:
        self.drained = True

    def seal(self) -> Partitioned:
        assert self.drained
        self.sealed += 1
        none = np.rec.fromarrays([np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)], names="k,x,o")
        rows = np.concatenate(self.fresh or [none])
        self.fresh = []
        hashes = rows["k"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = partition_bits(self.ctx.partitions)
        where = (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(rows), np.int64)
        sort = np.argsort(where, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=self.ctx.partitions))]).astype(np.int64)
        return Partitioned(Batch({n: FixedColumn(np.ascontiguousarray(rows[n][sort])) for n in ("k", "x", "o")}, len(rows)), starts)

    def merge(self, part: Partitioned) -> None:
        self.merged.append(part)

    def finish(self, partition: int) -> Batch:
        parts = [p.part(partition) for p in self.merged if p.covers(partition)]
        k, x, o = (np.concatenate([p[n].values for p in parts] or [np.zeros(0)]) for n in ("k", "x", "o"))
        order = np.lexsort((o, k))
        k, x = k[order], x[order]
        self.rows_out += len(k)
        keys = np.unique(k)
        return Batch.of({"k": keys.astype(np.int64), "x": np.array([float(np.add.accumulate(x[k == key])[-1]) for key in keys], np.float64)})

    def check(self, rows_global: int, rows_out_global: int) -> None:
        assert rows_global == rows_out_global

    def close(self) -> None:
        self.merged = []


class Gather:
    """An outlet that gives all rows in order; `limit` rows are enough."""

    name = "gather"

    def __init__(self, root: int | None = None, limit: int | None = None, ascending: bool = False) -> None:
        self.root, self.limit, self.ascending = root, limit, ascending
        self.pieces: list[tuple[int, Batch]] = []
        self.abandoned = self.begun = False

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.root, self.limit)

    def begin(self, ctx: Any) -> None:
        assert ctx.rank == 0
        self.begun = True

    def open(self, ctx: Any, schema: Schema) -> None:
        self.schema = schema

    def take(self, piece: int, batch: Batch) -> None:
        assert batch.nrows
        if self.ascending and self.pieces:
            assert piece >= self.pieces[-1][0]
        self.pieces.append((piece, batch.take(np.arange(batch.nrows))))

    def enough(self, piece: int) -> bool:
        return self.limit is not None and sum(b.nrows for p, b in self.pieces if p <= piece) >= self.limit

    def local(self) -> Any:
        return self.pieces

    def combine(self, payloads: list[Any]) -> Any:
        pieces = sorted((p for ps in payloads for p in ps), key=lambda p: p[0])
        batch = Batch.concat([Batch.empty(self.schema), *(b for _, b in pieces)])
        return batch.slice(0, self.limit) if self.limit is not None else batch

    def abandon(self) -> None:
        self.abandoned = True


def plan(source: Any, steps: tuple[Any, ...] = (), operator: Any = None, after: tuple[Any, ...] = (), partitions: int | None = 8) -> Node:
    return then(Read(source.name, "", source), steps, operator, after, partitions)


def then(node: Node, steps: tuple[Any, ...] = (), operator: Any = None, after: tuple[Any, ...] = (), partitions: int | None = 8) -> Node:
    """The plan, and more behind it."""
    for step in steps:
        node = Apply(step.name, "", node, step)
    if operator is not None:
        node = Keyed(operator.name, "", node, operator, partitions)
    for step in after:
        node = Apply(step.name, "", node, step)
    return node


def expected_rows(sizes: list[int]) -> dict[str, np.ndarray]:
    parts = [rows_of(i, n) for i, n in enumerate(sizes)]
    return {n: np.concatenate([p[n] for p in parts]) for n in ("k", "x")}


def same_bits(a: Batch, b: Batch) -> bool:
    return a.schema == b.schema and all(a[n].values.tobytes() == b[n].values.tobytes() for n in a.names)
