"""Actions: what asks for the rows of a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpcmr.api.base import Function, TableBase, name_of
from hpcmr.api.result import Result
from hpcmr.errors import JobSpecError
from hpcmr.plan.explain import explain
from hpcmr.plan.fingerprint import plan_fingerprint


class Actions(TableBase):
    """What runs the plan of a `Table`. Every rank calls these, in the same order."""

    __slots__ = ()

    def write_hdf5(self, path: str | os.PathLike[str], *, share: str | None = None) -> None:
        """Write and publish the rows: the folder `path` is absent or complete at any time.

        Parameters
        ----------
        path : path
        share : {"group"}, optional
            Who else may read it: ``"group"`` gives files the mode 0640 and the folder 0750. Without it they are yours alone, 0600 and 0700.

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
        if share not in (None, "group"):
            raise JobSpecError(f"write_hdf5(share={share!r}): the files of an output are yours alone (None), or \"group\" may read them too")
        from hpcmr.api.publish import Publish
        from hpcmr.ops.write import Write

        session = self._session()
        outlet = Publish(Path(path), self._node, session.fresh, share) if session.command_line else Write(Path(path), share=share)
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
        self._told(f"reduce({name_of(function)})")
        from hpcmr.ops.reduce import Reduce

        return self._session().execute(self._node, Reduce(function, root))

    def quantile(self, column: str, q: float | Sequence[float], *, method: str = "linear", approx: bool = False, root: int | None = None) -> Any:
        """Quantiles of all values of a column.

        Parameters
        ----------
        column : str
            Numbers; dates too with ``method="lower"`` or ``"higher"``. Nulls are left out, NaN anywhere makes the result NaN.
        q : float or sequence of float
            0 to 1: 0.5 is the median.
        method : {"linear", "lower", "higher", "midpoint"}
            What stands between two values, as in ``np.quantile``.
        approx : bool
            Count values by magnitude in place of looking for the exact ones: 8 MiB of memory, and the two values that the quantile lies
            between are known to one part in 512.
        root : int, optional
            The one rank that is given the result; None: every rank.

        Returns
        -------
        NumPy scalar, or array ``(len(q),)``
            What ``np.quantile`` gives of the whole column as float64. NaN of no values.

        Notes
        -----
        Collective: yes. Cost: one pass; exact quantiles keep the column in memory where it is read, and move a few thousand values.
        """
        from hpcmr.ops.quantile import ApproxQuantile, ExactQuantile

        several = isinstance(q, Iterable)
        if not several and not isinstance(q, int | float):
            raise JobSpecError(f"quantile({column!r}, {q!r}): q is a number from 0 to 1, or a list of these")
        outlet = (ApproxQuantile if approx else ExactQuantile)(column, list(q) if isinstance(q, Iterable) else [q], method, root)
        self._told(f"quantile({column!r}, {q!r}{', approx=True' if approx else ''})")
        found = self._session().execute(self._node, outlet)
        return found if several or found is None else found[0]

    def histogram(self, column: str | Sequence[str], bins: Any = 10, *, range: Any = None, weights: str | None = None, density: bool = False,
                  root: int | None = None) -> Any:
        """How many rows lie in each bin of a column, or of several columns at once.

        Parameters
        ----------
        column : str or sequence of str
            Numbers. A list makes an N-dimensional histogram.
        bins : int or array of edges; for several columns also a list with one of these for each
            As in ``np.histogram`` and ``np.histogramdd``: a bin holds its lower edge, the last one its upper edge too.
        range : (low, high); for several columns a list of these, or of None
            Where bins are numbers. Without it the extent of the values is found in a pass before. What lies outside is left out.
        weights : str, optional
            A column whose values are summed, in place of counting rows.
        density : bool
            Divide by the sum of all bins and by the size of each.
        root : int, optional
            The one rank that is given the result; None: every rank.

        Returns
        -------
        counts : ndarray, one axis for each column
            int64; float64 with `weights` (exact sums, rounded once) or `density`.
        edges : (bins + 1,) array; for several columns a list of these

        Notes
        -----
        Collective: yes. Nulls and NaN are in no bin. Cost: one pass, two without `range`; memory for the bins on each rank.
        """
        from hpcmr.ops.histogram import Extent, Histogram

        outlet = Histogram(column, bins, range, weights, density, root)
        self._told(f"histogram({', '.join(map(repr, outlet.columns))})")
        if outlet.needs_extents:
            outlet.extents = self._session().execute(self._node, Extent(outlet.columns))
        return self._session().execute(self._node, outlet)

    def explain(self) -> str:
        """The plan as text. Nothing is read; not collective."""
        return explain(self._node)

    def fingerprint(self) -> tuple[str, ...]:
        """What counts of a table that a function of the user's captured."""
        return ("table", plan_fingerprint(self._node))


def _result(found: Any) -> Result | None:
    return None if found is None else found if isinstance(found, Result) else Result(found)
