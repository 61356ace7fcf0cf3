"""How many rows, or how much weight, in each bin of one or several columns: ``histogram``.

Bins are NumPy's: ``edges[j] <= v < edges[j + 1]``, the last one with its upper edge; what lies outside, NaN and null are left out.
Counts are integers and sums of weights exact and rounded once, so that neither the order of rows nor the ranks show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.outlet import OutletContext, Sealed
from hpcmr.store import typed

Floats = NDArray[np.float64]
Sums = tuple[NDArray[np.uint64], NDArray[np.int64]]
WIDE_ROWS = 64


def numbers_of(schema: Schema, name: str, verb: str) -> None:
    """Raise unless the column is one of real numbers."""
    kind = schema[name].type
    if not kind.is_fixed or kind.shape or kind.np_dtype.kind not in "biuf":
        raise JobSpecError(f"{verb}({name!r}) needs a column of numbers, and this one is {kind}")


def as_floats(batch: Batch, name: str) -> tuple[Floats, NDArray[np.bool_] | None]:
    column = batch[name]
    assert isinstance(column, FixedColumn)
    return column.values.astype(np.float64, copy=False), column.valid


class Extent:
    """Least and greatest value of some columns of numbers: ``[(low, high) or None, ...]`` as NumPy scalars. An `Outlet`.

    None: there is no value. NaN takes part, as in ``np.min``.
    """

    name = "extent"
    root: int | None = None
    ascending = False

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.columns)

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        for name in self.columns:
            numbers_of(schema, name, "histogram")
        self.found: list[tuple[Any, Any] | None] = [None] * len(self.columns)
        self.fresh = False          # whether there is something that no checkpoint has

    def take(self, piece: int, batch: Batch) -> None:
        self.fresh = True
        for i, name in enumerate(self.columns):
            column = batch[name]
            assert isinstance(column, FixedColumn)
            values = column.values if column.valid is None else column.values[column.valid]
            if len(values):
                self.found[i] = _wider(self.found[i], (values.min(), values.max()))

    def enough(self, piece: int) -> bool:
        return False

    def sealed(self) -> Sealed | None:
        fresh, self.fresh = self.fresh, False
        return Sealed({"found": typed.encode(self.found, [])}) if fresh else None

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        for one in told:
            self.found = [_wider(a, b) for a, b in zip(self.found, typed.decode(one["found"], no_part), strict=True)]

    def local(self) -> list[tuple[Any, Any] | None]:
        return self.found

    def combine(self, payloads: list[list[tuple[Any, Any] | None]]) -> list[tuple[Any, Any] | None]:
        whole: list[tuple[Any, Any] | None] = [None] * len(self.columns)
        for payload in payloads:
            whole = [_wider(a, b) for a, b in zip(whole, payload, strict=True)]
        return whole

    def abandon(self) -> None:
        self.found = []


def no_part(number: int) -> Batch:
    """What small values lean on."""
    raise ValueError(f"there is no part {number}")


def _wider(a: tuple[Any, Any] | None, b: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
    if a is None or b is None:
        return b if a is None else a
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


class Histogram:
    """An `Outlet` that gives counts (int64), or sums of weights or densities (float64), and the edges, as NumPy has them.

    Parameters
    ----------
    column : str or sequence of str
        One column makes a 1-D histogram and one array of edges, a list of columns an N-D one and a list of arrays.
    bins : int, edges, or for several columns a list of these
    limits : optional
        ``(low, high)``, for several columns a list of these, or of None.
    weights : str, optional
    density : bool
    root : int, optional
        The one rank that is given the result; None: every rank.

    Attributes
    ----------
    extents : list of (low, high) or None
        Set it before the run where `needs_extents`: what `Extent` found.
    """

    name = "histogram"
    ascending = False

    def __init__(self, column: str | Sequence[str], bins: Any = 10, limits: Any = None, weights: str | None = None, density: bool = False,
                 root: int | None = None) -> None:
        self.columns = (column,) if isinstance(column, str) else tuple(column)
        if not self.columns or not all(isinstance(c, str) for c in self.columns):
            raise JobSpecError(f"histogram({column!r}): name one column, or several in a list")
        self.one = isinstance(column, str)
        self.limits, self.weights, self.density, self.root = limits, weights, density, root
        self.extents: list[tuple[Any, Any] | None] = [None] * len(self.columns)
        each = [bins] * len(self.columns) if self.one or not isinstance(bins, Sequence | np.ndarray) else list(bins)
        if len(each) != len(self.columns):
            raise JobSpecError(f"histogram({list(self.columns)}): bins holds {len(each)} entries for {len(self.columns)} columns; "
                               "give a number, or a number or edges for each column")
        if limits is not None and not self.one and len(limits) != len(self.columns):
            raise JobSpecError(f"histogram({list(self.columns)}): range holds {len(limits)} entries for {len(self.columns)} columns")
        for b in each:
            if isinstance(b, str) or not isinstance(b, int | np.integer | Sequence | np.ndarray):
                raise JobSpecError(f"histogram: bins={b!r}: give a number of bins, or their edges")
        self.bins_of = each
        self.ctx: OutletContext | None = None
        self.held = 0

    @property
    def needs_extents(self) -> bool:
        """Whether edges depend on the values."""
        limits = [self.limits] if self.one else self.limits or [None] * len(self.columns)
        return any(np.ndim(b) == 0 and limit is None for b, limit in zip(self.bins_of, limits, strict=True))

    def fingerprint(self) -> tuple[Any, ...]:
        bins = tuple(b if np.ndim(b) == 0 else tuple(np.asarray(b).tolist()) for b in self.bins_of)
        return (self.name, self.columns, self.one, bins, str(self.limits), self.weights, self.density)

    def begin(self, ctx: OutletContext) -> None:
        """Nothing to refuse."""

    def import_kernels(self) -> None:
        from hpcmr.kernels import histogram  # noqa: F401

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        for name in (*self.columns, *([self.weights] if self.weights else [])):
            numbers_of(schema, name, "histogram")
        self.ctx = ctx
        bins, widths = self.bins_of, [np.ndim(b) == 0 for b in self.bins_of]
        self.made = ((edges_1d(bins[0], self.limits, self.extents[0], schema[self.columns[0]].type.np_dtype, self.columns[0]),) if self.one
                     else edges_nd(bins, self.limits, self.extents, self.columns))
        self.edges = tuple(np.ascontiguousarray(e, np.float64) for e in self.made)
        self.scales = tuple(_scale(e) if even else 0.0 for e, even in zip(self.edges, widths, strict=True))
        self.shape = tuple(len(e) - 1 for e in self.edges)
        self.bins = int(np.prod(self.shape, dtype=np.int64))
        self._hold(self.bins * (24 if self.weights else 8))
        self.flat = np.empty(0, np.int64)
        self.counts = np.zeros(0 if self.weights else self.bins, np.int64)
        self.sums = ExactBins(self.bins if self.weights else 0)
        # What checkpoints have of these already: counts up to the last cut, and the sums, which begin anew at each.
        self.kept_counts: NDArray[np.int64] | None = None
        self.kept_sums: ExactBins | None = None
        self.lowest: int | None = None              # piece since the last cut

    def _hold(self, nbytes: int) -> None:
        assert self.ctx is not None
        self.ctx.take(nbytes, f"the {self.bins:,} bins of a histogram")
        self.held += nbytes

    def take(self, piece: int, batch: Batch) -> None:
        from hpcmr.kernels.histogram import count_bins

        self.lowest = piece if self.lowest is None else min(piece, self.lowest)
        flat = self._bins_of(batch)
        if self.weights is None:
            count_bins(flat, self.counts)
            return
        column = batch[self.weights]
        assert isinstance(column, FixedColumn)
        if column.valid is not None:
            flat[~column.valid] = -1
        for part in exact_floats(column.values):
            self.sums.add(flat, part)

    def _bins_of(self, batch: Batch) -> NDArray[np.int64]:
        """Number of the bin of each row in C order, -1 for none."""
        from hpcmr.kernels.histogram import locate

        if len(self.flat) < batch.nrows:
            self.flat = np.empty(batch.nrows, np.int64)
        flat = self.flat[:batch.nrows]
        flat[:] = 0
        for name, edges, scale in zip(self.columns, self.edges, self.scales, strict=True):
            values, valid = as_floats(batch, name)
            if valid is not None:
                flat[~valid] = -1
            locate(values, edges, scale, flat)
        return flat

    def enough(self, piece: int) -> bool:
        return False

    def sealed(self) -> Sealed | None:
        """The bins that something was added to since the last cut, as rows of one piece."""
        piece, self.lowest = self.lowest, None
        if piece is None:
            return None
        rows = self._new_counts() if self.weights is None else self._new_sums()
        return Sealed({}, Partitioned(rows, np.array([0, rows.nrows], np.int64), piece)) if rows.nrows else None

    def _new_counts(self) -> Batch:
        if self.kept_counts is None:
            self._hold(self.counts.nbytes)
            self.kept_counts = np.zeros_like(self.counts)
        bins = np.flatnonzero(self.counts != self.kept_counts)
        rows = Batch({"bin": FixedColumn(bins), "count": FixedColumn(self.counts[bins] - self.kept_counts[bins])})
        self.kept_counts[bins] = self.counts[bins]
        return rows

    def _new_sums(self) -> Batch:
        if self.kept_sums is None:
            self._hold(24 * self.bins)
            self.kept_sums = ExactBins(self.bins)
        rows = self.sums.rows()
        self.kept_sums.merge(self.sums.state())
        self.sums = ExactBins(self.bins)
        return rows

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        for _, batch in rows:
            if self.weights is None:
                bins, counts = batch["bin"], batch["count"]
                assert isinstance(bins, FixedColumn) and isinstance(counts, FixedColumn)
                np.add.at(self.counts, bins.values, counts.values)
            else:
                self.sums.merge(sums_of_rows(batch, self.bins))
        # What checkpoints have is not given to them again.
        if self.weights is None:
            self._hold(self.counts.nbytes)
            self.kept_counts = self.counts.copy()
        else:
            self._hold(24 * self.bins)
            self.kept_sums, self.sums = self.sums, ExactBins(self.bins)

    def local(self) -> Any:
        if self.weights is None:
            return self.counts
        if self.kept_sums is not None:
            self.sums.merge(self.kept_sums.state())
        return self.sums.state()

    def combine(self, payloads: list[Any]) -> tuple[NDArray[Any], Any]:
        if self.weights is None:
            found: NDArray[Any] = np.add.reduce(payloads)
        else:
            whole = ExactBins(self.bins)
            for payload in payloads:
                whole.merge(payload)
            found = whole.values()
        found = found.reshape(self.shape)
        if self.density:
            found = self._divided(found)
        return found, self.made[0] if self.one else list(self.made)

    def _divided(self, counts: NDArray[Any]) -> NDArray[Any]:
        """By the sum of all bins and the size of each, in NumPy's order of operations."""
        total, found = counts.sum(), counts
        with np.errstate(all="ignore"):
            for axis, edges in enumerate(self.made):
                found = found / np.diff(edges).astype(np.float64).reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
            return found / total

    def abandon(self) -> None:
        if self.ctx is not None and self.held:
            self.ctx.give(self.held)
        self.held = 0


