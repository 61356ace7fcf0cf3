"""From a chain of nodes to stages: one pass over splits or partitions each.

Narrow steps that follow one another are fused into the stage that reads their input; a wide operation ends a stage. The last
stage has no operator: its pieces go to the action's outlet.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from hpcmr.data.source import Source
from hpcmr.ops.contract import KeyedOperator, Step
from hpcmr.ops.words import source_for
from hpcmr.plan.nodes import Apply, Keyed, Node, Read, chain


@dataclass
class StageSpec:
    """One pass through a chain of steps into one sink.

    Parameters
    ----------
    source : Source or None
        Where the rows come from; None for the partitions that the stage before finishes.
    steps : tuple of Step
        Applied to each batch in turn, before the next batch is read.
    operator : KeyedOperator or None
        The sink; None in the last stage, whose pieces go to the outlet.
    partitions : int or None
        Number of partitions of the operator that the user asked for; None: from the bytes going in.
    labels : tuple of str
        Readable names of all that happens here, in order.
    """

    source: Source | None
    steps: tuple[Step, ...]
    operator: KeyedOperator | None
    partitions: int | None
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return " -> ".join(self.labels)


def stages(node: Node) -> list[StageSpec]:
    """The stages that yield the rows of `node`, with steps and operators copied, so that the caller may bind and open them.

    There is always a last stage without operator, with no steps if nothing follows the last wide operation.
    """
    nodes = chain(node)
    first = nodes[0]
    assert isinstance(first, Read)
    source: Source | None = source_for(nodes[1].step, first.source) if len(nodes) > 1 and isinstance(nodes[1], Apply) else first.source
    labels, steps, found = [first.label], [], []
    for item in nodes[1:]:
        labels.append(item.label)
        if isinstance(item, Apply):
            steps.append(copy.copy(item.step))
        elif isinstance(item, Keyed):
            found.append(StageSpec(source, tuple(steps), copy.copy(item.operator), item.partitions, tuple(labels)))
            source, labels, steps = None, [], []
    found.append(StageSpec(source, tuple(steps), None, None, tuple(labels)))
    return found
