"""`Grouped`: rows by key, between `group_by` and what is done with each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.base import Function, Out, name_of
from hpcmr.api.expressions import add_columns
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg

if TYPE_CHECKING:
    from hpcmr.api.base import TableBase
    from hpcmr.api.table import Table


class Grouped:
    """Rows by key: what `Table.group_by` gives.

    Keys that are expressions are hidden columns of the table; `_names` tells what they are called in what comes out.
    """

    __slots__ = ("_descending", "_keys", "_names", "_order_by", "_table")

    def __init__(self, table: TableBase, keys: tuple[str, ...], names: dict[str, str] | None = None, order_by: tuple[str, ...] = (),
                 descending: bool | Sequence[bool] = False) -> None:
        self._table = table
        self._keys = keys
        self._names = names or {}
        self._order_by = order_by
        self._descending = descending

    def agg(self, *aggregates: Agg, **named: Agg) -> Table:
        """One row for each key: the key columns, then the aggregates.

        Parameters
        ----------
        *aggregates : Agg
            ``mr.sum("x")`` makes the column ``x_sum``, ``mr.count()`` the column ``count``.
        **named : Agg
            ``total=mr.sum("x")`` makes the column ``total``.
        """
        from hpcmr.ops.group_agg import aggregation

        told: list[tuple[str | None, object]] = [*((None, a) for a in aggregates), *named.items()]
        for name, found in told:
            if not isinstance(found, Agg):
                wanted = f"{name}=mr.sum('x')" if name else "mr.sum('x') or total=mr.sum('x')"
                raise JobSpecError(f"agg takes aggregates, for example {wanted}, not {found!r}")
        aggs = (*aggregates, *(replace(a, name=name) for name, a in named.items()))
        if not aggs:
            raise JobSpecError("agg() needs at least one aggregate, for example n=mr.count()")
        check_distinct([*self._shown_keys(), *(a.name for a in aggs)], "agg")
        shown = ", ".join(f"{a.name}={a.function}({a.column or '' if a.expr is None else a.expr})" for a in aggs)
        table = add_columns(self._table, {a.column: a.expr for a in aggs if a.column and a.expr is not None})
        return self._called(table._keyed(f"{self._label()}.agg({shown})", aggregation(self._keys, aggs, self._order_by, self._descending)))

    def apply(self, function: Function, *, blocks: bool = False, out: Out = None) -> Table:
        """What a function makes of all rows of each key: any number of rows, with the key columns in front.

        Parameters
        ----------
        function : callable
            A `@batch` function ``f(cols)`` gets the columns of the group's rows, keys too, and returns a dict of arrays, or of scalars for
            one row. A plain function ``f(key, rows)`` gets the key and the list of the other columns' values (named tuples where there
            are several), and returns one row: a value (column ``value``) or a dict of columns. A generator function yields such results,
            as many as it likes.
        blocks : bool
            The function gets an iterator of blocks of at most 65,536 rows in place of the whole (of lists of rows, if it is plain). A
            group may then be larger than memory; without it, one that does not fit is an error.
        out : dict of str to type, optional
            Columns that it makes, without the keys; without it they are found by running it on the first groups of a sample.

        Notes
        -----
        Rows come in the order of the input, or of ``group_by(..., order_by=...)``. Cost: one exchange of all rows, a call for each group.
        """
        from hpcmr.ops.apply_groups import ApplyGroups
        from hpcmr.ops.rename import Rename

        table = self._table._apply(f"name the keys {', '.join(self._names.values())}", Rename(self._names)) if self._names else self._table
        operator = ApplyGroups(tuple(self._shown_keys()), function, self._order_by, self._descending, blocks, out)
        return table._keyed(f"{self._label()}.apply({name_of(function)})", operator)

    def rank(self, *, name: str = "rank") -> Table:
        """All rows, group by group, with their place in their group by ``group_by(..., order_by=...)``, from 1: rows that are equal in these
        columns share the first one's place, and leave gaps.

        Parameters
        ----------
        name : str
            Of the new int64 column.

        Notes
        -----
        Rows come in key order within partitions, those of a key as they are ordered. Cost: one exchange of all rows.
        """
        return self._ranked("rank", name)

    def dense_rank(self, *, name: str = "dense_rank") -> Table:
        """As `rank`, but without gaps: how many different rows of the group have come so far."""
        return self._ranked("dense_rank", name)

    def row_number(self, *, name: str = "row_number") -> Table:
        """As `rank`, but a number of its own for each row; without ``order_by`` they stand in the order of the input."""
        return self._ranked("row_number", name)

    def _ranked(self, method: str, name: str) -> Table:
        from hpcmr.ops.rank import RankInGroups
        from hpcmr.ops.rename import Rename
        from hpcmr.ops.sorted_groups import SortedGroups

        keys = tuple(self._shown_keys())
        step = RankInGroups(keys, self._order_by, method, name)
        table = self._table._apply(f"name the keys {', '.join(self._names.values())}", Rename(self._names)) if self._names else self._table
        table = table._keyed(f"{self._label()}, sorted", SortedGroups(keys, self._order_by, self._descending))
        return table._apply(f"{method} in groups", step)

    def _label(self) -> str:
        ordered = f", order_by={list(self._order_by)}" if self._order_by else ""
        return f"group_by({', '.join(self._shown_keys())}{ordered})"

    def _shown_keys(self) -> list[str]:
        return [self._names.get(k, k) for k in self._keys]

    def _called(self, table: Table) -> Table:
        """Keys under the names that they were given."""
        from hpcmr.ops.rename import Rename

        return table._apply(f"name the keys {', '.join(self._names.values())}", Rename(self._names)) if self._names else table