def _scale(edges: Floats) -> float:
    with np.errstate(all="ignore"):
        scale = (len(edges) - 1) / (edges[-1] - edges[0])
    return float(scale) if np.isfinite(scale) else 0.0


def exact_floats(values: NDArray[Any]) -> list[Floats]:
    """The values as float64; integers that may not fit as two parts, whose sum is exact."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        low = values & values.dtype.type(0xFFFFFFFF)
        return [(values - low).astype(np.float64), low.astype(np.float64)]
    return [values.astype(np.float64, copy=False)]


class ExactBins:
    """An exact sum for each of some bins (see `hpcmr.kernels.exact_sum`)."""

    def __init__(self, bins: int) -> None:
        from hpcmr.kernels.opcodes import DIGITS

        self.bins = bins
        self.T = np.zeros(3 * bins, np.uint64)
        self.wide = np.zeros((WIDE_ROWS if bins else 0, DIGITS), np.int64)
        self.used = np.zeros(1, np.int64)

    def add(self, flat: NDArray[np.int64], weights: Floats) -> None:
        from hpcmr.kernels.histogram import sum_bins

        at = 0
        while (at := sum_bins(flat, weights, at, self.T, self.wide, self.used)) < len(flat):
            self._grow()

    def _grow(self) -> None:
        self.wide = np.concatenate([self.wide, np.zeros_like(self.wide)])

    def state(self) -> Sums:
        return self.T, self.wide[:int(self.used[0])]

    def rows(self) -> Batch:
        """The sums that are not nothing: their bin, window, and the wide row of those that have one."""
        from hpcmr.kernels.exact_sum import WIDE

        words = self.T.reshape(-1, 3)
        bins = np.flatnonzero(words.any(axis=1))
        words = words[bins]
        wide = (words[:, 0] & np.uint64(WIDE)) != 0
        ends = np.cumsum(wide * self.wide.shape[1], dtype=np.int64)
        digits = self.wide[words[wide, 1].astype(np.int64)].reshape(-1)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
        return Batch({"bin": FixedColumn(bins), "sum": FixedColumn(words), "wide": ListColumn(starts, ends, FixedColumn(digits))}, len(bins))

    def merge(self, state: Sums) -> None:
        from hpcmr.kernels.histogram import merge_bins

        T, wide = (np.ascontiguousarray(a) for a in state)
        at = 0
        while (at := merge_bins(T, wide, self.T, self.wide, at, self.used)) < self.bins:
            self._grow()

    def values(self) -> Floats:
        from hpcmr.kernels.histogram import bin_values

        out = np.empty(self.bins)
        bin_values(self.T, self.wide, out)
        return out


def sums_of_rows(rows: Batch, bins: int) -> Sums:
    """The state of sums whose `rows` these are."""
    from hpcmr.kernels.exact_sum import WIDE
    from hpcmr.kernels.opcodes import DIGITS

    numbers, words, digits = rows["bin"], rows["sum"], rows["wide"]
    assert isinstance(numbers, FixedColumn) and isinstance(words, FixedColumn) and isinstance(digits, ListColumn)
    T = np.zeros((bins, 3), np.uint64)
    T[numbers.values] = words.values
    places = numbers.values[(words.values[:, 0] & np.uint64(WIDE)) != 0]
    T[places, 1] = np.arange(len(places), dtype=np.uint64)
    child = digits.compact().child
    assert isinstance(child, FixedColumn)
    return T.reshape(-1), child.values.reshape(-1, DIGITS)


def edges_1d(bins: Any, limits: tuple[float, float] | None, extent: tuple[Any, Any] | None, dtype: Any, column: str) -> NDArray[Any]:
    """The edges that ``np.histogram`` would take for values of `dtype` that span `extent`."""
    sample = np.array([] if extent is None else extent, dtype)
    try:
        return np.histogram_bin_edges(sample, bins=bins, range=limits)
    except (ValueError, TypeError) as error:
        if extent is not None and not np.isfinite(sample).all():
            raise DataError(f"histogram({column!r}): the values range from {extent[0]} to {extent[1]}; "
                            "give range=(low, high), values outside it are left out") from None
        raise JobSpecError(f"histogram({column!r}): {error}") from None


def edges_nd(bins: Any, limits: Any, extents: list[tuple[Any, Any] | None], columns: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """The edges that ``np.histogramdd`` would take."""
    spans: list[tuple[float, float]] = []
    for i, column in enumerate(columns):
        given = None if limits is None else limits[i]
        low, high = given if given is not None else extents[i] or (0.0, 1.0)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"histogram({column!r}): the values range from {low} to {high}; give range=[(low, high), ...], "
                            "values outside it are left out")
        spans.append((float(low), float(high)))
    try:
        return tuple(np.histogramdd(np.empty((0, len(columns))), bins=bins, range=spans)[1])
    except (ValueError, TypeError) as error:
        raise JobSpecError(f"histogram({', '.join(map(repr, columns))}): {error}") from None
