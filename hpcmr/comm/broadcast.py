"""The rows of one rank, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.blocks import fragments
from hpcmr.comm.collective import collective
from hpcmr.comm.mpi_world import MpiWorld
from hpcmr.comm.travel import as_bytes
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.schema import ColumnType, Schema

CHUNK_NBYTES = 64 << 20
Head = tuple[bool, int, int, list[Any]]      # has nulls, rows, bytes of strings, head of the items of lists


@collective
def broadcast(world: World, batch: Batch | None, root: int = 0, take: Callable[[int], None] | None = None) -> Batch:
    """The rows of rank `root`, on every rank; root itself gets its batch back, compact.

    Parameters
    ----------
    world : World
    batch : Batch or None
        Looked at on `root` only.
    root : int
    take : callable, optional
        Called with the bytes that are about to be received; may raise, which every rank then does.

    Notes
    -----
    Cost: the bytes once through MPI's own broadcast, 64 MiB at a time; memory for the rows on every rank.
    """
    if not isinstance(world, MpiWorld):
        assert batch is not None
        return batch
    mine = batch.compact() if world.rank == root and batch is not None else None
    told: Any = None if mine is None else (mine.schema.to_json(), mine.nrows, [_head(c) for c in mine.columns.values()])
    fields, nrows, heads = world.bcast(told, root)
    with world.together("make room for a broadcast"):
        if mine is None:
            schema = Schema.from_json(fields)
            if take is not None:
                take(sum(_nbytes(f.type, h) for f, h in zip(schema, heads, strict=True)))
            mine = Batch({f.name: _room(f.type, h) for f, h in zip(schema, heads, strict=True)}, nrows)
    assert mine is not None
    for column in mine.columns.values():
        for array in _arrays(column):
            data = as_bytes(array)
            for a, b in fragments(0, len(data), CHUNK_NBYTES):
                world.wait(world.comm.Ibcast(data[a:b], root), "broadcast")
    if world.rank != root:
        mine = Batch({n: _placed(c) for n, c in mine.columns.items()}, nrows)
    return mine


def _head(column: Column) -> Head:
    data = len(column.data) if isinstance(column, BytesColumn) else 0
    return column.valid is not None, len(column), data, [_head(column.child)] if isinstance(column, ListColumn) else []


def _nbytes(kind: ColumnType, head: Head) -> int:
    valid, n, data, inside = head
    below = _nbytes(kind.item, inside[0]) if kind.item is not None else 0
    return n * (kind.row_nbytes + valid) + data + below


def _room(kind: ColumnType, head: Head) -> Column:
    has_nulls, n, data, inside = head
    valid = np.empty(n, np.bool_) if has_nulls else None
    if kind.is_fixed:
        return FixedColumn(np.empty((n, *kind.shape), kind.np_dtype), valid)
    lengths = np.empty(n, np.int64)
    if kind.item is not None:
        return ListColumn(np.zeros(n, np.int64), lengths, _room(kind.item, inside[0]), valid)
    return BytesColumn(np.zeros(n, np.int64), lengths, np.empty(data, np.uint8), kind.kind == "text", valid)


def _arrays(column: Column) -> Iterator[NDArray[Any]]:
    """What travels of a compact column: starts follow from ends."""
    if column.valid is not None:
        yield np.ascontiguousarray(column.valid)
    if isinstance(column, FixedColumn):
        yield column.values
        return
    yield np.ascontiguousarray(column.ends)
    if isinstance(column, BytesColumn):
        yield np.ascontiguousarray(column.data)
    else:
        yield from _arrays(column.child)


def _placed(column: Column) -> Column:
    """With the starts that belong to the ends that came."""
    if isinstance(column, FixedColumn):
        return column
    starts = np.concatenate([np.zeros(min(1, len(column)), np.int64), column.ends[:-1]])
    if isinstance(column, BytesColumn):
        return BytesColumn(starts, column.ends, column.data, column.text, column.valid)
    return ListColumn(starts, column.ends, _placed(column.child), column.valid)
