"""Verbs that take rows one at a time: each output row comes of one input row, in the order of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpcmr.api.base import Function, Out, TableBase, name_of
from hpcmr.api.expressions import MARK, col, label_of, named
from hpcmr.ops.expression import Expr, as_expr

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

    def words(self, column: str = "line", output: str = "word", *, lowercase: bool = False, strip_punctuation: bool = False,
              keep: Sequence[str] = ()) -> Table:
        """One row for each word of a string column: a run of bytes that are not ASCII white space.

        Parameters
        ----------
        column : str
            The column of text or bytes to read.
        output : str
            Name of the column of words; it has the type of the one that is read.
        lowercase : bool
            ASCII letters become small; other bytes stay.
        strip_punctuation : bool
            ASCII punctuation is taken off both ends of each word; what is nothing else is dropped.
        keep : sequence of str
            Columns that are repeated for each word of their row; the others go.
        """
        from hpcmr.ops.words import Words

        step = Words(column, name=output, lowercase=lowercase, strip_punctuation=strip_punctuation, keep=(keep,) if isinstance(keep, str) else keep)
        return self._apply(f"words({column})", step)

    def filter(self, predicate: Function | Expr) -> Table:
        """The rows for which `predicate` is true, with all their columns.

        Parameters
        ----------
        predicate : Expr or callable
            An expression such as ``(mr.col("x") > 0) & mr.col("ok")``, or a function of any speed. Rows for which an expression is
            null go.
        """
        if isinstance(predicate, Expr):
            from hpcmr.ops.evaluate import Evaluate, filter_move

            return self._apply(label_of("filter", predicate), Evaluate(filter_move(predicate)))
        from hpcmr.ops.filter import Filter

        return self._apply(f"filter({name_of(predicate)})", Filter(predicate))

    def select(self, *columns: str | Expr, **more: Expr) -> Table:
        """These columns, in this order, and no others.

        Parameters
        ----------
        *columns : str or Expr
            Names, and expressions, which are called after their alias or their first column.
        **more : Expr
            ``y=mr.col("x") * 2`` makes the column ``y``.
        """
        if more or any(not isinstance(c, str) for c in columns):
            from hpcmr.ops.evaluate import Evaluate, select_move

            return self._apply(label_of("select", *columns, **more), Evaluate(select_move(named(columns, more, "select"))))
        from hpcmr.ops.select import Select

        return self._apply(f"select({', '.join(map(str, columns))})", Select([c for c in columns if isinstance(c, str)]))

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
        **columns : Expr, callable or constant
            An expression, a function of the row (of any speed) that gives the value, or one value for all rows. All of them see the
            columns that come in.
        """
        if any(isinstance(c, Expr) for c in columns.values()):
            return self._with_expressions(columns)
        from hpcmr.ops.with_columns import WithColumns

        shown = ", ".join(f"{n}={name_of(f) if callable(f) else repr(f)}" for n, f in columns.items())
        return self._apply(f"with_columns({shown})", WithColumns(columns))

    def _with_expressions(self, columns: dict[str, Any]) -> Table:
        """Functions first, into columns of other names, so that expressions see what came in."""
        from hpcmr.ops.evaluate import Evaluate, with_columns_move

        functions = {f"{MARK}{n}": f for n, f in columns.items() if callable(f) and not isinstance(f, Expr)}
        table = self.with_columns(**functions) if functions else self._on(self._node)
        made = {n: col(f"{MARK}{n}") if f"{MARK}{n}" in functions else as_expr(c) for n, c in columns.items()}
        found = table._apply(label_of("with_columns", **{n: e for n, e in columns.items() if isinstance(e, Expr)}), Evaluate(with_columns_move(made)))
        return found.drop(*functions) if functions else found
