"""Rows scattered by destination: the compiled loops of `hpcmr.kernels.shuffle`, for columns of any type.

Nothing here communicates. A destination is a *group*, ``uint16``: a rank on the way out, a partition on the way in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, ListColumn
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.errors import DataError

Groups = NDArray[np.uint16]
Counts = NDArray[np.int64]
GROUPS_MAX = 1 << 16
STEP_ROWS = 1 << 16          # rows whose key words stay in the cache


def groups_of_ranks(ranks: Any, n: int, size: int) -> Groups:
    """Destination ranks that the caller chose, checked: ``(n,) uint16``.

    Raises
    ------
    DataError
        They are not `n` integers from 0 to size - 1.
    """
    from hpcmr.kernels.shuffle import narrow

    given = np.asarray(ranks)
    if given.shape != (n,) or (given.dtype.kind not in "iu" and n):
        raise DataError(f"dest must be {n:,} integers, the rank that each row goes to; it is {given.dtype} of shape {given.shape}")
    if size > GROUPS_MAX:
        raise DataError(f"a shuffle by destination serves at most {GROUPS_MAX:,} ranks, this communicator has {size:,}")
    out = np.empty(n, np.uint16)
    for a in range(0, n, STEP_ROWS):
        bad = narrow(given[a:a + STEP_ROWS].astype(np.int64), size, out[a:a + STEP_ROWS])
        if bad >= 0:
            raise DataError(f"dest[{a + bad:,}] is {given[a + bad]}; there are ranks 0 to {size - 1}", record=a + bad)
    return out


def partitions_of_keys(batch: Batch, names: tuple[str, ...], bits: int) -> Groups:
    """Partition of each row, the first `bits` bits of its key's hash: ``(n,) uint16``."""
    from hpcmr.kernels.shuffle import top_bits

    layout = KeyLayout.of(batch.schema, names)
    keys = batch.select(names)
    out = np.empty(batch.nrows, np.uint16)
    for a in range(0, batch.nrows, STEP_ROWS):
        some = keys.slice(a, a + STEP_ROWS)
        top_bits(encode_keys(some, layout.for_batches(some)).hashes, bits, out[a:a + STEP_ROWS])
    return out


def count(groups: Groups, n_groups: int) -> Counts:
    """Rows of each group: ``(n_groups,) int64``."""
    from hpcmr.kernels.shuffle import count_rows

    out = np.zeros(n_groups, np.int64)
    count_rows(groups, out)
    return out


def count_nbytes(groups: Groups, column: BytesColumn, out: Counts) -> None:
    """Add the bytes of a column's strings to their groups."""
    from hpcmr.kernels.shuffle import count_bytes

    count_bytes(groups, column.starts, column.ends, out)


def weigh(batch: Batch, groups: Groups, n_groups: int) -> Counts:
    """Bytes of the rows of each group: ``(n_groups,) int64``."""
    rows = count(groups, n_groups)
    out = np.zeros(n_groups, np.int64)
    for column in batch.columns.values():
        _weigh_column(column, groups, rows, out)
    return out


def _weigh_column(column: Column, groups: Groups, rows: Counts, out: Counts) -> None:
    out += rows * column.type.row_nbytes
    if isinstance(column, BytesColumn):
        count_nbytes(groups, column, out)
    elif isinstance(column, ListColumn):
        inside = np.repeat(groups, column.ends - column.starts)
        _weigh_column(column.child, inside, count(inside, len(out)), out)


def scatter_fixed(values: NDArray[Any], groups: Groups, at: Counts, out: NDArray[Any]) -> None:
    """Values ``(n, *shape)`` of any fixed width to the next places of their groups in `out`; `at` (rows) is moved on.

    Cost: one pass; no copy unless `values` is not contiguous.
    """
    from hpcmr.kernels.shuffle import scatter_rows, scatter_values

    source, width = _plain(values)
    target, _ = _plain(out)
    if width == 0 or len(values) == 0:
        return
    if source.ndim == 1:
        scatter_values(source, groups, at, target)
    else:
        scatter_rows(source, groups, at, target)


def _plain(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """An array as unsigned integers ``(n,)``, or ``(n, k)`` of eight or of one byte, and the bytes of a row. A copy where it is not aligned so."""
    whole = np.ascontiguousarray(values)
    n, width = len(whole), whole.dtype.itemsize * int(np.prod(whole.shape[1:], dtype=np.int64))
    if width == 0 or n == 0:
        return np.zeros(0, np.uint8), width
    raw = whole.reshape(n, -1).view(np.uint8)
    word = width if width in (1, 2, 4) else 8 if width % 8 == 0 else 1
    if raw.ctypes.data % word:
        raw = raw.copy()
    plain = raw.view(f"u{word}")
    return (plain.reshape(n) if width == word else plain), width


def scatter_strings(column: BytesColumn, groups: Groups, at: Counts, out: NDArray[np.uint8]) -> None:
    """The bytes of each string behind those of its group; `at` (bytes) is moved on."""
    from hpcmr.kernels import shuffle

    shuffle.scatter_strings(column.starts, column.ends, np.ascontiguousarray(column.data), groups, at, out)


def place_strings(data: NDArray[np.uint8], groups: Groups, at: Counts, offsets: Counts, out: NDArray[np.uint8]) -> None:
    """Strings that lie in `data` one behind the other to the next rows of their groups; `at` (rows) is moved on."""
    from hpcmr.kernels import shuffle

    shuffle.place_strings(groups, at, offsets, data, out)


