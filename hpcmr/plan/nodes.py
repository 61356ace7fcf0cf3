"""The nodes of a plan: what a `Table` is made of.

A plan is a graph from one or several inputs to the table at hand. Nodes are frozen and hold *templates*: a node's step or
operator is never bound, opened or run. The executor copies it for each action, so that one table may be used by many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpcmr.data.source import Source
from hpcmr.ops.contract import KeyedOperator, PairOperator, Step
from hpcmr.ops.hold import Kept


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


@dataclass(frozen=True)
class Union(Node):
    """The rows of all parents, one parent behind the other."""

    parents: tuple[Node, ...]


@dataclass(frozen=True)
class Pair(Node):
    """A wide operation on two tables: a join."""

    left: Node
    right: Node
    operator: PairOperator
    partitions: int | None = None


@dataclass(frozen=True)
class Persist(Node):
    """The rows of the node before, kept on the ranks by the first action that comes by, and read from there by later ones.

    The node before is held by `kept`, which may let go of it once it has the rows.
    """

    kept: Kept

    @property
    def parent(self) -> Node:
        found = self.kept.parent
        assert isinstance(found, Node)
        return found


def parents_of(node: Node) -> tuple[Node, ...]:
    """The nodes whose rows go into `node`; none of one that is read, or kept for good."""
    if isinstance(node, Apply | Keyed):
        return (node.parent,)
    if isinstance(node, Union):
        return node.parents
    if isinstance(node, Pair):
        return (node.left, node.right)
    if isinstance(node, Persist) and node.kept.parent is not None:
        return (node.parent,)
    return ()


def walk(node: Node) -> list[Node]:
    """All nodes of the plan that ends in `node`, each once, inputs before what is made of them."""
    return list(_below(node))


def _below(node: Node) -> Iterator[Node]:
    """Depth first without recursion: a plan may be longer than Python's stack."""
    seen: set[int] = set()
    todo: list[tuple[Node, bool]] = [(node, False)]
    while todo:
        item, ready = todo.pop()
        if ready:
            yield item
        elif id(item) not in seen:
            seen.add(id(item))
            todo.append((item, True))
            todo += [(p, False) for p in reversed(parents_of(item))]
