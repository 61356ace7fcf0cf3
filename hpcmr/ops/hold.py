"""Rows kept on the rank that made them, in the order of their origin, to be read again: by a join, a second pass, a later action."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned, of_pieces
from hpcmr.data.schema import Schema
from hpcmr.data.source import BATCH_NBYTES
from hpcmr.ops.contract import StageContext

BLOCK_NBYTES = 4 * BATCH_NBYTES      # what a piece is kept in
FILE_NBYTES = 256 << 20              # of a file of a checkpoint
COPY_NBYTES = 32 << 20               # of rows on scratch, what is read and written at a time
FILE_PIECES = 4096                   # range of pieces in it
RESERVE_SHARE = 4                    # of the memory that is free at the beginning, the part that is left free before rows go to scratch


class _Piece:
    """The rows of one piece: blocks, each in memory (`Batch`), away (a handle of the spool), or in the run directory (`Restored`)."""

    __slots__ = ("blocks", "nrows", "row", "sizes")

    def __init__(self, row: int) -> None:
        self.row = row
        self.nrows = 0
        self.blocks: list[Batch | Away | Restored] = []
        self.sizes: list[int] = []


@dataclass(frozen=True)
class Away:
    """A block that lies in the spool."""

    handle: Any


class Rows(Protocol):
    """Rows by piece in the run directory: see `hpcmr.run.stored`."""

    def read(self, piece: int) -> Iterator[Partitioned]:
        """The rows of a piece, in memory of their own."""

    def close(self) -> None:
        """Give memory back."""


@dataclass(frozen=True)
class Restored:
    """All rows of a piece that an earlier run kept."""

    rows: Rows
    piece: int


class Hold:
    """Rows by piece, in memory that is accounted to the budget; on scratch where that is short and there is some.

    Parameters
    ----------
    ctx : StageContext
    what : str
        What the rows are for, for messages: "the right side of a join".

    Attributes
    ----------
    rows, nbytes : int
        Of all that was kept, in memory or not. `nbytes` counts each row by itself, so that its sum over ranks depends on the rows alone.
    retains : bool
        Rows that are dropped stay until a checkpoint was given them (`tell`).
    waits : callable or None
        Waits until the checkpoint that is being written has all that it was given.
    """

    def __init__(self, ctx: StageContext, what: str) -> None:
        self._ctx = ctx
        self._what = what
        self._pieces: dict[int, _Piece] = {}
        self._small: list[Batch] = []        # of the piece that comes in now: not a block yet
        self._small_nbytes = 0
        self._now = -1
        self._taken = 0
        self._reserve = ctx.available() // RESERVE_SHARE
        self._in_memory: list[tuple[int, int]] = []      # piece and number of each block in memory, the latest last
        self._untold: list[tuple[int, int]] = []         # the same of blocks that no checkpoint was given
        self._dropped: set[int] = set()                  # pieces that are dropped once they are told
        self._lent = False                               # a checkpoint reads blocks that are away
        self._restored: Rows | None = None
        self.retains = False
        self.waits: Callable[[], None] | None = None
        self.rows = self.nbytes = 0

    # ---- in ------------------------------------------------------------------------------------------------------------

    def take(self, piece: int, row: int, batch: Batch) -> None:
        """Keep a copy of the rows. All batches of a piece come one behind the other; `row` is that of the first row."""
        if piece != self._now:
            self._flush()
            self._now = piece
        if piece not in self._pieces:
            self._pieces[piece] = _Piece(row)
        mine = compact_copy(batch)
        self.rows += batch.nrows
        self.nbytes += batch.nbytes
        self._account(real_nbytes(mine))
        self._small.append(mine)
        self._small_nbytes += real_nbytes(mine)
        if self._small_nbytes >= BLOCK_NBYTES or batch.nbytes >= BLOCK_NBYTES // 8:
            self._flush()

    def seal(self) -> None:
        """All rows have come."""
        self._flush()
        self._now = -1

    def _flush(self) -> None:
        if not self._small:
            return
        small, before = self._small, self._small_nbytes
        self._small, self._small_nbytes = [], 0
        block = compact_copy(Batch.concat(small)) if len(small) > 1 else small[0]
        nbytes = real_nbytes(block)
        self._account(nbytes - before)
        found = self._pieces[self._now]
        self._in_memory.append((self._now, len(found.blocks)))
        self._untold.append((self._now, len(found.blocks)))
        found.blocks.append(block)
        found.sizes.append(nbytes)
        found.nrows += block.nrows

    def _account(self, nbytes: int) -> None:
        if nbytes > 0:
            self._make_room(nbytes)
            self._ctx.take(nbytes, f"{self._what}, which is kept on the ranks,")
        else:
            self._ctx.give(-nbytes)
        self._taken += nbytes

    def _make_room(self, nbytes: int) -> None:
        """Put rows away if less than the reserve would be left beside `nbytes` more."""
        if self._ctx.spool is None or self._ctx.available() - nbytes >= self._reserve:
            return
        self.spill(nbytes + self._reserve - self._ctx.available())
        if self._ctx.available() < nbytes:
            self._flush()
            self.spill(nbytes)

    def spill(self, nbytes: int) -> int:
        """Put blocks away until `nbytes` bytes of memory are free, or all are away; returns how many became free. Needs a spool.

        The first to be read again are the last to go: rows are mostly read from the first piece on.
        """
        spool, freed = self._ctx.spool, 0
        while spool is not None and self._in_memory and freed < nbytes:
            piece, i = self._in_memory.pop()
            found = self._pieces[piece]
            block = found.blocks[i]
            assert isinstance(block, Batch)
            found.blocks[i] = Away(spool.put(block))
            freed += found.sizes[i]
            self._ctx.give(found.sizes[i])
            self._taken -= found.sizes[i]
        return freed

    # ---- out -----------------------------------------------------------------------------------------------------------

    @property
    def pieces(self) -> list[int]:
        """Numbers of the pieces that have rows here, ascending."""
        return sorted(self._pieces)

    def row(self, piece: int) -> int:
        """Number of the piece's first row."""
        return self._pieces[piece].row if piece in self._pieces else 0

    def number(self, piece: int, row: int) -> None:
        """Give the piece's first row another number."""
        self._pieces[piece].row = row

    def nrows(self, piece: int) -> int:
        """Rows of the piece that are kept here."""
        return self._pieces[piece].nrows if piece in self._pieces else 0

    def read(self, piece: int) -> Iterator[Batch]:
        """The rows of a piece, again and again; batches must not be changed."""
        if piece in self._pieces:
            for block in self._pieces[piece].blocks:
                if isinstance(block, Restored):
                    yield from (part.batch for part in block.rows.read(block.piece))
                else:
                    yield self._block(block)

    def _block(self, block: Batch | Away | Restored) -> Batch:
        if isinstance(block, Batch):
            return block
        assert isinstance(block, Away) and self._ctx.spool is not None
        return self._ctx.spool.get(block.handle)

    def drop(self, piece: int) -> None:
        """The rows of a piece are not needed any more."""
        if self.retains and piece in self._pieces and any(p == piece for p, _ in self._untold):
            self._dropped.add(piece)
            return
        found = self._pieces.pop(piece, None)
        if found is None:
            return
        self._return_lent(found)
        for block, nbytes in zip(found.blocks, found.sizes, strict=True):
            if isinstance(block, Batch):
                self._ctx.give(nbytes)
                self._taken -= nbytes
            elif isinstance(block, Away) and self._ctx.spool is not None:
                self._ctx.spool.drop(block.handle)
        self._in_memory = [(p, i) for p, i in self._in_memory if p != piece]
        self._untold = [(p, i) for p, i in self._untold if p != piece]

    def _return_lent(self, found: _Piece) -> None:
        """Scratch must stay as it is while a checkpoint copies from it."""
        if self._lent and self.waits is not None and any(isinstance(b, Away) for b in found.blocks):
            self.waits()
            self._lent = False

    def close(self) -> None:
        """Give all memory and scratch back. May be called twice."""
        for found in self._pieces.values():
            self._return_lent(found)
            for block in found.blocks:
                if isinstance(block, Away) and self._ctx.spool is not None:
                    self._ctx.spool.drop(block.handle)
        if self._restored is not None:
            self._restored.close()
        self._pieces, self._small, self._in_memory, self._untold, self._restored = {}, [], [], [], None
        self._ctx.give(self._taken)
        self._taken = 0

    # ---- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def untold_nbytes(self) -> int:
        """Bytes that `tell` would give, about."""
        return sum(self._pieces[p].sizes[i] for p, i in self._untold) + self._small_nbytes

    def tell(self) -> tuple[list[Partitioned], list[Callable[[], Iterator[Partitioned]]]]:
        """Give a checkpoint what none was given, by piece: rows in memory, and calls that give those on scratch. Between two pieces."""
        self.seal()
        memory: list[Partitioned] = []
        away: list[Callable[[], Iterator[Partitioned]]] = []
        untold = [(p, i, self._pieces[p].sizes[i]) for p, i in sorted(self._untold)]
        # The blocks of a piece must come back in their order: they are all given in one way.
        mixed = {p for p, i, _ in untold if isinstance(self._pieces[p].blocks[i], Away)}
        for group in _groups([u for u in untold if u[0] not in mixed], FILE_NBYTES):
            first, count = group[0][0], group[-1][0] - group[0][0] + 1
            memory += [_of_piece(self._block(self._pieces[p].blocks[i]), p, first, count) for p, i in group]
        for group in _groups([u for u in untold if u[0] in mixed], COPY_NBYTES):
            away.append(partial(self._copied, [(p, self._pieces[p].blocks[i]) for p, i in group]))
        self._untold = []
        self._lent = self._lent or bool(away)
        dropped, self._dropped = self._dropped, set()
        for piece in dropped:
            found = self._pieces[piece]
            if away and any(isinstance(b, Away) for b in found.blocks):
                self._dropped.add(piece)          # with the next checkpoint, when this one has been written
            else:
                self.drop(piece)
        return memory, away

    def _copied(self, blocks: list[tuple[int, Any]]) -> Iterator[Partitioned]:
        whole = of_pieces((piece, self._block(block)) for piece, block in blocks)
        if whole is not None:
            yield whole

    def restore(self, rows: Rows, pieces: Mapping[int, int]) -> None:
        """Take over rows that an earlier run kept: their number by piece. They are read from there. `rows` and `nbytes` are not changed."""
        self._restored = rows
        for piece, nrows in pieces.items():
            found = self._pieces[piece] = _Piece(0)
            found.blocks, found.sizes, found.nrows = [Restored(rows, piece)], [0], nrows


