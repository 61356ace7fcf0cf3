"""Where the pieces of a stage come from: splits that any rank can read, splits that lie on one rank, partitions that a rank owns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.source import BATCH_NBYTES, Source, Split
from hpcmr.ops.contract import KeyedOperator

SLICE_NBYTES = 4 * BATCH_NBYTES


class Feed(Protocol):
    """Pieces of input in a global order.

    Attributes
    ----------
    dealt : bool
        Any rank can read any piece, so that they are dealt out; else each rank has its own.
    count : int
        Pieces of all ranks.
    mine : list of int
        Pieces of this rank, ascending, where they are not dealt.
    weights : (count,) int64
        What pieces cost to read; in bytes for splits, each the same for partitions.
    nbytes_total : int
        Bytes of the input of the action, which the number of partitions comes from.
    """

    dealt: bool
    count: int
    mine: list[int]
    weights: NDArray[np.int64]
    nbytes_total: int

    def where(self, piece: int) -> str:
        """Readable name of a piece."""

    def row(self, piece: int) -> int:
        """Number of the first row of this rank's share of a piece."""

    def read(self, piece: int) -> Iterator[Batch]:
        """Batches in row order; their memory may be used again by the next one."""

    def peek(self, piece: int) -> Iterator[Batch]:
        """The same, of a piece that will be read again."""

    def close(self) -> None: ...


class SplitFeed:
    """Splits of a source that any rank can read."""

    dealt = True

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

    def close(self) -> None:
        self.source.close()


class OwnFeed:
    """Splits of arrays in memory: each lies on one rank, or on neighbouring ones that hold a part each."""

    dealt = False

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

    def close(self) -> None:
        self.source.close()


class PartitionFeed:
    """Partitions of a keyed operator that this rank owns. Each can be finished once; what was peeked at is kept until it is read.

    Who opened the operator closes it.
    """

    dealt = False

    def __init__(self, operator: KeyedOperator, first: int, stop: int, count: int, nbytes_total: int) -> None:
        self.operator = operator
        self.count = count
        self.mine = list(range(first, stop))
        self.weights = np.ones(len(self.mine), np.int64)
        self.nbytes_total = nbytes_total
        self._peeked: dict[int, Batch] = {}

    def where(self, piece: int) -> str:
        return f"partition {piece} of {self.count} of {self.operator.name}"

    def row(self, piece: int) -> int:
        return 0

    def read(self, piece: int) -> Iterator[Batch]:
        batch = self._peeked.pop(piece, None)
        blocks = getattr(self.operator, "finish_blocks", None)
        if batch is None and blocks is not None:
            found: Iterator[Batch] = blocks(piece)
            return found
        return sliced(self.operator.finish(piece) if batch is None else batch)

    def peek(self, piece: int) -> Iterator[Batch]:
        if piece not in self._peeked:
            # Its memory may be that of the next partition.
            self._peeked[piece] = _owned(self.operator.finish(piece))
        return sliced(self._peeked[piece])

    def close(self) -> None:
        self._peeked.clear()


def sliced(batch: Batch) -> Iterator[Batch]:
    """A large batch in pieces that stay in the cache on their way through the steps; nothing of an empty one."""
    parts = max(1, -(-batch.nbytes // SLICE_NBYTES))
    if parts == 1 and batch.nrows:
        yield batch
        return
    step = max(1, -(-batch.nrows // parts))
    for start in range(0, batch.nrows, step):
        yield batch.slice(start, start + step)


def _owned(batch: Batch) -> Batch:
    return batch.take(np.arange(batch.nrows, dtype=np.int64)).compact() if batch.nrows else batch
