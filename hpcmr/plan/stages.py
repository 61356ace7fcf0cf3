"""From nodes to stages: what runs in one pass over splits, partitions or kept rows.

Narrow steps that follow one another are fused into the stage that reads their input; a wide operation ends a stage. The last
stage has no operator: its pieces go to the action's outlet.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from hpcmr.data.source import Source
from hpcmr.ops.contract import Step
from hpcmr.ops.evaluate import fuse
from hpcmr.ops.hold import Kept
from hpcmr.ops.words import source_for
from hpcmr.plan.nodes import Apply, Keyed, Node, Pair, Persist, Read, Union, parents_of


@dataclass
class Segment:
    """The narrow end of a plan: steps, the node whose rows go into them, and the same of what that node needs.

    Attributes
    ----------
    head : Read, Keyed, Union, Pair or Persist
    source : Source or None
        What to read, where `head` is a `Read`.
    steps : tuple of Step
        Copies, which the caller may bind.
    labels : tuple of str
        Readable names of all that happens here, in order; of the head too unless a stage of its own makes its rows.
    inputs : tuple of Segment
        What the head is made of; none of rows that are read, or kept on the ranks already.
    """

    head: Node
    source: Source | None
    steps: tuple[Step, ...]
    labels: tuple[str, ...]
    inputs: tuple[Segment, ...] = ()


def segment(node: Node) -> Segment:
    """The segments of a plan, from its end."""
    found: list[Apply] = []
    while isinstance(node, Apply):
        found.append(node)
        node = node.parent
    found.reverse()
    source = None
    if isinstance(node, Read):
        source = source_for(found[0].step, node.source) if found else node.source
    labels = (*((node.label,) if isinstance(node, Read | Union) else ()), *(a.label for a in found))
    needed = () if isinstance(node, Persist) and node.kept.filled else parents_of(node)
    return Segment(node, source, fuse(copy.copy(a.step) for a in found), labels, tuple(segment(n) for n in needed))


def stage_count(node: Node) -> int:
    """How many stages an action on `node` has, as far as that can be told before it runs: the last one goes into the outlet.

    A wide operation ends a stage. A join holds its right side, and sends both sides to the owners of their keys unless that turns
    out to be so small that each rank gets all of it.
    """
    return 1 + _count(node)


def _count(node: Node) -> int:
    found = 0
    todo = [node]
    while todo:
        item = segment_head(todo.pop())
        if isinstance(item, Persist):
            if item.kept.filled or item.kept.parent is None:
                continue
            found += 1
            todo.append(item.parent)
        elif isinstance(item, Keyed):
            found += 1
            todo.append(item.parent)
        elif isinstance(item, Union):
            todo += item.parents
        elif isinstance(item, Pair):
            found += 3 - is_kept(item.right)
            todo += [item.left, item.right]
    return found


def segment_head(node: Node) -> Node:
    """The last node that is not narrow."""
    while isinstance(node, Apply):
        node = node.parent
    return node


def is_kept(node: Node) -> bool:
    """Whether the rows of `node` lie on the ranks already."""
    return isinstance(node, Persist) and node.kept.filled


def inputs_of(node: Node) -> list[Read | Kept]:
    """What goes into a plan, in the order of its rows, each as often as it does. Of rows that are kept for good, these."""
    found: list[Read | Kept] = []
    todo = [node]
    while todo:
        item = todo.pop()
        if isinstance(item, Read):
            found.append(item)
        elif isinstance(item, Persist) and item.kept.parent is None:
            found.append(item.kept)
        todo += reversed(parents_of(item))
    return found
