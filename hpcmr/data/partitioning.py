"""Partitions: how many, who owns which, and a batch that is cut into them.

A partition is a range of the 64-bit key hash: its top bits. The number of partitions comes from the bytes going in and never
from the number of ranks; which rank owns which contiguous range is the only thing that depends on that number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch

PARTITION_NBYTES = 8 << 20
PARTITIONS_MAX = 65536


def partition_count(nbytes: int) -> int:
    """Power of two so that a partition holds about 8 MiB of the bytes going in; 1 to 65,536."""
    wanted = max(1, -(-nbytes // PARTITION_NBYTES))
    return min(PARTITIONS_MAX, 1 << (wanted - 1).bit_length())


def partition_bits(count: int) -> int:
    """log2 of a partition count: partition = hash >> (64 - bits), and 0 where there is one partition."""
    return count.bit_length() - 1


def owner_bounds(weights: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Cut partitions into `size` contiguous ranges of about equal weight.

    Parameters
    ----------
    weights : (partitions,) int64
        Measured bytes of each partition.
    size : int
        Number of ranks.

    Returns
    -------
    (size + 1,) int64
        Rank r owns partitions ``bounds[r]`` to ``bounds[r + 1] - 1``; a range may be empty.
    """
    ends = np.cumsum(np.concatenate([[0], weights.astype(np.float64) + 1e-3]))
    targets = ends[-1] * np.arange(1, size) / size
    cuts = np.searchsorted((ends[:-1] + ends[1:]) / 2, targets)
    return np.concatenate([[0], np.maximum.accumulate(cuts), [len(weights)]]).astype(np.int64)


@dataclass
class Partitioned:
    """Rows in partition order: rows of partition ``first + i`` are ``starts[i]`` to ``starts[i + 1]`` of the batch.

    The one form in which state leaves an operator: to be exchanged, merged, spilled or (later) checkpointed. With `reused` its
    memory is overwritten by the operator's next seal, so that what stays on the rank must be copied.
    """

    batch: Batch
    starts: NDArray[np.int64]
    first: int = 0
    reused: bool = False

    def __post_init__(self) -> None:
        assert int(self.starts[-1]) == self.batch.nrows and int(self.starts[0]) == 0

    @property
    def count(self) -> int:
        """Number of partitions."""
        return len(self.starts) - 1

    def covers(self, partition: int) -> bool:
        return self.first <= partition < self.first + self.count

    def rows_of(self, partition: int) -> tuple[int, int]:
        i = partition - self.first
        return int(self.starts[i]), int(self.starts[i + 1])

    def part(self, partition: int) -> Batch:
        return self.batch.slice(*self.rows_of(partition))


def of_pieces(found: Iterable[tuple[int, Batch]]) -> Partitioned | None:
    """Batches, each of a piece, as rows in the order of pieces; those of one piece stay in their order. None of no rows."""
    parts = sorted(((piece, batch) for piece, batch in found if batch.nrows), key=lambda part: part[0])
    if not parts:
        return None
    first, last = parts[0][0], parts[-1][0]
    counts = np.zeros(last - first + 1, np.int64)
    for piece, batch in parts:
        counts[piece - first] += batch.nrows
    return Partitioned(Batch.concat([b for _, b in parts]), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), first)


def without(parts: list[Partitioned], partition: int) -> list[Partitioned]:
    """What is left when a partition has been finished: parts that hold no other one were brought for it and are done with."""
    return [p for p in parts if p.count > 1 or p.first != partition]
