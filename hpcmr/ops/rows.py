"""Bare rows (one key word, one float value) that wait: in buckets until they fill, or in chunks until they are exchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.keys import KeyLayout, as_words, encode_keys
from hpcmr.data.memory import give_back
from hpcmr.data.partitioning import Partitioned, partition_bits
from hpcmr.ops.table import GroupTable, Rows, aligned_zeros

NULL_VALUE = np.uint64(0x7FF46E756C6C0001)
"""A NaN that no computation makes stands for null among raw values; one that is met in the data becomes the canonical NaN."""

BUCKET_BITS = 10
BUCKET_ROWS = 8192
BUCKETS_NBYTES = BUCKET_ROWS * 16 << BUCKET_BITS
CHUNK_ROWS = 2048
HOT_SLOTS = 1 << 16
MISSES_ROWS = 1 << 14
CHUNK_ROWS_MIN = 64
ROUND_NBYTES = 96 << 20
SLACK_NBYTES = 4 << 20
"""What a batch may bring after the round has been asked for."""


@dataclass
class RawInput:
    """Where rows of (key word, value) come from."""

    layout: KeyLayout
    column: str

    def keys(self, batch: Batch) -> tuple[NDArray[np.uint64], int]:
        """Words, and what turns them into key words."""
        column = batch[self.layout.names[0]]
        if column.valid is None and isinstance(column, FixedColumn) and column.values.dtype.kind in "iu" and column.values.dtype.itemsize == 8:
            letter, values = as_words(np.ascontiguousarray(column.values))
            return values.view(np.uint64), 1 << 63 if letter == "i" else 0
        return encode_keys(batch, self.layout).words.reshape(-1), 0

    def values(self, batch: Batch) -> NDArray[np.uint64]:
        column = batch[self.column]
        assert isinstance(column, FixedColumn)
        bits = np.ascontiguousarray(column.values, np.float64).view(np.uint64)
        strange = bits == NULL_VALUE
        if strange.any() or column.valid is not None:
            bits = np.where(strange, np.uint64(0x7FF8000000000000), bits)
            if column.valid is not None:
                bits[~column.valid] = NULL_VALUE
        return bits


class BucketRows:
    """Rows by the top bits of their hash; a full bucket goes into the table, whose stretch for it is in the cache by then."""

    def __init__(self, source: RawInput, table: GroupTable, program: NDArray[np.int64]) -> None:
        from hpcmr.kernels.scatter import CHUNK_PAD

        self.source, self.table, self.program = source, table, program
        self.stride = 2 * BUCKET_ROWS + CHUNK_PAD
        self.buffers = aligned_zeros((1 << BUCKET_BITS) * self.stride)
        self.fill = np.zeros(1 << BUCKET_BITS, np.int64)
        self.full = np.zeros(2, np.int64)

    @property
    def nbytes(self) -> int:
        return int(self.buffers.nbytes)

    def takes(self, batch: Batch) -> bool:
        return batch[self.source.column].valid is None

    def append(self, batch: Batch) -> None:
        from hpcmr.kernels.opcodes import ADDRESS, MASK, STRIDE

        keys, key_xor = self.source.keys(batch)
        values = np.ascontiguousarray(batch[self.source.column].values, np.float64)  # type: ignore[union-attr]
        self.program[:, ADDRESS], self.program[:, STRIDE], self.program[:, MASK] = 0, 16, 0
        reached = 0
        while reached < batch.nrows:
            reached = self.table.consume_buckets((keys.ctypes.data, 8, np.uint64(key_xor), values.ctypes.data, reached, batch.nrows, BUCKET_BITS,
                                                  self.buffers, self.stride, BUCKET_ROWS, self.fill, self.full), self.program)
            if self.full[0] >= 0:
                self._empty(int(self.full[0]), int(self.full[1]))

    def _empty(self, bucket: int, start: int = 0) -> None:
        """Rows of a bucket from `start` on into the table, which grows as it must."""
        from hpcmr.kernels.opcodes import ADDRESS, MASK, STRIDE

        at = self.buffers.ctypes.data + 8 * bucket * self.stride
        self.program[:, ADDRESS], self.program[:, STRIDE], self.program[:, MASK] = at + 8, 16, 0
        self.table.add(Rows(int(self.fill[bucket]), at, 16), self.program, 0, start)
        self.fill[bucket] = 0

    def drain(self) -> None:
        for bucket in np.flatnonzero(self.fill).tolist():
            self._empty(bucket)
        give_back(self.buffers.ctypes.data, self.buffers.nbytes)      # an exchange follows, which needs memory


class HotRows:
    """Rows of the first keys met, which are the frequent ones, into a table that stays in the cache; all others to chunks, as they are."""

    def __init__(self, source: RawInput, table: GroupTable, program: NDArray[np.int64], chunks: ChunkRows) -> None:
        self.source, self.table, self.program, self.chunks = source, table, program, chunks
        self.misses = np.empty(2 * MISSES_ROWS, np.uint64)
        self.missed = np.zeros(1, np.int64)

    def takes(self, batch: Batch) -> bool:
        return batch[self.source.column].valid is None

    def append(self, batch: Batch) -> None:
        from hpcmr.kernels.opcodes import ADDRESS, MASK, STRIDE

        keys, key_xor = self.source.keys(batch)
        values = np.ascontiguousarray(batch[self.source.column].values, np.float64)  # type: ignore[union-attr]
        self.program[:, ADDRESS], self.program[:, STRIDE], self.program[:, MASK] = values.ctypes.data, 8, 0
        reached = 0
        while reached < batch.nrows:
            reached = self.table.consume_hot((keys.ctypes.data, 8, np.uint64(key_xor), values.ctypes.data, reached, batch.nrows, self.misses,
                                              self.missed), self.program)
            self._put_aside()
            self.table.make_wide_room()

    def _put_aside(self) -> None:
        n = int(self.missed[0])
        if n:
            values = self.misses[1:2 * n:2]
            values[values == NULL_VALUE] = np.uint64(0x7FF8000000000000)
            self.chunks.append_words(self.misses.ctypes.data, self.misses.ctypes.data + 8, 16, 0, n)
            self.missed[0] = 0


class ChunkRows:
    """Rows by partition in chunks of one arena, which is used again after each seal.

    Parameters
    ----------
    source : RawInput
    partitions : int
    limit_nbytes : int
        What a round may hold: chunks get smaller where there are too many partitions for it.
    """

    def __init__(self, source: RawInput, partitions: int, limit_nbytes: int = 1 << 62) -> None:
        from hpcmr.kernels.scatter import CHUNK_PAD

        self.source, self.partitions = source, partitions
        self.rows = CHUNK_ROWS
        while self.rows > CHUNK_ROWS_MIN and 16 * self.rows * partitions > limit_nbytes // 4:
            self.rows //= 2
        self.stride = 2 * self.rows + CHUNK_PAD
        chunks_nbytes = partitions * self.stride * 8
        self.nbytes_round = max(min(ROUND_NBYTES, limit_nbytes), min(4 * chunks_nbytes, limit_nbytes), 2 * chunks_nbytes)
        self._allocate((self.nbytes_round + SLACK_NBYTES) // (8 * self.stride) + 1)
        self.packed = np.empty((0, 2), np.uint64)
        self.last = False
        self.leaving_nbytes = 0            # of the last rows: gone once they are sent
        self.used = 0
        self.opened = np.full(partitions, -1, np.int64)
        self.fill = np.zeros(partitions, np.int64)

    def _allocate(self, chunks: int) -> None:
        self.arena = aligned_zeros(chunks * self.stride)
        self.owner = np.zeros(chunks + 1, np.int64)

    @property
    def nbytes(self) -> int:
        return int(self.arena.nbytes + self.packed.nbytes) + self.leaving_nbytes

    @property
    def nbytes_used(self) -> int:
        return self.used * self.stride * 8

    def append(self, batch: Batch) -> None:
        keys, key_xor = self.source.keys(batch)
        values = self.source.values(batch)
        self.append_words(keys.ctypes.data, values.ctypes.data, 8, key_xor, batch.nrows)

    def append_words(self, key_address: int, value_address: int, stride: int, key_xor: int, count: int) -> None:
        """Rows whose keys and values lie `stride` bytes apart."""
        from hpcmr.kernels.scatter import append_chunks

        addresses, strides = np.array([value_address], np.int64), np.array([stride], np.int64)
        bits, reached = partition_bits(self.partitions), 0
        while True:
            reached = append_chunks(key_address, stride, np.uint64(key_xor), addresses, strides, reached, count, bits, self.arena, self.stride,
                                    self.rows, self.opened, self.fill, self.owner, self.used)
            self.used = int(self.owner[-1])
            if reached == count:
                return
            arena, owner = self.arena, self.owner
            self._allocate(2 * (len(owner) - 1))
            self.arena[:len(arena)] = arena
            self.owner[:len(owner) - 1] = owner[:-1]

    def seal(self) -> Partitioned:
        """All rows in partition order. After the `last` seal nothing is kept: neither the arena, nor the rows once they are sent."""
        from hpcmr.kernels.scatter import pack_chunks

        starts = np.zeros(self.partitions + 1, np.int64)
        open_rows = int(self.fill[self.opened >= 0].sum())
        closed = self.used - int((self.opened >= 0).sum())
        n = open_rows + closed * self.rows
        if len(self.packed) < n:
            self.packed = np.empty((n * 9 // 8, 2), np.uint64)
        rows = self.packed[:n]
        pack_chunks(self.arena, self.stride, self.rows, 2, self.opened, self.fill, self.owner, self.used, starts, rows)
        self.opened[:] = -1
        self.fill[:] = 0
        self.used = 0
        if self.last:
            self._allocate(1)              # receive buffers come out of the arena's memory
            self.leaving_nbytes = self.packed.nbytes
            self.packed = np.empty((0, 2), np.uint64)
        return Partitioned(Batch({"row": FixedColumn(rows)}, len(rows)), starts, reused=True)
