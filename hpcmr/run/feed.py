"""Where the pieces of a stage come from: splits that any rank can read, splits or kept rows that lie on one rank, partitions that a
rank owns, and several of these one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.source import BATCH_NBYTES, Source, Split
from hpcmr.ops.contract import Collective, KeyedOperator
from hpcmr.ops.hold import Hold
from hpcmr.run.deal import deal

SLICE_NBYTES = 4 * BATCH_NBYTES
PART_BITS = 16       # what steps may make of a row, on average over a split of arrays that lies on two ranks: 65,536 rows


class Feed(Protocol):
    """Pieces of input in a global order.

    Attributes
    ----------
    dealt : bool
        Any rank can read any piece, so that they are dealt out; else each rank has its own.
    is_input : bool
        Rows come from an input, not from an earlier stage.
    count : int
        Pieces of all ranks.
    mine : list of int
        Pieces of this rank, ascending, where they are not dealt.
    weights : (count,) int64
        What pieces cost to read; in bytes for splits, each the same for partitions.
    nbytes_total : int
        Bytes of the input that went in, which the number of partitions comes from. From the data alone.
    shared : bool
        A piece may lie on several ranks, each of which has some of its rows.
    again : bool
        Pieces can be read more than once.
    late : tuple of tuple of int
        Pieces that may be read only when all ranks have read all others, in groups: `settle` is called before each.
    """

    dealt: bool
    is_input: bool
    count: int
    mine: list[int]
    weights: NDArray[np.int64]
    nbytes_total: int
    shared: bool
    again: bool
    late: tuple[tuple[int, ...], ...]

    def where(self, piece: int) -> str:
        """Readable name of a piece."""

    def row(self, piece: int) -> int:
        """Number of the first row of this rank's share of a piece."""

    def settle(self, group: int, together: Collective) -> None:
        """All rows before this group of `late` pieces were read, on all ranks. Collective: yes."""

    def read(self, piece: int) -> Iterator[Batch]:
        """Batches in row order; their memory may be used again by the next one."""

    def peek(self, piece: int) -> Iterator[Batch]:
        """The same, of a piece that will be read again."""

    def close(self) -> None: ...


class SplitFeed:
    """Splits of a source that any rank can read."""

    dealt = True
    is_input = True
    shared = False
    again = True
    late: tuple[tuple[int, ...], ...] = ()

    def __init__(self, source: Source, splits: list[Split]) -> None:
        self.source = source
        self.splits = splits
        self.count = len(splits)
        self.mine: list[int] = []
        self.weights = np.array([s.nbytes for s in splits], np.int64)
        self.nbytes_total = int(self.weights.sum())

    def where(self, piece: int) -> str:
        return self.splits[piece].where

    def row(self, piece: int) -> int:
        return 0

    def read(self, piece: int) -> Iterator[Batch]:
        return self.source.read(self.splits[piece])

    peek = read

    def settle(self, group: int, together: Collective) -> None:
        """Nothing is late."""

    def close(self) -> None:
        self.source.close()


class OwnFeed:
    """Splits of arrays in memory: each lies on one rank, or on neighbouring ones that hold a part each."""

    dealt = False
    is_input = True
    shared = True
    again = True
    late: tuple[tuple[int, ...], ...] = ()

    def __init__(self, source: Any, splits: list[Split], count: int, nbytes_total: int) -> None:
        self.source = source
        self.splits = {s.index: s for s in splits}
        self.count = count
        self.mine = sorted(self.splits)
        self.weights = np.array([s.nbytes for s in splits], np.int64)
        self.nbytes_total = nbytes_total

    def where(self, piece: int) -> str:
        return self.splits[piece].where

    def row(self, piece: int) -> int:
        return int(self.source.origin_row(self.splits[piece]))

    def read(self, piece: int) -> Iterator[Batch]:
        return self.source.read(self.splits[piece])  # type: ignore[no-any-return]

    peek = read

    def settle(self, group: int, together: Collective) -> None:
        """Nothing is late."""

    def close(self) -> None:
        self.source.close()