def _of_piece(block: Batch, piece: int, first: int, count: int) -> Partitioned:
    starts = np.zeros(count + 1, np.int64)
    starts[piece - first + 1:] = block.nrows
    return Partitioned(block, starts, first)


def _groups(blocks: list[tuple[int, int, int]], limit_nbytes: int) -> Iterator[list[tuple[int, int]]]:
    """Blocks (piece, number, bytes), in order, that are to lie in one file: of near pieces, and not too many."""
    group: list[tuple[int, int]] = []
    nbytes = 0
    for piece, i, size in blocks:
        if group and (nbytes + size > limit_nbytes or piece - group[0][0] > FILE_PIECES):
            yield group
            group, nbytes = [], 0
        group.append((piece, i))
        nbytes += size
    if group:
        yield group


@dataclass
class Pinned:
    """Which partitions rows lie in, and who owns them: pieces are the partitions of the hash of `keys`.

    Attributes
    ----------
    keys : tuple of str
        Columns, in the order in which they are hashed.
    types : tuple of str
        Their types: numbers of other types hash differently.
    bounds : (size + 1,) int64
        Rank r owns partitions ``bounds[r]`` to ``bounds[r + 1] - 1``.
    """

    keys: tuple[str, ...]
    types: tuple[str, ...]
    bounds: Any

    @property
    def count(self) -> int:
        return int(self.bounds[-1])

    def fits(self, keys: tuple[str, ...], schema: Schema) -> bool:
        """Whether rows with equal values in these columns of `schema` lie in one partition of ours, and are hashed as we do."""
        return keys == self.keys and tuple(str(schema[k].type) for k in keys) == self.types

    def renamed(self, keys: tuple[str, ...]) -> Pinned:
        return Pinned(keys, self.types, self.bounds)


