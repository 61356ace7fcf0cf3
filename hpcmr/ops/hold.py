"""Rows kept on the rank that made them, in the order of their origin, to be read again: by a join, a second pass, a later action."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.schema import Schema
from hpcmr.data.source import BATCH_NBYTES
from hpcmr.ops.contract import StageContext

BLOCK_NBYTES = 4 * BATCH_NBYTES      # what a piece is kept in
RESERVE_SHARE = 4                    # of the memory that is free at the beginning, the part that is left free before rows go to scratch


class _Piece:
    """The rows of one piece: blocks, each in memory (`Batch`) or away (a handle of the spool)."""

    __slots__ = ("blocks", "nrows", "row", "sizes")

    def __init__(self, row: int) -> None:
        self.row = row
        self.nrows = 0
        self.blocks: list[Batch | Away] = []
        self.sizes: list[int] = []


@dataclass(frozen=True)
class Away:
    """A block that lies in the spool."""

    handle: Any


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
        block = compact_copy(Batch.concat(self._small)) if len(self._small) > 1 else self._small[0]
        nbytes = real_nbytes(block)
        self._account(nbytes - self._small_nbytes)
        self._small, self._small_nbytes = [], 0
        found = self._pieces[self._now]
        self._in_memory.append((self._now, len(found.blocks)))
        found.blocks.append(block)
        found.sizes.append(nbytes)
        found.nrows += block.nrows

    def _account(self, nbytes: int) -> None:
        if nbytes > 0 and self._ctx.spool is not None and self._ctx.available() - nbytes < self._reserve:
            self.spill(nbytes + self._reserve - self._ctx.available())
        if nbytes > 0:
            self._ctx.take(nbytes, f"{self._what}, which is kept on the ranks,")
        else:
            self._ctx.give(-nbytes)
        self._taken += nbytes

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
                yield self._block(block)

    def _block(self, block: Batch | Away) -> Batch:
        if isinstance(block, Batch):
            return block
        assert self._ctx.spool is not None
        return self._ctx.spool.get(block.handle)

    def drop(self, piece: int) -> None:
        """The rows of a piece are not needed any more."""
        found = self._pieces.pop(piece, None)
        if found is None:
            return
        for block, nbytes in zip(found.blocks, found.sizes, strict=True):
            if isinstance(block, Batch):
                self._ctx.give(nbytes)
                self._taken -= nbytes
            elif self._ctx.spool is not None:
                self._ctx.spool.drop(block.handle)
        self._in_memory = [(p, i) for p, i in self._in_memory if p != piece]

    def close(self) -> None:
        """Give all memory and scratch back. May be called twice."""
        if self._ctx.spool is not None:
            for found in self._pieces.values():
                for block in found.blocks:
                    if isinstance(block, Away):
                        self._ctx.spool.drop(block.handle)
        self._pieces, self._small, self._in_memory = {}, [], []
        self._ctx.give(self._taken)
        self._taken = 0


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

    def fill(self, hold: Hold | None, schema: Schema, count: int, mine: list[int], nbytes_global: int, pinned: Pinned | None,
             splits: tuple[Any, ...] | None, world: Any) -> None:
        """Take the rows."""
        self.hold, self.schema, self.count, self.mine = hold, schema, count, mine
        self.nbytes_global, self.pinned, self.splits, self.world = nbytes_global, pinned, splits, world

    def leave(self, world: Any) -> None:
        """Drop rows that lie on other ranks than those of `world`."""
        if self.filled and self.world is not world:
            self.drop()

    @property
    def filled(self) -> bool:
        return self.hold is not None

    def drop(self) -> None:
        """Give the memory back. May be called twice."""
        if self.hold is not None:
            self.hold.close()
        self.hold, self.world = None, None
        self.mine = []

    def __del__(self) -> None:
        if self.hold is not None:
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
