"""Verbs that take rows one at a time: each output row comes of one input row, in the order of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcmr.api.base import Function, Out, TableBase, name_of

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class RowVerbs(TableBase):
    """The narrow operations of a `Table`."""

    __slots__ = ()

    def map(self, function: Function, *, out: Out = None) -> Table:
        """One row for each row.

        Parameters
        ----------
        function : callable
            Of any speed: plain ``f(row)``, `@batch` or `@kernel`. A plain function returns a value (column ``value``), a tuple of
            two (``key``, ``value``) or a dict of columns.
        out : dict of str to type, optional
            Columns that it makes; without it they are found by running it on the first rows.
        """
        from hpcmr.ops.map import Map

        return self._apply(f"map({name_of(function)})", Map(function, out))

    def flat_map(self, function: Function, *, out: Out = None) -> Table:
        """Any number of rows for each row: what a plain function returns or yields, what a kernel emits, what a batch function returns."""
        from hpcmr.ops.flat_map import FlatMap

        return self._apply(f"flat_map({name_of(function)})", FlatMap(function, out))

    def filter(self, predicate: Function) -> Table:
        """The rows for which `predicate` is true, with all their columns."""
        from hpcmr.ops.filter import Filter

        return self._apply(f"filter({name_of(predicate)})", Filter(predicate))

    def select(self, *columns: str) -> Table:
        """These columns, in this order."""
        from hpcmr.ops.select import Select

        return self._apply(f"select({', '.join(map(str, columns))})", Select(columns))

    def drop(self, *columns: str) -> Table:
        """All columns but these."""
        from hpcmr.ops.select import Drop

        return self._apply(f"drop({', '.join(map(str, columns))})", Drop(columns))

    def rename(self, **names: str) -> Table:
        """The same columns under other names: ``rename(old="new")``."""
        from hpcmr.ops.rename import Rename

        return self._apply(f"rename({', '.join(f'{a}={b}' for a, b in names.items())})", Rename(names))

    def with_columns(self, **columns: Any) -> Table:
        """The columns and one for each keyword, in the place of the one of its name or behind the others.

        Parameters
        ----------
        **columns : callable or constant
            A function of the row (of any speed) that gives the value, or one value for all rows.
        """
        from hpcmr.ops.with_columns import WithColumns

        shown = ", ".join(f"{n}={name_of(f) if callable(f) else repr(f)}" for n, f in columns.items())
        return self._apply(f"with_columns({shown})", WithColumns(columns))
