"""Quantiles of a column over all rows: exact by selection, or from counts by magnitude: ``quantile``.

Selection moves no rows. Each rank keeps its values of the column; the range in which the wanted ones lie is cut into bins, all ranks
count, and the bins that hold the wanted ranks are the next range, until what is left is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.outlet import OutletContext, Sealed

if TYPE_CHECKING:
    from hpcmr.ops.contract import Collective, Spool

METHODS = ("linear", "lower", "higher", "midpoint")
BIN_BITS = 12
GATHERED = 1 << 14              # few enough values to be gathered and sorted
CHUNK_ROWS = 1 << 18
RESERVE_SHARE = 4               # of the memory that is free at the beginning, the part that is left free before values go to scratch
MAGNITUDE_BITS = 20             # sign, 11 bits of exponent, 8 of mantissa: a bucket is 2^-8 of its lower bound wide
APPROX_ERROR = 2.0 ** -9
SIGN = np.uint64(1 << 63)

Words = NDArray[np.uint64]


class _Quantile:
    """What both ways have in common.

    Parameters
    ----------
    column : str
    q : sequence of float
        0 to 1.
    method : {"linear", "lower", "higher", "midpoint"}
        Between two values, as ``np.quantile`` has it.
    root : int, optional
        The one rank that is given the result; None: every rank.
    """

    name = "quantile"
    ascending = False

    def __init__(self, column: str, q: Sequence[float], method: str = "linear", root: int | None = None) -> None:
        self.column, self.q, self.method, self.root = column, tuple(float(x) for x in q), method, root
        if not all(0 <= x <= 1 for x in self.q):
            raise JobSpecError(f"quantile({column!r}, {list(self.q)}): q is a number from 0 to 1, or a list of these")
        if method not in METHODS:
            raise JobSpecError(f"quantile: there is no method {method!r}; there are {', '.join(METHODS)}")
        self.ctx: OutletContext | None = None
        self.held = 0
        self.lowest: int | None = None              # piece since the last cut

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, type(self).__name__, self.column, self.q, self.method)

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def import_kernels(self) -> None:
        from hpcmr.kernels import quantile  # noqa: F401

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        self.ctx, self.type = ctx, schema[self.column].type
        kind = self.type.np_dtype.kind if self.type.is_fixed and not self.type.shape else ""
        if kind not in ("b", "i", "u", "f", "m", "M") or (kind in "bmM" and self.method not in ("lower", "higher")):
            wants = "numbers" if kind not in ("b", "m", "M") else "numbers, or method='lower' or 'higher'"
            raise JobSpecError(f"quantile({self.column!r}) needs a column of {wants}, and this one is {self.type}")

    def came(self, piece: int) -> None:
        self.lowest = piece if self.lowest is None else min(piece, self.lowest)

    def sealed(self) -> Sealed | None:
        """What came since the last cut, as rows of one piece."""
        piece, self.lowest = self.lowest, None
        rows = Batch({}) if piece is None else self.new_rows()
        return Sealed({}, Partitioned(rows, np.array([0, rows.nrows], np.int64), piece or 0)) if rows.nrows else None

    def new_rows(self) -> Batch:
        raise NotImplementedError

    def hold(self, nbytes: int) -> None:
        assert self.ctx is not None
        if nbytes > 0:
            self.ctx.take(nbytes, f"the values of column {self.column!r} that {self.name} looks through")
        else:
            self.ctx.give(-nbytes)
        self.held += nbytes

    def values(self, batch: Batch) -> NDArray[Any]:
        """The column without nulls."""
        column = batch[self.column]
        assert isinstance(column, FixedColumn)
        return column.values if column.valid is None else column.values[column.valid]

    def enough(self, piece: int) -> bool:
        return False

    def abandon(self) -> None:
        if self.held:
            self.hold(-self.held)

    def between(self, n: int, q: float) -> tuple[int, int, float]:
        """Ranks of the two values around quantile `q` of `n` values, and where it lies between them, as in ``np.quantile``."""
        place = (n - 1) * q
        low = int(np.floor(place))
        return low, min(low + 1, n - 1), place - low

    def blend(self, a: Any, b: Any, at: float) -> Any:
        if at == 0 or self.method == "lower":
            return a
        if self.method == "higher":
            return b
        quantile: Any = np.quantile      # its annotations name methods one by one
        return quantile(np.array([a, b]), at, method=self.method)


class ExactQuantile(_Quantile):
    """The exact quantiles of all values: ``(q,) array``, float64 or, with "lower" and "higher", of the column's type. An `Outlet`.

    NaN anywhere makes all of them NaN; nulls are left out; of no values they are NaN (0 or NaT where the type has no NaN).

    Notes
    -----
    Cost: one pass; each rank keeps its values of the column, in memory or, where that is short, on scratch, and looks through them once or
    twice.
    """

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        super().open(ctx, schema)
        self.chunks: list[NDArray[Any] | Away] = []
        self.filled = CHUNK_ROWS
        self.kept_rows = 0              # of the first chunks, what checkpoints have
        self.reserve = ctx.available() // RESERVE_SHARE
        self.found: NDArray[Any] | None = None

    def take(self, piece: int, batch: Batch) -> None:
        self.came(piece)
        self._add(self.values(batch))

    def _add(self, values: NDArray[Any]) -> None:
        done = 0
        while done < len(values):
            if self.filled == CHUNK_ROWS:
                self._put_away(CHUNK_ROWS * values.dtype.itemsize)
                self.hold(CHUNK_ROWS * values.dtype.itemsize)
                self.chunks.append(np.empty(CHUNK_ROWS, values.dtype))
                self.filled = 0
            chunk = self.chunks[-1]
            assert isinstance(chunk, np.ndarray)
            n = min(len(values) - done, CHUNK_ROWS - self.filled)
            chunk[self.filled:self.filled + n] = values[done:done + n]
            self.filled += n
            done += n

    def _put_away(self, nbytes: int) -> None:
        """Move chunks to scratch until there is room for `nbytes` bytes, if there is some."""
        ctx = self.ctx
        spool = getattr(ctx, "spool", None)
        if ctx is None or spool is None:
            return
        for i, chunk in enumerate(self.chunks):
            if ctx.available() - nbytes >= self.reserve:
                return
            if isinstance(chunk, np.ndarray):
                self.chunks[i] = Away(spool, spool.put(Batch({"x": FixedColumn(chunk)})))
                self.hold(-chunk.nbytes)

    def _rows(self) -> int:
        return CHUNK_ROWS * len(self.chunks) - (CHUNK_ROWS - self.filled) if self.chunks else 0

    def new_rows(self) -> Batch:
        """The values since the last cut."""
        found, at = [], self.kept_rows
        self.kept_rows = self._rows()
        while at < self.kept_rows:
            chunk = self.chunks[at // CHUNK_ROWS]
            values = chunk if isinstance(chunk, np.ndarray) else chunk.load()
            first = at % CHUNK_ROWS
            found.append(values[first:min(CHUNK_ROWS, first + self.kept_rows - at)])
            at += len(found[-1])
        return Batch({"x": FixedColumn(np.concatenate(found))}) if found else Batch({})

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        for _, batch in rows:
            column = batch["x"]
            assert isinstance(column, FixedColumn)
            self._add(column.values)
        self.kept_rows = self._rows()

    def settle(self, together: Collective) -> None:
        """Find the wanted values. Collective: yes."""
        last = self.chunks[-1] if self.chunks else None
        if isinstance(last, np.ndarray):
            self.chunks[-1] = last[:self.filled]
        select = Selection(self.chunks)
        held, nans = (int(x) for x in together.allreduce(np.array([select.count, select.nans], np.int64)))
        pairs = [self.between(held, q) for q in self.q] if held else []
        words = select.find(sorted({k for low, high, _ in pairs for k in (low, high)}), together)
        self.chunks = []
        kind = self.type.np_dtype
        if nans or not held:
            self.found = np.full(len(self.q), np.nan) if kind.kind in "biuf" and not self._keeps_type else _nothing(len(self.q), self.type)
        else:
            at = {k: value_of(w, self.type) for k, w in words.items()}
            self.found = np.array([self.blend(at[a], at[b], t) for a, b, t in pairs], kind if self._keeps_type else np.float64)

    @property
    def _keeps_type(self) -> bool:
        return self.method in ("lower", "higher")

    def local(self) -> None:
        """All ranks have found the same."""

    def combine(self, payloads: list[None]) -> NDArray[Any]:
        assert self.found is not None
        return self.found

    def abandon(self) -> None:
        for chunk in self.chunks:
            if isinstance(chunk, Away):
                chunk.drop()
        self.chunks = []
        super().abandon()


class ApproxQuantile(_Quantile):
    """Quantiles from counts of values by magnitude: ``(q,) float64``. An `Outlet`.

    Values are counted in buckets that are 2^-8 of their lower bound wide, and the middle of the bucket stands for them: the two values
    that a quantile lies between are known to one part in 512. Counts add up, so that neither ranks nor the order of rows show.

    Notes
    -----
    Cost: one pass, 8 MiB of memory on each rank, one message of the buckets that are not empty.
    """

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        super().open(ctx, schema)
        if self.type.np_dtype.kind not in "iuf":
            raise JobSpecError(f"quantile({self.column!r}, approx=True) needs a column of numbers, and this one is {self.type}")
        self.hold(8 << MAGNITUDE_BITS)
        self.counts = np.zeros(1 << MAGNITUDE_BITS, np.int64)
        self.nans = 0
        self.kept: NDArray[np.int64] | None = None          # what checkpoints have: counts, and behind them NaN

    def take(self, piece: int, batch: Batch) -> None:
        from hpcmr.kernels.quantile import count_magnitudes

        self.came(piece)
        self.nans += count_magnitudes(self.values(batch).astype(np.float64, copy=False), 64 - MAGNITUDE_BITS, self.counts)

    def new_rows(self) -> Batch:
        """The buckets that something came into since the last cut; the one behind all others is NaN."""
        now = np.append(self.counts, self.nans)
        if self.kept is None:
            self.hold(now.nbytes)
            self.kept = np.zeros_like(now)
        more = now - self.kept
        places = np.flatnonzero(more)
        self.kept = now
        return Batch({"bucket": FixedColumn(places), "count": FixedColumn(more[places])})

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        whole = np.append(self.counts, self.nans)
        for _, batch in rows:
            places, counts = batch["bucket"], batch["count"]
            assert isinstance(places, FixedColumn) and isinstance(counts, FixedColumn)
            np.add.at(whole, places.values, counts.values)
        self.counts, self.nans = whole[:-1].copy(), int(whole[-1])
        self.hold(whole.nbytes)
        self.kept = whole

    def local(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        places = np.flatnonzero(self.counts)
        return places, self.counts[places], self.nans

    def combine(self, payloads: list[tuple[NDArray[np.int64], NDArray[np.int64], int]]) -> NDArray[np.float64]:
        whole = np.zeros(1 << MAGNITUDE_BITS, np.int64)
        for places, counts, _ in payloads:
            whole[places] += counts
        ends = np.cumsum(whole)
        n = int(ends[-1])
        if any(nans for _, _, nans in payloads) or not n:
            return np.full(len(self.q), np.nan)
        out = []
        for q in self.q:
            low, high, at = self.between(n, q)
            a, b = (middle_of(int(np.searchsorted(ends, k, "right"))) for k in (low, high))
            out.append(self.blend(a, b, at))
        return np.array(out, np.float64)


@dataclass(frozen=True)
class Away:
    """Values on scratch."""

    spool: Spool
    handle: Any

    def load(self) -> NDArray[Any]:
        column = self.spool.get(self.handle)["x"]
        assert isinstance(column, FixedColumn)
        return column.values

    def drop(self) -> None:
        self.spool.drop(self.handle)


class Selection:
    """Values of which some are wanted by their rank among those of all ranks.

    Parameters
    ----------
    chunks : list of (n,) arrays, or of these on scratch
        Values of one type; NaN are counted and left out. The list is emptied.

    Attributes
    ----------
    count, nans : int
    """

    def __init__(self, chunks: list[NDArray[Any] | Away]) -> None:
        self.chunks: list[Words | Away] = []
        self.count = self.nans = 0
        self.low, self.high = (1 << 64) - 1, 0
        chunks.reverse()
        while chunks:
            chunk = chunks.pop()
            values = chunk if isinstance(chunk, np.ndarray) else chunk.load()
            words = words_of(values)
            self.count += len(words)
            self.nans += len(values) - len(words)
            if len(words):
                self.low, self.high = min(self.low, int(words.min())), max(self.high, int(words.max()))
            self.chunks.append(words if isinstance(chunk, np.ndarray) else chunk)

    def _words(self) -> Iterator[Words]:
        for chunk in self.chunks:
            yield chunk if isinstance(chunk, np.ndarray) else words_of(chunk.load())

    def find(self, wanted: list[int], together: Collective) -> dict[int, int]:
        """Word of each of the `wanted` ranks, ascending, from 0. Collective: yes."""
        found: dict[int, int] = {}
        if not wanted:
            return found
        low = int(together.allreduce(np.array([self.low], np.uint64), "min")[0])
        high = int(together.allreduce(np.array([self.high], np.uint64), "max")[0])
        # Ranges that hold wanted values: first word, last word, and how many values lie below.
        ranges = [(low, high, 0)]
        while True:
            ranges, left = self._narrow(ranges, wanted, found, together)
            if not ranges:
                self._keep(ranges)
                return found
            self._keep(ranges)
            if left <= GATHERED:
                self._sort(ranges, wanted, found, together)
                return found

    def _narrow(self, ranges: list[tuple[int, int, int]], wanted: list[int], found: dict[int, int],
                together: Collective) -> tuple[list[tuple[int, int, int]], int]:
        """The bins of `ranges` in which wanted values lie, and how many values lie in these; bins of one word are answers."""
        from hpcmr.kernels.quantile import count_words

        shifts = [max(0, (high - low).bit_length() - BIN_BITS) for low, high, _ in ranges]
        counts = np.zeros((len(ranges), 1 << BIN_BITS), np.int64)
        lows, highs = _bounds(ranges)
        for words in self._words():
            count_words(words, len(words), lows, highs, np.array(shifts, np.int64), counts)
        counts = together.allreduce(counts)
        narrower, left = [], 0
        for (low, high, below), shift, bins in zip(ranges, shifts, counts, strict=True):
            ends = below + np.cumsum(bins)
            mine = [k for k in wanted if below <= k < int(ends[-1])]
            for j in sorted({int(np.searchsorted(ends, k, "right")) for k in mine}):
                first = low + (j << shift)
                before = int(ends[j]) - int(bins[j])
                if shift:
                    narrower.append((first, min(high, first + (1 << shift) - 1), before))
                    left += int(bins[j])
                else:
                    found.update({k: first for k in mine if before <= k < int(ends[j])})
        return narrower, left

    def _keep(self, ranges: list[tuple[int, int, int]]) -> None:
        """Forget all values but those within `ranges`."""
        from hpcmr.kernels.quantile import keep_words

        lows, highs = _bounds(ranges)
        for i, words in enumerate(self._words()):
            chunk = self.chunks[i]
            if isinstance(chunk, Away):
                chunk.drop()
            out = np.empty(len(words), np.uint64)
            n = keep_words(words, len(words), lows, highs, out, 0)
            self.chunks[i] = out[:n].copy() if n < len(words) // 2 else out[:n]

    def _sort(self, ranges: list[tuple[int, int, int]], wanted: list[int], found: dict[int, int], together: Collective) -> None:
        """Few values are left: every rank gets all of them."""
        mine = np.concatenate([np.empty(0, np.uint64), *self._words()])
        whole = np.sort(np.concatenate(together.allgather(mine)))
        for low, high, below in ranges:
            a, b = int(np.searchsorted(whole, np.uint64(low))), int(np.searchsorted(whole, np.uint64(high), "right"))
            found.update({k: int(whole[a + k - below]) for k in wanted if below <= k < below + b - a})


def _bounds(ranges: list[tuple[int, int, int]]) -> tuple[Words, Words]:
    return np.array([r[0] for r in ranges], np.uint64), np.array([r[1] for r in ranges], np.uint64)


def words_of(values: NDArray[Any]) -> Words:
    """Words that order as the values do; NaN are left out."""
    kind = values.dtype.kind
    if kind == "f":
        from hpcmr.kernels.quantile import float_words

        words = np.empty(len(values), np.uint64)
        n = float_words(values.astype(np.float64, copy=False), words)
        return words[:n]
    if kind in "mM":
        values = values[~np.isnat(values)].view(np.int64)
    return values.astype(np.uint64) if kind in "bu" else values.astype(np.int64).view(np.uint64) ^ SIGN


def value_of(word: int, kind: ColumnType) -> Any:
    """The value of a word, as a NumPy scalar; floats as float64."""
    letter = kind.np_dtype.kind
    if letter == "f":
        return np.array([word ^ (1 << 63) if word >> 63 else ~word & (1 << 64) - 1], np.uint64).view(np.float64)[0]
    if letter in "bu":
        return np.uint64(word).astype(kind.np_dtype)
    raw = np.array([word ^ (1 << 63)], np.uint64).view(np.int64)
    return raw.view(kind.np_dtype)[0] if letter in "mM" else raw[0]


def middle_of(bucket: int) -> float:
    """What stands for the values of a bucket of magnitudes."""
    shift = 64 - MAGNITUDE_BITS
    a, b = (float(value_of(w, ColumnType.fixed("float64"))) for w in (bucket << shift, (bucket << shift) + (1 << shift) - 1))
    if not np.isfinite(a) or not np.isfinite(b):
        return a if np.isinf(a) else b
    return 0.0 if a <= 0.0 <= b or bucket in _ZEROS else a + (b - a) / 2


# The buckets of the smallest positive and negative values begin and end at zero.
_ZEROS = ((1 << MAGNITUDE_BITS - 1) - 1, 1 << MAGNITUDE_BITS - 1)


def _nothing(n: int, kind: ColumnType) -> NDArray[Any]:
    letter = kind.np_dtype.kind
    return np.full(n, {"f": np.nan, "m": "NaT", "M": "NaT"}.get(letter, 0), kind.np_dtype)
