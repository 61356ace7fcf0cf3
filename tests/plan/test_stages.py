"""Nodes become segments and stages."""

from __future__ import annotations

from hpcmr.plan.nodes import walk
from hpcmr.plan.stages import inputs_of, segment, stage_count
from tests.plan.support import apply, keyed, pair, persist, read, union


def test_walk_runs_from_the_inputs() -> None:
    node = apply(keyed(apply(read(), label="a")), label="b")
    assert [n.label for n in walk(node)] == ["read", "a", "group", "b"]
    shared = read(label="r")
    both = union(apply(shared, label="x"), apply(shared, label="y"))
    assert [n.label for n in walk(both)] == ["r", "x", "y", "union"]


def test_a_long_plan_needs_no_deep_stack() -> None:
    node = read()
    for i in range(5000):
        node = apply(node, i)
    assert len(walk(node)) == 5001
    assert len(segment(node).steps) == 5000


def test_steps_are_fused_and_wide_operations_end_a_stage() -> None:
    node = apply(keyed(apply(apply(read(), 1), 2), 3), 4)
    last = segment(node)
    first, = last.inputs
    assert [s.fingerprint() for s in last.steps] == [(4,)]
    assert (last.source, last.head.label) == (None, "group")
    assert [s.fingerprint() for s in first.steps] == [(1,), (2,)]
    assert first.source is not None
    assert first.inputs == ()
    assert first.labels == ("read", "step", "step")


def test_how_many_stages() -> None:
    assert stage_count(read()) == 1
    assert stage_count(keyed(keyed(read()))) == 3
    assert stage_count(union(keyed(read()), read())) == 2
    assert stage_count(apply(pair(read(), keyed(read())))) == 5
    assert stage_count(persist(keyed(read()))) == 3


def test_inputs_are_listed_as_often_as_they_are_read() -> None:
    one, two = read(1), read(2)
    assert inputs_of(pair(union(one, two), keyed(one))) == [one, two, one]


def test_each_action_has_steps_of_its_own() -> None:
    node = apply(read())
    one, two = segment(node), segment(node)
    one.steps[0].bound = True  # type: ignore[attr-defined]
    assert not two.steps[0].bound  # type: ignore[attr-defined]
    assert not segment(node).steps[0].bound  # type: ignore[attr-defined]
