"""From what was merged for a partition to finished states: gather, sort by key, make one state of equal keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.memory import give_back, release
from hpcmr.data.partitioning import Partitioned
from hpcmr.ops.finals import States
from hpcmr.ops.rows import NULL_VALUE
from hpcmr.ops.table import GroupTable

BLOCK_GROUPS = 8192
"""Groups finished at a time: their states stay in the second-level cache between being made and being read."""


class PartitionReducer:
    """Reduces partitions one after the other, in buffers that are used again.

    Parameters
    ----------
    table : GroupTable
        Has the layout of states, and the long strings and wide sums that they point at.
    program : (instructions, 6) int64
        The table's program, for rows.
    """

    def __init__(self, table: GroupTable, program: NDArray[np.int64]) -> None:
        self.table = table
        self.program = program
        self.merging = table.program.array(0)
        self._buffers: dict[str, NDArray[np.uint64]] = {}

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self._buffers.values())

    def close(self) -> None:
        """Give the buffers back to the system, not to the C library, which keeps what it may have again soon."""
        for buffer in self._buffers.values():
            give_back(buffer.ctypes.data, buffer.nbytes)
        self._buffers = {}

    def reduce(self, parts: list[Partitioned], partition: int) -> Iterator[States]:
        """Finished states in key order, a block of groups at a time; a block is valid until the next one. The rows are released."""
        width = self.table.words
        rows, row_counts = _segments(parts, "row", partition, 2)
        states, state_counts = _segments(parts, "state", partition, width)
        keep = int(self.table.wide_used[0])
        if not len(states):
            yield from self._from_rows(rows, row_counts) if len(rows) else ()
        elif not len(rows):
            yield from self._from_states(states, state_counts)
        else:
            made, count = self._states_of_rows(rows, row_counts)
            yield from self._from_states(np.append(states, made), np.append(state_counts, count))
        self.table.wide_used[0] = keep
        _release(states, state_counts, width)

    def _states_of_rows(self, addresses: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[int, int]:
        """All groups of the rows as states that stand together; their address and number. Their wide sums stay in use."""
        S = self.table.words
        made = self._buffer("made", int(counts.sum()) * S)
        at = 0
        for block in self._from_rows(addresses, counts, keep_wide=True):
            made[at:at + block.count * S] = block.words[:block.count * S]
            at += block.count * S
        return made.ctypes.data, at // S

    def _buffer(self, name: str, words: int) -> NDArray[np.uint64]:
        have = self._buffers.get(name)
        if have is None or len(have) < words:
            self._buffers[name] = have = np.empty(int(words * 1.2) + 16, np.uint64)
        return have

    def _sorted(self, addresses: NDArray[np.int64], counts: NDArray[np.int64], width: int, payload: int) -> tuple[NDArray[np.uint64], int]:
        """Pairs (first key word, payload) in order."""
        from hpcmr.kernels.sort import COUNTS, SMALL, gather_pairs, sort_pairs

        n = int(counts.sum())
        A, B = self._buffer("sorted", 2 * n + 2), self._buffer("unsorted", 2 * n + 2)
        gather_pairs(addresses, counts, 8 * width, payload, B)
        sort_pairs(B, n, A, self._buffer("spare", 2 * SMALL), self._buffer("counts", COUNTS).view(np.int64))
        return A, n

    def _from_states(self, addresses: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[States]:
        from hpcmr.kernels.finish import group_starts, merge_groups
        from hpcmr.kernels.sort import COUNTS, SMALL, order_ties

        table, long = self.table, self.table.long
        A, n = self._sorted(addresses, counts, table.words, -1)
        starts = self._buffer("starts", n + 1).view(np.int64)
        if table.K == 1:
            groups = group_starts(A, n, starts)
        else:
            groups = order_ties(A, n, table.K, table.layout.string_ends, long.starts, long.ends, long.data, self._buffer("unsorted", 2 * n + 2),
                                self._buffer("spare", 2 * SMALL), self._buffer("counts", COUNTS).view(np.int64), starts)
        T = self._buffer("states", (BLOCK_GROUPS + 1) * table.words)
        for first in range(0, groups, BLOCK_GROUPS):
            count = min(BLOCK_GROUPS, groups - first)
            merged = int(starts[first + count] - starts[first]) - count
            keep = table.make_wide(min(merged, count))
            merge_groups(A, starts, first, count, table.words, table.K, T, T.view(np.float64), self.merging, table.wide, table.wide_used,
                         long.starts, long.ends, long.data)
            yield States(T, table.words, count, table.K, table.wide, table.wide_used, long)
            table.wide_used[0] = keep

    def _from_rows(self, addresses: NDArray[np.int64], counts: NDArray[np.int64], keep_wide: bool = False) -> Iterator[States]:
        from hpcmr.kernels.finish import group_starts, reduce_groups
        from hpcmr.kernels.opcodes import ADDRESS, MASK, STRIDE

        table, long = self.table, self.table.long
        A, n = self._sorted(addresses, counts, 2, 1)
        _release(addresses, counts, 2)               # the pairs are all that there is of them
        starts = self._buffer("starts", n + 1).view(np.int64)
        groups = group_starts(A, n, starts)
        valid = A[1:2 * n:2] != NULL_VALUE
        self.program[:, ADDRESS], self.program[:, STRIDE] = A.ctypes.data + 8, 16
        self.program[:, MASK] = 0 if valid.all() else valid.ctypes.data
        T = self._buffer("states", (BLOCK_GROUPS + 1) * table.words)
        trash = BLOCK_GROUPS * table.words
        for first in range(0, groups, BLOCK_GROUPS):
            count = min(BLOCK_GROUPS, groups - first)
            keep = table.make_wide(count + 1)
            T[trash:trash + table.words] = table.init[:table.words]
            reduce_groups(A, starts, first, count, table.words, T, T.view(np.float64), table.init, self.program, table.wide, table.wide_used, trash,
                          table.js, table.jm, table.so, table.sv, long.starts, long.ends, long.data)
            yield States(T, table.words, count, table.K, table.wide, table.wide_used, long)
            if not keep_wide:
                table.wide_used[0] = keep


def _release(addresses: NDArray[np.int64], counts: NDArray[np.int64], words: int) -> None:
    """Rows of so many words that nobody reads again: their pages go back."""
    for address, count in zip(addresses.tolist(), counts.tolist(), strict=True):
        release(address, 8 * words * count)


def _segments(parts: list[Partitioned], column: str, partition: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Machine addresses and row counts of a partition's rows in all parts."""
    addresses, counts = [], []
    for p in parts:
        if column not in p.batch.columns:
            continue
        a, b = p.rows_of(partition) if p.first <= partition < p.first + p.count else (0, 0)
        if b > a:
            addresses.append(p.batch[column].values.ctypes.data + 8 * width * a)  # type: ignore[union-attr]
            counts.append(b - a)
    return np.array(addresses, np.int64), np.array(counts, np.int64)
