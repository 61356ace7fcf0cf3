"""The rows of each key brought together: as a list, as the list of distinct ones, or given to a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, Column, FixedColumn, ListColumn
from hpcmr.data.keys import KeyLayout
from hpcmr.data.python_values import ValueTrouble, cast_batch, columns_of_values, rows_of, values_like
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import HpcmrError, JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import UserFunction, plain_function, user_trace
from hpcmr.ops.keyed_rows import ORIGIN, Index, KeyedRows, sorted_groups
from hpcmr.ops.map import slow_notice

BUILT_IN_COMBINERS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "sum": lambda key, values: sum(values[1:], values[0]),
    "min": lambda key, values: min(values),
    "max": lambda key, values: max(values),
    "first": lambda key, values: values[0],
}


class GroupRows(KeyedRows):
    """One row for each key, made of the rows of the key in the order of the input. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
        Columns that make a group.
    finisher : {"list", "distinct"} or callable
        "list": each other column becomes a list. "distinct": the same without repeats; what counts as equal is the row of the other
        columns, and the first of equal rows stays in its place. A function ``f(key, values)`` gets the key (a named tuple for several
        columns) and the list of values (named tuples where there are several columns), and returns the column `value`, or a dict of
        columns.
    combiner : callable or {"sum", "min", "max", "first"}, optional
        ``f(key, values)`` that makes one value of a key's values within a split; the finisher then gets one value for each split,
        in the order of splits. For a function as finisher only.
    out : dict of str to type, optional
        Columns that the function makes; without it they are found by running it on a sample.
    """

    name = "group"

    def __init__(self, keys: tuple[str, ...], finisher: str | Callable[..., Any] = "list", combiner: str | Callable[..., Any] | None = None,
                 out: Mapping[str, Any] | Schema | None = None) -> None:
        super().__init__(keys)
        self.function: UserFunction | None = None
        self.combiner: UserFunction | None = None
        if callable(finisher):
            self.function = _plain_only(finisher, "a reducer", out)
        elif finisher not in ("list", "distinct"):
            raise JobSpecError(f"group cannot finish with {finisher!r}; it makes 'list', 'distinct', or what a function f(key, values) returns")
        self.finisher = "function" if callable(finisher) else finisher
        if combiner is not None:
            if self.function is None:
                raise JobSpecError(f"a combiner goes with a reducer of yours, not with {finisher!r}")
            if isinstance(combiner, str) and combiner not in BUILT_IN_COMBINERS:
                raise JobSpecError(f"there is no built-in combiner {combiner!r}; there are {', '.join(BUILT_IN_COMBINERS)}")
            self.combiner = _plain_only(BUILT_IN_COMBINERS[combiner] if isinstance(combiner, str) else combiner, "a combiner", None)
        self.combines = "any" if finisher == "distinct" else "split" if self.combiner is not None else None
        self.made: Schema | None = None

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.function) if self.function is not None else None

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.keys, self.finisher, *(f.fingerprint() if f is not None else None for f in (self.function, self.combiner)))

    # ---- schema --------------------------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema | None:
        """The output schema; None where a function's columns are not declared: then `infer` and `fix` follow, as for steps."""
        self.values = self.bind_rows(schema)
        if not len(self.values):
            raise JobSpecError(f"group of {', '.join(self.keys)}: there is no other column whose values could be brought together")
        self.made = self.function.out if self.function is not None else self.values
        if self.finisher == "distinct":
            self.distinct_layout = KeyLayout.of(schema, (*self.keys, *self.value_names))
        return self.out_schema() if self.made is not None else None

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        if self.made is None and sample.nrows:
            rows = Batch({**sample.columns, ORIGIN: FixedColumn(np.arange(sample.nrows, dtype=np.uint64))})
            order, starts = self.groups(rows)
            found = self._reduced(rows, order, starts[:257])
            self.made = Schema(tuple(f for f in found.schema if f.name not in self.keys))
            return self.out_schema()
        return self.out_schema() if self.made is not None else None

    def fix(self, schema: Schema) -> None:
        self.made = Schema(tuple(f for f in schema if f.name not in self.keys)) if self.function is not None else self.made

    def out_schema(self) -> Schema:
        assert self.made is not None
        keys = tuple(Field(n, self.schema[n].type, self.schema[n].attrs) for n in self.keys)
        if self.function is not None:
            taken = next((f.name for f in self.made if f.name in self.keys), None)
            if taken is not None:
                raise JobSpecError(f"{self.function.label} returns the column {taken!r}, which is a key of the group; give it another name")
            return Schema(keys + self.made.fields)
        return Schema(keys + tuple(Field(f.name, ColumnType("list", item=f.type), f.attrs) for f in self.made))

    # ---- rows ----------------------------------------------------------------------------------------------------------

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        if self.finisher == "distinct":
            return rows.take(np.sort(self._first_of_equals(rows)))
        assert self.combiner is not None
        found = self._called(self.combiner, rows, order, starts)
        values = made_like(self.combiner, found, self.values)
        firsts = rows.select((*self.keys, ORIGIN)).take(order[starts[:-1]])
        return Batch({n: (firsts if n in firsts.columns else values)[n] for n in (*self.schema.names, ORIGIN)})

    def _first_of_equals(self, rows: Batch) -> Index:
        """Of each set of rows that are equal in all columns, the one that came first."""
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        order, starts = sorted_groups(rows, self.distinct_layout, origin.values)
        return order[starts[:-1]]

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        if self.function is not None:
            return self._reduced(rows, order, starts)
        if self.finisher == "distinct":
            rows = rows.take(self._first_of_equals(rows))
            order, starts = self.groups(rows)
        sorted_values = rows.select(self.value_names).take(order)
        lists: dict[str, Column] = {n: ListColumn(starts[:-1], starts[1:], c) for n, c in sorted_values.columns.items()}
        return Batch({**self.firsts(rows, order, starts).columns, **lists})

    @property
    def object_nbytes(self) -> int:
        return self.python_nbytes(len(self.value_names)) if self.function is not None else 0

    # ---- functions -----------------------------------------------------------------------------------------------------

    def _called(self, function: UserFunction, rows: Batch, order: Index, starts: Index) -> list[Any]:
        """The function's result for each group."""
        keys = rows_of(self.firsts(rows, order, starts))
        values = rows_of(rows.select(self.value_names).take(order[:int(starts[-1])]))
        bounds = starts.tolist()
        results: list[Any] = []
        try:
            for key, a, b in zip(keys, bounds[:-1], bounds[1:], strict=True):
                results.append(function.fn(key, values[a:b]))
        except HpcmrError:
            raise
        except Exception as error:
            raise function.fail(f"{type(error).__name__}: {error}, for key {keys[len(results)]!r}", None, user_trace()) from error
        return results

    def _reduced(self, rows: Batch, order: Index, starts: Index) -> Batch:
        assert self.function is not None
        results = self._called(self.function, rows, order, starts)
        firsts = self.firsts(rows, order, starts)
        try:
            made = columns_of_values(results, "value", self.function.out)
            if self.made is not None:
                made = cast_batch(made, self.made, self.function.out is not None)
        except ValueTrouble as trouble:
            raise self.function.fail(f"{trouble.message}, for key {rows_of(firsts)[trouble.index]!r}") from None
        return Batch({**firsts.columns, **made.columns})


def _plain_only(function: Callable[..., Any], role: str, out: Mapping[str, Any] | Schema | None) -> UserFunction:
    made = plain_function(function, out)
    if made.kind != "plain":
        raise JobSpecError(f"{made.label}: {role} f(key, values) is a plain Python function; "
                           "for the compiled speed use reduce_by_key with a kernel f(a, b)")
    return made


def made_like(function: UserFunction, values: list[Any], schema: Schema) -> Batch:
    """What a combiner or a fold returned, as the value columns that it must fit."""
    try:
        return values_like(values, schema)
    except ValueTrouble as trouble:
        raise function.fail(f"{trouble.message} (what it returns takes the place of the values)") from None
