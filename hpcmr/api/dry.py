"""``hpcmr job --explain``: actions tell their plan in place of running it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from hpcmr.plan.explain import explain
from hpcmr.plan.nodes import Node

_tell: ContextVar[Callable[[str], None] | None] = ContextVar("hpcmr_tell", default=None)


class Unknown(Exception):
    """The job goes on with rows that a dry run does not have. Never leaves `dry_run`."""


@contextlib.contextmanager
def dry_run(tell: Callable[[str], None]) -> Iterator[None]:
    """Within this context actions give the text of their plan to `tell` and read nothing; at the first result it ends quietly."""
    token = _tell.set(tell)
    try:
        yield
    except Unknown:
        tell("what follows depends on these rows")
    finally:
        _tell.reset(token)


def is_dry() -> bool:
    """Whether actions are to be explained, not run."""
    return _tell.get() is not None


def tell_action(node: Node, action: str, has_result: bool) -> None:
    """Tell the plan of an action; raise `Unknown` if the job wants its result."""
    tell = _tell.get()
    assert tell is not None
    tell(explain(node, action))
    if has_result:
        raise Unknown
