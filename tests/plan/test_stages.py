"""Chains of nodes become stages."""

from __future__ import annotations

from hpcmr.plan.nodes import chain
from hpcmr.plan.stages import stages
from tests.plan.support import apply, keyed, read


def test_chain_runs_from_the_input() -> None:
    node = apply(keyed(apply(read(), label="a")), label="b")
    assert [n.label for n in chain(node)] == ["read", "a", "group", "b"]


def test_steps_are_fused_and_wide_operations_end_a_stage() -> None:
    node = apply(keyed(apply(apply(read(), 1), 2), 3), 4)
    first, last = stages(node)
    assert [s.fingerprint() for s in first.steps] == [(1,), (2,)]
    assert first.source is not None
    assert first.operator is not None
    assert first.operator.fingerprint() == (3,)
    assert last.source is None
    assert last.operator is None
    assert [s.fingerprint() for s in last.steps] == [(4,)]
    assert first.name == "read -> step -> step -> group"


def test_there_is_always_a_stage_for_the_outlet() -> None:
    only, = stages(read())
    assert (only.operator, only.steps) == (None, ())
    assert [s.operator is None for s in stages(keyed(keyed(read())))] == [False, False, True]


def test_each_action_has_steps_and_operators_of_its_own() -> None:
    node = keyed(apply(read()))
    one, two = stages(node)[0], stages(node)[0]
    one.steps[0].bound = one.operator.bound = True  # type: ignore[attr-defined, union-attr]
    assert not two.steps[0].bound  # type: ignore[attr-defined]
    assert not two.operator.bound  # type: ignore[attr-defined, union-attr]
    assert not stages(node)[0].steps[0].bound  # type: ignore[attr-defined]
