"""Rows held by key: what group and reduce_by_key have in common.

State is rows: key columns, value columns and the origin of each row, ``split << 40 | row`` in one number. `seal` gives them in
partition order, and whatever was sealed and merged in whatever order, `finish` sorts a partition's rows by key and origin: so
seals, exchanges and ranks leave no trace in the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.keys import LONG, KeyLayout, KeyWords, as_strings, encode_keys, word_count
from hpcmr.data.partitioning import Partitioned, partition_bits, without
from hpcmr.data.schema import Schema
from hpcmr.data.sort_keys import SortLayout, nulls_in, order_of
from hpcmr.errors import ConservationError, JobSpecError
from hpcmr.ops.contract import Origin, StageContext

ORIGIN = "#origin"
ORIGIN_BITS = 40
COMBINE_NBYTES = 8 << 20
BLOCK_ROWS = 1 << 16         # finished at a time
SORT_WORDS = 4               # of a row, beside its key words twice: hash, order, what numpy.lexsort has of it, a mark
VALUE_NBYTES = 32            # a number as a Python object
TUPLE_NBYTES = 64
Index = NDArray[np.int64]


class KeyedRows:
    """The part of a `KeyedOperator` that keeps rows; what a group becomes is its children's.

    A child may combine: `combines` is None (rows are kept as they are), "split" (all rows of a key in a split become one, once
    the split is over; `whole_splits` asks for that) or "any" (whenever enough rows wait).
    """

    name = "keyed rows"
    combines: str | None = None
    order_by: tuple[str, ...] = ()            # what the rows of a group are sorted by, before their origin
    descending: tuple[bool, ...] = ()

    @property
    def whole_splits(self) -> bool:
        """Whether rounds of an exchange must leave splits whole: a fold that was cut in the middle would round differently."""
        return self.combines == "split"

    @property
    def partitioned_by(self) -> tuple[str, ...] | None:
        """The partitions of the result are those of the keys' hash."""
        return self.keys or None

    def __init__(self, keys: tuple[str, ...]) -> None:
        if not keys:
            raise JobSpecError(f"{self.name} needs at least one key column")
        self.keys = tuple(keys)
        self.held = 0

    # ---- before --------------------------------------------------------------------------------------------------------

    def bind_rows(self, schema: Schema) -> Schema:
        """Check keys; returns the schema of the value columns."""
        self.schema = schema
        self.layout = KeyLayout.of(schema, self.keys)
        self.value_names = tuple(n for n in schema.names if n not in self.keys)
        if ORIGIN in schema:
            raise JobSpecError(f"a column cannot be called {ORIGIN!r}")
        return schema.select(self.value_names)

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.waiting: list[Batch] = []        # not combined yet
        self.waiting_nbytes = 0
        self.kept: list[Batch] = []
        self.merged: list[Partitioned] = []
        self.merged_nbytes = 0
        self.held = 0
        self.split = -1
        self.rows_in = self.rows_out = 0
        self.combined_in = self.combined_out = 0

    # ---- in ------------------------------------------------------------------------------------------------------------

    def consume(self, batch: Batch, origin: Origin) -> None:
        if self.combines == "split" and origin.split != self.split:
            self._combine_waiting()
        self.split = origin.split
        self.rows_in += batch.nrows
        rows = owned(self.prepared(batch, origin))
        first = (origin.split << ORIGIN_BITS) + origin.row
        rows.columns[ORIGIN] = FixedColumn(np.arange(first, first + rows.nrows, dtype=np.uint64))
        self._hold(rows.nbytes)
        self.waiting.append(rows)
        self.waiting_nbytes += rows.nbytes
        if self.combines == "any" and self.waiting_nbytes > COMBINE_NBYTES and self._pays():
            self._combine_waiting()

    def prepared(self, batch: Batch, origin: Origin) -> Batch:
        """A child may change values as they come in."""
        return batch

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        """One row, or fewer rows, for each group ``order[starts[g]:starts[g + 1]]``, each with an origin of the group's."""
        raise TypeError(f"{self.name} does not combine")

    def _pays(self) -> bool:
        """Step aside where combining did not shrink the rows by a tenth: it is done again, once, when a partition is finished."""
        return self.combined_in < 1 << 16 or self.combined_out < 0.9 * self.combined_in

    def _combine_waiting(self) -> None:
        if not self.waiting:
            return
        if self.combines is None:
            self.kept += self.waiting
        else:
            before = sum(b.nbytes for b in self.waiting)
            rows = Batch.concat(self.waiting)
            found = owned(self.combine(rows, *self.groups(rows)))
            self.combined_in += rows.nrows
            self.combined_out += found.nrows
            self.kept.append(found)
            self._hold(found.nbytes - before)
        self.waiting, self.waiting_nbytes = [], 0

    def _hold(self, nbytes: int) -> None:
        if nbytes > 0:
            self.ctx.take(nbytes, f"the rows of {self.name}")
        elif nbytes < 0:
            self.ctx.give(-nbytes)
        self.held += nbytes

    # ---- out and in again ----------------------------------------------------------------------------------------------

    def pressure(self) -> float:
        own = self.sealable_nbytes
        return own / max(1, own + self.ctx.available()) * 1.25

    @property
    def sealable_nbytes(self) -> int:
        """Bytes that a seal would set free."""
        return self.held - self.merged_nbytes

    def drain(self) -> None:
        self._combine_waiting()

    def seal(self) -> Partitioned:
        """What was consumed since the last seal. What was merged stays: its partitions are at their owner for the whole stage."""
        self._combine_waiting()
        whole = Batch.concat(self.kept) if self.kept else self.nothing()
        self.kept = []               # freed before the rows are copied once more
        hashes = encode_keys(whole, self.layout.for_batches(whole)).hashes
        bits = partition_bits(self.ctx.partitions)
        # At most 65,536 partitions: NumPy sorts 16-bit numbers by radix, several times faster than others.
        partition = (hashes >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(len(hashes), np.uint16)
        starts = np.zeros(self.ctx.partitions + 1, np.int64)
        np.cumsum(np.bincount(partition, minlength=self.ctx.partitions), out=starts[1:])
        part = Partitioned(whole.take(np.argsort(partition, kind="stable")).compact(), starts)
        self._hold(self.merged_nbytes - self.held)
        return part

    def nothing(self) -> Batch:
        """No rows, with the columns of the state."""
        out = Batch.empty(self.state_schema())
        out.columns[ORIGIN] = FixedColumn(np.zeros(0, np.uint64))
        return out

    def state_schema(self) -> Schema:
        return self.schema

    def merge(self, part: Partitioned) -> None:
        if part.batch.nrows:
            self.merged.append(part)
            self.merged_nbytes += part.batch.nbytes
            self._hold(part.batch.nbytes)

    # ---- results -------------------------------------------------------------------------------------------------------

    def finish(self, partition: int) -> Batch:
        """Result of one partition, in key order."""
        blocks = list(self.finish_blocks(partition))
        return Batch.concat(blocks) if blocks else Batch.empty(self.out_schema())

    def finish_blocks(self, partition: int) -> Iterator[Batch]:
        """`finish`, some groups at a time. Raises `MemoryTooSmall`."""
        parts = [p for p in self.merged if p.covers(partition)]
        nrows = sum(b - a for a, b in (p.rows_of(partition) for p in parts))
        with self._taken(self.finish_nbytes(parts, partition), f"{self.name}, to sort the {nrows:,} rows of partition {partition} as a whole,"):
            del parts
            rows = self.take_rows(partition)
            if rows is None:
                return
            self.rows_out += nrows
            order, starts = self.groups(rows)
            each = 2 * rows.nbytes / nrows + self.object_nbytes
            for first, last in group_blocks(starts):
                a, b = int(starts[first]), int(starts[last])
                with self._taken(int(each * (b - a)), f"{self.name}, for a block of {last - first:,} groups of {b - a:,} rows,"):
                    made = self.finished(rows.take(order[a:b]), np.arange(b - a), starts[first:last + 1] - a)
                yield made

    @contextmanager
    def _taken(self, nbytes: int, what: str) -> Iterator[None]:
        self.ctx.take(nbytes, what)
        try:
            yield
        finally:
            self.ctx.give(nbytes)

    def finish_nbytes(self, parts: list[Partitioned], partition: int | None = None) -> int:
        """Bytes that it takes to sort a partition of `parts`, the largest by default: its rows in one batch, and what they are sorted by."""
        if not parts:
            return 0
        need = np.zeros(max(p.first + p.count for p in parts))
        for p in parts:
            each = p.batch.nbytes / max(1, p.batch.nrows) + 8 * (2 * self.layout.width + SORT_WORDS)
            need[p.first:p.first + p.count] += np.diff(p.starts) * each
        return int(need.max() if partition is None else need[partition])

    @property
    def object_nbytes(self) -> int:
        """Bytes of a row as Python objects, where a function of the user's gets them."""
        return 0

    def python_nbytes(self, columns: int) -> int:
        """About what a row of so many columns takes as Python objects, one a value, in a named tuple where there are several."""
        return columns * (VALUE_NBYTES + 8) + (TUPLE_NBYTES if columns > 1 else 0)

    def take_rows(self, partition: int) -> Batch | None:
        """The rows that were merged for a partition, which are given back with it; None if there are none."""
        found = [p.part(partition) for p in self.merged if p.covers(partition)]
        found = [b for b in found if b.nrows]
        self.merged = without(self.merged, partition)
        if not found:
            return None
        rows = Batch.concat(found)
        given = min(self.merged_nbytes, rows.nbytes)
        self.merged_nbytes -= given
        self._hold(-given)
        return rows

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        """What the groups become: a row for each."""
        raise TypeError(f"{self.name} has no result")

    def out_schema(self) -> Schema:
        raise TypeError(f"{self.name} has no result")

    def close(self) -> None:
        self._hold(-self.held)
        self.waiting, self.kept, self.merged, self.merged_nbytes = [], [], [], 0

    def check(self, rows_global: int, rows_out_global: int) -> None:
        """Every row that came in, on any rank, is in exactly one group; where rows are combined on the way only the groups are left to count."""
        if self.combines is None and rows_global != rows_out_global:
            raise ConservationError(f"{self.name} took in {rows_global:,} rows and its groups hold {rows_out_global:,}")

    def groups(self, rows: Batch) -> tuple[Index, Index]:
        """Rows sorted by key, then origin: ``order``, and ``starts (groups + 1,)`` into it."""
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        if self.order_by:
            return ordered_groups(rows, self.layout, origin.values, self.order_by, self.descending)
        return sorted_groups(rows, self.layout, origin.values)

    def firsts(self, rows: Batch, order: Index, starts: Index) -> Batch:
        """Keys of the groups."""
        return rows.select(self.keys).take(order[starts[:-1]])


def group_blocks(starts: Index) -> Iterator[tuple[int, int]]:
    """Ranges of groups that together have about `BLOCK_ROWS` rows: one group at least, however many it has."""
    first, groups = 0, len(starts) - 1
    while first < groups:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK_ROWS, "right")) - 1)
        yield first, last
        first = last


