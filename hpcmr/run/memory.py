"""The memory budget of a rank: what operators take before they grow, and what they see when they ask how much is left."""

from __future__ import annotations

import re
from pathlib import Path

from hpcmr.comm.limits import memory_per_rank
from hpcmr.errors import JobSpecError, MemoryTooSmall

MARGIN = 0.8                        # of a limit found, what we plan with: the rest is for MPI, libraries and the page cache
PROCESS_NBYTES = 180 << 20          # the bare process: imports, MPI, kernels; most of it is loaded after the budget is made
BUDGET_NBYTES_MIN = 64 << 20        # read buffers, one round of an exchange, the first tables
_UNITS = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_nbytes(text: str | int) -> int:
    """Bytes of ``4GiB``, ``512M``, ``2.5GB`` or ``1073741824``; K, M, G, T are powers of 1024, KB, MB, GB, TB powers of 1000.

    Raises
    ------
    JobSpecError
        It is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*", str(text), re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise JobSpecError(f"memory = {text!r} is no size; for example 4GiB, 512M or 1073741824")
    unit, decimal = match[2].upper(), bool(match[2] and match[4] and not match[3])
    factor = 1000 ** ("KMGT".index(unit) + 1) if decimal else 1 << _UNITS[unit] if unit else 1
    return int(float(match[1]) * factor)


def show_nbytes(nbytes: float) -> str:
    """A number of bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


def status_nbytes(name: str) -> int:
    """Bytes of a line of ``/proc/self/status``, such as ``VmHWM`` (peak) or ``VmRSS`` (now); 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


class MemoryBudget:
    """Bytes that this rank may hold for data, and who has taken them.

    Parameters
    ----------
    limit_nbytes : int
    why : str
        Where the limit comes from, for messages.

    Attributes
    ----------
    taken_nbytes, peak_nbytes : int
        Taken now, and at most so far.

    Raises
    ------
    MemoryTooSmall
        The limit is below what any job needs.
    """

    def __init__(self, limit_nbytes: int, why: str) -> None:
        if limit_nbytes < BUDGET_NBYTES_MIN:
            raise MemoryTooSmall(f"{show_nbytes(max(0, limit_nbytes))} of memory for a rank ({why}) is too little to start; "
                                 f"a rank needs {show_nbytes(BUDGET_NBYTES_MIN)} at least: give --memory {BUDGET_NBYTES_MIN >> 20}MiB or more, or "
                                 "start fewer ranks per node")
        self.limit_nbytes = limit_nbytes
        self.why = why
        self.taken_nbytes = 0
        self.peak_nbytes = 0

    def take(self, nbytes: int, what: str) -> None:
        """Account `nbytes`, or raise `MemoryTooSmall` naming `what`."""
        if self.taken_nbytes + nbytes > self.limit_nbytes:
            need = self.taken_nbytes + nbytes
            raise MemoryTooSmall(f"{what} needs {show_nbytes(nbytes)}, and of this rank's {show_nbytes(self.limit_nbytes)} only "
                                 f"{show_nbytes(self.available())} are left "
                                 f"({self.why}); give at least --memory {-(-need // (1 << 20))}MiB, or more ranks on more nodes")
        self.taken_nbytes += nbytes
        self.peak_nbytes = max(self.peak_nbytes, self.taken_nbytes)

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""
        self.taken_nbytes -= nbytes

    def available(self) -> int:
        """Bytes that are left."""
        return self.limit_nbytes - self.taken_nbytes


def budget_of(memory: str | int | None, node_size: int) -> MemoryBudget:
    """The budget of one of `node_size` ranks on this node.

    Parameters
    ----------
    memory : str or int, optional
        ``--memory``: bytes for each rank. None: an equal share of the least limit that control group, Slurm or node set, less a margin and what the
        process holds already, or will hold when all is loaded.
    """
    if memory is not None:
        return MemoryBudget(parse_nbytes(memory), f"--memory {memory}")
    share, by = memory_per_rank(node_size)
    ranks = f"{node_size} rank{'s' if node_size > 1 else ''}"
    return MemoryBudget(int(share * MARGIN) - max(PROCESS_NBYTES, status_nbytes("VmRSS")), f"a share of the {by} limit, {ranks} on this node")
