"""Verbs that bring rows together: by key, in order, with those of another table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.base import Function, Out, TableBase, name_of
from hpcmr.api.expressions import lift, named
from hpcmr.api.grouped import Grouped
from hpcmr.errors import JobSpecError
from hpcmr.ops.expression import Expr

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class WideVerbs(TableBase):
    """The wide operations of a `Table`."""

    __slots__ = ()

    def group_by(self, *keys: str | Expr, **more: Expr) -> Grouped:
        """Rows by key, to be followed by `agg`.

        Parameters
        ----------
        *keys : str or Expr
            Columns, and expressions, which are called after their alias or their first column: ``mr.col("x") // 10`` is ``x``.
        **more : Expr
            ``cell=mr.col("x") // 10`` is a key that is called ``cell``.
        """
        if (not keys and not more) or not all(isinstance(k, str | Expr) for k in keys):
            raise JobSpecError(f"group_by({', '.join(map(repr, keys))}): name one or several columns, for example group_by('a', 'b')")
        if not more and all(isinstance(k, str) for k in keys):
            check_distinct([k for k in keys if isinstance(k, str)], "group_by")
            return Grouped(self, tuple(k for k in keys if isinstance(k, str)))
        told = named(keys, more, "group_by")
        table, names = lift(self, [e for _, e in told], "group_by")
        check_distinct(names, "group_by")
        return Grouped(table, tuple(names), {have: name for have, (name, _) in zip(names, told, strict=True) if have != name})

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