class PartitionFeed:
    """Partitions of an operator that this rank owns. Each can be finished once; what was peeked at is kept until it is read.

    Who opened the operator closes it.

    Parameters
    ----------
    operator : KeyedOperator or PairOperator
    bounds : (size + 1,) int64
        Who owns what.
    rank : int
    nbytes_total : int
    before : callable, optional
        Called with a partition before it is finished: what of it lies elsewhere is merged there.
    sides : sequence of KeyedOperator, optional
        Whose ``rows_out`` count what is finished; the operator's own by default.

    Attributes
    ----------
    rows, nbytes : int
        Read so far.
    given : list of int
        Of each side, rows that were counted when partitions were finished which have been read to their end.
    """

    dealt = False
    is_input = False
    shared = False
    again = False
    late: tuple[tuple[int, ...], ...] = ()

    def __init__(self, operator: Any, bounds: NDArray[np.int64], rank: int, nbytes_total: int, before: Callable[[int], None] | None = None,
                 sides: Sequence[Any] = ()) -> None:
        self.operator: KeyedOperator = operator
        self._sides = sides or (operator,)
        self.given = [0] * len(self._sides)
        self._ahead: dict[int, list[int]] = {}      # the same of pieces that are being read, or were peeked at
        self.count = int(bounds[-1])
        self.mine = list(range(int(bounds[rank]), int(bounds[rank + 1])))
        self.weights = np.ones(len(self.mine), np.int64)
        self.nbytes_total = nbytes_total
        self.rows = self.nbytes = 0
        self._before = before
        self._peeked: dict[int, tuple[list[Batch], Iterator[Batch]]] = {}

    def where(self, piece: int) -> str:
        return f"partition {piece} of {self.count} of {self.operator.name}"

    def row(self, piece: int) -> int:
        return 0

    def read(self, piece: int) -> Iterator[Batch]:
        kept, rest = self._peeked.pop(piece) if piece in self._peeked else ([], self._finished(piece))
        for batch in chain(kept, rest):
            self.rows += batch.nrows
            self.nbytes += batch.nbytes
            yield batch
        self.given = [a + b for a, b in zip(self.given, self._ahead.pop(piece), strict=True)]

    @property
    def unread(self) -> list[int]:
        """The same of pieces that were only peeked at, because an earlier attempt had read them."""
        return [sum(found[i] for found in self._ahead.values()) for i in range(len(self.given))]

    def _finished(self, piece: int) -> Iterator[Batch]:
        found = self._ahead[piece] = [0] * len(self._sides)
        blocks = self._blocks(piece)
        while True:
            before = [getattr(s, "rows_out", 0) for s in self._sides]
            block = next(blocks, None)
            for i, side in enumerate(self._sides):
                found[i] += getattr(side, "rows_out", 0) - before[i]
            if block is None:
                return
            yield from sliced(block)

    def _blocks(self, piece: int) -> Iterator[Batch]:
        if self._before is not None:
            self._before(piece)
        blocks = getattr(self.operator, "finish_blocks", None)
        if blocks is None:
            yield self.operator.finish(piece)
        else:
            yield from blocks(piece)

    def peek(self, piece: int) -> Iterator[Batch]:
        """Its first batches are copied, the rest stays for `read`. A later piece is peeked at when this one is through, if at all."""
        if piece not in self._peeked:
            self._peeked[piece] = [], self._finished(piece)
        kept, rest = self._peeked[piece]
        yield from kept
        for batch in rest:
            kept.append(owned(batch))
            yield kept[-1]

    def settle(self, group: int, together: Collective) -> None:
        """Nothing is late."""

    def close(self) -> None:
        self._peeked.clear()


class HeldFeed:
    """Rows that a `Hold` keeps on this rank.

    Parameters
    ----------
    hold : Hold
    count : int
        Pieces of all ranks.
    mine : list of int
        Those of this rank, with or without rows.
    nbytes_total : int
    what : str
        What the rows are, for messages.
    once : bool
        They are read once: a piece that was read is dropped.

    Attributes
    ----------
    retains : bool
        A later attempt needs all rows again, whatever was read of them.
    """

    dealt = False
    is_input = False
    shared = True       # or lies nowhere, if it has no rows
    late: tuple[tuple[int, ...], ...] = ()

    def __init__(self, hold: Hold, count: int, mine: list[int], nbytes_total: int, what: str, once: bool = False) -> None:
        self.hold, self.count, self.mine, self.nbytes_total = hold, count, mine, nbytes_total
        self.weights = np.ones(len(mine), np.int64)
        self.again = not once
        self.retains = False
        self._what = what

    def where(self, piece: int) -> str:
        return f"piece {piece} of {self.count} of {self._what}"

    def row(self, piece: int) -> int:
        return self.hold.row(piece)

    def peek(self, piece: int) -> Iterator[Batch]:
        for block in self.hold.read(piece):
            yield from sliced(block)

    def read(self, piece: int) -> Iterator[Batch]:
        yield from self.peek(piece)
        if not self.again:
            self.hold.drop(piece)

    def settle(self, group: int, together: Collective) -> None:
        """Nothing is late."""

    def close(self) -> None:
        """Who holds the rows gives them back."""


