"""A file of known content, to measure reading with."""

from __future__ import annotations

import os

import h5py
import numpy as np

BLOCK_ROWS = 1 << 20


def write_sample(path: str | os.PathLike[str], rows: int) -> int:
    """Write ``/value (rows,) float64``, contiguous: 0, 1, 2, ... Returns the place in the file of its first byte."""
    with h5py.File(path, "w") as file:
        value = file.create_dataset("value", (rows,), "float64")
        for start in range(0, rows, BLOCK_ROWS):
            stop = min(rows, start + BLOCK_ROWS)
            value[start:stop] = np.arange(start, stop, dtype=np.float64)
        return int(value.id.get_offset())
