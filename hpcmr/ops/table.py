"""The hash table of an aggregate: groups of one rank, from rows in to sealed states out."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.keys import KeyLayout, LongStrings
from hpcmr.data.memory import give_back
from hpcmr.data.partitioning import Partitioned, partition_bits
from hpcmr.ops.accumulators import Program

SLOTS_MIN = 1 << 12
SLOTS_MAX = 1 << 29
SLOTS_BOUND = 1 << 62          # of a table that nobody has bounded
LOAD_DENSE = 0.75
WRAPPED_GROUPS = 1 << 12      # of the last partition, what may have been pushed past the end of a table that is packed in place
_HUGE_PAGE = 2 << 20


def load_limit(slots: int, dense: bool = False) -> int:
    """Groups that a table takes before it grows.

    Load decides more than size while tables are small. Tables that are filled bucket by bucket are worked on in the cache, where a
    denser one costs little and saves memory that would have to be touched first.
    """
    return int(slots * (LOAD_DENSE if dense else 0.3 if slots <= 1 << 18 else 0.45))


def state_stride(words: int) -> int:
    """Words from one slot to the next: no state straddles more cache lines than it must."""
    return next(s for s in (2, 4, 8, *range(12, 4096, 4)) if s >= words)


def table_zeros(words: int) -> NDArray[np.uint64]:
    """Zeroed words for a table that is met at random: on huge pages where it is large (counting words: 15 % faster)."""
    nbytes = 8 * words
    if nbytes < 4 << 20 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_zeros(words)
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint64)
    at = (-raw.ctypes.data % _HUGE_PAGE) // 8
    return raw[at:at + words]


def aligned_zeros(words: int) -> NDArray[np.uint64]:
    """Zeroed words that begin on a cache line."""
    raw = np.zeros(words + 8, np.uint64)
    at = (-(raw.ctypes.data // 8)) % 8
    return raw[at:at + words]


@dataclass
class Rows:
    """Rows on their way into the table: keys as one word read from memory, as encoded words, or as strings to be encoded on the way."""

    count: int
    key_address: int = 0
    key_stride: int = 8
    key_xor: int = 0
    words: NDArray[np.uint64] | None = None
    hashes: NDArray[np.uint64] | None = None
    strings: BytesColumn | None = None


class GroupTable:
    """Groups and their states.

    Parameters
    ----------
    layout : KeyLayout
    program : Program
    slots : int
        Slots to begin with: a power of two, unless `dense`.
    dense : bool
        What is at work at a time lies in the cache (see `load_limit`), so that states stand close, whatever lines they straddle.
    slots_sealed : int
        Slots to go on with after a seal.
    """

    def __init__(self, layout: KeyLayout, program: Program, slots: int = SLOTS_MIN, dense: bool = False,
                 slots_sealed: int = SLOTS_MIN) -> None:
        from hpcmr.kernels.opcodes import DIGITS, MICRO

        self.layout, self.program = layout, program
        self.K = layout.width
        self.words = self.K + 1 + program.size
        self.stride = self.words if dense else state_stride(self.words)
        self.init = np.zeros(self.stride, np.uint64)
        self.init[self.K + 1:self.words] = np.array(program.init, np.uint64)
        self.room = MICRO * max(1, len(program.sum_places)) + 4
        self.wide = np.zeros((2 * self.room if program.sum_places else self.room, DIGITS), np.int64)
        self.wide_used = np.zeros(1, np.int64)
        self.long = LongStrings()
        self.groups = np.zeros(4, np.int64)
        self.encoded = np.empty(4 * MICRO, np.uint64)
        self.js, self.jm, self.so = (np.empty(MICRO, np.int64) for _ in range(3))
        self.sv = np.empty(MICRO)
        self.dense = dense
        self.slots_sealed = slots_sealed
        self.slots_max = SLOTS_BOUND
        self._allocate(slots)

    def _allocate(self, slots: int) -> None:
        self.slots = slots
        words = (slots + 1) * self.stride
        self.T = aligned_zeros(words) if self.dense else table_zeros(words)
        self.T[-self.stride:] = self.init         # a spare state, for values that are null
        self.F = self.T.view(np.float64)

    @property
    def nbytes(self) -> int:
        return int(self.T.nbytes + self.wide.nbytes + self.long.nbytes)

    def bound(self, nbytes: int) -> None:
        """Grow to at most `nbytes`, if batches allow; a table of that size is filled further, and then wants to be sealed."""
        slots = max(1, nbytes // (8 * self.stride))
        self.slots_max = max(self.slots, SLOTS_MIN, 1 << slots.bit_length() - 1)

    @property
    def limit(self) -> int:
        """Groups that it takes before it grows."""
        return load_limit(self.slots, self.dense or self.slots >= self.slots_max)

    def fullness(self, rows: int) -> float:
        """How full a table is that cannot grow, with `rows` more groups: 1 where it should be sealed."""
        if self.slots < self.slots_max:
            return 0.0
        limit = self.limit
        return float(self.groups[0]) / max(limit - rows, limit // 2)

    @property
    def string_places(self) -> NDArray[np.int64]:
        """Marks of strings in a state row: where a long one's number stands."""
        keys = np.flatnonzero(self.layout.string_ends).tolist()
        return np.array(keys + [self.K + 1 + at + 2 for at in self.program.string_places], np.int64)

    @property
    def sum_places(self) -> NDArray[np.int64]:
        return np.array([self.K + 1 + at for at in self.program.sum_places], np.int64)

    def add(self, rows: Rows, program: NDArray[np.int64], origin: int, start: int = 0) -> None:
        """Add rows to their groups; `program` has its addresses filled in."""
        reached, step = start, len(self.js)
        while reached < rows.count:
            reached = self._run(rows, program, np.uint64(origin), reached)
            if reached < rows.count and self.groups[1] == 1:
                reached = self._step_with_long(rows, program, np.uint64(origin), reached, min(reached + step, rows.count))
                step *= 2                     # where long strings are common, larger and larger steps are taken this way
            elif reached < rows.count:
                self.make_room()

    def _run(self, rows: Rows, program: NDArray[np.int64], origin: np.uint64, reached: int) -> int:
        from hpcmr.kernels import table as k

        self.groups[1] = 0
        common = self._common(program, origin)
        if rows.strings is not None:
            return self._run_strings(rows.strings, common, reached)
        if rows.words is not None:
            assert rows.hashes is not None
            return int(k.consume_many(rows.words.reshape(-1), rows.hashes, self.K, reached, rows.count, *common))
        return int(k.consume_one(rows.key_address, rows.key_stride, np.uint64(rows.key_xor), reached, rows.count, *common))

    def _common(self, program: NDArray[np.int64], origin: np.uint64) -> tuple[Any, ...]:
        """What every kernel that adds rows is told of this table."""
        return (self.T, self.F, self.stride, self.slots, self.limit, self.groups, self.init, program, self.wide,
                self.wide_used, self.room, origin, self.js, self.jm, self.so, self.sv, self.long.starts, self.long.ends, self.long.data)

    def consume_buckets(self, rows: tuple[Any, ...], program: NDArray[np.int64]) -> int:
        """Rows through buckets (see `hpcmr.kernels.table.consume_buckets`); returns the row reached."""
        from hpcmr.kernels.table import consume_buckets

        return int(consume_buckets(*rows, *self._common(program, np.uint64(0))))

    def consume_hot(self, rows: tuple[Any, ...], program: NDArray[np.int64]) -> int:
        """Rows through a table that does not grow (see `hpcmr.kernels.table.consume_hot`); returns the row reached."""
        from hpcmr.kernels.table import consume_hot

        return int(consume_hot(*rows, *self._common(program, np.uint64(0))))

    def _run_strings(self, strings: BytesColumn, common: tuple[Any, ...], reached: int) -> int:
        from hpcmr.kernels import table as k

        return int(k.consume_strings(strings.starts, strings.ends, strings.data, self.encoded, reached, len(strings), *common))

    def _step_with_long(self, rows: Rows, program: NDArray[np.int64], origin: np.uint64, reached: int, stop: int) -> int:
        """Rows up to `stop`, long strings among them: encoded, interned, and added at their place in the batch."""
        from hpcmr.kernels.keys import encode_strings

        assert rows.strings is not None
        words, hashes = np.zeros((stop, 3), np.uint64), np.zeros(stop, np.uint64)
        some = rows.strings.slice(reached, stop)
        encode_strings(some.starts, some.ends, some.data, words[reached:].reshape(-1), 3, 0, hashes[reached:])
        self.long.intern(some, words[reached:].reshape(-1), 3, 0)
        encoded = Rows(stop, words=words, hashes=hashes)
        while reached < stop:
            reached = self._run(encoded, program, origin, reached)
            if reached < stop:
                self.make_room()
        return stop

    def make_room(self) -> None:
        """Grow what stopped the last `add`."""
        from hpcmr.kernels.opcodes import MICRO

        self.make_wide_room()
        if int(self.groups[0]) + MICRO > self.limit:
            self.grow(self._next_slots(self.slots, 1 << 21))

    def make_wide_room(self) -> None:
        """Twice as many wide sums where a step might not find enough."""
        if int(self.wide_used[0]) + self.room > len(self.wide):
            self.wide = np.concatenate([self.wide, np.zeros_like(self.wide)])

    def _next_slots(self, slots: int, fast: int) -> int:
        """Size to grow to: in larger steps while it is small, not past the bound in one."""
        wanted = slots * (4 if slots < fast else 2)
        return max(2 * slots, min(wanted, self.slots_max))

    def make_wide(self, groups: int) -> int:
        """Room for every sum of so many groups to spill once; returns the wide rows in use now."""
        keep = int(self.wide_used[0])
        need = keep + groups * len(self.program.sum_places) + self.room
        if self.program.sum_places and need > len(self.wide):
            grown = np.zeros((need, self.wide.shape[1]), np.int64)
            grown[:keep] = self.wide[:keep]
            self.wide = grown
        return keep

    def grow(self, slots: int) -> None:
        from hpcmr.kernels.table import rehash

        old = self.T
        places, hashes = self._list()
        self._allocate(slots)
        rehash(old, places, len(places), hashes, self.T, self.stride, self.K, slots)

    def _list(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Places and hashes of all groups, in table order."""
        from hpcmr.kernels.table import hash_groups, list_groups

        n = int(self.groups[0])
        places, hashes = np.empty(n, np.int64), np.empty(n, np.uint64)
        found = list_groups(self.T, self.stride, self.K, places)
        assert found == n
        hash_groups(self.T, places, n, self.layout.string_ends, self.long.hashes, hashes)
        return places, hashes

    def _everything(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
        """All groups: an array that holds them, their places in it, their hashes."""
        return self.T, *self._list()

    def seal(self, partitions: int) -> Partitioned:
        """Take all groups out as rows of words in partition order, with what they point at; the table is empty and small afterwards."""
        if not self.groups.any():
            none = np.zeros((0, self.words), np.uint64)
            return Partitioned(Batch(self._columns(none), 0), np.zeros(partitions + 1, np.int64))
        starts = np.zeros(partitions + 1, np.int64)
        rows = self._compacted(starts) if self.dense and self.K == 1 else None
        rows = self._packed(starts) if rows is None else rows
        columns = self._columns(rows)
        self.reset()
        return Partitioned(Batch(columns, len(rows)), starts)

    def _compacted(self, starts: NDArray[np.int64]) -> NDArray[np.uint64] | None:
        """Rows in the memory of the table itself: no second copy."""
        from hpcmr.kernels.table import compact_groups

        n = int(compact_groups(self.T, self.stride, partition_bits(len(starts) - 1), np.empty(WRAPPED_GROUPS * self.stride, np.uint64), starts))
        if n < 0:
            return None
        rows = self.T[:n * self.stride]
        give_back(self.T.ctypes.data + rows.nbytes, self.T.nbytes - rows.nbytes)
        return rows.reshape(n, self.stride)

    def _packed(self, starts: NDArray[np.int64]) -> NDArray[np.uint64]:
        from hpcmr.kernels.table import pack_groups

        T, places, hashes = self._everything()
        rows = np.empty((len(places), self.words), np.uint64)
        pack_groups(T, places, len(places), hashes, partition_bits(len(starts) - 1), self.words, starts, rows)
        return rows

    def _columns(self, rows: NDArray[np.uint64]) -> dict[str, Any]:
        columns: dict[str, Any] = {"state": FixedColumn(rows)}
        if len(self.string_places) or len(self.sum_places):
            columns["extra"] = self._extra(rows)
        return columns

    def _extra(self, rows: NDArray[np.uint64]) -> BytesColumn:
        from hpcmr.kernels.extra import extra_lengths, write_extra

        offsets = np.zeros(len(rows) + 1, np.int64)
        if not self.long.count and not self.wide_used[0]:
            return BytesColumn.from_offsets(offsets, np.zeros(0, np.uint8), False)
        total = extra_lengths(rows, self.string_places, self.sum_places, self.long.starts, self.long.ends, offsets)
        data = np.empty(int(total), np.uint8)
        write_extra(rows, self.string_places, self.sum_places, self.long.starts, self.long.ends, self.long.data, self.wide, offsets, data)
        return BytesColumn.from_offsets(offsets, data, False)

    def reset(self) -> None:
        self._allocate(self.slots_sealed)
        self.groups[:] = 0
        self.wide_used[:] = 0
        self.long = LongStrings()

    def adopt(self, rows: NDArray[np.uint64], extra: BytesColumn) -> None:
        """Make states that another table sealed point at this table's long strings and wide rows; `rows` is changed in place."""
        from hpcmr.kernels.extra import read_extra

        if not len(rows) or not int((extra.ends - extra.starts).any()):
            return
        strings, sums = self.string_places, self.sum_places
        wide_count = int((rows[:, sums] >> np.uint64(59) & np.uint64(1)).sum()) if len(sums) else 0
        while int(self.wide_used[0]) + wide_count + self.room > len(self.wide):
            self.wide = np.concatenate([self.wide, np.zeros_like(self.wide)])
        starts, ends = (np.zeros((len(strings), len(rows)), np.int64) for _ in range(2))
        data = np.concatenate([extra.data, np.zeros(8, np.uint8)])
        self.wide_used[0] = read_extra(rows, strings, sums, np.ascontiguousarray(extra.starts), data, starts, ends, self.wide, int(self.wide_used[0]))
        for i, place in enumerate(strings.tolist()):
            self.long.intern(BytesColumn(starts[i], ends[i], data, False), rows.reshape(-1), rows.shape[1], place - 2)


class StringCounts(GroupTable):
    """Groups of one string that are only counted: strings of up to eight bytes lie in a table of their own."""

    def _allocate(self, slots: int) -> None:
        super()._allocate(slots)
        if not hasattr(self, "short"):
            self.places = np.empty(len(self.encoded) // 4, np.uint64)
            self._allocate_short(slots)

    def _allocate_short(self, slots: int) -> None:
        self.short_slots = slots
        self.short = table_zeros(2 * slots + 2)

    def _tables(self) -> tuple[Any, ...]:
        """What kernels are told of both tables: entries, shift of a hash, limit."""
        return (self.short, _shift(self.short_slots), self.short_limit, self.T, _shift(self.slots), self.limit, self.groups)

    @property
    def nbytes(self) -> int:
        return super().nbytes + int(self.short.nbytes)

    @property
    def short_limit(self) -> int:
        # Four entries share a cache line: a step further costs little, growing costs as much as 5 million words.
        large = self.short_slots > 1 << 18 and self.short_slots < self.slots_max
        return int(0.6 * self.short_slots) if large else load_limit(self.short_slots, self.short_slots >= self.slots_max)

    def fullness(self, rows: int) -> float:
        if self.short_slots < self.slots_max:
            return super().fullness(rows)
        limit = self.short_limit
        return max(super().fullness(rows), float(self.groups[2]) / max(limit - rows, limit // 2))

    def _run_strings(self, strings: BytesColumn, common: tuple[Any, ...], reached: int) -> int:
        from hpcmr.kernels.count_strings import count_strings

        return int(count_strings(strings.starts, strings.ends, strings.data, self.encoded, self.places, self.jm, reached, len(strings),
                                 *self._tables()))

    def add_words(self, blocks: BytesColumn) -> int:
        """Count the words of blocks of text; returns how many there were."""
        from hpcmr.kernels.count_strings import LONG_STRING, count_words

        self.groups[3] = 0
        data = np.ascontiguousarray(blocks.data)
        for at, end in zip(blocks.starts.tolist(), blocks.ends.tolist(), strict=True):
            stretch = 1 << 12
            while at < end:
                at = count_words(data, at, end, self.encoded, self.places, self.jm, *self._tables())
                if at < end and self.groups[1] == LONG_STRING:
                    at = self._words_with_long(data, at, end, stretch, blocks.text)
                    stretch *= 2              # where long words are common, longer and longer stretches are taken this way
                elif at < end:
                    self.make_room()
        return int(self.groups[3])

    def _words_with_long(self, data: NDArray[np.uint8], at: int, end: int, stretch: int, text: bool) -> int:
        """A stretch of text with a long word in it: words are found first, then counted. Returns the byte reached."""
        from hpcmr.kernels.words import SLACK, find_words

        stop = at + stretch
        while stop < end and data[stop] not in b" \t\n\v\f\r":
            stop += 1
        stop = min(stop, end)
        starts, ends = (np.empty((stop - at + 1) // 2 + SLACK, np.int64) for _ in range(2))
        n = find_words(data, np.array([at]), np.array([stop]), starts, ends, np.zeros(1, np.int64))
        words = int(self.groups[3])
        self.add(Rows(n, strings=BytesColumn(starts[:n], ends[:n], data, text)), np.zeros((0, 6), np.int64), 0)
        self.groups[3] = words + n
        return stop

    def make_room(self) -> None:
        from hpcmr.kernels.count_strings import SHORT_FULL, grow_short

        if self.groups[1] != SHORT_FULL:
            return super().make_room()
        old = self.short
        self._allocate_short(self._next_slots(self.short_slots, 1 << 20))
        grow_short(old, self.short, _shift(self.short_slots))

    def _everything(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
        from hpcmr.kernels.count_strings import widen_short
        from hpcmr.kernels.table import hash_groups

        T, places, hashes = super()._everything()
        n = int(self.groups[2])
        both = np.empty(4 * (n + len(places)), np.uint64)
        widen_short(self.short, both)
        both[4 * n:].reshape(-1, 4)[:] = T[:len(T) - 4].reshape(-1, 4)[places // 4]
        places = np.arange(0, len(both), 4, dtype=np.int64)
        short_hashes = np.empty(n, np.uint64)
        hash_groups(both, places, n, self.layout.string_ends, self.long.hashes, short_hashes)
        return both, places, np.concatenate([short_hashes, hashes])

    def reset(self) -> None:
        self._allocate_short(SLOTS_MIN)
        super().reset()


def _shift(slots: int) -> int:
    """What shifts a hash to one of a power of two of slots."""
    return 65 - slots.bit_length()
