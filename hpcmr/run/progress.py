"""How far a job is: one line that is rewritten on a terminal, or a line now and then in a log. Rank 0, stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from hpcmr.comm.pulse import PULSE
from hpcmr.run.drive import NBYTES, PIECES, ROWS, WEIGHT, Table
from hpcmr.run.memory import show_nbytes

if TYPE_CHECKING:
    from hpcmr.run.session import Session

TERMINAL_EVERY_S = 0.2
LOG_EVERY_S = 10.0


class Progress:
    """Where progress lines go.

    Parameters
    ----------
    stream : file, optional
        None: stderr.
    every_s : float, optional
        Seconds between two lines; None: `TERMINAL_EVERY_S` or `LOG_EVERY_S`.
    """

    def __init__(self, stream: TextIO | None = None, every_s: float | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.every_s = every_s if every_s is not None else TERMINAL_EVERY_S if self.terminal else LOG_EVERY_S
        self._shown = False
        self._last_s = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last_s >= self.every_s

    def line(self, text: str) -> None:
        self._last_s = time.monotonic()
        if self.terminal:
            width = max(20, os.get_terminal_size(self.stream.fileno()).columns - 1)
            self.stream.write(f"\r\033[K{text[:width]}")
            self._shown = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the line away, so that something else can be said."""
        if self._shown:
            self.stream.write("\r\033[K")
            self.stream.flush()
            self._shown = False


class StageProgress:
    """The progress of one stage, fed with the tables of ticks: to the terminal, to ``status.json``, and to the watchdog.

    Parameters
    ----------
    session : Session
        Its `progress` (None says nothing) and the status of its `attempt`.
    number, of : int
        Of the stage, and how many there are as far as it is known.
    name : str
    total : int
        Weight of all pieces.
    """

    def __init__(self, session: Session, number: int, of: int, name: str, total: int) -> None:
        self._progress = session.progress
        self._status = session.attempt.status if session.attempt is not None else None
        self._number, self._of, self._name, self._total = number, of, name, total
        self._title = f"stage {number} of {of}, {name}"
        self._began_s = time.monotonic()
        PULSE.phase = self._title
        if self._status is not None:
            self._status.update(stage=self._stage(0.0), rates=None, eta_s=None)

    def update(self, table: Table) -> None:
        line = self._progress is not None and self._progress.due()
        status = self._status is not None and self._status.due()
        if not line and not status:
            return
        sums: Any = table.sum(axis=0)
        share, seconds = min(1.0, float(sums[WEIGHT]) / max(1, self._total)), max(time.monotonic() - self._began_s, 1e-9)
        rows, nbytes = int(sums[ROWS]), int(sums[NBYTES])
        if self._progress is not None and line:
            self._progress.line(progress_line(self._title, share, seconds, rows, nbytes, int(sums[PIECES])))
        if self._status is not None and status:
            self._status.update(stage=self._stage(share), rates={"rows_s": rows / seconds, "nbytes_s": nbytes / seconds},
                                eta_s=seconds * (1 - share) / share if share > 0 else None)

    def _stage(self, share: float) -> dict[str, Any]:
        return {"number": self._number, "of": self._of, "name": self._name[:1000], "done": share}

    def note(self, what: str) -> None:
        """Say what goes on after the pieces, on a terminal."""
        PULSE.phase = f"{self._title}: {what}"
        if self._progress is not None and self._progress.terminal and self._progress.due():
            self._progress.line(f"{self._title}: {what}")

    def end(self) -> None:
        PULSE.phase = f"{self._title}: at its end"
        if self._progress is not None:
            self._progress.clear()


def progress_line(title: str, share: float, seconds: float, rows: int, nbytes: int, pieces: int) -> str:
    """``stage 1 of 2, read_text('a') -> words: 42 %, 1.2 M rows/s, 350 MiB/s, 12 s left``."""
    share = min(share, 1.0)
    pace = max(seconds, 1e-9)
    left = show_seconds(seconds * (1 - share) / share) + " left" if share > 0 else "beginning"
    return f"{title}: {100 * share:.0f} %, {show_count(rows / pace)} rows/s, {show_nbytes(nbytes / pace)}/s, {pieces:,} pieces, {left}"


def show_count(n: float) -> str:
    """A large number for people: ``1.2 M``."""
    for unit in ("", " k", " M"):
        if n < 1000:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.4g} G"


def show_seconds(seconds: float) -> str:
    """Seconds for people: ``0.21 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
