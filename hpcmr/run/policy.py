"""When a checkpoint is due: the rule of Young and Daly, bounded by a share of the running time. Pure functions of times and sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcmr.run.clock import show_seconds

MTBF_S = 24 * 3600.0      # between two failures of the job, if nobody says anything else
SHARE = 0.02              # of the running time, what checkpoints may cost
WRITE_NBYTES_S = 0.5e9    # of all ranks together, before anything was measured
FIXED_S = 0.05            # what a checkpoint takes that writes next to nothing
WEIGHT = 0.5              # of the newest measurement, in the running mean of costs


def interval_s(cost_s: float, mtbf_s: float = MTBF_S, share: float = SHARE) -> float:
    """Seconds between two checkpoints that cost `cost_s` each: ``sqrt(2 cost mtbf)`` (Young), and no more often than costs `share` of the time."""
    return max(math.sqrt(2.0 * cost_s * mtbf_s), cost_s / share)


def estimate_s(nbytes: int, nbytes_s: float = WRITE_NBYTES_S) -> float:
    """Seconds that it takes to write so many bytes, of all ranks."""
    return FIXED_S + nbytes / max(1.0, nbytes_s)


@dataclass
class Pace:
    """The rule, and what was measured so far.

    Parameters
    ----------
    mtbf_s : float
        Mean time between two failures of the job.
    every_s : float or None
        A fixed interval in place of the rule; 0: no checkpoint is ever due.

    Attributes
    ----------
    factor : float
        How many times what `estimate_s` says checkpoints have cost: mean of the measurements, the newest of which weigh most.
    """

    mtbf_s: float = MTBF_S
    every_s: float | None = None
    factor: float | None = None

    @property
    def off(self) -> bool:
        """Whether only a notice, or the user, brings a checkpoint about."""
        return self.every_s == 0

    def measured(self, seconds: float, nbytes: int) -> None:
        """A checkpoint of `nbytes` bytes of all ranks cost so many seconds, written and waited."""
        found = seconds / estimate_s(nbytes)
        self.factor = found if self.factor is None else WEIGHT * found + (1 - WEIGHT) * self.factor

    def cost_s(self, nbytes: int) -> float:
        """What a checkpoint of so many bytes will cost: one of a small state says what one of a large state does, and the other way round."""
        return estimate_s(nbytes) * (1.0 if self.factor is None else self.factor)

    def interval_s(self, nbytes: int) -> float:
        """Seconds from one checkpoint to the next, where `nbytes` bytes of all ranks have not been written yet."""
        if self.every_s is not None:
            return self.every_s if self.every_s > 0 else math.inf
        return interval_s(self.cost_s(nbytes), self.mtbf_s)

    def explain(self) -> str:
        """The rule in words, for ``--explain``."""
        if self.off:
            return "checkpoints: only on notice by a signal, and where the job says .checkpoint() (--checkpoint-every 0)"
        if self.every_s is not None:
            return f"checkpoints: every {show_seconds(self.every_s)} (--checkpoint-every)"
        costs = [f"one that takes {show_seconds(c)} each {show_seconds(interval_s(c, self.mtbf_s))}" for c in (0.1, 1.0, 10.0)]
        return (f"checkpoints: by their measured cost and a failure in {show_seconds(self.mtbf_s)} (--mtbf), at most {SHARE:.0%} of the time: "
                + ", ".join(costs))

    def due(self, since_s: float, nbytes: int) -> bool:
        """Whether a checkpoint is due `since_s` seconds after the last one, or after the beginning."""
        return since_s >= self.interval_s(nbytes)

    def due_at_boundary(self, since_s: float, nbytes: int) -> bool:
        """The same where a stage or an action has just ended, and its parts need not be kept apart: half the interval is enough, unless the
        cost would then be more than its share of the time.
        """
        least_s = self.cost_s(nbytes) / SHARE if self.every_s is None else 0.0
        return since_s >= max(self.interval_s(nbytes) / 2, least_s)
