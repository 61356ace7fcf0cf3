"""A function of the user's that is given all rows of a key: ``group_by(...).apply(f)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, Column, FixedColumn, column_of
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.python_values import ValueTrouble, cast_batch, columns_of_values, describe, rows_of
from hpcmr.data.schema import Field, Schema
from hpcmr.data.sort_keys import SortLayout, directions
from hpcmr.errors import DataError, HpcmrError, JobSpecError
from hpcmr.ops.contract import Origin, StageContext
from hpcmr.ops.external_groups import SortedRuns, too_large
from hpcmr.ops.functions import Columns, UserFunction, plain_function, user_trace
from hpcmr.ops.keyed_rows import ORIGIN, KeyedRows, group_starts, owned
from hpcmr.ops.map import slow_notice

BLOCK_ROWS = 65536           # of a group, what a function with `blocks` gets at a time
FLUSH_NBYTES = 1 << 20       # results are given on when there is so much of them
SAMPLE_GROUPS = 16


class ApplyGroups(KeyedRows):
    """What a function makes of the rows of each key: any number of rows. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    function : callable or UserFunction
        Batch: ``f(cols)`` with all columns of the group's rows; returns a dict of arrays (or of scalars, for one row).
        Plain: ``f(key, rows)`` with the key (a named tuple of several) and the list of the other columns' values (named tuples where
        there are several); returns a value (column `value`) or a dict of columns: one row.
        A generator function yields as many such results as it likes, each of which is given on.
    order_by : tuple of str
        Columns that the rows of a group are sorted by; rows that are equal in them stay in the order of the input.
    descending : bool or sequence of bool
        For all of `order_by`, or for each.
    blocks : bool
        The function gets an iterator of blocks of the group in place of the whole: of columns (batch), or of lists of rows (plain).
        Then a group may be larger than memory.
    out : dict of str to type, optional
        Columns that it makes, without the keys; found by running it on a sample if not given.
    """

    name = "apply"
    round_share = 12             # of the budget: what is spilled comes back in pieces of about this size

    def __init__(self, keys: tuple[str, ...], function: Callable[..., Any], order_by: tuple[str, ...] = (), descending: Any = False,
                 blocks: bool = False, out: Mapping[str, Any] | Schema | None = None) -> None:
        super().__init__(keys)
        self.function: UserFunction = plain_function(function, out)
        if self.function.kind == "kernel":
            raise JobSpecError(f"{self.function.label}: apply takes a plain function f(key, rows) or a batch function f(cols); "
                               "a compiled function of a group is an aggregate: agg(y=mr.apply(f, 'x'))")
        self.order_by, self.descending = tuple(order_by), directions(order_by, descending)
        self.blocks = blocks
        self.made: Schema | None = None
        self.runs: dict[int, SortedRuns] = {}

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.function) if self.function.kind == "plain" else None

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.keys, self.order_by, self.descending, self.blocks, self.function.fingerprint())

    # ---- schema --------------------------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema | None:
        self.values = self.bind_rows(schema)
        SortLayout.of(schema, self.order_by, self.descending)              # raises where a column cannot be sorted by
        if self.function.kind == "plain" and not len(self.values):
            raise JobSpecError(f"apply by {', '.join(self.keys)}: there is no other column whose values could be brought together")
        self.made = self.function.out
        return self.out_schema() if self.made is not None else None

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        if self.made is None and sample.nrows:
            rows = Batch({**sample.columns, ORIGIN: FixedColumn(np.arange(sample.nrows, dtype=np.uint64))})
            order, starts = self.groups(rows)
            few = rows.take(order[:int(starts[min(SAMPLE_GROUPS, len(starts) - 1)])])
            found = list(self._results(iter([few])))
            if found:
                self.made = Schema(tuple(f for f in found[0].schema if f.name not in self.keys))
        return self.out_schema() if self.made is not None else None

    def fix(self, schema: Schema) -> None:
        self.made = Schema(tuple(f for f in schema if f.name not in self.keys))

    def out_schema(self) -> Schema:
        assert self.made is not None
        taken = next((f.name for f in self.made if f.name in self.keys), None)
        if taken is not None:
            raise JobSpecError(f"{self.function.label} returns the column {taken!r}, which is a key of the group; give it another name")
        return Schema(tuple(Field(n, self.schema[n].type, self.schema[n].attrs) for n in self.keys) + self.made.fields)

    # ---- rows ----------------------------------------------------------------------------------------------------------

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        super().open(ctx, estimate)
        self.runs = {}

    def bring(self, partition: int, nbytes: int, read: Callable[[int], Iterable[Partitioned]]) -> None:
        """Take a partition that is too large to be merged: `read` gives its rows in pieces of at most so many bytes."""
        runs = self.runs[partition] = SortedRuns(self.ctx, lambda rows: self.groups(rows)[0])
        runs.sort(nbytes, read)

    def finish(self, partition: int) -> Batch:
        found = [owned(b) for b in self.finish_blocks(partition)]
        return Batch.concat(found) if found else Batch.empty(self.out_schema())

    def finish_blocks(self, partition: int) -> Iterator[Batch]:
        """What the function makes of the partition's groups, in key order, some groups at a time."""
        if partition in self.runs:
            yield from self._results(self._counted(self.runs.pop(partition).merged()))
            return
        rows = self.take_rows(partition)
        if rows is not None:
            self.rows_out += rows.nrows
            order, _ = self.groups(rows)
            yield from self._results(iter([rows.take(order)]))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.rows_out += batch.nrows
            yield batch

    def close(self) -> None:
        for runs in self.runs.values():
            runs.drop()
        self.runs = {}
        super().close()

    # ---- groups --------------------------------------------------------------------------------------------------------

    def _stretches(self, batches: Iterator[Batch]) -> Iterator[tuple[bool, Batch]]:
        """Sorted rows cut where the key changes: whether a group begins, and rows of one group."""
        last: Batch | None = None
        for batch in batches:
            keys = batch.select(self.keys)
            goes_on = last is not None and len(group_starts(Batch.concat([last, keys.slice(0, 1)]), self.layout)) == 2
            for a, b in pairwise(group_starts(keys, self.layout).tolist()):
                yield a > 0 or not goes_on, batch.slice(a, b)
            last = owned(keys.slice(batch.nrows - 1, batch.nrows))

    def _results(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The function's results for sorted rows, with the keys in front."""
        stretches = self._stretches(batches)
        keys: list[Batch] = []
        found: list[Any] = []
        groups: list[int] = []                 # number of the key that each result is of
        nbytes = 0
        ahead = next(stretches, None)
        while ahead is not None:
            group = _Group(ahead[1], stretches)
            keys.append(owned(ahead[1].select(self.keys).slice(0, 1)))
            for result, size in self._called(group):
                found.append(result)
                groups.append(len(keys) - 1)
                nbytes += size
                if nbytes > FLUSH_NBYTES:
                    yield self._made(keys, groups, found)
                    keys, groups, found, nbytes = keys[-1:], [], [], 0
            ahead = group.rest()
        if found:
            yield self._made(keys, groups, found)

    def _called(self, group: _Group) -> Iterator[tuple[Any, int]]:
        """What the function returns or yields for a group, and about how many bytes that is."""
        key = _Shown(group.first.select(self.keys).slice(0, 1))
        arguments = self._arguments(group, key)
        try:
            result = self.function.fn(*arguments)
            for one in result if inspect.isgenerator(result) else (result,):
                if self.function.kind == "batch":
                    made = self._columns(one, key)
                    yield made, made.nbytes
                else:
                    yield one, 256
        except (HpcmrError, GeneratorExit):
            raise
        except Exception as error:
            raise self.function.fail(f"{type(error).__name__}: {error}, for key {key}", None, user_trace()) from error

    def _arguments(self, group: _Group, key: _Shown) -> tuple[Any, ...]:
        blocks = (b.slice(a, a + BLOCK_ROWS) for b in group.blocks() for a in range(0, b.nrows, BLOCK_ROWS))
        if self.function.kind == "batch":
            return ((Columns(self._seen(b)) for b in blocks) if self.blocks else Columns(self._seen(self._whole(group, key))),)
        if self.blocks:
            return key.value, (rows_of(b.select(self.value_names)) for b in blocks)
        return key.value, rows_of(self._whole(group, key).select(self.value_names))

    def _seen(self, rows: Batch) -> Batch:
        return rows.select(n for n in rows.names if n != ORIGIN)

    def _whole(self, group: _Group, key: _Shown) -> Batch:
        """All rows of a group."""
        blocks: list[Batch] = []
        nbytes = 0
        for block in group.blocks():
            blocks.append(block)
            nbytes += block.nbytes
            if len(blocks) > 1 and hasattr(self, "ctx") and 2 * nbytes > self.ctx.available():
                raise too_large(key.value, nbytes)
        return Batch.concat(blocks)

    # ---- results -------------------------------------------------------------------------------------------------------

    def _columns(self, found: Any, key: _Shown) -> Batch:
        """A batch function's result; scalars stand for a row, or for all rows beside arrays."""
        if not isinstance(found, Mapping) or not found:
            raise self.function.fail(f"returned {describe(found)}, for key {key}; a batch function returns a dict of arrays")
        lengths = {len(v) for v in found.values() if not _is_scalar(v)}
        n = lengths.pop() if lengths else 1
        if lengths:
            raise self.function.fail(f"returned columns of unequal length, for key {key}")
        columns: dict[str, Column] = {}
        for name, value in found.items():
            try:
                columns[str(name)] = column_of([value] * n if isinstance(value, str | bytes) else np.full(n, value) if _is_scalar(value) else value)
            except (DataError, TypeError, ValueError) as error:
                raise self.function.fail(f"column {name!r}: {error}, for key {key}") from None
        try:
            batch = owned(Batch(columns, n))
            return batch if self.made is None else cast_batch(batch, self.made, self.function.out is not None)
        except ValueTrouble as trouble:
            raise self.function.fail(f"{trouble.message}, for key {key}") from None

    def _made(self, keys: list[Batch], groups: list[int], found: list[Any]) -> Batch:
        numbers = np.array(groups, np.int64)
        if self.function.kind == "batch":
            made = Batch.concat(found)
            numbers = np.repeat(numbers, [b.nrows for b in found])
        else:
            try:
                made = columns_of_values(found, "value", self.function.out)
                if self.made is not None:
                    made = cast_batch(made, self.made, self.function.out is not None)
            except ValueTrouble as trouble:
                key = _Shown(keys[groups[trouble.index]])
                raise self.function.fail(f"{trouble.message}, for key {key}") from None
        return Batch({**Batch.concat(keys).take(numbers).columns, **made.columns}, made.nrows)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | complex | str | bytes | np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)


class _Shown:
    """A key as Python sees it, made when it is asked for."""

    def __init__(self, row: Batch) -> None:
        self._row = row

    @property
    def value(self) -> Any:
        return rows_of(self._row)[0]

    def __str__(self) -> str:
        return repr(self.value)


class _Group:
    """The stretches of one group, read as far as somebody asks; `rest` reads on to the next group."""

    def __init__(self, first: Batch, stretches: Iterator[tuple[bool, Batch]]) -> None:
        self.first = first
        self._stretches = stretches
        self._next: tuple[bool, Batch] | None = None
        self._ended = False

    def blocks(self) -> Iterator[Batch]:
        yield self.first
        while not self._ended:
            found = next(self._stretches, None)
            if found is None or found[0]:
                self._next, self._ended = found, True
                return
            yield found[1]

    def rest(self) -> tuple[bool, Batch] | None:
        while not self._ended:
            found = next(self._stretches, None)
            if found is None or found[0]:
                self._next, self._ended = found, True
        return self._next
