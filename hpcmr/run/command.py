"""A job on the command line: run on all ranks, reported once, with one exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hpcmr.errors import EXIT_DONE, EXIT_FAILED, HpcmrError
from hpcmr.run.report import error_report
from hpcmr.run.session import Session

EXIT_INTERRUPTED = 130


def run_job(session: Session, body: Callable[[], None], command: str = "hpcmr job") -> int:
    """Run `body` on every rank with `session` as the current one, and see to it that all ranks end together.

    Parameters
    ----------
    session : Session
        Made with ``command_line=True``.
    body : callable
        The job. An error of it on any rank ends all ranks: at their next action, at the end of the job, or by `Abort` after a
        grace period if they are somewhere else.
    command : str
        Begins the report.

    Returns
    -------
    int
        The exit code, the same on all ranks. Rank 0 has said what went wrong.

    Notes
    -----
    Collective: yes.
    """
    error: BaseException | None = None
    try:
        with session:
            body()
    except (Exception, KeyboardInterrupt, SystemExit) as e:
        error = e
    if error is None or error is not session.agreed_error:
        error = _agreed(session, error)
    if error is None:
        return EXIT_DONE
    if session.world.rank == 0:
        print(error_report(error, session.world.size, command), file=sys.stderr, flush=True)
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """Exit code of an error: its own, 130 of an interrupt, else 1."""
    if isinstance(error, HpcmrError):
        return error.exit_code
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED


def _agreed(session: Session, error: BaseException | None) -> BaseException | None:
    """What all ranks make of an error that this one alone may have; does not return if the others do not come."""
    try:
        session.world.agree(error, "the end of the job", session.grace_s if error is not None else None)
    except (Exception, KeyboardInterrupt) as e:
        if error is not None and session.grace_s is not None and isinstance(e, HpcmrError) and not e.ranks:
            session.last_words(error)
        return e
    return None
