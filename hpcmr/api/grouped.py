"""`Grouped`: rows by key, between `group_by` and what is done with each group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
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

    __slots__ = ("_keys", "_names", "_table")

    def __init__(self, table: TableBase, keys: tuple[str, ...], names: dict[str, str] | None = None) -> None:
        self._table = table
        self._keys = keys
        self._names = names or {}

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
        return self._called(table._keyed(f"group_by({', '.join(self._shown_keys())}).agg({shown})", aggregation(self._keys, aggs)))

    def _shown_keys(self) -> list[str]:
        return [self._names.get(k, k) for k in self._keys]

    def _called(self, table: Table) -> Table:
        """Keys under the names that they were given."""
        from hpcmr.ops.rename import Rename

        return table._apply(f"name the keys {', '.join(self._names.values())}", Rename(self._names)) if self._names else table
