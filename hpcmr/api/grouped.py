"""`Grouped`: rows by key, between `group_by` and what is done with each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg

if TYPE_CHECKING:
    from hpcmr.api.base import TableBase
    from hpcmr.api.table import Table


class Grouped:
    """Rows by key: what `Table.group_by` gives."""

    __slots__ = ("_keys", "_table")

    def __init__(self, table: TableBase, keys: tuple[str, ...]) -> None:
        self._table = table
        self._keys = keys

    def agg(self, *aggregates: Agg, **named: Agg) -> Table:
        """One row for each key: the key columns, then the aggregates.

        Parameters
        ----------
        *aggregates : Agg
            ``mr.sum("x")`` makes the column ``x_sum``, ``mr.count()`` the column ``count``.
        **named : Agg
            ``total=mr.sum("x")`` makes the column ``total``.
        """
        from hpcmr.ops.aggregate import Aggregate

        told: list[tuple[str | None, object]] = [*((None, a) for a in aggregates), *named.items()]
        for name, found in told:
            if not isinstance(found, Agg):
                wanted = f"{name}=mr.sum('x')" if name else "mr.sum('x') or total=mr.sum('x')"
                raise JobSpecError(f"agg takes aggregates, for example {wanted}, not {found!r}")
        aggs = (*aggregates, *(Agg(a.function, a.column, name, a.options) for name, a in named.items()))
        if not aggs:
            raise JobSpecError("agg() needs at least one aggregate, for example n=mr.count()")
        check_distinct([*self._keys, *(a.name for a in aggs)], "agg")
        shown = ", ".join(f"{a.name}={a.function}({a.column or ''})" for a in aggs)
        return self._table._keyed(f"group_by({', '.join(self._keys)}).agg({shown})", Aggregate(self._keys, aggs))
