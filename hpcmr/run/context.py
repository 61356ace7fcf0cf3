"""What operators and outlets see of the engine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmr.run.session import Session


class RunContext:
    """`hpcmr.ops.contract.StageContext` and `hpcmr.ops.outlet.OutletContext` for one stage.

    Attributes
    ----------
    partitions : int
    seed, rank, size : int
    attempt : str
    provenance : dict
    counters : Counter
        What operators counted on this rank.
    """

    def __init__(self, session: Session, partitions: int, attempt: str, provenance: dict[str, Any]) -> None:
        self._session = session
        self.partitions = partitions
        self.seed = session.seed
        self.rank = session.world.rank
        self.size = session.world.size
        self.attempt = attempt
        self.provenance = provenance
        self.counters: Counter[str] = Counter()

    def take(self, nbytes: int, what: str) -> None:
        self._session.memory.take(nbytes, what)

    def give(self, nbytes: int) -> None:
        self._session.memory.give(nbytes)

    def available(self) -> int:
        return self._session.memory.available()

    def count(self, name: str, n: int) -> None:
        self.counters[name] += n

    def log(self, message: str, once: str | None = None) -> None:
        self._session.say(message, once)
