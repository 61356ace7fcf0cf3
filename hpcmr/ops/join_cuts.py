"""Hot keys of a join: found in a sample while the rows are looked at, and spread over several pieces of the result.

A partition with a hot key is cut into pieces whose results, one behind the other, are the result of the partition: keys below the hot
one, the hot one, keys above it. The hot key's rows are cut on: its left rows by origin into A ranges, its right rows into B ranges, and
piece (i, j) joins left range i with right range j. Each left row is in B pieces then, and each right row in A. As the result has all
partners of the first left row before those of the second, B is 1 unless a range holds one left row. Where nothing can match, for null
keys, the ranges of both sides lie one behind the other.

All of it is a matter of who does the work: the rows, and their order, are the same with any cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.keys import encode_keys
from hpcmr.data.partitioning import partition_bits
from hpcmr.data.schema import ColumnType
from hpcmr.ops.contract import Collective, Origin
from hpcmr.ops.join_keys import key_batch, keys_layout, valid_keys
from hpcmr.ops.keyed_rows import ORIGIN, ORIGIN_BITS, owned, sorted_groups

SAMPLE_ROWS = 1 << 14          # on a rank, of each side
SAMPLE_ROWS_GLOBAL = 1 << 16   # of each side, on every rank when they agree
SEEN_MIN = 8                   # rows in a sample that make an estimate
FINER = 4                      # a hot key's pieces are this much smaller than a partition on average, so that owners come out even
PIECES_MAX = 4096              # of one key
Index = NDArray[np.int64]
Origins = NDArray[np.uint64]


class Sampler:
    """A sample of a side's keys, by a hash of seed and origin, and how many rows each partition gets.

    Attributes
    ----------
    level : int
        One row in 2**level is in the sample.
    """

    def __init__(self, keys: tuple[str, ...], types: tuple[ColumnType, ...], drops: bool) -> None:
        self.keys, self.types, self.drops = keys, types, drops
        self.layout = keys_layout(types)
        self.start(1)

    def start(self, partitions: int) -> None:
        self.level = 0
        self.nrows = self.nbytes = 0
        self.by_partition = np.zeros(partitions, np.int64)
        self.parts: list[Batch] = []
        self.held = 0

    def look(self, batch: Batch, origin: Origin, seed: int) -> None:
        """Count the rows, and take those into the sample whose turn it is."""
        first = (origin.split << ORIGIN_BITS) + origin.row
        numbers = np.arange(first, first + batch.nrows, dtype=np.uint64)
        keys = key_batch(batch, self.keys, self.types)
        if self.drops and (valid := valid_keys(keys)) is not None:
            rows = np.flatnonzero(valid)
            keys, numbers = keys.take(rows), numbers[rows]
        self.nrows += keys.nrows
        self.nbytes += batch.nbytes * keys.nrows // batch.nrows
        bits = partition_bits(len(self.by_partition))
        if bits:
            hashes = encode_keys(keys, self.layout.for_batches(keys)).hashes
            self.by_partition += np.bincount((hashes >> np.uint64(64 - bits)).astype(np.int64), minlength=len(self.by_partition))
        else:
            self.by_partition[0] += keys.nrows
        turn = mixed(numbers, seed)
        rows = np.flatnonzero(turn <= self._last())
        part = owned(keys.take(rows))
        part.columns[ORIGIN], part.columns["#turn"] = FixedColumn(numbers[rows]), FixedColumn(turn[rows])
        self.parts.append(part)
        self.held += len(rows)
        while self.held > SAMPLE_ROWS:
            self.level += 1
            self.parts = [self.sample(self.level)]
            self.held = self.parts[0].nrows

    def _last(self, level: int | None = None) -> np.uint64:
        return np.uint64((1 << 64 - (self.level if level is None else level)) - 1)

    def sample(self, level: int) -> Batch:
        """The rows that are in at a level, which is not below `self.level`."""
        whole = Batch.concat(self.parts) if self.parts else self._nothing()
        turn = whole["#turn"]
        assert isinstance(turn, FixedColumn)
        return whole.take(np.flatnonzero(turn.values <= self._last(level))).compact()

    def _nothing(self) -> Batch:
        from hpcmr.data.batch import empty_column

        none = {str(i): empty_column(t) for i, t in enumerate(self.types)}
        return Batch({**none, ORIGIN: FixedColumn(np.zeros(0, np.uint64)), "#turn": FixedColumn(np.zeros(0, np.uint64))})

    def agree(self, together: Collective) -> tuple[int, Batch]:
        """The level at which all ranks' rows are few enough, and these rows, on every rank. Collective: yes."""
        level = int(together.allreduce(np.array([self.level], np.int64), "max")[0])
        while int(together.allreduce(np.array([self.sample(level).nrows], np.int64))[0]) > SAMPLE_ROWS_GLOBAL:
            level += 1
        return level, together.allgather_batch(self.sample(level))


