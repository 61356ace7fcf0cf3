"""Verbs that bring rows together: by key, in order, with those of another table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.base import Function, Out, TableBase, name_of, where
from hpcmr.api.expressions import MARK, lift, named
from hpcmr.api.grouped import Grouped
from hpcmr.data.sort_keys import directions
from hpcmr.errors import JobSpecError
from hpcmr.ops.expression import Expr
from hpcmr.plan.nodes import Pair

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class WideVerbs(TableBase):
    """The wide operations of a `Table`."""

    __slots__ = ()

    def group_by(self, *keys: str | Expr, order_by: str | Sequence[str] = (), descending: bool | Sequence[bool] = False, **more: Expr) -> Grouped:
        """Rows by key, to be followed by `agg` or `apply`.

        Parameters
        ----------
        *keys : str or Expr
            Columns, and expressions, which are called after their alias or their first column: ``mr.col("x") // 10`` is ``x``.
        **more : Expr
            ``cell=mr.col("x") // 10`` is a key that is called ``cell``.
        order_by : str or sequence of str
            Columns that the rows of each group are sorted by, for `apply` and for the aggregates `list`, `first`, `last` and `apply`: NaN
            behind numbers, nulls last; rows that are equal stay in the order of the input.
        descending : bool or sequence of bool
            For all of `order_by`, or for each.
        """
        then = (order_by,) if isinstance(order_by, str) else tuple(order_by)
        check_distinct(list(then), "group_by(order_by=...)")
        directions(then, descending)
        if (not keys and not more) or not all(isinstance(k, str | Expr) for k in keys):
            raise JobSpecError(f"group_by({', '.join(map(repr, keys))}): name one or several columns, for example group_by('a', 'b')")
        if not more and all(isinstance(k, str) for k in keys):
            check_distinct([k for k in keys if isinstance(k, str)], "group_by")
            return Grouped(self, tuple(k for k in keys if isinstance(k, str)), None, then, descending)
        told = named(keys, more, "group_by")
        table, names = lift(self, [e for _, e in told], "group_by")
        check_distinct(names, "group_by")
        return Grouped(table, tuple(names), {have: name for have, (name, _) in zip(names, told, strict=True) if have != name}, then,
                       descending)

    def sort_by(self, *columns: str | Expr, descending: bool | Sequence[bool] = False) -> Table:
        """All rows in the order of these columns; equal ones in the order of the input.

        Parameters
        ----------
        *columns : str or Expr
            Numbers, bool, dates, bytes, text or rows of bytes (``uint8[n]``), the first one first. An expression is sorted by, and is not in
            the result: ``mr.col("rec")[:, :10]``.
        descending : bool or list of bool
            For all columns, or for each.

        Notes
        -----
        Numbers come before NaN and NaN before nulls, in both directions; -0.0 equals 0.0; bytes and text are ordered by their bytes. Cost: the
        rows are seen twice (files are read twice, else rows are kept) and travel once; partitions are of one size, also where one key has most
        rows.
        """
        from hpcmr.ops.sort import Sort

        table, names = self._sort_keys("sort_by", columns, descending)
        return table._keyed(f"sort_by({_directed(names, descending)})", Sort(names, descending, [n for n in names if n.startswith(MARK)]))

    def top_k(self, n: int, *, by: str | Expr | Sequence[str | Expr], descending: bool | Sequence[bool] = True) -> Table:
        """The first `n` rows in the order of some columns: by default those with the largest values.

        Parameters
        ----------
        n : int
        by : str, Expr or list of these
            As in `sort_by`.
        descending : bool or list of bool
            For all columns, or for each.

        Notes
        -----
        The same rows in the same order as ``sort_by(..., descending=...).head(n)``, ties by the order of the input. Cost: one pass, memory for
        some 2 n rows on each rank; n rows of each rank travel.
        """
        from hpcmr.ops.top_k import TopK

        columns = [by] if isinstance(by, str | Expr) else by
        table, names = self._sort_keys("top_k", columns, descending)
        label = f"top_k({n}, by {_directed(names, descending)})"
        return table._keyed(label, TopK(n, names, descending, [c for c in names if c.startswith(MARK)]), 1)

    def _sort_keys(self, verb: str, columns: Sequence[str | Expr], descending: Any) -> tuple[Table, list[str]]:
        """A table that has the columns to sort by, and their names."""
        from hpcmr.data.sort_keys import directions

        if not columns or not all(isinstance(c, str | Expr) for c in columns):
            example = "sort_by('time', 'id')" if verb == "sort_by" else "top_k(10, by='mass')"
            raise JobSpecError(f"{verb} takes names of columns or expressions, for example {example}, not ({', '.join(map(repr, columns))})")
        directions([str(c) for c in columns], descending)
        table, names = lift(self, columns, verb)
        check_distinct(names, verb)
        return table, names

    def join(self, right: Table, on: str | Sequence[str] | None = None, *, left_on: str | Sequence[str] | None = None,
             right_on: str | Sequence[str] | None = None, how: str = "inner") -> Table:
        """The rows of this table and of another one, brought together where their keys are equal.

        Parameters
        ----------
        right : Table
            Of the same ranks.
        on : str or list of str
            Key columns that are called the same on both sides.
        left_on, right_on : str or list of str
            In place of `on`, where they are not; the result has the left names.
        how : {"inner", "left", "right", "outer", "semi", "anti"}
            "inner": a row for each pair of rows. "left", "right", "outer": also the rows of that side, or of both, that have no partner,
            with nulls for the other side. "semi", "anti": left rows that have a partner, or have none, and left columns only.

        Returns
        -------
        Table
            The left columns, then the right ones but the keys; those of a name that the left side has get ``_right`` behind it.

        Raises
        ------
        JobSpecError
            When an action runs: a column is not there, or keys are of types of which neither holds the values of the other exactly.

        Notes
        -----
        Null keys match nothing; NaN matches NaN, and -0.0 matches 0.0. If the right side has up to 128 MiB, every rank gets all of it, and
        the result is in the order of the left rows, then of the right ones; left rows do not travel. Else, and always where `how` is
        "right" or "outer", both sides travel to the owners of their keys: the result is in key order within partitions, then in the order of
        the left rows, then of the right ones. The size alone decides, never ranks or memory; `explain` and the log tell. A key with very many
        rows is spread over ranks.
        """
        from hpcmr.ops.join import Join

        both = join_keys(on, left_on, right_on)
        if not isinstance(right, TableBase):
            raise JobSpecError(f"join with {right!r}: the right side is a table")
        shown = ", ".join(a if a == b else f"{a} = {b}" for a, b in zip(*both, strict=False))
        return self._on(Pair(f"join({shown}, how={how!r})", where(), self._node, right._node, Join(*both, how)))

    def distinct(self, *columns: str) -> Table:
        """The first row, in the order of the input, of all that agree in `columns`; without columns: in all of them.

        Notes
        -----
        The rows come in the order of these columns within partitions. Cost: one exchange of the rows that differ, as far as each rank can
        tell.
        """
        from hpcmr.ops.distinct import Distinct

        check_distinct(list(columns), "distinct")
        return self._keyed(f"distinct({', '.join(columns)})", Distinct(columns))

    def reduce_by_key(self, function: Function, *, key: str | tuple[str, ...] = "key", out: Out = None, exact: bool = False) -> Table:
        """One row for each key: the values of the key folded two at a time.

        Parameters
        ----------
        function : callable
            ``f(a, b)`` of two values; the other column's value, or named tuples of the other columns where there are several. It
            is called in the order of the rows within a split, then on the partial results in the order of splits.
        key : str or tuple of str
            Columns to group by.
        out : dict of str to type, optional
            Columns of the values; by default those that come in.
        exact : bool
            The function is associative and commutative and does not round, so partial results may be folded in any order: less travels.
        """
        from hpcmr.ops.reduce_by_key import ReduceByKey

        return self._keyed(f"reduce_by_key({name_of(function)}, key={key})", ReduceByKey(function, key, out, exact))


def join_keys(on: Any, left_on: Any, right_on: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the key columns of both sides of a join."""
    if (on is None) == (left_on is None and right_on is None) or (left_on is None) != (right_on is None):
        raise JobSpecError("join: name the key columns, with on='id' or on=['x', 'y'], or with left_on= and right_on= where they have other names")
    sides = []
    for given in (on, on) if on is not None else (left_on, right_on):
        names = (given,) if isinstance(given, str) else tuple(given)
        if not all(isinstance(n, str) for n in names):
            raise JobSpecError(f"join: a key is the name of a column, not {given!r}")
        sides.append(names)
    return sides[0], sides[1]


def _directed(names: Sequence[str], descending: bool | Sequence[bool]) -> str:
    downs = [descending] * len(names) if isinstance(descending, bool) else descending
    return ", ".join(n.lstrip(MARK) + (" descending" if down else "") for n, down in zip(names, downs, strict=True))
