"""Notice: somebody outside asks the job to commit and to leave. On the command line only.

SIGUSR1 and SIGUSR2 (launchers pass them on to all ranks) and SIGTERM set a flag on the rank that saw it; the handlers do nothing else.
The ranks come to hear of it at their next tick, commit a checkpoint, and exit 75. How long that takes is bounded by one split and by
what the checkpoint takes to write: a rank looks between two pieces only. A second SIGTERM that comes `AGAIN_S` or more after the first
one ends the process, as if nobody had set a handler: a job that stands still can be ended so.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
AGAIN_S = 2.0


class Notice:
    """Whether a notice has come. `install` in the main thread, as early as can be: until then such a signal ends the process.

    Attributes
    ----------
    name : str or None
        Of the first signal that came, for example ``"SIGUSR1"``.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._came_s = 0.0

    def install(self) -> None:
        """Take the signals from here on, until the process ends."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.name is not None and number == signal.SIGTERM and now - self._came_s >= AGAIN_S:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if self.name is None:
            self.name, self._came_s = signal.Signals(number).name, now
