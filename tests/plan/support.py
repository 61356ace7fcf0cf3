"""Sources, steps and operators that do nothing, to build plans of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcmr.plan.nodes import Apply, Keyed, Node, Read


@dataclass
class Thing:
    """Stands for a source, a step or an operator: has a name and a fingerprint, and can be bound."""

    name: str
    value: Any = None
    bound: bool = False

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.value,)


def read(value: Any = None, label: str = "read") -> Node:
    return Read(label, "job.py:1", Thing("source", value))  # type: ignore[arg-type]


def apply(parent: Node, value: Any = None, label: str = "step") -> Node:
    return Apply(label, "job.py:2", parent, Thing("step", value))  # type: ignore[arg-type]


def keyed(parent: Node, value: Any = None, label: str = "group") -> Node:
    return Keyed(label, "job.py:3", parent, Thing("operator", value))  # type: ignore[arg-type]
