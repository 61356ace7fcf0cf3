"""The place of each row among sorted rows: ``rank``, ``dense_rank``, ``row_number``, over a table or within its groups.

Rows must stand in order already: rows that are equal in the columns ranked by stand together. Places count from 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.schema import INT64, ColumnType, Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.ordered import Ordered

METHODS = ("rank", "dense_rank", "row_number")
Mask = NDArray[np.bool_]
Key = tuple[Any, ...]


class Place(NamedTuple):
    """Where a row stands: rows so far, different ones so far, the number of the first of the equal ones, and what they are."""

    rows: int = 0
    runs: int = 0
    start: int = 0
    key: Key | None = None


class Run(NamedTuple):
    """Summary of a part: rows, runs of equal rows, the first and last of them, and how many rows stand before the last run."""

    rows: int
    runs: int
    first: Key | None
    last: Key | None
    start: int


class Rank(Ordered):
    """A further int64 column with the place of each row of a sorted table. A `SurveyStep`.

    Parameters
    ----------
    columns : tuple of str
        Rows that are equal here stand at one place (``rank``: with gaps behind, ``dense_rank``: without).
    method : {"rank", "dense_rank", "row_number"}
    new : str
        Name of the new column.
    """

    name = "rank"

    def __init__(self, columns: tuple[str, ...], method: str = "rank", new: str = "rank") -> None:
        super().__init__(new)
        check_method(method)
        if not columns and method != "row_number":
            raise JobSpecError(f"{method}: name the columns that the table is sorted by")
        self.columns, self.method = tuple(columns), method

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.columns, self.method, self.new)

    def new_type(self, schema: Schema) -> ColumnType:
        check_columns(schema, self.columns, self.method)
        return INT64

    def fresh(self) -> Run:
        return Run(0, 0, None, None, 0)

    def summed(self, summary: Run, batch: Batch) -> Run:
        begins = begins_of(batch, self.columns, summary.last if summary.rows else None, summary.rows > 0)
        places = np.flatnonzero(begins)
        start = summary.rows + int(places[-1]) if len(places) else summary.start
        first = key_of(batch, self.columns, 0) if not summary.rows else summary.first
        return Run(summary.rows + batch.nrows, summary.runs + len(places), first, key_of(batch, self.columns, batch.nrows - 1), start)

    def carried(self, summaries: list[Run]) -> list[Place]:
        found, at = [], Place()
        for run in summaries:
            found.append(at)
            if run.rows:
                joined = at.rows > 0 and at.key == run.first
                start = at.start if joined and run.runs == 1 else at.rows + run.start
                at = Place(at.rows + run.rows, at.runs + run.runs - joined, start, run.last)
        return found

    def kept(self, carry: Place) -> Any:
        return tuple(carry)

    def taken_back(self, kept: Any) -> Place:
        return Place(*kept)

    def begin(self, carry: Place | None) -> Place:
        return carry or Place()

    def advance(self, state: Place, batch: Batch) -> tuple[FixedColumn, Place]:
        return placed(batch, begins_of(batch, self.columns, state.key, state.rows > 0), state, self.method, self.columns)


class RankInGroups:
    """The same within each group, for rows that come group by group, sorted within, with all rows of a group in one piece. A `Step`.

    Parameters
    ----------
    keys : tuple of str
        Columns that make a group.
    columns : tuple of str
        What its rows are sorted by.
    method, new : str
        See `Rank`.
    """

    name = "rank"
    repeatable = True

    def __init__(self, keys: tuple[str, ...], columns: tuple[str, ...], method: str = "rank", new: str = "rank") -> None:
        check_method(method)
        if not columns and method != "row_number":
            raise JobSpecError(f"{method} within groups: say what their rows are ordered by, group_by({', '.join(map(repr, keys))}, order_by=...)")
        self.keys, self.columns, self.method, self.new = tuple(keys), tuple(columns), method, new
        self._at = (-1, -1)
        self._group: Key | None = None
        self._state = Place()

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.keys, self.columns, self.method, self.new)

    def bind(self, schema: Schema) -> Schema:
        self._at = (-1, -1)
        if self.new in schema:
            raise JobSpecError(f"{self.method}: there is a column {self.new!r} already; give the new one another name")
        check_columns(schema, (*self.keys, *self.columns), self.method)
        return Schema((*schema.fields, Field(self.new, INT64)))

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to keep."""

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return names

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        if (origin.split, origin.row) != self._at:
            self._group, self._state = None, Place()
        self._at = (origin.split, origin.row + batch.nrows)
        groups = begins_of(batch, self.keys, self._group, self._state.rows > 0)
        begins = groups | begins_of(batch, self.columns, self._state.key, self._state.rows > 0)
        column, state = placed(batch, begins, self._state, self.method, self.columns, groups)
        self._group, self._state = key_of(batch, self.keys, batch.nrows - 1), state
        return Batch({**batch.columns, self.new: column}, batch.nrows)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise JobSpecError(f"rank: there is no method {method!r}; there are {', '.join(METHODS)}")


