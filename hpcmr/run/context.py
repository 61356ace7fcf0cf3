"""What operators and outlets see of the engine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.gather import allgather_batch
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.ops.contract import Spool

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
    spool : Spool or None
        Node-local scratch.
    counters : Counter
        What operators counted on this rank.
    taken_nbytes : int
        What was taken through this object and not given back.
    """

    def __init__(self, session: Session, partitions: int, attempt: str, provenance: dict[str, Any]) -> None:
        self._session = session
        self.partitions = partitions
        self.seed = session.seed
        self.rank = session.world.rank
        self.size = session.world.size
        self.attempt = attempt
        self.provenance = provenance
        self.spool: Spool | None = session.spool
        self.counters: Counter[str] = Counter()
        self.taken_nbytes = 0

    def take(self, nbytes: int, what: str) -> None:
        self._session.memory.take(nbytes, what)
        self.taken_nbytes += nbytes

    def give(self, nbytes: int) -> None:
        self._session.memory.give(nbytes)
        self.taken_nbytes -= nbytes

    @property
    def limit_nbytes(self) -> int:
        """The rank's whole budget."""
        return self._session.memory.limit_nbytes

    @property
    def journal(self) -> Any:
        """The run's, on rank 0 of a job on the command line; else None."""
        return self._session.attempt.journal if self._session.attempt is not None else None

    def new_spool(self) -> Any:
        """Scratch for rows by partition: a `hpcmr.store.spill.Spool`."""
        return self._session.new_spool()

    def available(self) -> int:
        return self._session.memory.available()

    def count(self, name: str, n: int) -> None:
        self.counters[name] += n

    def log(self, message: str, once: str | None = None) -> None:
        self._session.say(message, once)


class Together:
    """`hpcmr.ops.contract.Collective` over the ranks of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rank = world.rank
        self.size = world.size

    def allgather(self, obj: Any) -> list[Any]:
        return self._world.allgather(obj)

    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]:
        return self._world.allreduce(array, op)

    def allgather_batch(self, batch: Batch) -> Batch:
        return allgather_batch(self._world, batch)

    def exscan(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        below = self._world.allgather(np.asarray(array, np.int64))[:self.rank]
        return np.sum(below, axis=0, dtype=np.int64) if below else np.zeros_like(array, np.int64)
