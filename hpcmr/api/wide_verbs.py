"""Verbs that bring rows together: by key, in order, with those of another table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.base import Function, Out, TableBase, name_of
from hpcmr.api.grouped import Grouped
from hpcmr.errors import JobSpecError

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class WideVerbs(TableBase):
    """The wide operations of a `Table`."""

    __slots__ = ()

    def group_by(self, *keys: str) -> Grouped:
        """Rows by key, to be followed by `agg`."""
        if not keys or not all(isinstance(k, str) for k in keys):
            raise JobSpecError(f"group_by({', '.join(map(repr, keys))}): name one or several columns, for example group_by('a', 'b')")
        check_distinct(list(keys), "group_by")
        return Grouped(self, keys)

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
