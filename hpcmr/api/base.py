"""What all verbs of a `Table` stand on: its last node, its communicator, and how a verb adds a node."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hpcmr.api.dry import is_dry, tell_action
from hpcmr.plan.explain import explain
from hpcmr.plan.nodes import Apply, Keyed, Node

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.api.table import Table
    from hpcmr.ops.contract import KeyedOperator, Step
    from hpcmr.run.session import Session

Function = Callable[..., Any]
Out = Mapping[str, Any] | None


class TableBase:
    """The last node of a plan, and the communicator of the ranks that take part."""

    __slots__ = ("_comm", "_node")

    def __init__(self, node: Node, comm: MPI.Comm | None = None) -> None:
        self._node = node
        self._comm = comm

    def _on(self, node: Node) -> Table:
        """The table that ends in `node`, on the same ranks."""
        from hpcmr.api.table import Table

        return Table(node, self._comm)

    def _apply(self, label: str, step: Step) -> Table:
        return self._on(Apply(label, where(), self._node, step))

    def _keyed(self, label: str, operator: KeyedOperator, partitions: int | None = None) -> Table:
        return self._on(Keyed(label, where(), self._node, operator, partitions))

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


def name_of(function: Any) -> str:
    return str(getattr(function, "name", None) or getattr(function, "__qualname__", type(function).__name__)).replace("<locals>.", "")


def where() -> str:
    """``file:line`` of the user's program that called this package."""
    frame = sys._getframe(1)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    while frame.f_back is not None and os.path.abspath(frame.f_code.co_filename).startswith(ours + os.sep):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
