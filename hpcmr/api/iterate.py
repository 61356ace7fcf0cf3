"""`iterate`: the same step again and again, on rows that stay on the ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from hpcmr.api.base import TableBase
from hpcmr.api.dry import is_dry
from hpcmr.errors import JobSpecError
from hpcmr.plan.fingerprint import plan_fingerprint
from hpcmr.plan.nodes import Persist

State = TypeVar("State")


def iterate(state: State, step: Callable[[State], State], *, count: int | None = None, until: Callable[[State, State], bool] | None = None) -> State:
    """Apply `step` to `state`, then to what it made of it, and so on.

    ::

        def step(ranks):
            given = links.join(ranks, on="page").group_by("target").agg(rank=mr.sum("share"))
            return given.with_columns(rank=0.15 + 0.85 * mr.col("rank"))

        ranks = mr.iterate(ranks, step, count=20)

    Parameters
    ----------
    state : Table, or tuple, list or dict with tables and other values, or any value
        Where it begins.
    step : callable
        ``step(state)`` returns the next state, of the same form. It may run actions (`reduce`, `collect`).
    count : int, optional
        How many times; with `until` at most so many.
    until : callable, optional
        ``until(before, after)`` is asked after each step, and ends the iteration when it is true. Rank 0's answer counts for all.

    Returns
    -------
    state
        The last one. Its tables are kept on the ranks (`unpersist` gives their memory back).

    Raises
    ------
    JobSpecError
        Neither `count` nor `until` is given, or the state changes its form.

    Notes
    -----
    Collective: yes, every rank must call it. The tables of each state are kept on the ranks as `persist` does, and given back when the
    next one is there. Tables that do not change belong outside, persisted by the key that the step joins or groups by: they then stay
    where they are.
    """
    if count is None and until is None:
        raise JobSpecError("iterate() needs count=N, or until=f(before, after), or both: else it would not end")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise JobSpecError(f"iterate(count={count!r}): the number of steps is an integer, 0 or above")
    if is_dry():
        return step(state) if count != 0 else state
    ours: list[Any] = []        # tables that are kept for this iteration alone
    done = 0
    while count is None or done < count:
        following = _each(_form(state, step(state), step), partial(_kept, ours))
        ended = until is not None and _agreed(following, until(state, following))
        needed = _tables(following)
        for table in [t for t in ours if not any(t is n for n in needed)]:
            table.unpersist()
        ours = [t for t in ours if any(t is n for n in needed)]
        state, done = following, done + 1
        if ended:
            break
    return state


def _kept(ours: list[Any], table: Any) -> Any:
    """The table with its rows on the ranks, and without the plan that made them, which would grow from step to step."""
    from hpcmr.ops.materialize import Materialize

    if isinstance(table._node, Persist) and table._node.kept.made:
        return table
    digest = plan_fingerprint(table._node)
    found = table.persist()
    found._session().execute(found._node, Materialize())
    found._node.kept.detach(digest)
    ours.append(found)
    return found


def _tables(state: Any) -> list[Any]:
    found: list[Any] = []
    _each(state, found.append)
    return found


def _each(state: Any, change: Callable[[Any], Any]) -> Any:
    """The same state with `change` of each table in it."""
    if isinstance(state, TableBase):
        return change(state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_each(s, change) for s in state))
    if isinstance(state, tuple | list):
        return type(state)(_each(s, change) for s in state)
    if isinstance(state, dict):
        return {name: _each(s, change) for name, s in state.items()}
    return state


def _form(before: Any, after: Any, step: Callable[..., Any]) -> Any:
    if isinstance(before, TableBase) != isinstance(after, TableBase):
        name = getattr(step, "__qualname__", "the step")
        raise JobSpecError(f"iterate: {name} was given {type(before).__name__} and returned {type(after).__name__}; "
                           "what it returns is what it is given next")
    return after


def _agreed(state: Any, answer: Any) -> bool:
    """Rank 0's answer, on every rank."""
    from hpcmr.run.session import current

    tables = _tables(state)
    session = tables[0]._session() if tables else current()
    return bool(session.world.bcast(bool(answer)))
