"""What a stage cost on each rank, and over all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hpcmr.run.memory import status_nbytes


@dataclass
class StageFigures:
    """One stage on one rank.

    Attributes
    ----------
    seconds, work_s : float
        From the start of the stage to its end; of these, spent on pieces and not waiting.
    rows_in, nbytes_in : int
        Read from the input, or from the partitions of the stage before.
    rows_out, nbytes_out : int
        Into the outlet; of an operator, what it made.
    exchanged_nbytes : int
        Sent to other ranks.
    spilled_nbytes : int
        Written to scratch.
    rounds : int
        Exchanges.
    peak_nbytes : int
        Highest memory of the process so far, all included (VmHWM).
    is_input : bool
        What comes in is read from an input, not from an earlier stage.
    """

    number: int
    name: str
    seconds: float = 0.0
    work_s: float = 0.0
    rows_in: int = 0
    nbytes_in: int = 0
    rows_out: int = 0
    nbytes_out: int = 0
    exchanged_nbytes: int = 0
    spilled_nbytes: int = 0
    rounds: int = 0
    peak_nbytes: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    is_input: bool = True


@dataclass
class StageTotals:
    """One stage over all ranks: the slowest rank's seconds, sums of rows and bytes, and how uneven the work was (max / mean)."""

    number: int
    name: str
    ranks: int
    seconds: float
    rows_in: int
    nbytes_in: int
    rows_out: int
    nbytes_out: int
    exchanged_nbytes: int
    spilled_nbytes: int
    rounds: int
    imbalance: float
    peak_nbytes: int
    counters: dict[str, int]
    is_input: bool = True

    @classmethod
    def of(cls, ranks: list[StageFigures]) -> StageTotals:
        first = ranks[0]
        work = [r.work_s for r in ranks]
        mean = sum(work) / len(work)
        counters: Counter[str] = Counter()
        for r in ranks:
            counters.update(r.counters)
        return cls(first.number, first.name, len(ranks), max(r.seconds for r in ranks), sum(r.rows_in for r in ranks),
                   sum(r.nbytes_in for r in ranks), sum(r.rows_out for r in ranks), sum(r.nbytes_out for r in ranks),
                   sum(r.exchanged_nbytes for r in ranks), sum(r.spilled_nbytes for r in ranks),
                   max(r.rounds for r in ranks), max(work) / mean if mean > 0 else 1.0, max(r.peak_nbytes for r in ranks), dict(counters),
                   first.is_input)

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def measured(figures: list[StageFigures]) -> list[StageFigures]:
    """The figures of this rank, with the peak of its memory now."""
    for stage in figures:
        stage.peak_nbytes = status_nbytes("VmHWM")
    return figures
