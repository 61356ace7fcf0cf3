"""Signs of life of this process: when something last moved, and where it is. Read by the watchdog of the command line only.

Whoever makes progress says so: a batch that went through, a tick that all ranks joined, a message that came. Waits of this package ask
whether the watchdog has found that the job stands still; then they end with the error that it left here.
"""

from __future__ import annotations

import time
from typing import Any


class Pulse:
    """One per process; attributes are plain values, so that a thread may read them.

    Attributes
    ----------
    beat_s : float
        `time.monotonic` of the last progress.
    phase : str
        What the process is at, for example ``stage 2 of 5, read_hdf5('a.h5') -> group``.
    waiting : str
        What it waits for; empty: it works.
    table : array or None
        ``(ranks, numbers)`` of the last tick, and when that was.
    table_s : float
    watched : bool
        There is a watchdog: waits have no time limit of their own.
    verdict : BaseException or None
        The job stands still: all waits end with this error.
    """

    __slots__ = ("beat_s", "phase", "table", "table_s", "verdict", "waiting", "watched")

    def __init__(self) -> None:
        self.phase = self.waiting = ""
        self.table: Any = None
        self.watched = False
        self.verdict: BaseException | None = None
        self.beat_s = self.table_s = time.monotonic()

    def beat(self) -> None:
        """Something moved."""
        self.beat_s = time.monotonic()
        self.waiting = ""

    def ticked(self, table: Any) -> None:
        """All ranks have told how they stand."""
        self.table, self.table_s = table, time.monotonic()

    def where(self) -> str:
        """What this process is at, in words."""
        phase = self.phase or "outside of any action"
        return f"{phase}, waiting in {self.waiting}" if self.waiting else phase


PULSE = Pulse()
