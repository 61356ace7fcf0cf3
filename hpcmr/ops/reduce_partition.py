"""From what was merged for a partition to finished states: gather, sort by key, make one state of equal keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.partitioning import Partitioned
from hpcmr.ops.finals import States
from hpcmr.ops.rows import NULL_VALUE
from hpcmr.ops.table import GroupTable

if TYPE_CHECKING:
    from hpcmr.ops.aggregate import Aggregate

BLOCK_GROUPS = 8192
_buffers: dict[str, NDArray[np.uint64]] = {}


def _buffer(name: str, words: int) -> NDArray[np.uint64]:
    """A scratch that grows and is used again from partition to partition: touching fresh memory costs more than filling it."""
    have = _buffers.get(name)
    if have is None or len(have) < words:
        _buffers[name] = have = np.empty(int(words * 1.2) + 16, np.uint64)
    return have


def reduce_partition(operator: Aggregate, partition: int) -> Iterator[States]:
    """Finished states of a partition, a block of groups at a time, in key order. A block is valid until the next one."""
    raw = [p for p in operator.inbox if "row" in p.batch.columns]
    states = [p for p in operator.inbox if "state" in p.batch.columns]
    table = operator.table
    if raw and not any(p.rows_of(partition)[0] < p.rows_of(partition)[1] for p in states):
        yield from _from_rows(operator, table, *_segments(raw, "row", partition, 2))
        return
    extra = [s.words[:s.count * s.stride].copy().reshape(s.count, s.stride) for s in
             (_from_rows(operator, table, *_segments(raw, "row", partition, 2)) if raw else ())]
    addresses, counts = _segments(states, "state", partition, table.words)
    addresses = np.concatenate([addresses, np.array([e.ctypes.data for e in extra], np.int64)])
    counts = np.concatenate([counts, np.array([len(e) for e in extra], np.int64)])
    yield from _from_states(operator, table, addresses, counts)


def _segments(parts: list[Partitioned], column: str, partition: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Machine addresses and row counts of a partition's rows in all parts."""
    addresses, counts = [], []
    for p in parts:
        a, b = p.rows_of(partition)
        if b > a:
            addresses.append(p.batch[column].values.ctypes.data + 8 * width * a)  # type: ignore[union-attr]
            counts.append(b - a)
    return np.array(addresses, np.int64), np.array(counts, np.int64)


def _sorted_pairs(addresses: NDArray[np.int64], counts: NDArray[np.int64], width: int, payload: int) -> tuple[NDArray[np.uint64], int]:
    from hpcmr.kernels.sort import COUNTS, SMALL, gather_pairs, sort_pairs

    n = int(counts.sum())
    A, B, spare = _buffer("sorted", 2 * n + 2), _buffer("unsorted", 2 * n + 2), _buffer("spare", 2 * SMALL)
    gather_pairs(addresses, counts, 8 * width, payload, B)
    sort_pairs(B, n, A, spare, _buffer("counts", COUNTS)[:COUNTS].view(np.int64))
    return A, n


def _from_states(operator: Aggregate, table: GroupTable, addresses: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[States]:
    from hpcmr.kernels.finish import group_starts, merge_groups
    from hpcmr.kernels.sort import COUNTS, SMALL, order_ties

    if not len(addresses):
        return
    A, n = _sorted_pairs(addresses, counts, table.words, -1)
    starts = _buffer("starts", n + 1).view(np.int64)
    long = table.long
    if table.K == 1:
        groups = group_starts(A, n, starts)
    else:
        groups = order_ties(A, n, table.K, operator.layout.string_ends, long.starts, long.ends, long.data, _buffer("unsorted", 2 * n + 2),
                            _buffer("spare", 2 * SMALL), _buffer("counts", COUNTS)[:COUNTS].view(np.int64), starts)
    T = _buffer("states", (BLOCK_GROUPS + 1) * table.words)
    for first in range(0, groups, BLOCK_GROUPS):
        count = min(BLOCK_GROUPS, groups - first)
        merged = int(starts[first + count] - starts[first]) - count
        keep = _ensure_wide(table, min(merged, count))
        merge_groups(A, starts, first, count, table.words, table.K, T, T.view(np.float64), operator.merge_array, table.wide, table.wide_used,
                     long.starts, long.ends, long.data)
        yield States(T, table.words, count, table.K, table.wide, table.wide_used, long)
        table.wide_used[0] = keep


def _ensure_wide(table: GroupTable, groups: int) -> int:
    """Make room for every sum of so many groups to spill once; returns the wide rows in use now."""
    keep = int(table.wide_used[0])
    need = keep + groups * len(table.program.sum_places) + table.room
    if table.program.sum_places and need > len(table.wide):
        grown = np.zeros((need, table.wide.shape[1]), np.int64)
        grown[:keep] = table.wide[:keep]
        table.wide = grown
    return keep


def _from_rows(operator: Aggregate, table: GroupTable, addresses: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[States]:
    from hpcmr.kernels.accumulate import ADDRESS, MASK, STRIDE
    from hpcmr.kernels.finish import group_starts, reduce_groups

    if not len(addresses):
        return
    A, n = _sorted_pairs(addresses, counts, 2, 1)
    starts = _buffer("starts", n + 1).view(np.int64)
    groups = group_starts(A, n, starts)
    program = operator.array
    program[:, ADDRESS] = A.ctypes.data + 8
    program[:, STRIDE] = 16
    values = A[1:2 * n:2]
    valid = values != NULL_VALUE
    program[:, MASK] = 0 if valid.all() else valid.ctypes.data
    T = _buffer("states", (BLOCK_GROUPS + 1) * table.words)
    trash = BLOCK_GROUPS * table.words
    for first in range(0, groups, BLOCK_GROUPS):
        count = min(BLOCK_GROUPS, groups - first)
        keep = _ensure_wide(table, count + 1)
        T[trash:trash + table.words] = table.init[:table.words]
        reduce_groups(A, starts, first, count, table.words, T, T.view(np.float64), table.init, program, table.wide, table.wide_used, trash, table.js,
                      table.jm, table.so, table.sv, table.long.starts, table.long.ends, table.long.data)
        yield States(T, table.words, count, table.K, table.wide, table.wide_used, table.long)
        table.wide_used[0] = keep
