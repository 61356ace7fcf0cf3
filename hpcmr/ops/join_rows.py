"""Both sides of a join at the owners of their keys: rows kept by partition, and the joined rows of a partition, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.data.keys import encode_keys
from hpcmr.data.partitioning import Partitioned, partition_bits
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import ConservationError
from hpcmr.ops.contract import Origin, StageContext
from hpcmr.ops.join_cuts import Cuts, Sampler
from hpcmr.ops.join_keys import Columns, as_type, key_batch, keys_layout, take_or_null, valid_keys
from hpcmr.ops.keyed_rows import ORIGIN, KeyedRows, sorted_groups

Index = NDArray[np.int64]
RIGHT = np.uint64(1 << 63)          # origins of right rows come behind those of left ones


class JoinSide(KeyedRows):
    """One side of a join that is shuffled.

    Parameters
    ----------
    side : {"left", "right"}
    keys : tuple of str
    types : tuple of ColumnType
        What the keys are compared in; rows are kept with their keys in these types.
    needed : tuple of str
        Columns to keep.
    drops : bool
        Rows that cannot have a partner, because their key is null, are of no use.
    """

    name = "join"

    def __init__(self, side: str, keys: tuple[str, ...], types: tuple[ColumnType, ...], schema: Schema, needed: tuple[str, ...], drops: bool) -> None:
        super().__init__(keys)
        self.side, self.types, self.needed, self.drops = side, types, needed, drops
        cast = dict(zip(keys, types, strict=True))
        self.bind_rows(Schema(tuple(Field(n, cast.get(n, schema[n].type), schema[n].attrs) for n in needed)))
        self.sampler = Sampler(keys, types, drops)
        self.distinct = False           # one row of each key is enough
        self.cuts: Cuts | None = None
        self.expected: Index | None = None

    def fingerprint(self) -> tuple[str, ...]:
        return (self.name, self.side)

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        super().open(ctx, estimate)
        self.sampler.start(ctx.partitions)
        self.cuts = self.expected = None

    def weights(self) -> Index | None:
        """Bytes expected by partition, or by piece."""
        return self.expected

    def finish_nbytes(self, parts: list[Partitioned], partition: int | None = None) -> int:
        """The pair finishes, in blocks of its own."""
        return 0

    def observe(self, batch: Batch, origin: Origin) -> None:
        self.sampler.look(batch, origin, self.ctx.seed)

    def prepared(self, batch: Batch, origin: Origin) -> Batch:
        columns = {n: batch[n] for n in self.needed}
        return Batch(columns | {n: as_type(batch[n], t) for n, t in zip(self.keys, self.types, strict=True)}, batch.nrows)

    def seal(self) -> Partitioned:
        """What was consumed since the last seal, in the order of partitions, or of the pieces that `cuts` makes of them."""
        self._combine_waiting()
        whole = Batch.concat(self.kept) if self.kept else self.nothing()
        keys = key_batch(whole, self.keys, self.types)
        if self.drops and (valid := valid_keys(keys)) is not None:
            self.rows_out += whole.nrows - int(valid.sum())
            rows = np.flatnonzero(valid)
            whole, keys = whole.take(rows), keys.take(rows)
        if self.distinct and whole.nrows:
            order, firsts = sorted_groups(keys, keys_layout(self.types), np.zeros(whole.nrows, np.uint64))
            self.rows_out += whole.nrows - len(firsts) + 1
            whole, keys = whole.take(order[firsts[:-1]]), keys.take(order[firsts[:-1]])
        hashes = encode_keys(keys, keys_layout(self.types).for_batches(keys)).hashes
        bits, count = partition_bits(self.ctx.partitions), self.ctx.partitions
        place = (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)
        if self.cuts is not None:
            origin = whole[ORIGIN]
            assert isinstance(origin, FixedColumn)
            rows, place = self.cuts.place(self.side, keys, place, origin.values)
            self.rows_out -= len(rows) - whole.nrows
            whole, count = whole.take(rows), self.cuts.count
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(place, minlength=count), out=starts[1:])
        # NumPy sorts 16-bit numbers by radix, several times faster than others.
        order = np.argsort(place.astype(np.uint16) if count <= 1 << 16 else place, kind="stable")
        part = Partitioned(whole.take(order).compact(), starts)
        self.kept = []
        self._hold(self.merged_nbytes - self.held)
        return part

    def rows_of(self, partition: int) -> Batch:
        """The rows of a partition, which are this operator's no more."""
        found = [p.part(partition) for p in self.merged if p.first <= partition < p.first + p.count]
        # What came for this partition alone is done with; a larger part goes when its last partition is taken.
        self.merged = [p for p in self.merged if p.first + p.count - 1 > partition or p.first > partition]
        rows = Batch.concat([b for b in found if b.nrows]) if any(b.nrows for b in found) else self.nothing()
        given = min(self.merged_nbytes, rows.nbytes) if self.merged else self.merged_nbytes
        self.merged_nbytes -= given
        self._hold(-given)
        self.rows_out += rows.nrows
        return rows

    def check(self, rows_global: int, rows_out_global: int) -> None:
        """Every row that came in was taken out of one partition; copies and rows of no use are counted where they are made."""
        if rows_global != rows_out_global:
            raise ConservationError(f"join took in {rows_global:,} {self.side} rows and joined {rows_out_global:,}")


