"""Times for people. Standard library only, so that commands which only look need no NumPy."""

from __future__ import annotations


def show_seconds(seconds: float) -> str:
    """Seconds for people: ``0.21 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_age(seconds: float) -> str:
    """The same for what lies some time back; clocks of two machines may differ by a little."""
    return show_seconds(max(0.0, seconds))
