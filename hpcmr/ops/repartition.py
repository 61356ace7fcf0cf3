"""Where rows lie: ``repartition``, by key, or in parts of equal length that keep the order."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.errors import ConservationError, JobSpecError
from hpcmr.ops.contract import Collective, Origin, StageContext
from hpcmr.ops.hold import compact_copy, real_nbytes
from hpcmr.ops.keyed_rows import Index, KeyedRows
from hpcmr.ops.settled import pack, unpack

NUMBER = "#number"


class RepartitionByKey(KeyedRows):
    """Rows unchanged, those of a key side by side, in the order of their origin. A `KeyedOperator`."""

    name = "repartition"

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.keys)

    def bind(self, schema: Schema) -> Schema:
        self.bind_rows(schema)
        return schema

    def out_schema(self) -> Schema:
        return self.schema

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        return rows.select(self.schema.names).take(order)


class Repartition:
    """Rows unchanged and in order, in `parts` parts of equal length. A `KeyedOperator` that looks at the rows first, to number them."""

    name = "repartition"
    survey = True
    partitioned_by = None
    over = "parts of equal length, rows in order"

    def __init__(self, parts: int) -> None:
        if not isinstance(parts, int) or isinstance(parts, bool) or not 1 <= parts <= 65536:
            raise JobSpecError(f"repartition({parts!r}): the number of parts is an integer from 1 to 65,536")
        self.parts = parts

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.parts)

    def bind(self, schema: Schema) -> Schema:
        if NUMBER in schema:
            raise JobSpecError(f"a column cannot be called {NUMBER!r}")
        self.schema = schema
        return schema

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.counts: dict[int, list[int]] = {}      # by split: the first row of this rank's part of it, and how many
        self.starts: dict[int, list[tuple[int, int]]] = {}      # by split: first row and its number, of each rank's part
        self.total = 0
        self.kept: list[Batch] = []
        self.merged: list[Partitioned] = []
        self.kept_nbytes = self.merged_nbytes = 0
        self.rows_in = self.rows_out = 0

    # ---- numbers -------------------------------------------------------------------------------------------------------

    def observe(self, batch: Batch, origin: Origin) -> None:
        self.counts.setdefault(origin.split, [origin.row, 0])[1] += batch.nrows

    def settle(self, together: Collective) -> None:
        """Number the rows: those of a split behind those of the splits before it."""
        mine = [(split, first, n) for split, (first, n) in self.counts.items()]
        for split, first, n in sorted(part for parts in together.allgather(mine) for part in parts):
            # All ranks know all parts: the second time a split may be read by another rank.
            self.starts.setdefault(split, []).append((first, self.total))
            self.total += n

    def settled(self) -> Batch:
        parts = [(split, first, number) for split, found in self.starts.items() for first, number in found]
        return pack((self.total, np.array(parts, np.int64).reshape(-1, 3)))

    def resettle(self, found: Batch) -> None:
        self.total, parts = unpack(found)
        self.starts = {}
        for split, first, number in parts.tolist():
            self.starts.setdefault(split, []).append((first, number))

    def weights(self) -> Any:
        """What each part has of this rank's rows does not matter: all parts are of equal length."""
        return np.full(self.parts, -(-self.total // self.parts), np.int64)

    # ---- rows ----------------------------------------------------------------------------------------------------------

    def consume(self, batch: Batch, origin: Origin) -> None:
        row, number = max(part for part in self.starts[origin.split] if part[0] <= origin.row)
        first = number + origin.row - row
        rows = compact_copy(batch)
        rows.columns[NUMBER] = FixedColumn(np.arange(first, first + rows.nrows, dtype=np.int64))
        nbytes = real_nbytes(rows)
        self.ctx.take(nbytes, "the rows that a repartition moves")
        self.kept_nbytes += nbytes
        self.kept.append(rows)
        self.rows_in += batch.nrows

    def pressure(self) -> float:
        return self.kept_nbytes / max(1, self.kept_nbytes + self.ctx.available()) * 1.25

    def drain(self) -> None:
        """Nothing is buffered."""

    def seal(self) -> Partitioned:
        self.kept.sort(key=lambda b: int(b[NUMBER].values[0]))  # type: ignore[union-attr]
        none = Batch.empty(self.schema)
        none.columns[NUMBER] = FixedColumn(np.zeros(0, np.int64))
        whole = Batch.concat(self.kept) if self.kept else none
        numbers = whole[NUMBER]
        assert isinstance(numbers, FixedColumn)
        firsts = [p * self.total // self.parts for p in range(self.parts)] + [self.total]
        starts = np.searchsorted(numbers.values, np.array(firsts, np.int64)).astype(np.int64)
        self.ctx.give(self.kept_nbytes)
        self.kept, self.kept_nbytes = [], 0
        return Partitioned(whole, starts)

    def merge(self, part: Partitioned) -> None:
        if part.batch.nrows:
            self.merged.append(part)
            self.merged_nbytes += part.batch.nbytes
            self.ctx.take(part.batch.nbytes, "the rows that a repartition moves")

    def finish(self, partition: int) -> Batch:
        """The rows of a part, in order."""
        found = [p.part(partition) for p in self.merged if p.first <= partition < p.first + p.count]
        found = [b for b in found if b.nrows]
        if not found:
            return Batch.empty(self.schema)
        rows = Batch.concat(found)
        given = min(self.merged_nbytes, rows.nbytes)
        self.merged_nbytes -= given
        self.ctx.give(given)
        self.rows_out += rows.nrows
        numbers = rows[NUMBER]
        assert isinstance(numbers, FixedColumn)
        rows = rows.select(self.schema.names)
        if bool((numbers.values[1:] > numbers.values[:-1]).all()):
            return rows
        return rows.take(np.argsort(numbers.values, kind="stable"))

    def check(self, rows_global: int, rows_out_global: int) -> None:
        if rows_global != rows_out_global:
            raise ConservationError(f"{self.name} took in {rows_global:,} rows and gave out {rows_out_global:,}")

    def close(self) -> None:
        self.ctx.give(self.kept_nbytes + self.merged_nbytes)
        self.kept, self.merged, self.kept_nbytes, self.merged_nbytes = [], [], 0, 0
