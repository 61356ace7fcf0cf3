"""Arrays that lie in the memory of the ranks: the rows of rank 0, then those of rank 1, and so on.

The rows are dealt out already, so nothing is: a split is a fixed range of *global* rows, and each rank reads the part of it that it
holds. Where the ranks' arrays end does not show in the result::

    rank          |------ 0 ------|--- 1 ---|------- 2 -------|
    split         |---- 0 ----|---- 1 ----|---- 2 ----|-- 3 --|      rank 1 reads the end of split 1 and the beginning of split 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn, column_of, empty_column
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.data.source import BATCH_NBYTES, SPLIT_NBYTES, Split
from hpcmr.errors import DataError, InputError

Allgather = Callable[[Any], list[Any]]
NULLS = "nulls only"
"""What stands for the type of a column that holds nothing but None, or no row: it takes the type of the other ranks."""


class ArraySource:
    """Columns in memory, a part on each rank.

    Parameters
    ----------
    world : object with an attribute `rank`
        The ranks that hold the rows.
    columns : mapping of str to array
        This rank's part: arrays ``(n_local, *shape)``, masked arrays (masked is null), lists of str, bytes, numbers or lists of these.
        They are not copied, and not looked at before the survey.
    split_nbytes, batch_nbytes : int
        Bytes of a split and of a batch; results do not depend on the second one.

    Notes
    -----
    `distributed`: the engine calls `survey_distributed` on every rank instead of `survey` on one, deals nothing out, and takes the first
    row of a split's batches from `origin_row`.
    """

    name = "arrays"
    distributed = True

    def __init__(self, world: Any, columns: Mapping[str, Any], *, split_nbytes: int = SPLIT_NBYTES, batch_nbytes: int = BATCH_NBYTES) -> None:
        self.rank = int(world.rank)
        self.given = dict(columns)
        self.split_nbytes = split_nbytes
        self.batch_nbytes = batch_nbytes
        self._batch: Batch | None = None
        self._row_nbytes = 1

    def fingerprint(self) -> tuple[Any, ...]:
        """Names only: what the arrays hold differs from rank to rank, and is never restarted from."""
        return ("arrays", tuple(map(str, self.given)), self.split_nbytes)

    def survey_distributed(self, allgather: Allgather) -> tuple[Schema, list[Split]]:
        """Agree on types and lengths with the other ranks.

        Parameters
        ----------
        allgather : callable
            Gives every rank the list of what each rank passed to it, in rank order.

        Returns
        -------
        Schema, list of Split
            The schema of all ranks, and the splits of which *this* rank holds rows.

        Raises
        ------
        InputError
            On all ranks alike: columns of unequal length, or of an unsupported type, or that differ from rank to rank.

        Notes
        -----
        Collective: yes. Cost: one allgather of names, types and lengths.
        """
        self._batch, counts, self._row_nbytes = agree_on_columns(self.given, allgather)
        schema = self._batch.schema
        return schema, local_pieces(self.rank, counts, max(1, self.split_nbytes // self._row_nbytes), self._row_nbytes)

    def survey(self) -> tuple[Schema, list[Split]]:
        """The same where there is one rank."""
        return self.survey_distributed(lambda state: [state])

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        """Nothing to keep: `survey_distributed` ran on this rank."""

    def origin_row(self, split: Split) -> int:
        """Row within the split at which this rank's part of it begins."""
        return int(split.part[2])

    def read(self, split: Split) -> Iterator[Batch]:
        """Views on this rank's arrays, or copies of them where they are not contiguous or may not be written to."""
        assert self._batch is not None, "survey_distributed() comes before read()"
        start, stop, _ = split.part
        step = max(1, self.batch_nbytes // self._row_nbytes)
        for a in range(start, stop, step):
            part = self._batch.slice(a, min(stop, a + step))
            yield Batch({n: _tidy(c) for n, c in part.columns.items()}, part.nrows)

    def close(self) -> None:
        """Nothing is open."""


def agree_on_columns(given: Mapping[str, Any], allgather: Allgather, call: str = "from_arrays") -> tuple[Batch, list[int], int]:
    """This rank's columns in the types that all ranks agree on, the rows of every rank, and the bytes of a row on average.

    Raises
    ------
    InputError
        On all ranks alike, with the name of the `call`; see `ArraySource.survey_distributed`.

    Notes
    -----
    Collective: yes. Cost: one allgather of names, types and lengths.
    """
    error, batch = "", Batch({})
    try:
        batch = local_batch(given)
    except DataError as reason:
        error = str(reason)
    states = allgather((error, [(n, _type_text(c), _data_nbytes(c)) for n, c in batch.columns.items()], batch.nrows))
    for rank, (what, _, _) in enumerate(states):
        if what:
            raise InputError(f"{call}: {what} (on rank {rank})", rank=rank)
    schema = _common_schema([state[1] for state in states], call)
    counts = [int(state[2]) for state in states]
    fixed = sum(f.type.row_nbytes for f in schema)
    data = sum(nbytes for _, columns, _ in states for _, _, nbytes in columns)
    common = Batch({f.name: _as_type(batch.columns[f.name], f.type) for f in schema}, batch.nrows)
    return common, counts, max(1, fixed + -(-data // max(1, sum(counts))))


def local_pieces(rank: int, counts: Sequence[int], rows: int, row_nbytes: int = 1) -> list[Split]:
    """The splits of `rows` global rows each of which a rank holds some.

    Parameters
    ----------
    rank : int
    counts : sequence of int
        Rows that each rank holds.
    rows : int
        Rows of a split.
    row_nbytes : int
        Bytes of a row.

    Returns
    -------
    list of Split
        ``part`` is (first local row, last local row + 1, row within the split of the first one).
    """
    begin = sum(counts[:rank])
    end = begin + counts[rank]
    found = []
    for index in range(begin // rows, -(-end // rows) if end > begin else 0):
        a, b = max(begin, index * rows), min(end, (index + 1) * rows)
        found.append(Split(index, (b - a) * row_nbytes, f"from_arrays[{a}:{b}] on rank {rank}", (a - begin, b - begin, a - index * rows)))
    return found


def local_batch(given: Mapping[str, Any]) -> Batch:
    """The columns of arrays and lists. Raises `DataError` where they are none."""
    if not isinstance(given, Mapping):
        raise DataError(f"columns are given as a dict of arrays, {{'name': array}}, not as {type(given).__name__}")
    columns: dict[str, Column] = {}
    for name, values in given.items():
        if not isinstance(name, str):
            raise DataError(f"the name of a column is a string, not {name!r}")
        if np.isscalar(values) or values is None or isinstance(values, Mapping | set | frozenset):
            raise DataError(f"column {name!r} is a {type(values).__name__}; give an array, or a list of values, one for each row")
        try:
            columns[name] = column_of(values)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"column {name!r}: {error}") from None
    if not columns:
        raise DataError("there is no column; give at least one, {'name': array}")
    return Batch(columns)


def _type_text(column: Column) -> str:
    nothing = isinstance(column, FixedColumn) and column.values.shape == (len(column),) and (
        len(column) == 0 or (column.valid is not None and not column.valid.any()))
    return f"{NULLS} {column.type}" if nothing else str(column.type)


def _data_nbytes(column: Column) -> int:
    """Bytes of what is not of a fixed width: its places are counted by the width of the row."""
    if isinstance(column, BytesColumn):
        return int((column.ends - column.starts).sum())
    return column.nbytes - 16 * len(column) if isinstance(column, ListColumn) else 0


def _common_schema(ranks: list[list[tuple[str, str, int]]], call: str) -> Schema:
    """Names and types of all ranks; a rank without rows, or with nothing but nulls, does not have a say."""
    names = [n for n, _, _ in ranks[0]]
    for rank, columns in enumerate(ranks):
        if [n for n, _, _ in columns] != names:
            raise InputError(f"{call}: the columns are {', '.join(map(repr, names))} on rank 0 and {', '.join(repr(n) for n, _, _ in columns)} "
                             f"on rank {rank}; give all ranks the same names in the same order, also those without rows")
    fields = []
    for i, name in enumerate(names):
        said: list[tuple[int, ColumnType]] = []
        for rank, columns in enumerate(ranks):
            if not columns[i][1].startswith(NULLS):
                said.append((rank, ColumnType.parse(columns[i][1])))
        kind = said[0][1] if said else ColumnType.parse(ranks[0][i][1].removeprefix(NULLS).strip())
        for rank, other in said:
            if other != kind and _is_bytes_n(kind) and _is_bytes_n(other) and kind.shape == other.shape:
                kind = max(kind, other, key=lambda t: t.np_dtype.itemsize)
            elif other != kind:
                raise InputError(f"{call}: column {name!r} is {said[0][1]} on rank {said[0][0]} and {other} on rank {rank}; "
                                 "convert it to one type")
        fields.append(Field(name, kind))
    return Schema(tuple(fields))


def _is_bytes_n(kind: ColumnType) -> bool:
    return kind.is_fixed and kind.np_dtype.kind == "S"


def _as_type(column: Column, kind: ColumnType) -> Column:
    """The column in the type of all ranks: wider bytes, or nulls of another type."""
    if column.type == kind:
        return column
    if _is_bytes_n(kind) and isinstance(column, FixedColumn) and _is_bytes_n(column.type):
        return FixedColumn(column.values.astype(kind.np_dtype), column.valid)
    n = len(column)
    if kind.is_fixed:
        return FixedColumn(np.zeros((n, *kind.shape), kind.np_dtype), column.valid)
    empty, nowhere = empty_column(kind), np.zeros(n, np.int64)
    if isinstance(empty, BytesColumn):
        return BytesColumn(nowhere, nowhere, empty.data, empty.text, column.valid)
    assert isinstance(empty, ListColumn)
    return ListColumn(nowhere, nowhere, empty.child, column.valid)


def _tidy(column: Column) -> Column:
    """Kernels take arrays that are contiguous and may be written to."""
    if isinstance(column, FixedColumn) and not (column.values.flags.c_contiguous and column.values.flags.writeable):
        return FixedColumn(column.values.copy(order="C"), column.valid)
    return column