def sorted_groups(rows: Batch, layout: KeyLayout, origin: NDArray[np.uint64]) -> tuple[Index, Index]:
    """Order of rows by key and then origin, and where each group starts in it."""
    if not rows.nrows:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    layout = layout.for_batches(rows)
    words = _with_ranks(rows, layout, encode_keys(rows, layout))
    if bool((origin[1:] >= origin[:-1]).all()):
        order = np.argsort(words[0], kind="stable") if len(words) == 1 else np.lexsort(words[::-1])
    else:
        order = np.lexsort((origin, *words[::-1]))
    return order, _starts([w[order] for w in words])


def ordered_groups(rows: Batch, layout: KeyLayout, origin: NDArray[np.uint64], then: tuple[str, ...],
                   descending: tuple[bool, ...]) -> tuple[Index, Index]:
    """Order of rows by key, then by the columns `then`, then by origin; and where each group starts in it."""
    names = (*layout.names, *(n for n in then if n not in layout.names))
    turned = dict(zip(then, descending, strict=True))
    sort = SortLayout.of(rows.schema, names, [turned.get(n, False) and n not in layout.names for n in names], nulls_in(rows, names))
    order = order_of(rows, sort, origin)
    return order, group_starts(rows.select(layout.names).take(order), layout)


def group_starts(rows: Batch, layout: KeyLayout) -> Index:
    """Where each group starts in rows that are sorted by key: ``(groups + 1,)``."""
    if not rows.nrows:
        return np.zeros(1, np.int64)
    layout = layout.for_batches(rows)
    return _starts(_with_ranks(rows, layout, encode_keys(rows, layout)))


