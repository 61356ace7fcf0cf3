"""Sources, steps and operators that do nothing, to build plans of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcmr.ops.hold import Kept
from hpcmr.plan.nodes import Apply, Keyed, Node, Pair, Persist, Read, Union


@dataclass
class Thing:
    """Stands for a source, a step or an operator: has a name and a fingerprint, and can be bound."""

    name: str
    value: Any = None
    bound: bool = False
    rule: str = "broadcast if small, else shuffle"

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.value,)


def read(value: Any = None, label: str = "read") -> Node:
    return Read(label, "job.py:1", Thing("source", value))  # type: ignore[arg-type]


def apply(parent: Node, value: Any = None, label: str = "step") -> Node:
    return Apply(label, "job.py:2", parent, Thing("step", value))  # type: ignore[arg-type]


def keyed(parent: Node, value: Any = None, label: str = "group") -> Node:
    return Keyed(label, "job.py:3", parent, Thing("operator", value))  # type: ignore[arg-type]


def union(*parents: Node) -> Node:
    return Union("union", "job.py:4", parents)


def pair(left: Node, right: Node, value: Any = None) -> Node:
    return Pair("join", "job.py:5", left, right, Thing("operator", value))  # type: ignore[arg-type]


def persist(parent: Node) -> Node:
    return Persist("persist()", "job.py:6", Kept(parent))
