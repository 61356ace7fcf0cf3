"""`Table`: a lazy description of rows, and the actions that ask for them.

A table is the last node of a plan, and the communicator of the ranks that take part. It holds no rows; each operation makes a
new table. Actions go through the session of `hpcmr.run`. The verbs stand in files by kind: `row_verbs`, `wide_verbs`,
`shape_verbs`, `order_verbs`, `actions`; where tables come from is `reading`.
"""

from __future__ import annotations

import os

from hpcmr.api.actions import Actions
from hpcmr.api.base import where
from hpcmr.api.order_verbs import OrderVerbs
from hpcmr.api.row_verbs import RowVerbs
from hpcmr.api.shape_verbs import ShapeVerbs
from hpcmr.api.wide_verbs import WideVerbs
from hpcmr.plan.nodes import Read


class Table(RowVerbs, WideVerbs, ShapeVerbs, OrderVerbs, Actions):
    """A lazy table; made by `read_text`, `read_hdf5` and `from_arrays`, not by hand.

    Operations return new tables and read nothing. Actions (`write_hdf5`, `collect`, `head`, `reduce`) read; every rank calls them.
    """

    __slots__ = ()

    @classmethod
    def from_stored(cls, path: str | os.PathLike[str]) -> Table:
        """The rows of an output of this package; see `hpcmr.open`."""
        from hpcmr.store.source import StoredSource

        return cls(Read(f"open({os.fspath(path)!r})", where(), StoredSource(path)))

    def __repr__(self) -> str:
        return f"<Table: {self._node.label}>"
