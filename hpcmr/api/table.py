"""`Table`: a lazy description of rows, and the actions that ask for them.

A table is the last node of a plan, and the communicator of the ranks that take part. It holds no rows; each operation makes a
new table. Actions go through the session of `hpcmr.run`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.api.aggregates import check_distinct
from hpcmr.api.dry import is_dry, tell_action
from hpcmr.api.result import Result
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg
from hpcmr.plan.explain import explain
from hpcmr.plan.fingerprint import plan_fingerprint
from hpcmr.plan.nodes import Apply, Keyed, Node, Read

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.ops.contract import KeyedOperator, Step
    from hpcmr.run.session import Session

Paths = str | os.PathLike[str] | list[str | os.PathLike[str]] | tuple[str | os.PathLike[str], ...]
Function = Callable[..., Any]
Out = Mapping[str, Any] | None


def read_text(paths: Paths, *, encoding: str | None = "utf-8", file: str | None = None, row: str | None = None,
              comm: MPI.Comm | None = None) -> Table:
    """Lines of text files: a table with the column ``line``.

    Parameters
    ----------
    paths : str, path or list of these
        Files, folders and globs. What a folder or a glob stands for is sorted by the bytes of the path; a list keeps its order.
    encoding : "utf-8" or None
        None: the column is bytes. Bytes that are no UTF-8 are data, not errors.
    file : str, optional
        Name of a further text column with the path of the row's file.
    row : str, optional
        Name of a further int64 column with the number of the line in its file, from 0.
    comm : mpi4py.MPI.Comm, optional
        Ranks that take part; it is duplicated, never used itself.

    Notes
    -----
    Collective: no; the actions are. Cost: nothing is read before an action.
    """
    from hpcmr.io.text import TextSource

    return Table(Read(f"read_text({_shown(paths)})", _where(), TextSource(_listed(paths), encoding, file=file, row=row)), comm)


def read_hdf5(paths: Paths, group: str = "/", columns: list[str] | tuple[str, ...] | None = None, *, file: str | None = None, row: str | None = None,
              attrs: Mapping[str, str] | None = None, follow: Paths = (), comm: MPI.Comm | None = None) -> Table:
    """Rows of HDF5 files: the data sets of a group, the fields of a compound data set, or one data set.

    Parameters
    ----------
    paths : str, path or list of these
        Files, folders and globs, as in `read_text`. All files have the same columns.
    group : str
        A group of data sets of equal length (of their first axis), or one data set.
    columns : list of str, optional
        Columns to read, in this order; all by default.
    file, row : str, optional
        Names of further columns: the path of the row's file (text), the number of the row in it (int64).
    attrs : dict of str to str, optional
        Further columns from attributes of the row's file: ``{"z": "/Header@Redshift"}``.
    follow : path or list of these, optional
        Folders that external links and virtual data sets may lead to, beside the folder of the file that holds them.
    comm : mpi4py.MPI.Comm, optional
        Ranks that take part; it is duplicated, never used itself.

    Notes
    -----
    Collective: no; the actions are. Attributes of data sets, such as units, are carried to the output.
    """
    from hpcmr.io.hdf5 import Hdf5Source

    label = f"read_hdf5({_shown(paths)}, {group!r}" + (f", columns={list(columns)}" if columns else "") + ")"
    source = Hdf5Source(_listed(paths), group, columns, file=file, row=row, attrs=dict(attrs or {}), follow=_listed(follow))
    return Table(Read(label, _where(), source), comm)


def from_arrays(comm: MPI.Comm | None, columns: Mapping[str, Any]) -> Table:
    """Rows that lie in memory: those of rank 0, then those of rank 1, and so on.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        Ranks that hold the rows; it is duplicated, never used itself. None: as elsewhere, all ranks of the launcher, or this process.
    columns : dict of str to array
        Columns ``(n_local, *shape)`` of equal length on this rank; lists of str, bytes, numbers or lists of these are taken as well.
        Names and types are the same on all ranks. The arrays are not copied; leave them alone until the action is done.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.
    """
    from hpcmr.io.arrays import ArraySource
    from hpcmr.run.session import current

    world = current(comm).world
    return Table(Read(f"from_arrays({', '.join(columns)})", _where(), ArraySource(world, columns)), comm)


class Table:
    """A lazy table; made by `read_text`, `read_hdf5` and `from_arrays`, not by hand.

    Operations return new tables and read nothing. Actions (`write_hdf5`, `collect`, `head`, `reduce`) read; every rank calls them.
    """

    __slots__ = ("_comm", "_node")

    def __init__(self, node: Node, comm: MPI.Comm | None = None) -> None:
        self._node = node
        self._comm = comm

    @classmethod
    def from_stored(cls, path: str | os.PathLike[str]) -> Table:
        """The rows of an output of this package; see `hpcmr.open`."""
        from hpcmr.store.source import StoredSource

        return cls(Read(f"open({os.fspath(path)!r})", _where(), StoredSource(path)))

    # ---- operations --------------------------------------------------------------------------------------------------

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

        return self._apply(f"map({_name(function)})", Map(function, out))

    def flat_map(self, function: Function, *, out: Out = None) -> Table:
        """Any number of rows for each row: what a plain function returns or yields, what a kernel emits, what a batch function returns."""
        from hpcmr.ops.flat_map import FlatMap

        return self._apply(f"flat_map({_name(function)})", FlatMap(function, out))

    def filter(self, predicate: Function) -> Table:
        """The rows for which `predicate` is true, with all their columns."""
        from hpcmr.ops.filter import Filter

        return self._apply(f"filter({_name(predicate)})", Filter(predicate))

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

        shown = ", ".join(f"{n}={_name(f) if callable(f) else repr(f)}" for n, f in columns.items())
        return self._apply(f"with_columns({shown})", WithColumns(columns))

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

        return self._keyed(f"reduce_by_key({_name(function)}, key={key})", ReduceByKey(function, key, out, exact))

    def _apply(self, label: str, step: Step) -> Table:
        return Table(Apply(label, _where(), self._node, step), self._comm)

    def _keyed(self, label: str, operator: KeyedOperator, partitions: int | None = None) -> Table:
        return Table(Keyed(label, _where(), self._node, operator, partitions), self._comm)

    # ---- actions -----------------------------------------------------------------------------------------------------

    def write_hdf5(self, path: str | os.PathLike[str]) -> None:
        """Write and publish the rows: the folder `path` is absent or complete at any time.

        Raises
        ------
        Refused
            `path` exists already, and is not what this very run published.

        Notes
        -----
        Collective: yes, every rank must call it, with the same path. Cost: the rows once, through bounded memory.
        """
        if self._told(f"write_hdf5({os.fspath(path)!r})", has_result=False):
            return
        from hpcmr.api.publish import Publish
        from hpcmr.ops.write import Write

        session = self._session()
        outlet = Publish(Path(path), self._node, session.fresh) if session.command_line else Write(Path(path))
        session.outputs.append(session.execute(self._node, outlet))

    def collect(self, *, root: int | None = None) -> Result | None:
        """All rows, in memory, on every rank; with `root` on that rank only, and None on the others.

        Notes
        -----
        Collective: yes, every rank must call it. Cost: memory for all rows on each rank that gets them.
        """
        self._told("collect()")
        from hpcmr.ops.collect import Collect

        return _result(self._session().execute(self._node, Collect(root)))

    def head(self, n: int = 10, *, root: int | None = None) -> Result | None:
        """The first `n` rows, as `collect` gives all."""
        if not isinstance(n, int) or n < 0:
            raise JobSpecError(f"head({n!r}): the number of rows is an integer, 0 or above")
        self._told(f"head({n})")
        from hpcmr.ops.head import Head

        return _result(self._session().execute(self._node, Head(n, root)))

    def reduce(self, function: Function, *, root: int | None = None) -> Any:
        """All rows folded to one, two at a time, in the order of the rows within a split, then of the splits.

        Returns
        -------
        any
            The value of a table of one column, else a named tuple; None of no rows. On every rank, or on `root` only.
        """
        self._told(f"reduce({_name(function)})")
        from hpcmr.ops.reduce import Reduce

        return self._session().execute(self._node, Reduce(function, root))

    def explain(self) -> str:
        """The plan as text. Nothing is read; not collective."""
        return explain(self._node)

    def fingerprint(self) -> tuple[str, ...]:
        """What counts of a table that a function of the user's captured."""
        return ("table", plan_fingerprint(self._node))

    def _told(self, action: str, has_result: bool = True) -> bool:
        """Whether the action was explained in place of being run."""
        if is_dry():
            tell_action(self._node, action, has_result)
            return True
        log = logging.getLogger("hpcmr")
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", explain(self._node, action))
        return False

    def _session(self) -> Session:
        from hpcmr.run.session import current

        return current(self._comm)

    def __repr__(self) -> str:
        return f"<Table: {self._node.label}>"


class Grouped:
    """Rows by key: what `Table.group_by` gives."""

    __slots__ = ("_keys", "_table")

    def __init__(self, table: Table, keys: tuple[str, ...]) -> None:
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


def _result(found: Any) -> Result | None:
    return None if found is None else found if isinstance(found, Result) else Result(found)


def _listed(paths: Paths) -> list[str]:
    listed = list(paths) if isinstance(paths, list | tuple) else [paths]
    if not all(isinstance(p, str | os.PathLike) for p in listed):
        raise JobSpecError(f"paths = {paths!r}: a file, folder or glob, or a list of these")
    return [os.fspath(p) for p in listed]


def _shown(paths: Paths) -> str:
    listed = _listed(paths)
    return repr(listed[0]) + (f" and {len(listed) - 1} more" if len(listed) > 1 else "") if listed else "nothing"


def _name(function: Any) -> str:
    return str(getattr(function, "name", None) or getattr(function, "__qualname__", type(function).__name__)).replace("<locals>.", "")


def _where() -> str:
    """``file:line`` of the user's program that called this package."""
    frame = sys._getframe(1)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    while frame.f_back is not None and os.path.abspath(frame.f_code.co_filename).startswith(ours + os.sep):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
