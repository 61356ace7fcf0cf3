"""Groups whose key has a null somewhere.

They are the exception, and the way of all others does not know of them. Rows of a batch with null keys go into a table of their own,
whose keys have a null word for each column. What leaves it is put into the form that all states have: the null words go, a null
column's words are zeros, and the *validity* of the state column, which travels only if some rank has one, says False for a key with
nulls. Which of its columns are null stands in the top bits of the row count (`PATTERN_AT`). So nothing is paid where there are none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.keys import KeyLayout, encode_keys, has_nulls, intern_keys
from hpcmr.data.partitioning import Partitioned, partition_bits
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Program
from hpcmr.ops.keyed_rows import sorted_groups
from hpcmr.ops.table import GroupTable, Rows

PATTERN_AT = 48
COLUMNS_MAX = 64 - PATTERN_AT


def null_rows(batch: Batch, names: tuple[str, ...]) -> NDArray[np.bool_] | None:
    """Rows with a null in any of the columns; None where there is no null."""
    found: NDArray[np.bool_] | None = None
    for name in names:
        column = batch[name]
        if has_nulls(column):
            assert column.valid is not None
            found = ~column.valid if found is None else found | ~column.valid
    return found


class NullGroups:
    """A table for batches that have null keys.

    Parameters
    ----------
    layout : KeyLayout
        Of keys without nulls.
    program : Program
    """

    def __init__(self, layout: KeyLayout, program: Program) -> None:
        if len(layout.names) > COLUMNS_MAX:
            raise JobSpecError(f"group_by of {len(layout.names)} columns with nulls among them; at most {COLUMNS_MAX} columns may make such a key, "
                               "fill the nulls before")
        self.narrow = layout
        self.layout = layout.with_nullable(layout.names)
        self.array = program.array(self.layout.width + 1)
        self.table = GroupTable(self.layout, program)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def add(self, batch: Batch, origin: int) -> None:
        """Add all rows of a batch; the addresses of its values are in `array`."""
        from hpcmr.kernels.keys import hash_words

        encoded = encode_keys(batch, self.layout)
        flat = encoded.words.reshape(-1)
        if encoded.long_count:
            intern_keys(batch, self.layout, flat, self.table.long)
        # Inside this table a hash is that of all words, null words too.
        hash_words(flat, self.layout.width, batch.nrows, self.layout.string_ends, self.table.long.hashes, encoded.hashes)
        self.table.add(Rows(batch.nrows, words=encoded.words, hashes=encoded.hashes), self.array, origin)

    def seal(self, partitions: int, by: KeyLayout) -> Partitioned | None:
        """Take the states out in the partition order of the columns of `by`, in the form of those without nulls; None if there are none."""
        if not self.table.groups[0]:
            return None
        from hpcmr.kernels.keys import hash_words

        long = self.table.long
        batch = self.table.seal(1).batch
        wide = batch["state"].values  # type: ignore[union-attr]
        flags = [at - 1 for at in self.layout.places]
        pattern = (wide[:, flags] << np.arange(PATTERN_AT, PATTERN_AT + len(flags), dtype=np.uint64)).sum(1, dtype=np.uint64)
        rows = np.ascontiguousarray(np.delete(wide, flags, axis=1))
        rows[:, self.narrow.width] |= pattern
        hashes = np.empty(len(rows), np.uint64)
        hash_words(rows.reshape(-1), rows.shape[1], len(rows), by.string_ends, long.hashes, hashes)
        columns = {**batch.columns, "state": FixedColumn(rows, pattern == 0)}
        return partitioned(Batch(columns, len(rows)), hashes, partitions)


def partitioned(batch: Batch, hashes: NDArray[np.uint64], partitions: int) -> Partitioned:
    """Rows in the order of their partitions; stable."""
    bits = partition_bits(partitions)
    # At most 65,536 partitions: NumPy sorts 16-bit numbers by radix, several times faster than others.
    where = (hashes >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(len(hashes), np.uint16)
    starts = np.zeros(partitions + 1, np.int64)
    np.cumsum(np.bincount(where, minlength=partitions), out=starts[1:])
    return Partitioned(batch.take(np.argsort(where, kind="stable")).compact(), starts)


def together(a: Partitioned, b: Partitioned) -> Partitioned:
    """Rows of both, which have the same columns and partitions."""
    where = np.concatenate([np.repeat(np.arange(p.count, dtype=np.int64), np.diff(p.starts)) for p in (a, b)]).astype(np.uint16)
    rows = Batch.concat([a.batch, b.batch])
    return Partitioned(rows.take(np.argsort(where, kind="stable")).compact(), a.starts + b.starts, a.first)


def null_values(values: NDArray[np.uint64], partitions: int) -> Partitioned:
    """Raw values of rows whose one key is null, as rows of (key word, value)."""
    from hpcmr.kernels.keys import hash_words

    rows = np.zeros((len(values), 2), np.uint64)
    rows[:, 1] = values
    hashes = np.empty(1, np.uint64)
    hash_words(np.zeros(1, np.uint64), 1, 1, np.zeros(1, np.int64), np.zeros(0, np.uint64), hashes)
    column = FixedColumn(rows, np.zeros(len(rows), np.bool_))
    return partitioned(Batch({"row": column}, len(rows)), np.repeat(hashes, len(rows)), partitions)


def by_pattern(part: Partitioned, width: int) -> dict[int, Partitioned]:
    """States or raw rows apart by which key columns are null: bit i for column i, 0 for those without nulls."""
    name = "state" if "state" in part.batch.columns else "row"
    column = part.batch[name]
    assert isinstance(column, FixedColumn)
    if column.valid is None:
        return {0: part}
    rows = column.values
    patterns = np.where(column.valid, 0, 1).astype(np.uint64)
    if name == "state":
        patterns = rows[:, width] >> np.uint64(PATTERN_AT)
        rows = rows.copy()
        rows[:, width] &= np.uint64((1 << PATTERN_AT) - 1)
    out = {}
    for pattern in np.unique(patterns).tolist():
        found = np.flatnonzero(patterns == pattern)
        out[int(pattern)] = Partitioned(Batch({name: FixedColumn(rows[found])}, len(found)), np.searchsorted(found, part.starts), part.first)
    return out


def in_key_order(blocks: list[Batch], layout: KeyLayout) -> Batch:
    """Finished groups of all patterns in the order of their keys."""
    whole = Batch.concat(blocks)
    order, _ = sorted_groups(whole.select(layout.names), layout, np.arange(whole.nrows, dtype=np.uint64))
    return whole.take(order)