def mixed(numbers: Origins, seed: int) -> Origins:
    """Numbers scrambled (the finisher of splitmix64)."""
    x = numbers + np.uint64(seed & (1 << 63) - 1) * np.uint64(2) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return x ^ (x >> np.uint64(31))


@dataclass
class Hot:
    """One hot key: where its pieces begin, and where its rows are cut.

    Attributes
    ----------
    left_cuts, right_cuts : (A - 1,), (B - 1,) uint64
        Origins at which the second and later ranges begin.
    meets : bool
        Its key is not null.
    """

    left_cuts: Origins
    right_cuts: Origins
    meets: bool
    start: int = 0

    @property
    def pieces(self) -> int:
        a, b = len(self.left_cuts) + 1, len(self.right_cuts) + 1
        return a * b if self.meets else a + b

    def place(self, side: str, origin: Origins) -> tuple[Index, Index]:
        """Pieces of rows of this key: numbers of rows, which may stand several times, and the piece of each."""
        a, b = len(self.left_cuts) + 1, len(self.right_cuts) + 1
        cuts = self.left_cuts if side == "left" else self.right_cuts
        mine = np.searchsorted(cuts, origin, side="right")
        if not self.meets:
            return np.arange(len(origin)), self.start + mine + (0 if side == "left" else a)
        others = np.arange(b) if side == "left" else b * np.arange(a)
        piece = (self.start + mine * (b if side == "left" else 1))[:, None] + others[None, :]
        return np.repeat(np.arange(len(origin)), len(others)), piece.reshape(-1)


class Cuts:
    """Pieces of partitions.

    Parameters
    ----------
    keys : Batch
        The hot keys, in the order of partition and key.
    partition : (hot,) int64
        Their partitions.
    hot : list of Hot
        The same keys.
    partitions : int

    Attributes
    ----------
    count : int
        Pieces in all.
    """

    def __init__(self, keys: Batch, partition: Index, hot: list[Hot], partitions: int) -> None:
        self.hot_keys, self.partition, self.hot = keys, partition, hot
        self.layout = keys_layout([c.type for c in keys.columns.values()])
        self.first = np.zeros(partitions, np.int64)       # piece of the keys below the first hot one of the partition
        self.last = np.zeros(partitions, np.int64)        # piece of the keys above the last one
        self.below = np.zeros(len(hot), np.int64)         # piece of the keys below each hot one
        at = i = 0
        for p in range(partitions):
            self.first[p] = at
            while i < len(hot) and partition[i] == p:
                self.below[i] = at
                hot[i].start = at + 1
                at = hot[i].start + hot[i].pieces
                i += 1
            self.last[p] = at
            at += 1
        self.count = at

    def place(self, side: str, keys: Batch, partition: Index, origin: Origins) -> tuple[Index, Index]:
        """Pieces of rows: numbers of rows, those of a hot key perhaps several times, and the piece of each."""
        piece = self.last[partition]
        near = np.flatnonzero(self.first[partition] != piece)
        if not len(near):
            return np.arange(len(partition)), piece
        group, hot_group = self._groups(keys.take(near))
        span = int(max(group.max(), hot_group.max())) + 1
        codes, row_codes = self.partition * span + hot_group, partition[near] * span + group
        behind = np.minimum(np.searchsorted(codes, row_codes), len(codes) - 1)
        is_below = (codes[behind] >= row_codes) & (self.partition[behind] == partition[near])
        piece[near[is_below]] = self.below[behind[is_below]]
        equal = codes[behind] == row_codes
        rows, pieces = [np.delete(np.arange(len(partition)), near[equal])], [np.delete(piece, near[equal])]
        for h in np.unique(behind[equal]).tolist():
            mine = near[equal & (behind == h)]
            which, where = self.hot[h].place(side, origin[mine])
            rows.append(mine[which])
            pieces.append(where)
        return np.concatenate(rows), np.concatenate(pieces)

    def _groups(self, keys: Batch) -> tuple[Index, Index]:
        """Numbers of the keys of rows and of the hot keys, which compare as the keys do."""
        both = Batch.concat([keys, self.hot_keys])
        order, starts = sorted_groups(both, self.layout, np.zeros(both.nrows, np.uint64))
        number = np.empty(both.nrows, np.int64)
        number[order] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return number[:keys.nrows], number[keys.nrows:]