@dataclass
class Kept:
    """The rows of a `persist`, once an action has made them: shared by all tables that come of it.

    Attributes
    ----------
    parent : object or None
        The node whose rows these are, to make them again; None: they cannot be made again.
    hold : Hold or None
        This rank's rows; None before the first action, and after `drop`.
    commit : bool
        The job is committed once the rows are made.
    """

    parent: Any
    digest: str = ""                    # of the plan that made the rows, once it is known
    hold: Hold | None = None
    schema: Schema = field(default_factory=lambda: Schema(()))
    count: int = 0                      # pieces of all ranks
    mine: list[int] = field(default_factory=list)
    nbytes_global: int = 0
    pinned: Pinned | None = None
    splits: tuple[Any, ...] | None = ()         # of the inputs that went in
    world: Any = None
    section: Any = None                 # in the checkpoints of the job, where there are any
    commit: bool = False
    made: bool = False                  # an action has made the rows, in this attempt or in an earlier one, and nobody has dropped them

    def fill(self, hold: Hold | None, schema: Schema, count: int, mine: list[int], nbytes_global: int, pinned: Pinned | None,
             splits: tuple[Any, ...] | None, world: Any, section: Any = None) -> None:
        """Take the rows."""
        self.hold, self.schema, self.count, self.mine = hold, schema, count, mine
        self.nbytes_global, self.pinned, self.splits, self.world = nbytes_global, pinned, splits, world
        self.section, self.made = section, True

    def leave(self, world: Any) -> None:
        """Drop rows that lie on other ranks than those of `world`."""
        if self.filled and self.world is not world:
            self.drop()

    @property
    def filled(self) -> bool:
        return self.hold is not None

    def detach(self, digest: str) -> None:
        """Forget how the rows were made, which an iteration would pile up: they are known by `digest` now, and cannot be made again."""
        self.digest, self.parent = digest, None

    def drop(self) -> None:
        """Give the memory back. May be called twice."""
        if self.hold is not None:
            self.hold.close()
        if self.section is not None:
            self.section.dead = True        # ranks agree on it when the next action begins
        self.hold, self.world, self.section, self.made = None, None, None, False
        self.mine = []

    def __del__(self) -> None:
        if self.hold is not None and not sys.is_finalizing():
            self.drop()


