"""Notice: somebody outside asks the job to commit and to leave. On the command line only.

SIGUSR1 and SIGUSR2 (launchers pass them on to all ranks) and SIGTERM set a flag on the rank that saw it; the handlers do nothing else.
The ranks come to hear of it at their next tick, commit a checkpoint, and exit 75. How long that takes is bounded by one split and by
what the checkpoint takes to write: a rank looks between two pieces only.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class Notice:
    """Whether a notice has come. `install` in the main thread, as early as can be: until then such a signal ends the process.

    Attributes
    ----------
    name : str or None
        Of the first signal that came, for example ``"SIGUSR1"``.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._take)

    def uninstall(self) -> None:
        """Put back what was there before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
