"""Rows in any order go to the ranks that are named for them, through bounded memory and straight into place.

Where `exchange` takes rows that lie in partition order, this takes a destination for each row, and packs no more than a block of a
column at a time: a caller's arrays need not be copied as a whole before they travel::

    column --block by block--> packed by rank --travel--> at its place (order: source rank, row)
                                                     `--> a block that arrived --scattered--> at its place (order: partition, source rank, row)

Blocks are cut by bytes, on each rank for itself; ranks with fewer of them take part with empty ones. What lands where follows from
counts alone, so that the size of a block changes nothing in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.blocks import displs_of, ends_of
from hpcmr.comm.buffers import Buffers
from hpcmr.comm.exchange import LENGTH_TYPES, ROUND_NBYTES, add_stats, conserve
from hpcmr.comm.travel import DEFECT, Stats, Stream, as_bytes, travel
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.scatter import Counts, Groups, count, count_nbytes, place_strings, scatter_fixed, scatter_strings
from hpcmr.errors import ConservationError

BLOCK_NBYTES = 8 << 20       # what is packed at a time, at least: it stays in the last cache, and its memory is touched once
BLOCK_NBYTES_MIN, BLOCK_NBYTES_MAX = 64 << 10, 64 << 20
PAIR_NBYTES = 64 << 10       # what goes to one rank at a time, where there are many
Cut = Callable[[int], list[int]]


class Room(Protocol):
    """Where memory is asked for."""

    def take(self, nbytes: int, what: str) -> None:
        """Account `nbytes`, or raise `MemoryTooSmall`."""

    def available(self) -> int:
        """Bytes that are left."""


@dataclass(frozen=True)
class Parts:
    """The order of rows within a rank: ``groups (n,) uint16``, the partition of each row; rank r owns ``bounds[r]`` to ``bounds[r + 1] - 1``."""

    groups: Groups
    bounds: Counts


def exchange_rows(world: World, batch: Batch, dest: Groups, room: Room, parts: Parts | None = None, *, block_nbytes: int | None = None,
                  round_nbytes: int = ROUND_NBYTES, stats: Stats | None = None) -> Batch:
    """Send each row to its destination; return the rows for this rank.

    Parameters
    ----------
    world : World
    batch : Batch
        Rows of this rank, of the same schema on every rank.
    dest : (n,) uint16
        Rank that each row goes to.
    room : Room
        Memory is taken from it for everything that is made here.
    parts : Parts, optional
        Order what comes by (partition, source rank, row); else the order is (source rank, row).
    block_nbytes, round_nbytes : int
        Most bytes of a column that are packed at a time, and that are on the way in each direction.
    stats : Stats, optional
        Added to.

    Raises
    ------
    ConservationError
        Rows or bytes received are not those sent.
    MemoryTooSmall
        On any rank.

    Notes
    -----
    Collective: yes. Cost: each byte is packed once, travels once, and with `parts` is placed once; memory for what is received and two blocks.
    """
    if block_nbytes is None:
        wanted = max(BLOCK_NBYTES, min(PAIR_NBYTES * world.size, BLOCK_NBYTES_MAX))
        wanted = max(BLOCK_NBYTES_MIN, min(wanted, room.available() // 32))        # most of the memory is for what arrives
        block_nbytes = int(world.allreduce(np.array([wanted], np.int64), "min")[0])
    with world.together("make room for a shuffle"):
        room.take(2 * block_nbytes, "a block of a shuffle on the way out and one on the way in")
    call = Stats()
    plan = RowExchange(world, dest, room, parts, block_nbytes, round_nbytes, call)
    columns = list(batch.columns.values())
    marks = world.allreduce(np.array([m for c in columns for m in _marks(c)], np.int64), "max").tolist()
    made = {name: plan.column(name, column, marks) for name, column in batch.columns.items()}
    call.rows_sent, call.rows_received = batch.nrows, plan.n_recv
    conserve(world, call, None, "shuffle")
    if stats is not None:
        add_stats(stats, call)
    return Batch(made, plan.n_recv)


def _marks(column: Column) -> list[int]:
    """What ranks must agree on for a column and what is inside it: has it nulls, and how long is its longest string or list?"""
    valid = int(column.valid is not None)
    if isinstance(column, FixedColumn):
        return [valid, 0]
    longest = int((column.ends - column.starts).max(initial=0))
    return [valid, longest, *(_marks(column.child) if isinstance(column, ListColumn) else [])]


@dataclass
class _Blocks:
    """Row cuts of the blocks of this rank, and what each block sends to and receives from each rank: ``(blocks, size) int64``."""

    cuts: list[int]
    rows: Counts
    nbytes: Counts
    rows_in: Counts
    nbytes_in: Counts

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def largest(self) -> tuple[int, int]:
        """Bytes of the largest block out and in."""
        return int(self.nbytes.sum(1).max(initial=0)), int(self.nbytes_in.sum(1).max(initial=0))


class RowExchange:
    """The way of rows to their destinations, planned from counts; carries one column after the other. Made by `exchange_rows`."""

    def __init__(self, world: World, dest: Groups, room: Room, parts: Parts | None, block_nbytes: int, round_nbytes: int, stats: Stats) -> None:
        self.world, self.dest, self.room = world, dest, room
        self.parts: Parts | None = None
        self.block_nbytes, self.round_nbytes, self.stats = block_nbytes, round_nbytes, stats
        self._known: dict[int, _Blocks] = {}
        self._buffers = Buffers(4 * block_nbytes)
        sent = count(dest, world.size)
        self.starts = ends_of(world.alltoall(sent.reshape(-1, 1))[:, 0])          # (size + 1,) first row from each rank, as they come
        self.n_recv = int(self.starts[-1])
        if parts is not None:
            self._order(parts)

    def _order(self, parts: Parts) -> None:
        """Partitions travel as a column of their own; they tell where each row goes that comes from a rank."""
        rank = self.world.rank
        first, mine = int(parts.bounds[rank]), int(parts.bounds[rank + 1] - parts.bounds[rank])
        self._come = self._fixed("partitions", parts.groups)
        self._come -= np.uint16(first)
        with self.world.together("order rows by partition"):
            if self.n_recv and int(self._come.max()) >= mine:
                raise ConservationError(f"rank {rank} received rows of partitions that it does not own; {DEFECT}")
            table = np.zeros((self.world.size, mine), np.int64)
            for source in range(self.world.size):
                table[source] = count(self._come[self.starts[source]:self.starts[source + 1]], mine)
            self._next = displs_of(table.T.reshape(-1)).reshape(mine, -1).T.copy() if mine else table
        self.parts = parts
        self._known.clear()      # what arrives does not land at its place from here on

    # -- columns ---------------------------------------------------------------------------------------------------

    def column(self, name: str, column: Column, marks: list[int]) -> Column:
        """A column's rows for this rank. `marks` (see `_marks`) of all ranks are used up from the front. Collective."""
        nulls, longest = marks.pop(0), marks.pop(0)
        valid = None
        if nulls:
            mask = np.ones(len(column), np.bool_) if column.valid is None else column.valid
            valid = self._fixed(f"{name} valid", mask)
        if isinstance(column, FixedColumn):
            return FixedColumn(self._fixed(name, column.values), valid)
        kind = next(t for t in LENGTH_TYPES if longest <= np.iinfo(t).max)
        lengths = column.ends - column.starts
        offsets = ends_of(self._fixed(f"{name} lengths", lengths.astype(kind)))
        if isinstance(column, BytesColumn):
            return BytesColumn.from_offsets(offsets, self._strings(name, column, offsets), column.text, valid)
        return ListColumn(offsets[:-1], offsets[1:], self._items(f"{name}[]", column, lengths, marks), valid)

    def _items(self, name: str, column: ListColumn, lengths: Counts, marks: list[int]) -> Column:
        """The items of lists go where their lists go."""
        parts = self.parts and Parts(np.repeat(self.parts.groups, lengths), self.parts.bounds)
        inside = RowExchange(self.world, np.repeat(self.dest, lengths), self.room, parts, self.block_nbytes, self.round_nbytes, self.stats)
        return inside.column(name, column.compact().child, marks)

    def _fixed(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        width = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
        if width == 0:
            return np.empty((self.n_recv, *values.shape[1:]), values.dtype)
        blocks = self._rows_in_blocks(width)
        out, packed, arrived = self._make_room(name, self.n_recv, values, blocks)
        displs = (self.starts[:-1] * width).astype(np.int64)
        after = None if self.parts is None else self._next.copy()
        done = np.zeros(self.world.size, np.int64)
        for b in range(len(blocks)):      # as many on every rank
            lo, hi = blocks.cuts[b], blocks.cuts[b + 1]
            some = packed[:hi - lo]
            scatter_fixed(values[lo:hi], self.dest[lo:hi], displs_of(blocks.rows[b]), some)
            self._send(name, as_bytes(some), blocks, b, as_bytes(out) if after is None else as_bytes(arrived), None if after is not None else displs)
            displs = displs + blocks.nbytes_in[b]
            if after is not None:
                for source, first, n in _runs(blocks.rows_in[b]):
                    scatter_fixed(arrived[first:first + n], self._rows_of(source, done, n), after[source], out)
                done += blocks.rows_in[b]
        return out

    def _strings(self, name: str, column: BytesColumn, offsets: Counts) -> NDArray[np.uint8]:
        blocks = self._strings_in_blocks(column)
        out, packed, arrived = self._make_room(name, int(offsets[-1]), np.zeros(0, np.uint8), blocks)
        displs = offsets[self.starts[:-1]]
        after = None if self.parts is None else self._next.copy()
        done = np.zeros(self.world.size, np.int64)
        for b in range(len(blocks)):      # as many on every rank
            lo, hi = blocks.cuts[b], blocks.cuts[b + 1]
            scatter_strings(column.slice(lo, hi), self.dest[lo:hi], displs_of(blocks.nbytes[b]), packed)
            self._send(f"{name} data", packed, blocks, b, out if after is None else arrived, None if after is not None else displs)
            displs = displs + blocks.nbytes_in[b]
            if after is not None:
                places = displs_of(blocks.nbytes_in[b])
                for source, _, n in _runs(blocks.rows_in[b]):
                    place_strings(arrived[places[source]:], self._rows_of(source, done, n), after[source], offsets, out)
                done += blocks.rows_in[b]
        return out

    def _rows_of(self, source: int, done: Counts, n: int) -> Groups:
        """Partitions of the next `n` rows from a rank."""
        a = int(self.starts[source] + done[source])
        return self._come[a:a + n]

    def _send(self, name: str, packed: NDArray[np.uint8], blocks: _Blocks, b: int, recv: NDArray[np.uint8], displs: Counts | None) -> None:
        stream = Stream(name, packed, blocks.nbytes[b], recv, blocks.nbytes_in[b], displs)
        travel(self.world, [stream], self.round_nbytes, self.stats, "shuffle")

    def _make_room(self, name: str, n: int, like: NDArray[Any], blocks: _Blocks) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """What a column becomes here, a block of it on the way out, and one on the way in where it does not land at its place."""
        shape = like.shape[1:]
        width = like.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        largest = blocks.largest[0], blocks.largest[1] if self.parts is not None else 0
        with self.world.together(f"make room for column {name!r} of a shuffle"):
            self.room.take(n * width + max(0, sum(largest) - 2 * self.block_nbytes), f"column {name!r} of a shuffle")
            out = np.empty((n, *shape), like.dtype)
            packed, arrived = (self._buffers.take(nbytes // width, like.dtype, shape) for nbytes in largest)
        return out, packed, arrived

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _rows_in_blocks(self, width: int) -> _Blocks:
        n = len(self.dest)

        def cut(nbytes: int) -> list[int]:
            return [*range(0, n, max(1, nbytes // width)), n]

        if width not in self._known:
            self._known[width] = self._in_blocks(cut, lambda lo, hi, rows: rows * width)
        return self._known[width]

    def _strings_in_blocks(self, column: BytesColumn) -> _Blocks:
        offsets = column.offsets()

        def cut(nbytes: int) -> list[int]:
            cuts = [0]
            while cuts[-1] < len(column):       # at least one row, however long
                there = int(np.searchsorted(offsets, offsets[cuts[-1]] + nbytes, "right")) - 1
                cuts.append(max(there, cuts[-1] + 1))
            return cuts

        def nbytes_of(lo: int, hi: int, rows: Counts) -> Counts:
            out = np.zeros(self.world.size, np.int64)
            count_nbytes(self.dest[lo:hi], column.slice(lo, hi), out)
            return out

        return self._in_blocks(cut, nbytes_of)

    def _in_blocks(self, cut: Cut, nbytes_of: Callable[[int, int, Counts], Counts]) -> _Blocks:
        """Blocks of about `block_nbytes` out, and in as well where they do not land at their place. Collective."""
        blocks = self._table(cut(self.block_nbytes), nbytes_of)
        if self.parts is None:
            return blocks
        most = int(self.world.allreduce(np.array([blocks.largest[1]], np.int64), "max")[0])
        # Many ranks send to one: then each sends its share of a block at a time.
        return blocks if most <= 2 * self.block_nbytes else self._table(cut(max(1, self.block_nbytes // self.world.size)), nbytes_of)

    def _table(self, cuts: list[int], nbytes_of: Callable[[int, int, Counts], Counts]) -> _Blocks:
        size = self.world.size
        number = int(self.world.allreduce(np.array([len(cuts) - 1], np.int64), "max")[0])
        cuts += [cuts[-1]] * (number + 1 - len(cuts))
        table = np.zeros((2, number, size), np.int64)
        for b in range(number):
            table[0, b] = count(self.dest[cuts[b]:cuts[b + 1]], size)
            table[1, b] = nbytes_of(cuts[b], cuts[b + 1], table[0, b])
        got = self.world.alltoall(table.reshape(-1, size).T).T.reshape(table.shape)
        return _Blocks(cuts, table[0], table[1], got[0].copy(), got[1].copy())


def _runs(counts: Counts) -> list[tuple[int, int, int]]:
    """Source, first place and length of what came from each rank that sent something."""
    return [(s, int(a), int(n)) for s, (a, n) in enumerate(zip(displs_of(counts), counts, strict=True)) if n]
