"""The tick: ranks tell each other how they stand, between splits, without stopping.

A tick is one nonblocking allgather of a status vector. A rank joins when it has finished a split; it goes on working and looks
later whether all have joined. At most one tick is on the way.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.collective import collective
from hpcmr.comm.mpi_world import MpiWorld
from hpcmr.comm.pulse import PULSE
from hpcmr.comm.waiting import Backoff
from hpcmr.comm.world import World
from hpcmr.errors import HpcmrError

Status = NDArray[np.int64]


class Tick:
    """A nonblocking allgather of ``(width,) int64`` that is posted again and again.

    Parameters
    ----------
    world : World
    width : int
        Length of a status; the same on every rank.

    Attributes
    ----------
    in_flight : bool
        Posted and not yet taken by `wait`.
    count : int
        Ticks that were taken.
    """

    def __init__(self, world: World, width: int) -> None:
        self.world = world
        self.in_flight = False
        self.count = 0
        self._mine = np.zeros(width, np.int64)
        self._all = np.zeros((world.size, width), np.int64)
        self._request: Any = None

    @collective
    def post(self, status: Status) -> None:
        """Join the tick with this rank's status; returns at once.

        Raises
        ------
        HpcmrError
            The one before was not taken, or the status has another length.
        """
        if self.in_flight:
            raise HpcmrError("a tick is still on the way; take it with wait() before posting the next")
        if np.shape(status) != self._mine.shape:
            raise HpcmrError(f"a status has {len(self._mine)} numbers, this one has shape {np.shape(status)}")
        self._mine[:] = status
        self.in_flight = True
        if isinstance(self.world, MpiWorld):
            self._request = self.world.posted(lambda comm: comm.Iallgather(self._mine, self._all), "tick")
        else:
            self._all[0] = self._mine

    def done(self) -> bool:
        """Whether every rank has joined the tick on the way (False without one). Not collective; moves the message on."""
        if not self.in_flight:
            return False
        if self._request is not None and isinstance(self.world, MpiWorld):
            if self.world.testsome([self._request], "tick"):
                self._request = None
        return self._request is None

    def wait(self, timeout_s: float | None = None) -> Status:
        """Statuses of all ranks, ``(size, width) int64``, a copy; waits until all have joined.

        Parameters
        ----------
        timeout_s : float, optional
            Time limit, else ``HPCMR_STALL_S``.

        Raises
        ------
        HpcmrError
            Nothing was posted, or a rank did not join within the limit.
        """
        if not self.in_flight:
            raise HpcmrError("no tick is on the way; post() one first")
        pause = Backoff(timeout_s)
        since = time.monotonic()
        while not self.done():
            if not pause.pause():
                assert isinstance(self.world, MpiWorld)
                raise self.world.stalled(f"tick {self.count} ({time.monotonic() - since:.0f} s)")
        self.in_flight = False
        self.count += 1
        table = self._all.copy()
        PULSE.beat()
        PULSE.ticked(table)
        return table