def compact_copy(batch: Batch) -> Batch:
    """The batch in memory of its own, with the starts and ends of strings and lists as two views of one array."""
    return Batch({n: _compact_column(c) for n, c in batch.columns.items()}, batch.nrows)


def _compact_column(column: Column) -> Column:
    valid = None if column.valid is None or bool(column.valid.all()) else column.valid.copy()
    if isinstance(column, FixedColumn):
        return FixedColumn(np.array(column.values, order="C"), valid)
    whole = column.compact()
    offsets = whole.offsets()
    if isinstance(whole, ListColumn):
        return ListColumn(offsets[:-1], offsets[1:], _compact_column(whole.child), valid)
    assert isinstance(whole, BytesColumn)
    data: Any = whole.data.copy() if whole.data.base is not None or whole.data is getattr(column, "data", None) else whole.data
    return BytesColumn.from_offsets(offsets, data, whole.text, valid)


def real_nbytes(batch: Batch) -> int:
    """Bytes of memory of a batch that `compact_copy` made."""
    return sum(_real_column(c) for c in batch.columns.values())


def _real_column(column: Column) -> int:
    valid = 0 if column.valid is None else int(column.valid.nbytes)
    if isinstance(column, FixedColumn):
        return valid + int(column.values.nbytes)
    inner = int(column.data.nbytes) if isinstance(column, BytesColumn) else _real_column(column.child)
    return valid + 8 * (len(column) + 1) + inner
