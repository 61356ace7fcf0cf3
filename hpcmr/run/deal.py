"""Who reads what: splits dealt by bytes, and dealt again as ranks turn out faster or slower. Pure functions.

Every rank calls them with the same numbers and finds the same dealing, so that nobody has to be asked. What is dealt out has no
influence on results, only on time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.partitioning import owner_bounds

SPLIT_COST_NBYTES = 64 << 10      # to begin a split costs as much as reading about so many bytes

Queues = list[list[int]]


def deal(nbytes: NDArray[np.int64], size: int) -> Queues:
    """Splits of each rank: contiguous ranges of about equal bytes.

    Parameters
    ----------
    nbytes : (splits,) int64
    size : int
        Number of ranks.

    Returns
    -------
    list of list of int
        Indexes of splits by rank, ascending; each split once.
    """
    bounds = owner_bounds(np.asarray(nbytes, np.int64) + SPLIT_COST_NBYTES, size).tolist()
    return [list(range(a, b)) for a, b in pairwise(bounds)]


def redeal(queues: Queues, kept: Sequence[int], busy_nbytes: Sequence[float], speeds: Sequence[float], nbytes: NDArray[np.int64],
           floors: Sequence[int] | None = None) -> Queues:
    """Deal again what ranks have offered: from the rank that would end last to the one that would end first, while that helps.

    Parameters
    ----------
    queues : list of list of int
        Splits of each rank that are not done.
    kept : (size,) int
        How many at the head of its queue a rank keeps for itself, begun or promised.
    busy_nbytes : (size,) float
        Bytes that are left to do of what a rank keeps.
    speeds : (size,) float
        Bytes per second so far; 0 where nothing is known yet.
    nbytes : (splits,) int64
        Bytes of all splits.
    floors : (size,) int, optional
        A rank is only given splits after this one; None: any.

    Returns
    -------
    list of list of int
        New queues; what was kept stays at the head of each.
    """
    size = len(queues)
    known = [s for s in speeds if s > 0]
    typical = sum(known) / len(known) if known else 1.0
    pace = [s if s > 0 else typical for s in speeds]
    heads = [q[:k] for q, k in zip(queues, kept, strict=True)]
    tails = [q[k:] for q, k in zip(queues, kept, strict=True)]
    cost = np.asarray(nbytes, np.int64) + SPLIT_COST_NBYTES
    ends = [(busy_nbytes[r] + float(cost[tails[r]].sum())) / pace[r] if tails[r] else busy_nbytes[r] / pace[r] for r in range(size)]
    givers = [(-ends[r], r) for r in range(size) if tails[r]]
    heapq.heapify(givers)
    soonest = [(end, r) for r, end in enumerate(ends)] if floors is None else []
    heapq.heapify(soonest)
    while givers:
        _, giver = heapq.heappop(givers)
        split = tails[giver][-1]
        taker = _soonest(soonest, ends, giver) if floors is None else _taker(ends, giver, split, floors)
        weight = float(cost[split])
        if taker < 0 or ends[taker] + weight / pace[taker] >= ends[giver]:
            # Nobody would be through with it sooner: the last of the others' ends cannot come down by this one.
            continue
        tails[giver].pop()
        tails[taker].append(split)
        tails[taker].sort()
        ends[giver] -= weight / pace[giver]
        ends[taker] += weight / pace[taker]
        if floors is None:
            heapq.heappush(soonest, (ends[giver], giver))
            heapq.heappush(soonest, (ends[taker], taker))
        if tails[giver]:
            heapq.heappush(givers, (-ends[giver], giver))
    return [head + tail for head, tail in zip(heads, tails, strict=True)]


def _soonest(heap: list[tuple[float, int]], ends: Sequence[float], giver: int) -> int:
    """The rank that would end first, other than the giver; -1 if there is none. With 16,384 ranks, looking at all of them took 22 s a tick."""
    kept: list[tuple[float, int]] = []
    best = -1
    while heap and best < 0:
        end, r = heap[0]
        if ends[r] != end:                 # it has given or taken since
            heapq.heappop(heap)
        elif r == giver:
            kept.append(heapq.heappop(heap))
        else:
            best = r
    for entry in kept[:1]:
        heapq.heappush(heap, entry)
    return best


def _taker(ends: Sequence[float], giver: int, split: int, floors: Sequence[int]) -> int:
    """The same, among those that may be given `split`."""
    best = -1
    for r, end in enumerate(ends):
        if r != giver and floors[r] < split and (best < 0 or end < ends[best]):
            best = r
    return best


def promise(left: int, split_s: float, tick_s: float) -> int:
    """How many splits to keep until a tick is through: what this rank does in the time that the last one took, and half as many more.

    Parameters
    ----------
    left : int
        Splits in this rank's queue.
    split_s : float
        Seconds that a split takes here; 0 if not known.
    tick_s : float
        Seconds that the last tick was on the way.
    """
    if split_s <= 0:
        return min(left, 1)
    return min(left, 1 + int(1.5 * tick_s / split_s))
