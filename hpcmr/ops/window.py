"""Values of the rows around each row, in the order of the input: ``lag``, ``lead``, and moving aggregates: ``window``."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn, concat_columns, empty_column
from hpcmr.data.schema import INT64, ColumnType, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.keyed_rows import owned
from hpcmr.ops.ordered import Ordered
from hpcmr.ops.quantile import words_of
from hpcmr.ops.running_sum import ALL_VALID

if TYPE_CHECKING:
    from hpcmr.ops.contract import Collective

ROWS_MAX = 65536
OPS = ("sum", "mean", "min", "max", "count")


def check_rows(rows: int, verb: str, least: int) -> None:
    if not isinstance(rows, int) or isinstance(rows, bool) or not least <= rows <= ROWS_MAX:
        raise JobSpecError(f"{verb}: rows={rows!r} is not an integer from {least} to {ROWS_MAX:,}")


class _Behind(Ordered):
    """What looks at the `reach` rows before each row: the last rows of a part are what later parts need of it.

    Parameters
    ----------
    column : str
    reach : int
    new : str
        Name of the new column.
    """

    def __init__(self, column: str, reach: int, new: str) -> None:
        super().__init__(new)
        self.column, self.reach = column, reach

    def new_type(self, schema: Schema) -> ColumnType:
        self.kind = schema[self.column].type
        return self.kind

    def fresh(self) -> Column:
        return empty_column(self.kind)

    def summed(self, summary: Column, batch: Batch) -> Column:
        return self._last([summary, batch[self.column]])

    def _last(self, columns: list[Column]) -> Column:
        """The last `reach` rows of all, in memory of their own."""
        found: list[Column] = []
        need = self.reach
        for column in reversed(columns):
            n = min(need, len(column))
            if n:
                found.append(column.slice(len(column) - n, len(column)))
            need -= n
        whole = concat_columns(found[::-1]) if found else empty_column(self.kind)
        return owned(Batch({"x": whole}))["x"]

    def carried(self, summaries: list[Column]) -> list[Column]:
        found, before = [], empty_column(self.kind)
        for column in summaries:
            found.append(before)
            before = column if len(column) >= self.reach else self._last([before, column])
        return found

    def kept(self, carry: Column) -> Batch:
        return Batch({"x": carry})

    def taken_back(self, kept: Batch) -> Column:
        return kept["x"]

    def begin(self, carry: Column | None) -> Column:
        return empty_column(self.kind) if carry is None else carry

    def advance(self, state: Column, batch: Batch) -> tuple[Column, Column]:
        column = batch[self.column]
        both = concat_columns([state, column]) if len(state) else column
        return self.found(both, len(state)), self._last([state, column])

    @abstractmethod
    def found(self, column: Column, first: int) -> Column:
        """The new column for rows from `first` on."""


class Lag(_Behind):
    """The value of the row `rows` rows before, null where there is none. A `SurveyStep`."""

    name = "lag"

    def __init__(self, column: str, rows: int, new: str) -> None:
        check_rows(rows, self.name, 1)
        super().__init__(column, rows, new)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.column, self.reach, self.new)

    def found(self, column: Column, first: int) -> Column:
        return _at(column, np.arange(first, len(column)) - self.reach)


def _at(column: Column, rows: NDArray[np.int64]) -> Column:
    """The values at some rows, null where a row is not there. The column has a row at least."""
    there = (rows >= 0) & (rows < len(column))
    out = column.take(np.where(there, rows, 0))
    if not there.all():
        out.valid = there if out.valid is None else there & out.valid
    return out


class Lead(Ordered):
    """The value of the row `rows` rows behind, null where there is none. A `SurveyStep`.

    Notes
    -----
    Cost: the column is kept in memory on the rank that has its rows, between the two passes.
    """

    name = "lead"
    holds = True          # the column is kept by part: pieces must not change hands between the two passes

    def __init__(self, column: str, rows: int, new: str) -> None:
        check_rows(rows, self.name, 1)
        super().__init__(new)
        self.column, self.reach = column, rows

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.column, self.reach, self.new)

    def new_type(self, schema: Schema) -> ColumnType:
        self.kind = schema[self.column].type
        self._own: dict[tuple[int, int], Column] = {}
        return self.kind

    def fresh(self) -> list[Column]:
        return []

    def summed(self, summary: list[Column], batch: Batch) -> list[Column]:
        return [*summary, owned(batch.select([self.column]))[self.column]]

    def packed(self, summary: list[Column]) -> Column:
        return owned(Batch({"x": concat_columns(summary).slice(0, self.reach)}))["x"]

    def carried(self, summaries: list[Column]) -> list[Column]:
        found, behind = [], empty_column(self.kind)
        for column in reversed(summaries):
            found.append(behind)
            behind = concat_columns([column, behind]).slice(0, self.reach) if len(behind) else column
        return found[::-1]

    def settle(self, together: Collective) -> None:
        own = {part: concat_columns(columns) for part, columns in self._summaries.items()}
        super().settle(together)
        self._own = own

    def settled(self) -> None:
        """The column lies on the ranks by part, so that the first pass is done again."""
        return None

    def begin(self, carry: Column | None) -> tuple[list[Column], int]:
        own = self._own.get(self._part)
        return [c for c in (own, carry) if c is not None and len(c)], 0

    def advance(self, state: tuple[list[Column], int], batch: Batch) -> tuple[Column, tuple[list[Column], int]]:
        columns, at = state
        if len(columns) > 1:
            columns = [concat_columns(columns)]
        whole = columns[0] if columns else batch[self.column].slice(0, 1)
        rows = np.arange(at, at + batch.nrows, dtype=np.int64) + self.reach
        found = _at(whole, rows if columns else rows + 1)
        return found, (columns, at + batch.nrows)


class Window(_Behind):
    """An aggregate of each row and the ``rows - 1`` rows before it, fewer at the beginning. A `SurveyStep`.

    Sums and means of floats are exact and rounded once. Nulls are passed over; of nothing the result is null, but 0 for ``count``. NaN
    in the window makes it NaN.

    Parameters
    ----------
    column : str
    op : {"sum", "mean", "min", "max", "count"}
    rows : int
    new : str
        Name of the new column.
    """

    name = "window"

    def __init__(self, column: str, op: str, rows: int, new: str) -> None:
        check_rows(rows, self.name, 1)
        if op not in OPS:
            raise JobSpecError(f"window: there is no {op!r}; there are {', '.join(OPS)}")
        super().__init__(column, rows - 1, new)
        self.op, self.rows = op, rows

    def import_kernels(self) -> None:
        from hpcmr.kernels import quantile, window  # noqa: F401

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.column, self.op, self.rows, self.new)

    def new_type(self, schema: Schema) -> ColumnType:
        self.kind = schema[self.column].type
        if self.op == "count":
            return INT64
        if not self.kind.is_fixed or self.kind.shape or self.kind.np_dtype.kind not in "biuf":
            raise JobSpecError(f"window({self.column!r}, {self.op!r}) needs a column of numbers, and this one is {self.kind}")
        letter = self.kind.np_dtype.kind
        if self.op in ("min", "max"):
            return self.kind
        return ColumnType.fixed("float64" if self.op == "mean" or letter == "f" else "uint64" if letter == "u" else "int64")

    def found(self, column: Column, first: int) -> Column:
        counts = self._counts(column, first)
        if self.op == "count":
            return FixedColumn(counts)
        assert isinstance(column, FixedColumn)
        valid = None if column.valid is None or bool((counts > 0).all()) else counts > 0
        if self.op in ("min", "max"):
            return FixedColumn(self._extremes(column, first), valid)
        if self.out.np_dtype.kind == "f":
            return FixedColumn(self._floats(column, first), valid)
        return FixedColumn(self._integers(column, first), valid)

    def _counts(self, column: Column, first: int) -> NDArray[np.int64]:
        """Values in each row's window."""
        there = np.ones(len(column), np.int64) if column.valid is None else column.valid.astype(np.int64)
        return self._differences(np.cumsum(there), first)

    def _differences(self, running: NDArray[Any], first: int) -> NDArray[Any]:
        """What was added within each row's window to a running sum, modulo 2^64."""
        before = np.arange(first, len(running)) - self.rows
        out = running[first:].copy()
        inside = before >= 0
        out[inside] -= running[before[inside]]
        return out

    def _floats(self, column: FixedColumn, first: int) -> NDArray[np.float64]:
        from hpcmr.kernels.opcodes import DIGITS
        from hpcmr.kernels.window import moving_sums

        out = np.empty(len(column) - first)
        valid = ALL_VALID if column.valid is None else column.valid
        moving_sums(column.values.astype(np.float64, copy=False), valid, first, self.rows, self.op == "mean", out, np.zeros(3, np.uint64),
                    np.zeros((4, DIGITS), np.int64), np.zeros(1, np.int64))
        return out

    def _integers(self, column: FixedColumn, first: int) -> NDArray[Any]:
        dtype = self.out.np_dtype
        values = column.values.astype(dtype)
        if column.valid is not None:
            values[~column.valid] = 0
        out = self._differences(np.cumsum(values, dtype=dtype), first)
        # Running sums wrap, and what they differ by is right where it fits; floats tell where it does not.
        about = self._differences(np.cumsum(values.astype(np.longdouble)), first)
        bad = np.abs(about - out.astype(np.longdouble)) > 2.0 ** 62
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"window({self.column!r}, 'sum'): a sum of {self.rows:,} rows does not fit in {self.out}; use a float64 column",
                            record=self.row + row)
        return out

    def _extremes(self, column: FixedColumn, first: int) -> NDArray[Any]:
        from hpcmr.kernels.window import moving_least

        values, valid = column.values, column.valid
        words = np.zeros(len(values), np.uint64)
        numbers = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), np.bool_)
        words[numbers] = words_of(values)
        there = numbers if valid is None else numbers & valid
        rows = np.empty(len(values) - first, np.int64)
        moving_least(words if self.op == "min" else ~words, there, first, self.rows, np.empty(len(values), np.int64), rows)
        out = values[np.maximum(rows, 0)]
        if values.dtype.kind == "f":
            out = out + out.dtype.type(0)
            gone = ~numbers if valid is None else ~numbers & valid
            out[self._differences(np.cumsum(gone), first) > 0] = np.nan
        return out