def sliced(batch: Batch) -> Iterator[Batch]:
    """A large batch in pieces that stay in the cache on their way through the steps; nothing of an empty one."""
    parts = max(1, -(-batch.nbytes // SLICE_NBYTES))
    if parts == 1 and batch.nrows:
        yield batch
        return
    step = max(1, -(-batch.nrows // parts))
    for start in range(0, batch.nrows, step):
        yield batch.slice(start, start + step)


def owned(batch: Batch) -> Batch:
    """The rows in memory of their own."""
    return batch.take(np.arange(batch.nrows, dtype=np.int64)).compact() if batch.nrows else batch


class Through(Protocol):
    """Steps that rows go through on their way out of a feed; see `hpcmr.run.prepare.Chain`."""

    steps: tuple[Any, ...]

    def through(self, batches: Iterator[Batch], piece: int, row: int) -> Iterator[Batch]: ...


class UnionFeed:
    """The pieces of several feeds, one feed behind the other, each with steps of its own.

    Where some are dealt and others lie on ranks, those that could be dealt are cut up beforehand, by bytes.

    Parameters
    ----------
    legs : list of (Feed, Through)
    rank, size : int
    """

    def __init__(self, legs: list[tuple[Feed, Through]], rank: int, size: int) -> None:
        self.feeds = [feed for feed, _ in legs]
        self._chains = [chain for _, chain in legs]
        counts = [f.count for f in self.feeds]
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.count = int(self._firsts[-1])
        self.dealt = all(f.dealt for f in self.feeds)
        self.is_input = any(f.is_input for f in self.feeds)
        self.shared = any(f.shared for f in self.feeds)
        self.again = False
        late = [[[first + p for p in group] for group in f.late] for first, f in zip(self._firsts.tolist(), self.feeds, strict=False)]
        self.late = tuple(tuple(p for part in group for p in part) for group in zip_longest(*late, fillvalue=[]))
        self.nbytes_total = sum(f.nbytes_total for f in self.feeds)
        self.mine: list[int] = []
        self.weights = np.concatenate([f.weights for f in self.feeds]) if self.dealt else np.zeros(0, np.int64)
        if not self.dealt:
            for first, f in zip(self._firsts.tolist(), self.feeds, strict=False):
                self.mine += [first + p for p in (deal(f.weights, size)[rank] if f.dealt else f.mine)]
            self.weights = np.ones(len(self.mine), np.int64)

    def _leg(self, piece: int) -> tuple[int, int]:
        leg = int(np.searchsorted(self._firsts, piece, "right")) - 1
        return leg, piece - int(self._firsts[leg])

    def where(self, piece: int) -> str:
        leg, inner = self._leg(piece)
        return self.feeds[leg].where(inner)

    def row(self, piece: int) -> int:
        leg, inner = self._leg(piece)
        row = self.feeds[leg].row(inner)
        return row << PART_BITS if self._chains[leg].steps else row

    def settle(self, group: int, together: Collective) -> None:
        for feed in self.feeds:
            if group < len(feed.late):
                feed.settle(group, together)

    def read(self, piece: int) -> Iterator[Batch]:
        leg, inner = self._leg(piece)
        return self._chains[leg].through(self.feeds[leg].read(inner), inner, self.feeds[leg].row(inner))

    def peek(self, piece: int) -> Iterator[Batch]:
        leg, inner = self._leg(piece)
        return self._chains[leg].through(self.feeds[leg].peek(inner), inner, self.feeds[leg].row(inner))

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()


class TailFeed:
    """One piece of rows that are known when all others have been read: what `tail` returns, the same on all ranks."""

    dealt = True
    is_input = False
    shared = False
    again = False
    count = 1
    nbytes_total = 0

    def __init__(self, tail: Callable[[Collective], Batch], groups_before: int) -> None:
        self._tail = tail
        self._rows: Batch | None = None
        self.late: tuple[tuple[int, ...], ...] = (*((),) * groups_before, (0,))
        self.mine: list[int] = []
        self.weights = np.ones(1, np.int64)

    def where(self, piece: int) -> str:
        return "the rows without a partner"

    def row(self, piece: int) -> int:
        return 0

    def read(self, piece: int) -> Iterator[Batch]:
        assert self._rows is not None
        return sliced(self._rows)

    def peek(self, piece: int) -> Iterator[Batch]:
        return iter(())

    def settle(self, group: int, together: Collective) -> None:
        if self.late[group]:
            self._rows = self._tail(together)

    def close(self) -> None:
        self._rows = None


class NoFeed:
    """Nothing is left to read: the stage behind it was done by an earlier attempt."""

    dealt = False
    is_input = False
    shared = True
    again = False
    count = 0
    late: tuple[tuple[int, ...], ...] = ()

    def __init__(self, nbytes_total: int) -> None:
        self.nbytes_total = nbytes_total
        self.mine: list[int] = []
        self.weights = np.zeros(0, np.int64)

    def where(self, piece: int) -> str:
        return "nothing"

    def row(self, piece: int) -> int:
        return 0

    def read(self, piece: int) -> Iterator[Batch]:
        return iter(())

    peek = read

    def settle(self, group: int, together: Collective) -> None:
        """Nothing is late."""

    def close(self) -> None:
        """Nothing is open."""


class SomeFeed:
    """Some pieces of a feed, which keep their numbers; the others are not read.

    `Drive` deals out places in this list of pieces: `numbers` turns them into the feed's own.
    """

    def __init__(self, feed: Feed, numbers: list[int]) -> None:
        self._feed = feed
        self.numbers = numbers
        self.dealt, self.is_input = feed.dealt, feed.is_input
        self.count = len(numbers)
        chosen = set(numbers)
        place = {p: i for i, p in enumerate(numbers)}
        self.mine = [place[p] for p in feed.mine if p in chosen]
        self.weights = feed.weights[np.array(numbers, np.int64)] if feed.dealt else np.ones(len(self.mine), np.int64)

    def where(self, piece: int) -> str:
        return self._feed.where(self.numbers[piece])
