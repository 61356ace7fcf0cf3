"""A job on the command line: run on all ranks, reported once, with one exit code; and run again on those that live, where ranks die.

::

    run_on -- attempt --> Session, run_job, Ending --settle--> said by rank 0, exit code
      ^                        |
      `-- recover <-- RankDied '          (with recovery on: a new world, a new session, the same body)
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcmr.comm.world import World
from hpcmr.errors import EXIT_DONE, EXIT_FAILED, HpcmrError, RankDied
from hpcmr.run.report import error_report
from hpcmr.run.session import Session

if TYPE_CHECKING:
    from hpcmr.comm.recovery import Death

EXIT_INTERRUPTED = 130


@dataclass
class Ending:
    """What an attempt came to.

    Attributes
    ----------
    code : int
        Exit code, the same on all ranks.
    tell : callable
        ``tell(world)`` says on rank 0 what came of it; called once it is certain. `world` is that of the ranks that live.
    close : callable
        Gives back on each rank what the attempt has beyond memory; must not raise.
    """

    code: int
    tell: Callable[[World], None] = lambda world: None
    close: Callable[[], None] = lambda: None


Attempt = Callable[[World, "tuple[Death, ...]"], Ending]


def run_on(world: World, attempt: Attempt) -> tuple[World, int]:
    """Make attempts at a job until one is through without a rank that dies; without recovery that is one attempt.

    Parameters
    ----------
    world : World
    attempt : callable
        ``attempt(world, deaths)``: all that belongs to one attempt, from the session to its end; `deaths` are those of earlier ones.
        Errors are its own affair, but for those behind which `World.settle` sees a death.

    Returns
    -------
    world : World
        That of the ranks that live.
    code : int

    Notes
    -----
    Collective: yes.
    """
    while True:
        try:
            ending = attempt(world, deaths_of(world))
            world.settle()
            break
        except RankDied:
            world = _go_on(world)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            try:
                world.settle(error)
            except RankDied:
                del error        # its traceback holds what the attempt had in memory
            else:
                raise
            world = _go_on(world)
    try:
        world = _tell(world, ending)
    finally:
        ending.close()
    return world, ending.code


def deaths_of(world: World) -> tuple[Death, ...]:
    """The ranks of this job that have died so far."""
    return world.watch.deaths if world.watch is not None else ()


def _go_on(world: World) -> World:
    """The world of the ranks that live. Collective, over these."""
    from hpcmr.comm.recovery import recover

    began = time.monotonic()
    made = recover(world)
    gc.collect()
    made.recovered_s += time.monotonic() - began
    return made


def _tell(world: World, ending: Ending) -> World:
    """Let rank 0 say what came of it: where it dies over that, the next one does. Returns the world of those that live."""
    error: BaseException | None = None
    while True:
        if world.rank == 0:
            try:
                ending.tell(world)
                sys.stdout.flush()
            except Exception as e:      # a reader that has seen enough; the others shall not wait
                error = e
        teller = world.watch.members[0] if world.watch is not None else None
        try:
            world.settle()
        except RankDied:
            world = _go_on(world)
            if world.watch is None or teller not in world.watch.members:
                continue
        if error is not None:
            raise error
        return world


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

    Raises
    ------
    RankDied
        Where recovery is on.

    Notes
    -----
    Collective: yes.
    """
    error: BaseException | None = None
    try:
        with session:
            body()
    except (Exception, KeyboardInterrupt, SystemExit) as e:
        session.world.settle(e)
        error = e
    if error is None or error is not session.agreed_error:
        error = _agreed(session, error)
    session.error = error
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
        session.world.settle(e)
        if error is not None and session.grace_s is not None and isinstance(e, HpcmrError) and not e.ranks:
            session.last_words(error)
        return e
    return None