def check_columns(schema: Schema, columns: tuple[str, ...], verb: str) -> None:
    for name in columns:
        kind = schema[name].type
        if kind.kind == "list" or kind.shape:
            raise JobSpecError(f"{verb}: column {name!r} is {kind}; rows are ranked by numbers, dates, bytes and text")


def placed(batch: Batch, begins: Mask, state: Place, method: str, columns: tuple[str, ...], groups: Mask | None = None) -> tuple[FixedColumn, Place]:
    """Places of the rows, of which `begins` says where one differs from the row before, and `groups` where counting begins anew."""
    rows = np.arange(state.rows, state.rows + batch.nrows, dtype=np.int64)
    starts = np.maximum.accumulate(np.where(begins, rows, state.start))
    runs = state.runs + np.cumsum(begins)
    base: Any = np.zeros(1, np.int64)
    runs_base: Any = base
    if groups is not None and groups.any():
        # Rows and runs before each group; the state's group begins at 0.
        base = np.maximum.accumulate(np.where(groups, rows, 0))
        runs_base = np.maximum.accumulate(np.where(groups, runs - 1, 0))
    found = {"row_number": rows - base, "rank": starts - base, "dense_rank": runs - 1 - runs_base}[method] + 1
    rows_before, runs_before = int(base[-1]), int(runs_base[-1])
    last = Place(int(rows[-1]) + 1 - rows_before, int(runs[-1]) - runs_before, int(starts[-1]) - rows_before,
                 key_of(batch, columns, batch.nrows - 1))
    return FixedColumn(np.ascontiguousarray(found, np.int64)), last


def begins_of(batch: Batch, columns: tuple[str, ...], before: Key | None, has_before: bool) -> Mask:
    """``(n,) bool``: where a row differs from the one before it; the first from the row with the key `before`, if there is one."""
    out = np.zeros(batch.nrows, np.bool_)
    out[0] = not has_before or before != key_of(batch, columns, 0)
    for name in columns:
        out[1:] |= _differs(batch[name])
    return out


def _differs(column: Column) -> Mask:
    """``(n - 1,) bool``: whether a value differs from the one before it. All NaN are equal, and so are all nulls."""
    assert not isinstance(column, ListColumn)
    found: Mask
    if isinstance(column, BytesColumn):
        lengths = column.ends - column.starts
        found = lengths[1:] != lengths[:-1]
        same = np.flatnonzero(~found)
        if len(same):
            found[same] = _bytes_differ(column, same, lengths)
    else:
        values = column.values
        found = values[1:] != values[:-1]
        if values.dtype.kind == "f":
            found &= ~(np.isnan(values[1:]) & np.isnan(values[:-1]))
    if column.valid is not None:
        a, b = column.valid[:-1], column.valid[1:]
        found = (found & a & b) | (a != b)
    return found


def _bytes_differ(column: BytesColumn, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Mask:
    """Whether strings of equal length, at `rows` and behind them, differ: all their bytes are compared at once."""
    sizes = lengths[rows]
    ends = np.cumsum(sizes)
    at = np.arange(int(ends[-1])) - np.repeat(ends - sizes, sizes)
    unequal = column.data[np.repeat(column.starts[rows], sizes) + at] != column.data[np.repeat(column.starts[rows + 1], sizes) + at]
    counts = np.concatenate([[0], np.cumsum(unequal)])
    found: Mask = counts[ends] != counts[ends - sizes]
    return found


def key_of(batch: Batch, columns: tuple[str, ...], row: int) -> Key:
    """The row's values as plain ones that compare as rows do; a float is its text, so that NaN equals NaN."""
    found: list[Any] = []
    for name in columns:
        column = batch[name]
        if column.valid is not None and not column.valid[row]:
            found.append(None)
        elif isinstance(column, BytesColumn):
            found.append(column.data[int(column.starts[row]):int(column.ends[row])].tobytes())
        else:
            assert isinstance(column, FixedColumn)
            value, letter = column.values[row], column.values.dtype.kind
            found.append(repr(float(value) + 0.0) if letter == "f" else value.tobytes() if letter in "SmMc" else int(value))
    return tuple(found)
