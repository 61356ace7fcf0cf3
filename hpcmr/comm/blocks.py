"""Pure arithmetic of who gets what: counts, displacements, blocks, fragments. No communication, tested without MPI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def displs_of(counts: Counts) -> Counts:
    """Where each block starts if they lie one behind the other: ``(size,) int64`` from ``(size,) int64``."""
    out = np.zeros(len(counts), np.int64)
    np.cumsum(counts[:-1], out=out[1:])
    return out


def ends_of(counts: NDArray[Any]) -> Counts:
    """Boundaries of the blocks, from 0 to the sum: ``(size + 1,) int64`` from ``(size,)`` integers of any width."""
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=out[1:])
    return out


def block_range(n_global: int, size: int, rank: int) -> tuple[int, int]:
    """Start and stop of block `rank` where `n_global` items are cut into `size` contiguous blocks that differ by at most one item."""
    small, more = divmod(n_global, size)
    start = rank * small + min(rank, more)
    return start, start + small + (rank < more)


def block_counts(n_global: int, size: int) -> Counts:
    """Lengths of all blocks of `block_range`: ``(size,) int64``."""
    small, more = divmod(n_global, size)
    return np.full(size, small, np.int64) + (np.arange(size) < more)


def partners(rank: int, size: int) -> Iterator[tuple[int, int]]:
    """Destination and source of each step of a pairwise exchange: at step i, send to rank + i and receive from rank - i."""
    for step in range(1, size):
        yield (rank + step) % size, (rank - step) % size


def fragments(start: int, nbytes: int, limit_nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut `nbytes` bytes from `start` into pieces of at most `limit_nbytes`, in order: pairs of start and stop."""
    stop = start + nbytes
    while start < stop:
        yield start, min(start + limit_nbytes, stop)
        start += limit_nbytes


def row_cuts(starts: Counts, bounds: Counts) -> Counts:
    """First row of each rank, given the first row of each partition and the first partition of each rank: ``(size + 1,) int64``."""
    return starts[bounds]


def check_bounds(bounds: Counts, count: int, size: int) -> str | None:
    """What is wrong with owner bounds over `count` partitions for `size` ranks; None if nothing."""
    if len(bounds) != size + 1:
        return f"owner bounds have {len(bounds)} entries, {size} ranks need {size + 1}"
    if int(bounds[0]) != 0 or int(bounds[-1]) != count or bool((np.diff(bounds) < 0).any()):
        return f"owner bounds must rise from 0 to {count} (the number of partitions), these are {bounds.tolist()[:20]}"
    return None