@dataclass
class Plan:
    """What the ranks agreed on.

    Attributes
    ----------
    cuts : Cuts or None
        None where no key is hot.
    weights : (pieces,) int64
        Bytes that each piece takes in and gives out, about, of all ranks.
    """

    cuts: Cuts | None
    weights: Index

    def told(self) -> Any:
        """The same as plain values."""
        cuts = self.cuts
        hot = [] if cuts is None else [(h.left_cuts, h.right_cuts, bool(h.meets)) for h in cuts.hot]
        return self.weights, None if cuts is None else (cuts.hot_keys, cuts.partition, hot, len(cuts.first))

    @classmethod
    def of(cls, told: Any) -> Plan:
        """Inverse of `told`."""
        weights, cuts = told
        if cuts is None:
            return cls(None, weights)
        keys, partition, hot, partitions = cuts
        return cls(Cuts(keys, partition, [Hot(left, right, meets) for left, right, meets in hot], partitions), weights)


def agree_on_cuts(left: Sampler, right: Sampler, how: str, partitions: int, together: Collective) -> Plan:
    """Find the hot keys of both sides, and where to cut them. Collective: yes. The same on all ranks."""
    sums = together.allreduce(np.array([left.nrows, left.nbytes, right.nrows, right.nbytes], np.int64)).tolist()
    by_left, by_right = together.allreduce(left.by_partition), together.allreduce(right.by_partition)
    width = [sums[1] / max(1, sums[0]), sums[3] / max(1, sums[2])]
    if partitions == 1:
        return Plan(None, np.ones(1, np.int64))
    (level_left, rows_left), (level_right, rows_right) = left.agree(together), right.agree(together)
    keys = Batch.concat([b.select([str(i) for i in range(len(left.types))]) for b in (rows_left, rows_right)])
    origin = np.concatenate([_origins(rows_left), _origins(rows_right)])
    find = _Finder(keys, rows_left.nrows, origin, (1 << level_left, 1 << level_right), (width[0], width[1]), how, partitions)
    cuts = find.cuts(sums[0] * width[0] + sums[2] * width[1])
    return Plan(cuts, find.weights(cuts, by_left, by_right))


def _origins(rows: Batch) -> Origins:
    origin = rows[ORIGIN]
    assert isinstance(origin, FixedColumn)
    return origin.values


