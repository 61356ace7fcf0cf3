"""How far a job is: one line that is rewritten on a terminal, or a line now and then in a log. Rank 0, stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from hpcmr.run.drive import NBYTES, PIECES, ROWS, WEIGHT, Table
from hpcmr.run.memory import show_nbytes

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
    """The progress of one stage, fed with the tables of ticks.

    Parameters
    ----------
    progress : Progress or None
        None says nothing.
    title : str
    total : int
        Weight of all pieces.
    """

    def __init__(self, progress: Progress | None, title: str, total: int) -> None:
        self._progress, self._title, self._total = progress, title, total
        self._began_s = time.monotonic()

    def update(self, table: Table) -> None:
        if self._progress is None or not self._progress.due():
            return
        sums: Any = table.sum(axis=0)
        self._progress.line(progress_line(self._title, float(sums[WEIGHT]) / max(1, self._total), time.monotonic() - self._began_s, int(sums[ROWS]),
                                          int(sums[NBYTES]), int(sums[PIECES])))

    def note(self, what: str) -> None:
        """Say what goes on after the pieces, on a terminal."""
        if self._progress is not None and self._progress.terminal and self._progress.due():
            self._progress.line(f"{self._title}: {what}")

    def end(self) -> None:
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
