"""Expressions of columns, compiled: ``col``, ``lit``, ``when``; and how verbs that take names of columns take expressions.

::

    fast = events.filter((mr.col("v") > 0) & ~mr.col("flag")).with_columns(e=0.5 * mr.col("m") * mr.col("v") ** 2)
    stats = fast.group_by(cell=mr.col("x") // 10).agg(energy=mr.sum("e"), hottest=mr.max(mr.col("e") / mr.col("m")))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcmr.errors import JobSpecError
from hpcmr.ops.expression import Expr, When, as_expr

if TYPE_CHECKING:
    from hpcmr.api.base import TableBase
    from hpcmr.api.table import Table

MARK = "~"          # what the names of columns begin with that are there for one verb only
LABEL_MAX = 100


def col(name: str) -> Expr:
    """The column `name`, to compute with.

    Parameters
    ----------
    name : str
        A column of the table that the expression is given to; one that is not there is refused before any work.

    Returns
    -------
    Expr
        Operators and methods make further expressions of it; see the reference of expressions.
    """
    if not isinstance(name, str) or not name:
        raise JobSpecError(f"col({name!r}): give the name of a column")
    return Expr("col", (), name)


def lit(value: Any) -> Expr:
    """The same value in every row.

    Parameters
    ----------
    value : bool, int, float, complex, str, bytes, date or NumPy scalar
        Numbers of Python's take the type of what they are combined with, NumPy scalars keep theirs.
    """
    return as_expr(value)


def when(condition: Expr) -> When:
    """A choice for each row: ``when(c).then(x).otherwise(y)``, or ``when(c).then(x).when(d).then(y).otherwise(z)``.

    Parameters
    ----------
    condition : Expr
        True or false for a row; where it is null, as where it is false. Without ``otherwise`` other rows are null.
    """
    return When(condition)


def label_of(verb: str, *parts: Any, **named: Any) -> str:
    """How a verb with expressions is shown in plans."""
    text = ", ".join([*(str(p) for p in parts), *(f"{n}={e}" for n, e in named.items())])
    return f"{verb}({text if len(text) <= LABEL_MAX else text[:LABEL_MAX - 3] + '...'})"


def named(columns: Sequence[str | Expr], keywords: Mapping[str, Any], verb: str) -> list[tuple[str, Expr]]:
    """What columns are called and what they are: names stand for columns, an expression without a name for its first column."""
    out: list[tuple[str, Expr]] = []
    for given in columns:
        expr = col(given) if isinstance(given, str) else given
        if not isinstance(expr, Expr):
            raise JobSpecError(f"{verb} takes names of columns and expressions, for example {verb}('a', mr.col('x') * 2), not {given!r}")
        if expr.name is None:
            raise JobSpecError(f"{verb}({expr}) has no name; write {verb}(name={expr}) or .alias('name')")
        out.append((expr.name, expr))
    for name, value in keywords.items():
        if not isinstance(value, Expr):
            raise JobSpecError(f"{verb}({name}={value!r}): write {name}=mr.col({value!r}) for the column, {name}=mr.lit({value!r}) for the constant")
        out.append((name, value))
    names = [n for n, _ in out]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise JobSpecError(f"{verb}: two columns would be called {twice!r}; give one another name with y=..., or .alias('y')")
    return out


def hidden(expr: Expr) -> str:
    """Name of the column that holds an expression for the time of one verb; equal expressions have one."""
    return f"{MARK}{expr.name or 'value'}{MARK}{expr.fingerprint()[1][:8]}"


def lift(table: TableBase, given: Sequence[str | Expr], verb: str) -> tuple[Table, list[str]]:
    """A table that has a column for each of `given`, and their names: what a verb needs that takes names and is given expressions.

    Parameters
    ----------
    table : Table
    given : sequence of str or Expr
        Names stay; ``col("x")`` is ``"x"``; others become hidden columns behind all others.
    verb : str
        For messages.

    Returns
    -------
    table : Table
        The same one where nothing had to be computed.
    names : list of str
        For each of `given`. `lower` takes the hidden ones off again.
    """
    made: dict[str, Expr] = {}
    names = []
    for item in given:
        if isinstance(item, str):
            names.append(item)
        elif not isinstance(item, Expr):
            raise JobSpecError(f"{verb} takes names of columns and expressions such as mr.col('x') // 10, not {item!r}")
        elif item.op == "col":
            names.append(str(item.extra))
        else:
            names.append(hidden(item))
            made[names[-1]] = item
    return add_columns(table, made), names


def lower(table: Table, names: Sequence[str]) -> Table:
    """The table without those of `names` that `lift` made."""
    gone = [n for n in dict.fromkeys(names) if n.startswith(MARK)]
    return table.drop(*gone) if gone else table


def add_columns(table: TableBase, columns: Mapping[str, Expr]) -> Table:
    """`table` with a column for each expression; itself where there is none."""
    from hpcmr.ops.evaluate import Evaluate, with_columns_move

    if not columns:
        return table._on(table._node)
    return table._apply(label_of("with_columns", **{n.split(MARK)[1] if n.startswith(MARK) else n: e for n, e in columns.items()}),
                        Evaluate(with_columns_move(columns)))
