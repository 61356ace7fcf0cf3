"""Group by key with built-in aggregates: the combiner, the reducer and the state between them.

Four ways to hold what was consumed, chosen once from a sample that all ranks see; the result is the same:

- *direct*: every batch goes into one hash table (few keys);
- *hot*: the keys met first, which are the frequent ones, have a table that stays in the cache, and the rows of the others are kept as
  they are (skewed keys with a long tail);
- *radix*: rows wait in buckets by the top bits of their hash, and a full bucket goes into its own stretch of the table, which is then
  in the cache (many keys, met often);
- *raw*: rows are kept as they are, by partition, and reduced at the end by sorting (most keys are met once or twice: a combiner
  would not pay, so it steps aside).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.keys import KeyLayout, KeyWords, as_strings, as_words, decode_key, encode_keys, intern_keys, word_count
from hpcmr.data.partitioning import PARTITION_NBYTES, Partitioned, without
from hpcmr.data.schema import Field, Schema
from hpcmr.data.source import SPLIT_NBYTES
from hpcmr.errors import ConservationError
from hpcmr.ops.accumulators import Agg, compile_program, output_names
from hpcmr.ops.contract import Collective, Origin, StageContext, Step
from hpcmr.ops.finals import Final, States, final_of, result_field
from hpcmr.ops.null_keys import NullGroups, by_pattern, in_key_order, null_rows, null_values, together
from hpcmr.ops.reduce_partition import PartitionReducer
from hpcmr.ops.rows import BUCKETS_NBYTES, HOT_SLOTS, BucketRows, ChunkRows, HotRows, RawInput
from hpcmr.ops.table import LOAD_DENSE, SLOTS_MAX, SLOTS_MIN, GroupTable, Rows, StringCounts, load_limit
from hpcmr.ops.words import Words

ORIGIN_BITS = 40
RADIX_KEYS_MIN = 100_000
SLOTS_FIRST_MAX = 1 << 20
LARGE_NBYTES = 1 << 30
TABLE_SHARE = 4                 # of the memory that is free at the beginning, what the table that takes rows in may have
ROWS_SHARE = 6                  # the same for rows that are kept as they are
SAMPLE_ROWS_MIN = 10_000        # a smaller sample is a small input: the way does not matter


class Aggregate:
    """Aggregates of all rows of each key. Implements `hpcmr.ops.contract.KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
        Columns that make a group.
    aggs : tuple of Agg
    strategy : {"auto", "direct", "hot", "radix", "raw"}
        How rows are held; the result does not depend on it.
    """

    name = "aggregate"
    round_share = 3             # of the budget: the table asks earlier, what it points at (long strings, wide sums) may have the rest

    def __init__(self, keys: tuple[str, ...], aggs: tuple[Agg, ...], strategy: str = "auto") -> None:
        self.keys = keys
        self.aggs = aggs
        self.strategy = strategy
        self.words: Words | None = None

    @property
    def partitioned_by(self) -> tuple[str, ...] | None:
        """The partitions of the result are those of the keys' hash."""
        return self.keys or None

    def fingerprint(self) -> tuple[Any, ...]:
        return "aggregate", self.keys, tuple((a.function, a.column, a.name, a.options) for a in self.aggs)

    def bind(self, schema: Schema) -> Schema:
        output_names(self.keys, self.aggs)
        self.schema = schema
        self.layout = self.by = KeyLayout.of(schema, self.keys)        # `by`: the columns whose hash is the partition, first among the keys
        self.program = compile_program(schema, self.aggs)
        self.finals: list[Final] = [final_of(a, self.program, schema) for a in self.aggs]
        keys = tuple(Field(n, schema[n].type, schema[n].attrs) for n in self.keys)
        self.schema_out = Schema(keys + tuple(result_field(a, schema) for a in self.aggs))
        return self.schema_out

    def absorb(self, step: Step) -> bool:
        """Take over the last step of the chain: words that are only counted are counted where they are found."""
        plain = isinstance(step, Words) and not (step.lowercase or step.strip_punctuation or step.keep)
        if plain and isinstance(step, Words) and self.keys == (step.output,) and not self.program.size and self.layout.width == 3:
            self.words = step
            return True
        return False

    def import_kernels(self) -> None:
        """Import the kernels that this operator may call, to be compiled by one rank of a node."""
        from hpcmr.kernels import extra, finish, keys, sort, table  # noqa: F401

        if self.layout.has_strings:
            from hpcmr.kernels import count_strings, strings  # noqa: F401
        elif self._raw_input() is not None:
            from hpcmr.kernels import scatter  # noqa: F401

    # ------------------------------------------------------------------ in

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        counting = len(self.keys) == 1 and self.layout.width == 3 and not self.program.size
        kind = StringCounts if counting else GroupTable
        hashes = self._sample(estimate)
        self.way = self._choose(hashes, estimate)
        if self.way == "hot":
            self.table = kind(self.layout, self.program, HOT_SLOTS, dense=True, slots_sealed=HOT_SLOTS)
        else:
            self.table = kind(self.layout, self.program, self._first_slots(hashes), dense=self.way == "radix")
        self.table.bound(ctx.available() // TABLE_SHARE)
        self.batch_rows = 0
        # What merged states point at, long strings and wide sums, outlives the seals of the table that takes rows in.
        self.merged = kind(self.layout, self.program)
        self.held = 0
        self.array = self.program.array(self.layout.width + 1)
        self.reducer = PartitionReducer(self.merged, self.array)
        self.scratch: KeyWords | None = None
        self.buckets: BucketRows | None = None
        self.chunks: ChunkRows | None = None
        self.hot: HotRows | None = None
        self.states_next = False
        self.inbox: list[Partitioned] = []
        self.null_inbox: dict[int, list[Partitioned]] = {}      # by which key columns are null
        self.nulls: NullGroups | None = None
        self.raw_nulls: list[NDArray[np.uint64]] = []
        self.inbox_nbytes = 0
        self.rows_in = 0
        self.rows_out = 0
        raw_input = self._raw_input()
        if self.way in ("raw", "hot") and raw_input is not None:
            self.chunks = ChunkRows(raw_input, ctx.partitions, ctx.available() // ROWS_SHARE)
            self.hot = HotRows(raw_input, self.table, self.array, self.chunks) if self.way == "hot" else None
        elif self.way == "radix" and raw_input is not None:
            self.buckets = BucketRows(raw_input, self.table, self.array)
        self._account()

    def _sample(self, estimate: Batch | None) -> NDArray[np.uint64] | None:
        """Hashes of the sample's keys, where the input is large enough for a choice to matter."""
        if estimate is None or estimate.nrows < SAMPLE_ROWS_MIN or self.ctx.partitions < 4:
            return None
        return encode_keys(estimate, self.layout.for_batches(estimate)).hashes

    def _choose(self, hashes: NDArray[np.uint64] | None, estimate: Batch | None) -> str:
        """A way, from the number of distinct keys that the sample promises and the rows that there may be."""
        if self._raw_input() is None:
            return "direct"
        if self.strategy != "auto" or hashes is None or estimate is None:
            return "direct" if self.strategy == "auto" else self.strategy
        keys = distinct_keys(hashes)
        rows = self._rows_expected(estimate)
        if rows <= 4 * RADIX_KEYS_MIN:
            return "direct"
        if has_long_tail(hashes) and null_rows(estimate, self.keys) is None:
            return "hot"
        if keys > self._rows_here(rows) / 4 and null_rows(estimate, self.keys) is None:
            return "raw"
        room = 8 * (self.layout.width + 1 + self.program.size) * dense_slots(keys) + BUCKETS_NBYTES
        return "radix" if keys > RADIX_KEYS_MIN and rows > 16 * keys and room < self.ctx.available() // 2 else "direct"

    def _rows_expected(self, estimate: Batch) -> float:
        """Rows that there may be on all ranks, from the bytes that the number of partitions stands for."""
        return self.ctx.partitions * PARTITION_NBYTES * estimate.nrows / max(1, estimate.nbytes)

    def _rows_here(self, rows: float) -> float:
        """Of `rows`, those that one of the ranks that have something to read will get: there are no more of these than splits."""
        splits = self.ctx.partitions * PARTITION_NBYTES // SPLIT_NBYTES
        return rows / max(1, min(getattr(self.ctx, "size", 1), splits))

    def _first_slots(self, hashes: NDArray[np.uint64] | None) -> int:
        """Slots to begin with. Growing a table costs more than its size: each step touches new memory."""
        if hashes is None or self.way == "raw":
            return SLOTS_MIN
        if self.way == "radix":
            return dense_slots(distinct_keys(hashes))
        wanted = 32 * len(np.unique(hashes)) if self.ctx.available() > LARGE_NBYTES else 0
        slots = SLOTS_MIN
        while slots < SLOTS_FIRST_MAX and load_limit(slots) < wanted:
            slots *= 2
        return slots

    def _raw_input(self) -> RawInput | None:
        """The one float value and one-word key that buckets of bare rows can hold, if that is all there is."""
        inputs = self.program.inputs
        if self.layout.width != 1 or word_count(self.layout.types[0]) != 1 or self.program.has_origin or len(inputs) != 1:
            return None
        column, letter = inputs[0]
        kind = self.schema[column].type
        plain = letter == "f" and not kind.shape and kind.np_dtype.kind == "f"
        return RawInput(self.layout, column) if plain else None

    def consume(self, batch: Batch, origin: Origin) -> int:
        if self.words is not None and isinstance(self.table, StringCounts):
            blocks = batch[self.words.column]
            assert isinstance(blocks, BytesColumn)
            rows = self.table.add_words(blocks)
        else:
            rows = batch.nrows
            self._consume_rows(batch, origin)
        self.rows_in += rows
        self.batch_rows = max(self.batch_rows, rows)
        self._account()
        return rows

    def _consume_rows(self, batch: Batch, origin: Origin) -> None:
        null = null_rows(batch, self.keys)
        if null is not None:
            self._consume_nulls(batch, origin, null)
        elif self.hot is not None and self.hot.takes(batch):
            self.hot.append(batch)
        elif self.chunks is not None:
            self.chunks.append(batch)
        elif self.buckets is not None and self.buckets.takes(batch):
            self.buckets.append(batch)
        else:
            self._consume_directly(batch, origin)

    def _consume_nulls(self, batch: Batch, origin: Origin, null: NDArray[np.bool_]) -> None:
        """A batch with null keys: into the table for them, the other rows too unless they have a faster way."""
        if self.way != "direct":                     # such rows have no origin, so they may be taken apart
            if not null.all():
                self._consume_rows(batch.take(np.flatnonzero(~null)), origin)
            batch = batch.take(np.flatnonzero(null))
        if self.chunks is not None:
            self.raw_nulls.append(self.chunks.source.values(batch).copy())
            return
        if self.nulls is None:
            self.nulls = NullGroups(self.layout, self.program)
        keep = self._fill(batch, self.nulls.array, self.nulls.table)
        self.nulls.add(batch, self._origin(origin))
        del keep

    def _consume_directly(self, batch: Batch, origin: Origin) -> None:
        """Keys to words, values to 64 bits, and through the table."""
        keep: list[Any] = [self._fill(batch, self.array, self.table)]
        first = self.keys[0]
        column = batch[first]
        if len(self.keys) == 1 and column.valid is None and isinstance(column, BytesColumn):
            self.table.add(Rows(batch.nrows, strings=column), self.array, self._origin(origin))
            return
        if self.layout.width == 1:
            if column.valid is None and isinstance(column, FixedColumn) and column.values.dtype.kind in "iub":
                letter, values = as_words(np.ascontiguousarray(column.values))
                keep.append(values)
                self.table.add(Rows(batch.nrows, values.ctypes.data, 8, 1 << 63 if letter == "i" else 0), self.array, self._origin(origin))
                return
        encoded = self.scratch = _larger(self.scratch, encode_keys(batch, self.layout, self.scratch))
        words, hashes = encoded.words[:batch.nrows], encoded.hashes[:batch.nrows]
        if encoded.long_count:
            intern_keys(batch, self.layout, encoded.words.reshape(-1), self.table.long)
        self.table.add(Rows(batch.nrows, words=words, hashes=hashes), self.array, self._origin(origin))

    def _origin(self, origin: Origin) -> int:
        return (origin.split << ORIGIN_BITS) + origin.row

    def _fill(self, batch: Batch, array: NDArray[np.int64], table: GroupTable) -> list[Any]:
        """Write addresses of values and validity into a table's program; returns the arrays, which must stay alive."""
        from hpcmr.kernels.opcodes import ADDRESS, MASK, STRIDE

        keep: list[Any] = []
        arrays: dict[tuple[str, str], NDArray[Any]] = {}
        for i, (_, _, source, component, _) in enumerate(self.program.instructions):
            column = batch[source[0]]
            mask = 0
            if column.valid is not None:
                valid = np.ascontiguousarray(column.valid)
                keep.append(valid)
                mask = valid.ctypes.data
            array[i, MASK] = mask
            if not source[1]:
                continue
            if source not in arrays:
                arrays[source] = _values(column, source[1], table)
            values = arrays[source]
            per_row = values.size // max(1, batch.nrows)
            array[i, ADDRESS] = values.ctypes.data + 8 * component
            array[i, STRIDE] = 8 * per_row
        return [keep, arrays]

    def _account(self) -> None:
        """Keep the budget in step with what is held."""
        tables = self.table.nbytes + self.merged.nbytes + self.reducer.nbytes
        tables += self._extra_nbytes()
        now = tables + (self.chunks.nbytes if self.chunks else 0) + (self.buckets.nbytes if self.buckets else 0) + self.inbox_nbytes
        if now > self.held:
            self.ctx.take(now - self.held, "the state of group_by")
        elif now < self.held:
            self.ctx.give(self.held - now)
        self.held = now

    def _extra_nbytes(self) -> int:
        return (self.nulls.nbytes if self.nulls else 0) + sum(v.nbytes for v in self.raw_nulls)

    # ------------------------------------------------------------------ out and in again

    def pressure(self) -> float:
        if self.chunks is not None:
            return self.chunks.nbytes_used / self.chunks.nbytes_round
        own = self.sealable_nbytes
        return max(own / max(1, own + self.ctx.available()) * 1.25, self.table.fullness(self.batch_rows))

    @property
    def sealable_nbytes(self) -> int:
        """Bytes that a seal would set free."""
        return self.table.nbytes + self._extra_nbytes() + (self.chunks.nbytes_used if self.chunks is not None else 0)

    def drain(self) -> None:
        if self.buckets is not None:
            self.buckets.drain()

    def settle(self, together: Collective) -> None:
        """The input has ended: what rows waited in goes back to the system at the next seal, before memory to receive is needed."""
        if self.chunks is not None:
            self.chunks.last = True

    def seal(self) -> Partitioned:
        if self.chunks is not None and not self.states_next:
            part, nulls = self.chunks.seal(), None
            self.states_next = self.hot is not None
            if self.raw_nulls:
                nulls = null_values(np.concatenate(self.raw_nulls), self.ctx.partitions)
                self.raw_nulls = []
        else:
            part = self._sealed()
            nulls = self.nulls.seal(self.ctx.partitions, self.by) if self.nulls is not None else None
            self.states_next = False
        if nulls is not None:
            part = together(part, nulls)
        self._account()
        return part

    def pending(self) -> bool:
        """Whether a seal took out the rows that were put aside, and the states come with the next one."""
        return self.states_next

    def _sealed(self) -> Partitioned:
        return self.table.seal(self.ctx.partitions)

    def merge(self, part: Partitioned) -> None:
        if not part.batch.nrows:
            return
        if self.chunks is not None:
            self.chunks.leaving_nbytes = 0
        if "state" in part.batch.columns:
            state = part.batch["state"]
            assert isinstance(state, FixedColumn)
            extra = part.batch.columns.get("extra")
            if isinstance(extra, BytesColumn):
                self.merged.adopt(state.values, extra)
                part = Partitioned(part.batch.select(["state"]), part.starts, part.first)
        for pattern, rows in by_pattern(part, self.layout.width).items():
            (self.null_inbox.setdefault(pattern, []) if pattern else self.inbox).append(rows)
            self.inbox_nbytes += rows.batch.nbytes
        self._account()

    # ------------------------------------------------------------------ results

    def finish(self, partition: int) -> Batch:
        """Result of one partition: rows in key order."""
        blocks = list(self.finish_blocks(partition))
        return Batch.concat(blocks) if blocks else Batch.empty(self.schema_out)

    def finish_blocks(self, partition: int) -> Iterator[Batch]:
        """`finish`, some thousand groups at a time, in memory of their own."""
        self.buckets = self.chunks = self.hot = None   # nothing comes in any more
        nulls = [self._block(states, pattern) for pattern in sorted(self.null_inbox)
                 for states in self.reducer.reduce(self.null_inbox[pattern], partition)]
        if nulls and len(self.keys) > 1:
            yield in_key_order([*(self._block(s) for s in self.reducer.reduce(self.inbox, partition)), *nulls], self.layout)
        else:
            for states in self.reducer.reduce(self.inbox, partition):
                yield self._block(states)
            yield from nulls
        self._release(partition)

    def _release(self, partition: int) -> None:
        """State that covers this partition alone is done with; the rest goes when all are finished."""
        gone = 0
        for inbox in (self.inbox, *self.null_inbox.values()):
            gone += sum(p.batch.nbytes for p in inbox if p.first == partition and p.count == 1)
            inbox[:] = without(inbox, partition)
        self.inbox_nbytes -= gone
        if gone and not self.inbox and not any(self.null_inbox.values()):
            self.merged.reset()                        # long strings and wide sums that nobody points at any more
        self._account()

    def _block(self, states: States, null: int = 0) -> Batch:
        """Finished groups as columns; `null` has bit i set where key column i is null in all of them."""
        words = np.ascontiguousarray(states.words[:states.count * states.stride])
        columns: dict[str, Any] = {}
        for i, (name, kind, at) in enumerate(zip(self.layout.names, self.layout.types, self.layout.places, strict=True)):
            columns[name] = decode_key(words, states.stride, at, kind, states.long)
            columns[name].valid = np.zeros(states.count, np.bool_) if null >> i & 1 else None
        self.rows_out += int(states.rows().sum())
        for agg, final in zip(self.aggs, self.finals, strict=True):
            columns[agg.name] = final(states)
        return Batch(columns, states.count)

    def close(self) -> None:
        self.ctx.give(self.held)
        self.held = 0
        self.inbox, self.null_inbox, self.nulls, self.raw_nulls = [], {}, None, []
        self.inbox_nbytes = 0
        self.buckets = self.chunks = self.hot = None
        self.reducer.close()
        self.table.reset()
        self.merged.reset()

    def check(self, rows_global: int, rows_out_global: int) -> None:
        """Every row that came in, on any rank, is counted in exactly one group."""
        if rows_global != rows_out_global:
            raise ConservationError(f"group_by took in {rows_global:,} rows and its groups count {rows_out_global:,}")


def _values(column: Any, letter: str, table: GroupTable) -> NDArray[Any]:
    """Values of a column as contiguous 64-bit words, some a row."""
    if letter == "s":
        from hpcmr.kernels.keys import encode_strings

        strings = as_strings(column)
        words, hashes = np.empty(3 * len(strings), np.uint64), np.zeros(len(strings), np.uint64)
        if encode_strings(strings.starts, strings.ends, np.ascontiguousarray(strings.data), words, 3, 0, hashes):
            table.long.intern(strings, words, 3, 0)
        return words
    values = column.values
    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values, np.complex128).view(np.float64)
    if letter == "f":
        return np.ascontiguousarray(values, np.float64)
    return np.ascontiguousarray(as_words(values)[1])


def _larger(old: KeyWords | None, new: KeyWords) -> KeyWords:
    if old is None or len(old.hashes) < len(new.hashes):
        return new
    return KeyWords(old.words, old.hashes, new.long_count)


def has_long_tail(hashes: NDArray[np.uint64]) -> bool:
    """Whether most rows of a sample belong to keys that come up often, and yet new keys keep turning up.

    The share of keys seen once estimates the chance that the next row brings a new one (Good and Turing).
    """
    counts = np.unique(hashes, return_counts=True)[1]
    often = int(counts[counts > 2].sum())
    return often > 0.7 * len(hashes) and int((counts == 1).sum()) > 0.02 * len(hashes)


def dense_slots(keys: float) -> int:
    """Slots of a dense table for so many keys."""
    return min(SLOTS_MAX, max(SLOTS_MIN, int(1.08 * keys / LOAD_DENSE)))


def distinct_keys(hashes: NDArray[np.uint64]) -> float:
    """Keys that there are in all, if they are drawn evenly: from the repeats in a sample.

    n draws from D keys show about D (1 - exp(-n / D)) different ones; solved for D by bisection.
    """
    return keys_of_draws(len(hashes), len(np.unique(hashes)))


def keys_of_draws(n: int, seen: int) -> float:
    """`distinct_keys`, from the number of draws and of different keys among them."""
    if seen >= n - 1:
        return float(n) * n
    low, high = 1.0, float(n) * n
    for _ in range(60):
        middle = (low * high) ** 0.5
        if middle * -np.expm1(-n / middle) < seen:
            low = middle
        else:
            high = middle
    return high
