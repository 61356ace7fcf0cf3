"""All rows in the order of some columns: a sample sort. A `KeyedOperator`.

The rows come by twice. The first time a sample of them is drawn, from which splitters are chosen: rows that begin the partitions
(`hpcmr.ops.splitters`). The second time each row becomes a record (`hpcmr.data.records`), finds its partition and is scattered to it. A partition
lies in the cache when it is sorted: buckets of its first word, a counting pass and an insertion sort in each, further words where rows are equal
so far. Equal rows stay in the order of the input, and may lie in several partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn, concat_columns
from hpcmr.data.keys import has_nulls
from hpcmr.data.memory import release, small_pages
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.records import RecordLayout, of_integers, one_empty
from hpcmr.data.schema import Schema
from hpcmr.data.sort_keys import Sorter, SortLayout, directions, encode_sort_keys, strings_of, tails_of
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Collective, Origin, StageContext
from hpcmr.ops.keyed_rows import owned
from hpcmr.ops.settled import pack, unpack
from hpcmr.ops.splitters import Sample, Splitters, origin_word

ROUND_NBYTES = 64 << 20      # records that are scattered, and exchanged, at a time
ROUND_NBYTES_MIN = 1 << 20
ROUND_SHARE = 8              # of the memory that is free, what a round may take
BUCKET_BITS = 8              # a bucket of a partition has some 2^7 to 2^8 rows
EVEN_ROWS_MIN = 4096
RECORDS = "#records"


class Sort:
    """Rows in the order of the columns `keys`; equal ones in the order of the input.

    Parameters
    ----------
    keys : sequence of str
    descending : bool or sequence of bool
        For all columns, or for each. NaN comes behind all numbers, nulls behind everything, in both directions.
    hidden : sequence of str
        Columns that are sorted by and are not in the result.
    """

    name = "sort"
    survey = True
    partitioned_by = None

    def __init__(self, keys: Sequence[str], descending: bool | Sequence[bool] = False, hidden: Sequence[str] = ()) -> None:
        if not keys:
            raise JobSpecError("sort_by needs at least one column, for example sort_by('time')")
        self.by = tuple(keys)
        self.descending = directions(self.by, descending)
        self.hidden = tuple(hidden)
        self.rows_in = self.rows_out = 0

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.by, self.descending, self.hidden)

    def bind(self, schema: Schema) -> Schema:
        SortLayout.of(schema, self.by, self.descending)
        self.schema = schema
        self.out_schema = Schema(tuple(f for f in schema if f.name not in self.hidden))
        return self.out_schema

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.taken = 0
        self.rows_in = self.rows_out = 0
        self.sample = Sample(self.by, ctx.partitions, ctx.seed) if ctx.partitions > 1 else None
        self._sampled = 0
        self._nulls = dict.fromkeys(self.schema.names, False)
        self._longest = {f.name: 0 for f in SortLayout.of(self.schema, self.by).fields if f.type.is_string}
        self._observed = 0
        self._merged: list[Partitioned] = []
        self._merged_nbytes = 0
        self._sorter = Sorter()

    def import_kernels(self) -> None:
        import hpcmr.kernels.sort
        import hpcmr.kernels.sort_keys
        import hpcmr.kernels.sort_rows  # noqa: F401

    def _take(self, nbytes: int) -> None:
        if nbytes > 0:
            self.ctx.take(nbytes, "the rows of a sort")
        elif nbytes < 0:
            self.ctx.give(-nbytes)
        self.taken += nbytes

    # ---- the first pass ------------------------------------------------------------------------------------------------

    def observe(self, batch: Batch, origin: Origin) -> None:
        for name, column in batch.columns.items():
            if not self._nulls[name] and has_nulls(column):
                self._nulls[name] = True
        for name, longest in self._longest.items():
            s = strings_of(batch[name])
            self._longest[name] = max(longest, int((s.ends - s.starts).max(initial=0)))
        self._observed += batch.nrows
        if self.sample is not None:
            self.sample.add(batch, origin)
            self._take(self.sample.nbytes - self._sampled)
            self._sampled = self.sample.nbytes

    def settle(self, together: Collective) -> None:
        """Agree on what the keys and records look like, and on the splitters."""
        told = [*self._nulls.values(), *self._longest.values()]
        agreed = together.allreduce(np.array([*told, 0], np.int64), "max").tolist()
        nulls = {n: bool(null) for n, null in zip(self._nulls, agreed, strict=False)}
        self._form = nulls, dict(zip(self._longest, agreed[len(nulls):], strict=False))
        self._agree_on_records()
        nothing = Batch.empty(self.schema)
        sample = self.sample.gather(together, nothing) if self.sample is not None else None
        self.sample = None
        self._take(-self._sampled)
        self._sampled = 0
        self.splitters = Splitters.chosen(sample, self.layout, self.ctx.partitions, self.long) if sample is not None else None
        self._take(self.splitters.nbytes if self.splitters is not None else 0)
        self._rows_global = int(together.allreduce(np.array([self._observed], np.int64))[0])
        self._prepare()

    def settled(self) -> Batch:
        """What keys and records look like, the splitters and the rows: from the data alone."""
        return pack([*self._form, self._rows_global, None if self.splitters is None else self.splitters.rows])

    def resettle(self, found: Batch) -> None:
        nulls, longest, self._rows_global, rows = unpack(found)
        self._form = nulls, longest
        self.sample = None
        self._agree_on_records()
        self.splitters = Splitters(rows, self.layout, self.long) if rows is not None else None
        self._take(self.splitters.nbytes if self.splitters is not None else 0)
        self._observed = -(-self._rows_global // getattr(self.ctx, "size", 1))
        self._prepare()

    def _agree_on_records(self) -> None:
        nulls, lengths = self._form
        nullable = {n for n, null in nulls.items() if null}
        self.layout = SortLayout.of(self.schema, self.by, self.descending, nullable, lengths)
        long = {f.name: lengths.get(f.name, f.type.row_nbytes) > f.inline_nbytes for f in self.layout.fields if f.is_string}
        self.long = tuple(n for n, found in long.items() if found)
        hidden = [n for n in self.hidden if n not in self.long]
        self.records = RecordLayout.of(self.schema, self.layout, nullable, hidden)

    def weights(self) -> NDArray[np.int64]:
        """Partitions are of one size."""
        return np.full(self.ctx.partitions, max(1, 8 * self.records.words * self._observed // self.ctx.partitions), np.int64)

    # ---- the second pass -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Memory for a round."""
        self.header = 1 if self.records.words > 1 else 2
        free = min(ROUND_NBYTES, max(ROUND_NBYTES_MIN, self.ctx.available() // ROUND_SHARE))
        self.round_nbytes = min(free, 8 * self.records.words * self._observed)
        self._held = np.empty((0, self.records.words), np.uint64)
        self._dest = np.empty(0, np.uint16)
        self._packed = np.empty((0, self.records.words), np.uint64)
        self._words = np.empty((0, self.layout.width), np.uint64)
        self._room(self.round_nbytes // (8 * self.records.words) + (1 << 16))
        self._empty()

    def _room(self, rows: int) -> None:
        """Room for so many rows; what is there stays."""
        if rows <= len(self._held):
            return
        self._take((rows - len(self._held)) * (8 * self.records.words + 2))
        held, dest = self._held, self._dest
        self._held, self._dest = self._memory(rows), small_pages(rows, np.uint16)
        self._held[:len(held)], self._dest[:len(dest)] = held, dest

    def _memory(self, rows: int) -> NDArray[np.uint64]:
        return small_pages(rows * self.records.words, np.uint64).reshape(rows, self.records.words)

    def _empty(self) -> None:
        self.count = 0
        self._run_starts: list[int] = []
        self._run_origins: list[int] = []
        self._next = -1
        self._apart: dict[str, list[Column]] = {n: [] for n in self.records.apart}
        self._apart_nbytes = 0

    def consume(self, batch: Batch, origin: Origin) -> None:
        n, first = batch.nrows, origin_word(origin)
        if self.count + n > len(self._held):
            self._room(max(self.count + n, len(self._held) * 5 // 4))
        if first != self._next:
            self._run_starts.append(self.count)
            self._run_origins.append(first)
        self._next = first + n
        records, dest = self._held[self.count:self.count + n], self._dest[self.count:self.count + n]
        words = None
        if self.layout.single is None:
            if len(self._words) < n:
                self._words = np.empty((n, self.layout.width), np.uint64)
            words = encode_sort_keys(batch, self.layout, self._words)
        self.records.put(batch, words, records)
        if self.splitters is None:
            dest[:] = 0
        else:
            self.splitters.assign(records, batch, origin, dest)
        for name, kept in self._apart.items():
            column = owned(batch.select([name]))[name]
            kept.append(column)
            self._apart_nbytes += column.nbytes
            self._take(column.nbytes)
        self.count += n
        self.rows_in += n

    def pressure(self) -> float:
        return (8 * self.records.words * self.count + self._apart_nbytes) / max(1, self.round_nbytes)

    def drain(self) -> None:
        """Nothing is buffered that a seal would not take."""

    def seal(self) -> Partitioned:
        from hpcmr.kernels.sort_rows import count_runs, scatter_runs

        totals = np.zeros(self.ctx.partitions, np.int64)
        dest, run_starts = self._dest[:self.count], np.array([*self._run_starts, self.count], np.int64)
        count_runs(dest, run_starts, self.header, totals)
        starts = np.concatenate([[0], np.cumsum(totals)]).astype(np.int64)
        n = int(starts[-1])
        if n > len(self._packed):
            self._take((n - len(self._packed)) * 8 * self.records.words)
            self._packed = self._memory(n)
        order = np.empty(n if self._apart else 0, np.int64)
        packed = self._packed[:n]
        origins = np.array(self._run_origins, np.uint64)
        scatter_runs(self._held[:self.count], dest, run_starts, origins, self.header, starts[:-1].copy(), packed, order)
        columns: dict[str, Column] = {RECORDS: FixedColumn(packed)}
        for name, kept in self._apart.items():
            whole = concat_columns([*kept, one_empty(self.schema[name].type)])
            columns[name] = whole.take(order).compact()
        self._take(-self._apart_nbytes)
        self._empty()
        return Partitioned(Batch(columns, n), starts, reused=True)

    def merge(self, part: Partitioned) -> None:
        if not self.count:
            self._let_go()
        if part.batch.nrows:
            self._take(part.batch.nbytes)
            self._merged_nbytes += part.batch.nbytes
            self._merged.append(part)

    def _let_go(self) -> None:
        """The memory of a round: the results can lie in it."""
        for memory in (self._held, self._packed, self._dest):
            self._take(-memory.nbytes)
            release(memory.ctypes.data, memory.nbytes)
        self._held = self._packed = self._held[:0].copy()
        self._dest = self._dest[:0].copy()

    # ---- results -------------------------------------------------------------------------------------------------------

    def finish(self, partition: int) -> Batch:
        """The rows of a partition, in order. Its records are released."""
        runs = Runs(self._merged, partition, 8 * self.records.words, self.header)
        if not runs.count:
            return Batch.empty(self.out_schema)
        apart = {n: runs.column(n) for n in self.records.apart}
        columns = self._pairs(runs) if self.records.in_pairs else self._rows(runs, apart)
        runs.release()
        self._done(partition, runs.nbytes)
        self.rows_out += runs.count
        return Batch({f.name: columns[f.name] for f in self.out_schema}, runs.count)

    def _done(self, partition: int, nbytes: int) -> None:
        """Memory of parts whose last partition this was is given back; what was released of others as well."""
        given = min(nbytes, self._merged_nbytes)       # a string that was cut out may count as more than it did among others
        self._merged_nbytes -= given
        self._take(-given)
        self._merged = [p for p in self._merged if p.first + p.count - 1 > partition]

    def _pairs(self, runs: Runs) -> dict[str, Column]:
        """Records of two words are sorted as they are."""
        single = self.layout.single
        assert single is not None
        W, Q = self._sorted(runs, 1 if self.records.words > 1 else -1, self.records.turn)
        columns: dict[str, Column] = {single.name: FixedColumn(of_integers(W.view(np.int64), single.type))}
        raw = Q.view(np.uint8).reshape(-1, 8)
        for f in self.records.fields:
            at = f.offset - 8
            values = Q if f.width == 8 else np.ascontiguousarray(raw[:, at:at + f.width])
            valid = raw[:, f.valid - 8].astype(np.bool_) if f.valid >= 0 else None
            columns[f.name] = FixedColumn(values.reshape(-1).view(f.type.np_dtype).reshape(-1, *f.type.shape), valid)
        return columns

    def _sorted(self, runs: Runs, payload: int, turn: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """First words, turned, and payload (a word of the record, or its address) in the order of first words; in memory of their own."""
        from hpcmr.kernels.sort import empty_buckets, fill_buckets, gather_pairs

        n, stride = runs.count, 8 * self.records.words
        out = small_pages(2 * n, np.uint64)
        W, Q = out[:n], out[n:]
        bounds = self.splitters.bounds(runs.partition) if self.splitters is not None else None
        if bounds is not None and bounds[0] < bounds[1] and n >= EVEN_ROWS_MIN:
            lo, span = bounds[0], bounds[1] - bounds[0]
            shift = max(0, span.bit_length() - max(0, n.bit_length() - BUCKET_BITS))
            size = (span >> shift) + 1
            mean = n / size
            room = int(1.1 * mean + 6 * mean ** 0.5) + 4
            A, fill = self._sorter.buffer("pairs", 2 * size * room), self._sorter.buffer("fill", size, np.int64)
            if fill_buckets(runs.addresses, runs.rows, stride, payload, np.uint64(lo), shift, size, room, A, fill):
                empty_buckets(A, fill, size, room, np.uint64(lo), shift, self._sorter.buffer("bins", 2 * room + 2, np.uint16), np.uint64(turn), W, Q)
                return W, Q
        gather_pairs(runs.addresses, runs.rows, stride, payload, self._sorter.pairs(n))
        found = self._sorter.sort(n, 1, tails_of(self.layout, {}))
        np.bitwise_xor(found[0::2], np.uint64(turn), out=W)
        Q[:] = found[1::2]
        return W, Q

    def _rows(self, runs: Runs, apart: dict[str, Column]) -> dict[str, Column]:
        """Records of any size: the order of their addresses, then column by column."""
        from hpcmr.kernels.sort import gather_pairs
        from hpcmr.kernels.sort_rows import number_rows, take_column

        records, n, stride = self.records, runs.count, 8 * self.records.words
        if records.slot >= 0:
            number_rows(runs.addresses, runs.rows, stride, records.slot)
        gather_pairs(runs.addresses, runs.rows, stride, -1, self._sorter.pairs(n))
        strings = {name: strings_of(apart[name]) for name in self.long if name in apart}
        tails = tails_of(self.layout, strings, records.slot, {f.name: f.offset for f in records.fields if f.name in self.long})
        pairs = self._sorter.sort(n, self.layout.width, tails)
        columns = records.take(pairs, n)
        if records.slot >= 0:
            order = np.empty(n, np.int64)
            take_column(pairs, 1, 2, records.slot, 8, order.view(np.uint8))
            columns.update({name: column.take(order).compact() for name, column in apart.items()})
        return columns

    def close(self) -> None:
        self._take(-self.taken)
        self._merged, self._merged_nbytes, self.sample, self.splitters = [], 0, None, None
        self._sorter = Sorter()
        self._held = self._packed = self._words = np.empty((0, 1), np.uint64)
        self._dest = np.empty(0, np.uint16)


class Runs:
    """The runs of one partition, in the order of their origins.

    Attributes
    ----------
    partition : int
    count : int
        Rows.
    nbytes : int
        Bytes of all that belongs to the partition, headers among it.
    addresses, rows : (runs,) int64
        Where the records of each begin, and how many there are.
    """

    def __init__(self, parts: list[Partitioned], partition: int, stride: int, header: int) -> None:
        from hpcmr.kernels.sort_rows import walk_runs

        self.partition = partition
        self._parts = [p for p in parts if p.first <= partition < p.first + p.count]
        cuts = [p.rows_of(partition) for p in self._parts]
        records = np.array([b - a for a, b in cuts], np.int64)
        bases = np.array([_records(p).ctypes.data for p in self._parts], np.int64)
        addresses = bases + stride * np.array([a for a, _ in cuts], np.int64)
        self._addresses, self._nbytes = addresses, stride * records
        room = 4 * len(cuts) + 16
        while True:
            found = [np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint64), np.empty(room, np.int64)]
            n = int(walk_runs(addresses, records, stride, header, *found))
            if n <= room:
                break
            room = n
        order = np.argsort(found[2][:n], kind="stable")
        self.addresses, self.rows, _, self._part = (np.ascontiguousarray(f[:n][order]) for f in found)
        self.count = int(self.rows.sum())
        self._firsts = (self.addresses - bases[self._part]) // stride if n else self.addresses
        self.nbytes = sum(p.part(partition).nbytes for p in self._parts)

    def release(self) -> None:
        """Give back the memory of the records."""
        for address, nbytes in zip(self._addresses.tolist(), self._nbytes.tolist(), strict=True):
            release(address, nbytes)

    def column(self, name: str) -> Column:
        """The rows' strings or lists, in the order of the runs."""
        pieces = [self._parts[p].batch[name].slice(a, a + m)
                  for p, a, m in zip(self._part.tolist(), self._firsts.tolist(), self.rows.tolist(), strict=True)]
        return concat_columns(pieces).compact()


def _records(part: Partitioned) -> NDArray[np.uint64]:
    column = part.batch[RECORDS]
    assert isinstance(column, FixedColumn) and column.values.flags.c_contiguous
    return column.values
