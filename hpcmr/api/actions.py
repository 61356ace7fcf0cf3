"""Actions: what asks for the rows of a table."""

from __future__ import annotations

import os
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
        self._told(f"reduce({name_of(function)})")
        from hpcmr.ops.reduce import Reduce

        return self._session().execute(self._node, Reduce(function, root))

    def explain(self) -> str:
        """The plan as text. Nothing is read; not collective."""
        return explain(self._node)

    def fingerprint(self) -> tuple[str, ...]:
        """What counts of a table that a function of the user's captured."""
        return ("table", plan_fingerprint(self._node))


def _result(found: Any) -> Result | None:
    return None if found is None else found if isinstance(found, Result) else Result(found)
