"""A batch on its way through the steps of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcmr.data.batch import Batch
from hpcmr.ops.contract import Origin, Step


def through(steps: Sequence[Step], batch: Batch, piece: int, rows: list[int], first: int = 0) -> Iterator[Batch]:
    """What the steps from `first` on make of a batch: one batch at most, unless a step makes its result in blocks. No empty ones.

    Parameters
    ----------
    steps : sequence of Step
    batch : Batch
    piece : int
        Where it comes from.
    rows : list of int
        Rows of the piece that went into each step before; counted on.
    first : int
    """
    for i in range(first, len(steps)):
        n = batch.nrows
        if not n:
            return
        origin = Origin(piece, rows[i])
        rows[i] += n
        blocks = getattr(steps[i], "apply_blocks", None)
        if blocks is not None:
            for block in blocks(batch, origin):
                yield from through(steps, block, piece, rows, i + 1)
            return
        batch = steps[i].apply(batch, origin)
    if batch.nrows:
        yield batch