class Matches:
    """Who meets whom in a partition, as numbers: every row of the result has a place, and any range of them can be made.

    Rows of both sides are sorted by key, then side, then origin. Sorted row i makes ``ends[i] - ends[i - 1]`` rows of the result: a left
    row one for each right row of its key; where that is none, and where it is a right row, what `how` says.
    """

    def __init__(self, left: Batch, right: Batch, left_keys: Batch, right_keys: Batch, how: str) -> None:
        self.n_left = left.nrows
        both = Batch.concat([left_keys, right_keys])
        self.keys = both
        origin = np.concatenate([_origins(left), _origins(right) | RIGHT])
        layout = keys_layout([c.type for c in both.columns.values()])
        self.order, starts = sorted_groups(both, layout, origin)
        sizes = np.diff(starts)
        is_left = self.order < self.n_left
        before = np.concatenate([[0], np.cumsum(is_left)])
        lefts = before[starts[1:]] - before[starts[:-1]]
        rights = sizes - lefts
        valid = valid_keys(both)
        if valid is not None:                   # null keys match nothing
            rights = np.where(valid[self.order[starts[:-1]]], rights, 0)
            matched = valid[self.order[starts[:-1]]] & (lefts > 0)
        else:
            matched = lefts > 0
        group = np.repeat(np.arange(len(sizes)), sizes)
        partners = rights[group]
        if how in ("semi", "anti"):
            of_left = (partners > 0) == (how == "semi")
        else:
            of_left = np.maximum(partners, 1 if how in ("left", "outer") else 0)
        of_right = ~matched[group] if how in ("right", "outer") else np.zeros(len(group), np.bool_)
        self.ends = np.cumsum(np.where(is_left, of_left, of_right), dtype=np.int64)
        self.is_left, self.partners = is_left, partners
        self.first_right = (starts[:-1] + lefts)[group]

    @property
    def count(self) -> int:
        """Rows of the result."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def rows(self, start: int, stop: int) -> tuple[Index, Index]:
        """Left and right row of rows `start` to `stop` of the result, -1 where there is none."""
        numbers = np.arange(start, stop, dtype=np.int64)
        item = np.searchsorted(self.ends, numbers, side="right")
        within = numbers - np.where(item > 0, self.ends[item - 1], 0)
        is_left = self.is_left[item]
        left = np.where(is_left, self.order[item], -1)
        meets = is_left & (self.partners[item] > 0)
        partner = np.where(meets, self.first_right[item] + within, item)
        right = np.where(meets | ~is_left, self.order[partner] - self.n_left, -1)
        return left, right


def joined(matches: Matches, left: Batch, right: Batch, columns: Columns, how: str, block_nbytes: int) -> Iterator[Batch]:
    """The joined rows, about `block_nbytes` at a time."""
    per_row = left.nbytes // max(1, left.nrows) + (right.nbytes // max(1, right.nrows) if columns.right_names else 0)
    step = max(1, block_nbytes // max(1, per_row))
    for start in range(0, matches.count, step):
        rows_left, rows_right = matches.rows(start, min(matches.count, start + step))
        yield _block(matches, left, right, columns, how, rows_left, rows_right)


def _block(matches: Matches, left: Batch, right: Batch, columns: Columns, how: str, rows_left: Index, rows_right: Index) -> Batch:
    keys = {f.name: (str(i), f.type) for i, f in enumerate(columns.key_fields)}
    sources = {new: old for old, new in columns.right_names.items()}
    either = np.where(rows_left >= 0, rows_left, matches.n_left + rows_right)
    out: dict[str, Column] = {}
    for field in columns.schema:
        if field.name in keys:
            name, kind = keys[field.name]
            out[field.name] = as_type(matches.keys[name].take(either), kind)
        elif field.name in sources:
            out[field.name] = take_or_null(right[sources[field.name]], rows_right)
        else:
            out[field.name] = take_or_null(left[field.name], rows_left)
    return Batch(out, len(rows_left))


def _origins(rows: Batch) -> NDArray[np.uint64]:
    origin = rows[ORIGIN]
    assert isinstance(origin, FixedColumn)
    return origin.values
