"""The nodes of a plan: what a `Table` is made of.

A plan is a chain from one input to the table at hand. Nodes are frozen and hold *templates*: a node's step or operator is
never bound, opened or run. `hpcmr.plan.stages` copies it for each action, so that one table may be used by many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpcmr.data.source import Source
from hpcmr.ops.contract import KeyedOperator, Step


@dataclass(frozen=True)
class Node:
    """What all nodes have: a readable label, and the line of the user's program that made it."""

    label: str
    where: str


@dataclass(frozen=True)
class Read(Node):
    """Rows of an input, in its order."""

    source: Source


@dataclass(frozen=True)
class Apply(Node):
    """A narrow operation: each batch of the node before goes through `step`."""

    parent: Node
    step: Step


@dataclass(frozen=True)
class Keyed(Node):
    """A wide operation: the rows of the node before are brought together by key in `operator`.

    `partitions` is a wish of the user's (a power of two); None leaves the number to the bytes going in.
    """

    parent: Node
    operator: KeyedOperator
    partitions: int | None = None


def chain(node: Node) -> list[Node]:
    """The nodes from the input to `node`."""
    found = list(_upwards(node))
    found.reverse()
    return found


def _upwards(node: Node) -> Iterator[Node]:
    while True:
        yield node
        if not isinstance(node, Apply | Keyed):
            return
        node = node.parent