class _Finder:
    """Hot keys in the samples of both sides, which stand one behind the other."""

    def __init__(self, keys: Batch, n_left: int, origin: Origins, scale: tuple[int, int], width: tuple[float, float], how: str,
                 partitions: int) -> None:
        self.keys, self.n_left, self.origin, self.scale, self.width = keys, n_left, origin, scale, width
        self.how, self.partitions = how, partitions
        layout = keys_layout([c.type for c in keys.columns.values()])
        self.order, self.starts = sorted_groups(keys, layout, np.zeros(keys.nrows, np.uint64))
        before = np.concatenate([[0], np.cumsum(self.order < n_left)])
        self.lefts = before[self.starts[1:]] - before[self.starts[:-1]]
        self.rights = np.diff(self.starts) - self.lefts
        firsts = self.order[self.starts[:-1]]
        self.hot = np.zeros(0, np.int64)
        valid = valid_keys(keys)
        self.meets = np.ones(len(firsts), np.bool_) if valid is None else valid[firsts]
        self.firsts = firsts
        bits = partition_bits(partitions)
        self.partition = (encode_keys(keys, layout.for_batches(keys)).hashes >> np.uint64(64 - bits)).astype(np.int64)
        nl, nr = self.lefts * float(scale[0]), self.rights * float(scale[1])
        pairs, lone_left, lone_right = self.meets & (nl > 0) & (nr > 0), ~self.meets | (nr == 0), ~self.meets | (nl == 0)
        if how in ("semi", "anti"):
            self.made = np.where(lone_left if how == "anti" else pairs, nl, 0.0) * width[0]
            self.cost = nl * width[0] + self.made
            return
        rows = np.where(pairs, nl * nr, 0.0)
        rows += np.where(lone_left, nl, 0.0) if how in ("left", "outer") else 0.0
        rows += np.where(lone_right, nr, 0.0) if how in ("right", "outer") else 0.0
        self.made = rows * sum(width)
        self.cost = nl * width[0] + nr * width[1] + self.made


    def cuts(self, nbytes_in: float) -> Cuts | None:
        share = (nbytes_in + float(self.made.sum())) / self.partitions
        enough = (np.maximum(self.lefts, self.rights) >= SEEN_MIN) | (self.made > share)
        hot = np.flatnonzero((2 * self.cost > share) & enough)
        planned = [(g, self._plan(g, min(PIECES_MAX, int(-(-FINER * self.cost[g] // share))))) for g in hot.tolist()]
        planned = [(g, h) for g, h in planned if h.pieces > (1 if h.meets else 2)]
        if not planned:
            return None
        planned.sort(key=lambda p: (self.partition[self.firsts[p[0]]], p[0]))      # groups are in key order
        self.hot = np.array([g for g, _ in planned], np.int64)
        rows = self.firsts[self.hot]
        return Cuts(self.keys.take(rows).compact(), self.partition[rows], [h for _, h in planned], self.partitions)

    def _plan(self, group: int, pieces: int) -> Hot:
        rows = self.order[self.starts[group]:self.starts[group + 1]]
        left, right = np.sort(self.origin[rows[rows < self.n_left]]), np.sort(self.origin[rows[rows >= self.n_left]])
        none = np.zeros(0, np.uint64)
        if not self.meets[group]:
            keeps_left, keeps_right = self.how in ("left", "anti", "outer"), self.how in ("right", "outer")
            return Hot(cut_at(left, pieces) if keeps_left else none, cut_at(right, pieces) if keeps_right else none, False)
        few = self.scale[0] == 1 and len(left) < pieces and self.how not in ("semi", "anti")      # all left rows are known: one in each range
        by = -(-pieces // max(1, len(left))) if few else 1
        return Hot(cut_at(left, pieces), cut_at(right, by), True)

    def weights(self, cuts: Cuts | None, by_left: Index, by_right: Index) -> Index:
        """Bytes in and out of partitions, or pieces. Rows of partitions are known; where one is cut, the sample tells the share of each piece.

        The rows that cool keys make are known in all, about, and taken to be as many for each left row.
        """
        cool_left = max(1.0, self.scale[0] * float(self.n_left - self.lefts[self.hot].sum()))
        out_left = max(self.width[0], (float(self.made.sum()) - float(self.made[self.hot].sum())) / cool_left)
        known = by_left * (self.width[0] + out_left) + by_right * self.width[1]
        if cuts is None:
            return known.astype(np.int64)
        out = np.zeros(cuts.count)
        cool = cuts.first == cuts.last
        out[cuts.first[cool]] = known[cool]
        hot = np.zeros(cuts.count, np.bool_)
        for group, key in zip(self.hot.tolist(), cuts.hot, strict=True):
            hot[key.start:key.start + key.pieces] = True
            out[key.start:key.start + key.pieces] += self.made[group] / key.pieces
        for side, rows, width, more in (("left", slice(0, self.n_left), self.width[0], out_left),
                                        ("right", slice(self.n_left, None), self.width[1], 0.0)):
            some = np.flatnonzero(~cool[self.partition[rows]]) + (rows.start or 0)
            _, piece = cuts.place(side, self.keys.take(some), self.partition[some], self.origin[some])
            out += np.bincount(piece, minlength=cuts.count) * self.scale[side == "right"] * np.where(hot, width, width + more)
        return out.astype(np.int64)


def cut_at(origins: Origins, pieces: int) -> Origins:
    """Origins at which ranges begin that hold about as many rows each; no more ranges than rows, so that none is empty."""
    pieces = max(1, min(pieces, len(origins)))
    return origins[np.arange(1, pieces) * len(origins) // pieces]
