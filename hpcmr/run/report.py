"""What is said at the end: a table of what the job cost, or one report of what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from hpcmr.errors import HpcmrError, Refused, StorageError
from hpcmr.run.memory import show_nbytes
from hpcmr.run.metrics import StageTotals
from hpcmr.run.progress import show_seconds

NAME_WIDTH = 44
HEAD = ("stage", "seconds", "rows in", "rows out", "bytes in", "bytes out", "exchanged", "spilled", "imbalance", "peak memory")


def end_table(stages: Sequence[StageTotals]) -> str:
    """Per stage: seconds, rows and bytes in and out, exchanged bytes, bytes written to scratch, imbalance (max/mean of the ranks' work), peak
    memory of a rank.

    Returns
    -------
    str
        Lines of equal width, no newline at the end.
    """
    rows = [HEAD, *(_row(s) for s in stages)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]).rstrip() for r in rows)


def _row(s: StageTotals) -> tuple[str, ...]:
    name = f"{s.number} {s.name}"
    if len(name) > NAME_WIDTH:
        name = name[:NAME_WIDTH - 3] + "..."
    return (name, f"{s.seconds:.3f}", f"{s.rows_in:,}", f"{s.rows_out:,}", show_nbytes(s.nbytes_in), show_nbytes(s.nbytes_out),
            show_nbytes(s.exchanged_nbytes), show_nbytes(s.spilled_nbytes), f"{s.imbalance:.2f}", show_nbytes(s.peak_nbytes))


def summary(stages: Sequence[StageTotals], seconds: float, ranks: int) -> str:
    """One line: rows and bytes read, and how fast."""
    reading = [s for s in stages if s.is_input]
    rows, nbytes = sum(s.rows_in for s in reading), sum(s.nbytes_in for s in reading)
    pace = max(seconds, 1e-9)
    return (f"{rows:,} rows, {show_nbytes(nbytes)} read in {show_seconds(seconds)} on {ranks} rank{'s' if ranks > 1 else ''}: "
            f"{rows / pace:,.0f} rows/s, {show_nbytes(nbytes / pace)}/s")


def error_report(error: BaseException, size: int = 1, command: str = "hpcmr job") -> str:
    """One report of an error that all ranks agree on: what, where, on which ranks, and the traceback once.

    A refusal (nothing was done) is its message alone.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"{command}: interrupted"
    if not isinstance(error, HpcmrError):
        return f"{command}: {type(error).__name__}: {error}"
    lines = [f"{command}: {error.message}"]
    if error.split is not None and error.split not in error.message:
        lines.append(f"  in      {error.split}")
    if error.record is not None:
        lines.append(f"  record  {error.record:,}")
    ranks = error.ranks or (() if error.rank is None else (error.rank,))
    if size > 1 and ranks and not isinstance(error, Refused):
        lines.append(f"  rank{'s' if len(ranks) > 1 else ' '}   {show_ranks(ranks)} of {size}")
    if error.trace and not isinstance(error, Refused | StorageError):       # these say all there is to say
        lines.append(error.trace.rstrip("\n"))
    return "\n".join(lines)


def degraded(deaths: Sequence[object], left: int, redone: Sequence[str] = (), done: bool = True) -> str:
    """What a job has to say that lost ranks on its way: which, where, when, and what was redone. `done`: it was finished all the same."""
    end = f"{left} finished the job; the result is the same" if done else f"{left} {'was' if left == 1 else 'were'} left"
    lost = f"{len(deaths)} rank{'s' if len(deaths) > 1 else ''} died on the way, {end}"
    return "\n".join([f"degraded: {lost}", *(f"  {death}" for death in deaths), *(f"  redone: {what}" for what in redone)])


def show_ranks(ranks: Sequence[int]) -> str:
    """Ranks with runs drawn together: ``0-3, 7``."""
    out: list[str] = []
    start = 0
    for i, r in enumerate(ranks):
        if i + 1 == len(ranks) or ranks[i + 1] != r + 1:
            out.append(str(r) if i == start else f"{ranks[start]}-{r}")
            start = i + 1
    return ", ".join(out)
