"""Verbs that change which rows there are and where they lie, not what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.base import TableBase, where
from hpcmr.api.shared import Shared
from hpcmr.errors import JobSpecError
from hpcmr.ops.hold import Kept
from hpcmr.plan.nodes import Persist, Union

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class ShapeVerbs(TableBase):
    """The operations of a `Table` on its rows as a whole."""

    __slots__ = ()

    def union(self, *others: Table) -> Table:
        """The rows of this table, then those of the others, in order; repeats stay.

        Parameters
        ----------
        *others : Table
            With the same columns, of the same types, in the same order.

        Raises
        ------
        JobSpecError
            When it runs: the columns differ; the message names the first that does.

        Notes
        -----
        Cost: none of its own; the rows do not travel.
        """
        if not others or not all(isinstance(t, TableBase) for t in others):
            raise JobSpecError("union() takes one or several tables")
        return self._on(Union(f"union({len(others) + 1} tables)", where(), (self._node, *(t._node for t in others))))

    def repartition(self, parts: int | None = None, *, by: str | Sequence[str] | None = None) -> Table:
        """The same rows, lying elsewhere: in parts of equal length that keep the order, or those of a key with one owner.

        Parameters
        ----------
        parts : int, optional
            How many parts, 1 to 65,536; with `by` a power of two, by default one for about 8 MiB.
        by : str or sequence of str, optional
            Key columns. Rows of a key then lie side by side in the order of the input, keys in order within a part, and a later
            `group_by`, `join` or `distinct` on the same columns, in this order, moves none of them.

        Notes
        -----
        Cost: all rows travel once. Without `by` they are seen twice, to number them.
        """
        from hpcmr.ops.repartition import Repartition, RepartitionByKey

        if by is None:
            if parts is None:
                raise JobSpecError("repartition() takes a number of parts, or by='column', or both")
            operator = Repartition(parts)
            return self._keyed(f"repartition({parts})", operator, parts)
        keys = named("repartition", by)
        if parts is not None and (not isinstance(parts, int) or parts < 1 or parts > 65536 or parts & (parts - 1)):
            raise JobSpecError(f"repartition({parts!r}, by={by!r}): partitions of a key are a power of two, from 1 to 65,536")
        shown = f"{parts}, " if parts is not None else ""
        return self._keyed(f"repartition({shown}by={', '.join(keys)})", RepartitionByKey(keys), parts)

    def persist(self, *, key: str | Sequence[str] | None = None) -> Table:
        """The same table, whose rows the first action that needs them keeps on the ranks: later ones read them from there.

        Parameters
        ----------
        key : str or sequence of str, optional
            First bring the rows of each key to one owner (`repartition`). Rows that come out of a `group_by`, `distinct` or a shuffled
            `join` lie so already. A later `group_by` or `join` on the same columns then moves none of these rows; `explain` tells.

        Returns
        -------
        Table
            Use this one: the table that it was called on is read anew by each action.

        Notes
        -----
        Cost: the memory of all rows over the ranks, accounted to the budget; where that is short they lie on scratch. Given back by
        `unpersist`, or when no table needs it any more.
        """
        table = self if key is None else self.repartition(by=key)
        shown = "" if key is None else f"key={', '.join(named('persist', key))}"
        return self._on(Persist(f"persist({shown})", where(), Kept(table._node)))

    def checkpoint(self) -> Table:
        """`persist`, and once the rows are made the job is committed: a restart finds them, also where they came from arrays in memory.

        Returns
        -------
        Table
            Use this one, as with `persist`; `unpersist` gives its memory back.

        Notes
        -----
        The job commits on its own, at an interval (``hpcmr job --help``). This is for a point behind which nothing should be done twice. The
        action that makes the rows waits until they are durable. In library calls there is no run directory, and it is `persist`.
        """
        return self._on(Persist("checkpoint()", where(), Kept(self._node, commit=True)))

    def unpersist(self) -> None:
        """Give back the memory of a table that `persist` returned. The table can still be used: its rows are then made anew.

        Notes
        -----
        Collective: yes, every rank calls it.
        """
        if not isinstance(self._node, Persist):
            raise JobSpecError(f"unpersist() is for the table that persist() returned; this one ends in {self._node.label}")
        self._node.kept.drop()

    def broadcast(self) -> Shared:
        """All rows of a small table as arrays on every rank, to be used inside functions of yours.

        Returns
        -------
        Shared
            ``shared["x"]`` is a read-only array ``(rows, *shape)`` of the column; text is a list of str.

        Notes
        -----
        Collective: yes, every rank must call it. Cost: memory for all rows on each rank.
        """
        self._told("broadcast()")
        from hpcmr.ops.collect import Collect

        return Shared(self._session().execute(self._node, Collect()))


def named(verb: str, columns: str | Sequence[str]) -> tuple[str, ...]:
    """Column names given as one or several."""
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if not names or not all(isinstance(n, str) for n in names):
        raise JobSpecError(f"{verb}: {columns!r} names no columns; give one name, or a list of names")
    check_distinct(list(names), verb)
    return names
