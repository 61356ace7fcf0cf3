"""Durations on the command line: ``30s``, ``5min``, ``2h``, ``1d``, ``1h30min``, or a number of seconds."""

from __future__ import annotations

import argparse
import re

UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|min|m|h|d)")


def duration(text: str) -> float:
    """Seconds; for argparse."""
    told = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", told):
        return float(told)
    parts = _PART.findall(told)
    if not parts or "".join(n + u for n, u in parts) != told:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 30s, 5min, 1h30min, 2d, or a number of seconds")
    return sum(float(n) * UNITS[u] for n, u in parts)
