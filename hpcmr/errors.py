"""The one exception tree, and the exit code of each kind.

::

    HpcmrError            1   the job failed
    |-- Refused           2   nothing was done: usage, no input, output exists, too little memory
    |   |-- JobSpecError  2   a job file or an option is wrong
    |   |-- InputError    2   an input is missing, unreadable or of the wrong shape
    |   |-- Superseded    2   another attempt has taken over: this one may not commit any more
    |   `-- MemoryTooSmall 2  the budget cannot hold what the job needs at least
    |-- Stopped           75 told to stop: checkpointed, and resumable
    |-- FunctionError     1   a function of the user's raised, or returned the wrong thing
    |-- DataError         1   data that an operation cannot take (a cast, an overflow, a damaged file met while running)
    |-- StorageError      1   writing failed: disk full, read-only, vanished
    |   `-- DamagedCheckpoint 75 a file of a checkpoint is damaged: starting again goes on from an older one
    |-- ConservationError 1   rows or bytes were lost or made up: a bug, never the user's fault
    |-- RankDied          1   processes of the job died: the others go on where recovery is on
    `-- RemoteError       1   another rank failed with an error that is none of the above

Every class can be pickled, so that one rank's failure becomes the same exception on all ranks.
Messages say what, where (file, row, key), the limit, and what to do; they do not end in a full stop.
"""

from __future__ import annotations

from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_RESUMABLE = 75


class HpcmrError(Exception):
    """Base of all errors that this package raises on purpose.

    Parameters
    ----------
    message : str
        What happened, where, the limit, what to do.
    rank : int, optional
        Rank on which it happened first; filled in when ranks agree.
    split : str, optional
        Readable name of the split, for example ``events.h5[0:2097152]``.
    record : int, optional
        Row within the split.
    trace : str, optional
        The traceback of the first rank, shown once in the report.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, rank: int | None = None, ranks: tuple[int, ...] = (), split: str | None = None,
                 record: int | None = None, trace: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.rank = rank
        self.ranks = ranks
        self.split = split
        self.record = record
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[HpcmrError], message: str, state: dict[str, Any]) -> HpcmrError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class Refused(HpcmrError):
    """Nothing was done, nothing was written."""

    exit_code = EXIT_REFUSED


class JobSpecError(Refused):
    """A job file, a job function's plan or an option is wrong."""


class InputError(Refused):
    """An input is missing, unreadable or of the wrong shape, found before any work."""


class MemoryTooSmall(Refused):
    """The memory budget cannot hold what the job needs at least."""


class Superseded(Refused):
    """Another attempt at the same run directory has taken over; this one can never commit again."""


class FunctionError(HpcmrError):
    """A function of the user's raised, or returned something it must not return."""


class DataError(HpcmrError):
    """Data that an operation cannot take, met while the job ran."""


class StorageError(HpcmrError):
    """Writing failed: disk full, read-only, a folder that vanished."""


class DamagedCheckpoint(StorageError):
    """A file of a checkpoint holds other bytes than were written. No later start takes a checkpoint that names it, so starting again helps.

    Parameters
    ----------
    message : str
    file : str
        Relative to the run directory.
    """

    exit_code = EXIT_RESUMABLE

    def __init__(self, message: str, *, file: str = "", **where: Any) -> None:
        super().__init__(message, **where)
        self.file = file


class ConservationError(HpcmrError):
    """Rows or bytes were lost or made up: a defect of this package."""


class RemoteError(HpcmrError):
    """Another rank failed with an error that is not one of this package's."""


class Stopped(HpcmrError):
    """The job was told to stop: it has committed a checkpoint, and the next start goes on from there."""

    exit_code = EXIT_RESUMABLE


class RankDied(HpcmrError):
    """Processes of this job died, as far as MPI says; where recovery in the run is on, the others go on without them.

    Attributes
    ----------
    deaths : tuple of hpcmr.comm.recovery.Death
        Those that this rank knows of; another one may know more.
    """

    deaths: tuple[Any, ...] = ()