def _starts(words: list[NDArray[np.uint64]]) -> Index:
    n = len(words[0])
    differs = np.zeros(n - 1, np.bool_)
    for w in words:
        differs |= w[1:] != w[:-1]
    return np.concatenate([[0], np.flatnonzero(differs) + 1, [n]]).astype(np.int64)


def _with_ranks(rows: Batch, layout: KeyLayout, encoded: KeyWords) -> list[NDArray[np.uint64]]:
    """The key words as columns to sort by; behind a string's words comes the rank of its bytes, where some are too long for words."""
    words = [np.ascontiguousarray(encoded.words[:, k]) for k in range(layout.width)]
    if not encoded.long_count:
        return words
    out: list[NDArray[np.uint64]] = []
    for name, kind, at, nullable in zip(layout.names, layout.types, layout.places, layout.nullable, strict=True):
        count = word_count(kind)
        out += words[at - nullable:at + count]
        if count > 1:
            strings = as_strings(rows[name])
            long = np.flatnonzero(words[at + 2] & LONG == LONG)
            raw = BytesColumn(strings.starts[long], strings.ends[long], strings.data, False).to_list()
            place = {s: i + 1 for i, s in enumerate(sorted(set(raw)))}
            rank = np.zeros(rows.nrows, np.uint64)
            rank[long] = [place[s] for s in raw]
            out.append(rank)
    return out


def owned(batch: Batch) -> Batch:
    """The batch in memory of its own: what comes in lies in buffers that are used again."""
    return Batch({n: _owned(c) for n, c in batch.columns.items()}, batch.nrows)


def _owned(column: Column) -> Column:
    valid = None if column.valid is None else column.valid.copy()
    if isinstance(column, FixedColumn):
        return FixedColumn(column.values.copy(), valid)
    whole = column.compact()
    if isinstance(whole, ListColumn):
        return ListColumn(whole.starts.copy(), whole.ends.copy(), _owned(whole.child), valid)
    assert isinstance(whole, BytesColumn)
    data: Any = whole.data.copy() if whole.data.base is not None else whole.data
    return BytesColumn(whole.starts.copy(), whole.ends.copy(), data, whole.text, valid)
