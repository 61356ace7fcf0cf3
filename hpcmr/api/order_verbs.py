"""Verbs whose result for a row depends on where it stands: samples, row numbers, running values, ranks, moving windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmr.api.base import Function, TableBase, name_of
from hpcmr.errors import JobSpecError
from hpcmr.plan.nodes import Apply, Keyed, Node, Read, parents_of

if TYPE_CHECKING:
    from hpcmr.api.table import Table

ROW_FOR_ROW = frozenset({"map", "select", "drop", "rename", "with_columns", "zip_with_index", "scan", "rank", "lag", "lead", "window"})
"""Steps that make one row of each, so that where a row stands in its split is what it was."""
PLACE = "#place"


class OrderVerbs(TableBase):
    """The operations of a `Table` that go by the order of its rows."""

    __slots__ = ()

    def sample(self, *, fraction: float | None = None, count: int | None = None, seed: int = 0) -> Table:
        """Some of the rows, in order, drawn by a hash of `seed` and of where a row stands: the same ones on any number of ranks.

        Parameters
        ----------
        fraction : float, optional
            Each row is drawn with this probability, 0 to 1.
        count : int, optional
            Exactly so many rows are drawn, all if there are fewer. One of the two must be given.
        seed : int
            0 to 2**63 - 1; another one draws other rows.

        Notes
        -----
        Cost: one pass; with `count` two, and 8 bytes of memory for each row drawn.
        """
        from hpcmr.ops.sample import SampleCount, SampleFraction

        if (fraction is None) == (count is None):
            raise JobSpecError("sample() takes a fraction or a count, for example sample(fraction=0.01)")
        place = PLACE if moved(self._node) else None
        step = SampleFraction(fraction, seed, place) if fraction is not None else SampleCount(count or 0, seed, place)
        shown = f"fraction={fraction}" if fraction is not None else f"count={count}"
        return (self if place is None else self.zip_with_index(place))._apply(f"sample({shown}, seed={seed})", step)

    def zip_with_index(self, name: str = "index") -> Table:
        """The rows with their number, from 0, as a further int64 column `name`.

        Notes
        -----
        Cost: the rows are seen twice: read again where that is cheap, else kept on the ranks. They do not travel.
        """
        from hpcmr.ops.zip_with_index import ZipWithIndex

        return self._apply(f"zip_with_index({name})", ZipWithIndex(name))

    def scan(self, column: str, op: str | Function = "sum", *, name: str | None = None) -> Table:
        """The rows with a running value along `column`, in the order of the rows, as a further column.

        Parameters
        ----------
        column : str
            Numbers. A null stays null and is passed over.
        op : {"sum", "min", "max"} or callable
            A running sum of floats is, in every row, the exact sum of all values so far, rounded once to float64; of integers it is 64 bits
            wide, and an error where it does not fit. A function ``f(a, b)``, plain or a kernel, must be associative; its values
            have the type of the column.
        name : str, optional
            Of the new column; ``x_sum`` for ``scan("x")``.

        Notes
        -----
        Cost: the rows are seen twice, as in `zip_with_index`.
        """
        from hpcmr.ops.scan import scan_of

        shown = name_of(op) if callable(op) else op
        return self._apply(f"scan({column}, {shown})", scan_of(column, op, name or f"{column}_{shown if not callable(op) else 'scan'}"))

    def rank(self, *columns: str, name: str = "rank") -> Table:
        """The rows of a sorted table with their place, from 1: rows that are equal in `columns` share the first one's, and leave gaps.

        Parameters
        ----------
        *columns : str
            What the table is sorted by; of ``sort_by(...).rank()`` the columns of the sort.
        name : str
            Of the new int64 column.

        Notes
        -----
        Rows that are equal but do not stand together do not count as equal: sort before. Cost: the rows are seen twice.
        """
        return self._ranked("rank", columns, name)

    def dense_rank(self, *columns: str, name: str = "dense_rank") -> Table:
        """As `rank`, but without gaps: how many different rows have come so far."""
        return self._ranked("dense_rank", columns, name)

    def row_number(self, *, name: str = "row_number") -> Table:
        """The rows with their number, from 1; `zip_with_index` counts from 0."""
        return self._ranked("row_number", (), name)

    def _ranked(self, method: str, columns: tuple[str, ...], name: str) -> Table:
        from hpcmr.ops.rank import Rank

        columns = columns or (() if method == "row_number" else sorted_by(self._node))
        return self._apply(f"{method}({', '.join(columns)})", Rank(columns, method, name))

    def lag(self, column: str, rows: int = 1, *, name: str | None = None) -> Table:
        """The rows with the value of `column` in the row `rows` rows before, null where there is none, as ``x_lag``, or `name`."""
        from hpcmr.ops.window import Lag

        return self._apply(f"lag({column}, {rows})", Lag(column, rows, name or f"{column}_lag"))

    def lead(self, column: str, rows: int = 1, *, name: str | None = None) -> Table:
        """The rows with the value of `column` in the row `rows` rows behind, null where there is none, as ``x_lead``, or `name`."""
        from hpcmr.ops.window import Lead

        return self._apply(f"lead({column}, {rows})", Lead(column, rows, name or f"{column}_lead"))

    def window(self, column: str, op: str, rows: int, *, name: str | None = None) -> Table:
        """The rows with an aggregate of `column` over each row and the ``rows - 1`` rows before it, fewer at the beginning.

        Parameters
        ----------
        column : str
        op : {"sum", "mean", "min", "max", "count"}
            Sums and means of floats are exact and rounded once. Nulls are passed over; of nothing but nulls the result is null.
        rows : int
            1 to 65,536.
        name : str, optional
            Of the new column; ``x_mean`` for ``window("x", "mean", 10)``.

        Notes
        -----
        Cost: the rows are seen twice, as in `zip_with_index`; the last ``rows - 1`` rows of each piece of input travel.
        """
        from hpcmr.ops.window import Window

        return self._apply(f"window({column}, {op}, {rows})", Window(column, op, rows, name or f"{column}_{op}"))


def moved(node: Node) -> bool:
    """Whether the number of a row in its split may depend on which rank holds what: rows were added or dropped on the way from arrays of
    which a split may lie on two ranks."""
    todo = [(node, False)]
    while todo:
        item, changed = todo.pop()
        if isinstance(item, Read) and changed and getattr(item.source, "distributed", False):
            return True
        if not isinstance(item, Keyed):
            changed = changed or not isinstance(item, Apply) or item.step.name not in ROW_FOR_ROW
            todo += [(parent, changed) for parent in parents_of(item)]
    return False


def sorted_by(node: Node) -> tuple[str, ...]:
    """The columns of the sort that a table comes from, as far as they are still there under their names."""
    while isinstance(node, Apply) and node.step.name in ROW_FOR_ROW - {"map", "rename"}:
        node = node.parent
    found = getattr(node.operator, "by", ()) if isinstance(node, Keyed) and node.operator.name == "sort" else ()
    if not found:
        raise JobSpecError("rank() of a table that is not sorted: name the columns that it is sorted by, or use sort_by(...) before")
    return tuple(found)
