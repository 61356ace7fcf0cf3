"""Waiting without burning a shared core, and without waiting for ever.

A blocking MPI call spins and can't be told from a dead one. All waits of this package are loops of Test: first bare, then
yielding the core, then sleeping ever longer up to a few milliseconds; after ``HPCMR_STALL_S`` seconds they give up. On the command line
this is the default of ``--stall-timeout``, and a watchdog asks all ranks before it ends the job (`hpcmr.run.watchdog`).
"""

from __future__ import annotations

import os
import time

from hpcmr.comm.pulse import PULSE

SPINS = 200
YIELDS = 400
SLEEP_MIN_S = 20e-6
SLEEP_MAX_S = 2e-3
STALL_DEFAULT_S = 600.0


def stall_limit_s() -> float:
    """Seconds after which a wait gives up: ``HPCMR_STALL_S``, 600 unless set; 0, and where there is a watchdog: never."""
    if PULSE.watched:
        return float("inf")
    try:
        return float(os.environ.get("HPCMR_STALL_S", STALL_DEFAULT_S)) or float("inf")
    except ValueError:
        return STALL_DEFAULT_S


class Backoff:
    """How long to pause before the next Test.

    ``pause()`` returns False once the time limit has passed, or the watchdog has found that the job stands still. ``reset()`` says that
    something moved.
    """

    __slots__ = ("_idle", "_limit_s", "_since", "_sleep_max_s", "_sleep_s")

    def __init__(self, limit_s: float | None = None, sleep_max_s: float = SLEEP_MAX_S) -> None:
        self._limit_s = stall_limit_s() if limit_s is None else limit_s
        self._sleep_max_s = sleep_max_s
        self.reset()

    def reset(self) -> None:
        self._idle = 0
        self._sleep_s = SLEEP_MIN_S
        self._since = time.monotonic()

    def pause(self) -> bool:
        self._idle += 1
        if self._idle <= SPINS:
            return True
        if self._idle <= SPINS + YIELDS:
            os.sched_yield()
            return True
        time.sleep(self._sleep_s)
        self._sleep_s = min(self._sleep_s * 1.5, self._sleep_max_s)
        return PULSE.verdict is None and time.monotonic() - self._since < self._limit_s
