"""Rows of all ranks on every rank: for what is small enough to be everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.blocks import ends_of
from hpcmr.comm.collective import collective
from hpcmr.comm.travel import as_bytes
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn


@collective
def allgather_batch(world: World, batch: Batch) -> Batch:
    """The rows of all ranks, in rank order, on every rank.

    Parameters
    ----------
    world : World
    batch : Batch
        With the same columns and types on every rank.

    Notes
    -----
    Cost: all rows in the memory of each rank; each column travels once, as it lies in memory.
    """
    if world.size == 1:
        return batch
    nulls = [c.valid is not None for c in _columns_of(batch)]
    states = world.allgather((str(batch.schema), batch.nrows, nulls))
    with world.together("gather rows"):
        other = next((r for r, s in enumerate(states) if s[0] != states[0][0]), None)
        if other is not None:
            raise ValueError(f"ranks gather rows of different columns: {states[0][0]} on rank 0, {states[other][0]} on rank {other}")
    any_nulls = iter([any(flags) for flags in zip(*(s[2] for s in states), strict=True)])
    return Batch({n: _gathered(world, c, any_nulls) for n, c in batch.columns.items()}, sum(s[1] for s in states))


def _columns_of(batch: Batch) -> list[Column]:
    """All columns, lists before their children."""
    out: list[Column] = []
    todo: list[Column] = list(batch.columns.values())
    while todo:
        column = todo.pop(0)
        out.append(column)
        if isinstance(column, ListColumn):
            todo.insert(0, column.child)
    return out


def _gathered(world: World, column: Column, nulls: Any) -> Column:
    valid = None
    if next(nulls):
        valid = _array(world, np.ones(len(column), np.bool_) if column.valid is None else column.valid)
    if isinstance(column, FixedColumn):
        return FixedColumn(_array(world, column.values), valid)
    whole = column.compact()
    offsets = ends_of(_array(world, np.diff(whole.offsets())))
    if isinstance(whole, ListColumn):
        return ListColumn(offsets[:-1], offsets[1:], _gathered(world, whole.child, nulls), valid)
    assert isinstance(whole, BytesColumn)
    return BytesColumn.from_offsets(offsets, _array(world, whole.data), whole.text, valid)


def _array(world: World, mine: NDArray[Any]) -> NDArray[Any]:
    """Arrays of all ranks, one behind the other along the first axis."""
    rows = np.ascontiguousarray(mine)
    raw = world.allgather_bytes(as_bytes(rows))
    return raw.view(rows.dtype).reshape((-1, *rows.shape[1:])) if len(raw) else np.zeros((0, *rows.shape[1:]), rows.dtype)
