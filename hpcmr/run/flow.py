"""A flow: rows on their way, before anything has asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hpcmr.data.schema import Schema
from hpcmr.data.source import Split
from hpcmr.ops.contract import Step
from hpcmr.ops.hold import Pinned
from hpcmr.run.feed import Feed


class Behind(Protocol):
    """What a flow reads from: a stage that was run, or memory that was taken."""

    def taken_by(self, stage: Any) -> None:
        """The rows have been read by `stage`: give back what they lay in."""

    def release(self) -> None:
        """The same after an error. May be called twice."""


@dataclass
class Flow:
    """A feed, and the steps that its rows have to go through.

    Attributes
    ----------
    feed : Feed
    schema : Schema
        Of the feed's rows, before the steps.
    steps : tuple of Step
    bound : tuple of int and Schema, optional
        How many of the steps are bound already, and the columns behind them.
    labels : tuple of str
        What happens here, for people.
    behind : tuple of Behind
        What is done with once the rows have been read.
    pinned : Pinned or None
        Partitions of the feed's rows, if its pieces are some.
    splits : tuple of Split or None
        All inputs that went in, as often as they did; None if some lie in memory, where it cannot be told whether they are the same.
    """

    feed: Feed
    schema: Schema
    steps: tuple[Step, ...] = ()
    labels: tuple[str, ...] = ()
    behind: tuple[Behind, ...] = ()
    pinned: Pinned | None = None
    splits: tuple[Split, ...] | None = field(default=(), repr=False)
    bound: tuple[int, Schema] | None = None

    def then(self, steps: Sequence[Step], labels: Sequence[str]) -> Flow:
        """The same rows, through further steps."""
        return replace(self, steps=(*self.steps, *steps), labels=(*self.labels, *labels))

    def pinned_behind(self) -> Pinned | None:
        """Partitions of the rows that come out of the steps; None where a step may change the keys, or makes other rows."""
        if self.pinned is None:
            return None
        names: tuple[str, ...] | None = self.pinned.keys
        for step in self.steps:
            carries = getattr(step, "carries", None)
            names = carries(names) if carries is not None and names is not None else None
        return None if names is None else self.pinned.renamed(names)

    @property
    def repeatable(self) -> bool:
        """Whether reading and going through the steps once more is cheap and gives the same."""
        return self.feed.again and not self.feed.late and all(getattr(s, "repeatable", False) for s in self.steps)


def joined(*splits: tuple[Split, ...] | None) -> tuple[Split, ...] | None:
    """Inputs of several flows together."""
    if any(s is None for s in splits):
        return None
    return tuple(s for part in splits for s in part or ())
