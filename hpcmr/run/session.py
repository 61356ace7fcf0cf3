"""A session: what the actions of one job, or of one library user's communicator, have in common.

In library calls nothing here touches the process: no signal handler, no abort, no environment variable.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hpcmr.comm.collective import place_error, to_shared
from hpcmr.comm.world import World
from hpcmr.data.memory import trim
from hpcmr.errors import EXIT_FAILED, HpcmrError
from hpcmr.ops.outlet import Outlet
from hpcmr.plan.nodes import Node
from hpcmr.run.action import Action
from hpcmr.run.checkpoint import Checkpointer
from hpcmr.run.memory import budget_of
from hpcmr.run.metrics import StageTotals
from hpcmr.run.policy import Pace
from hpcmr.run.progress import Progress
from hpcmr.run.report import end_table, error_report, summary
from hpcmr.store.scratch import Scratch
from hpcmr.store.spill import Spool

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.run.attempt import Attempt
    from hpcmr.run.notice import Notice

GRACE_S = 5.0       # on the command line: how long a rank that failed waits for the others before it ends the job
LOG = "hpcmr"

_running: ContextVar[Session | None] = ContextVar("hpcmr_session", default=None)
_library: weakref.WeakKeyDictionary[World, Session] = weakref.WeakKeyDictionary()


class Session:
    """Actions in order, with one memory budget, one log and one set of figures.

    Parameters
    ----------
    world : World
    run_dir : Path, optional
        Folder of the run; library calls have none.
    memory : str or int, optional
        Bytes for each rank, for example ``"4GiB"``; None: a share of what the node, the control group or Slurm allows.
    seed : int
        The same on all ranks.
    params : mapping, optional
        ``--set`` values.
    name : str
        The job's name, for messages and manifests.
    log : logging.Logger, optional
        Rank 0 speaks there; by default the logger ``hpcmr``.
    progress : Progress, optional
        Where progress goes; None: nowhere. Only rank 0 uses it.
    command_line : bool
        Whether the process is ours: a rank whose error the others do not come to hear within `GRACE_S` ends the job.
    scratch : path, optional
        Node-local folder for what does not fit in memory; None: Slurm's for the job, ``$TMPDIR``, or the system's.

    Attributes
    ----------
    memory : MemoryBudget
    scratch : Scratch
    spool : Spool
        Batches put away by whoever holds them.
    action_count : int
        Actions that were begun.
    stages : list of StageTotals
        On rank 0: the figures of all stages so far.
    decisions : list of str
        What was decided from measured sizes, in order.
    code : str
        Fingerprint of the job's code, kept with what it publishes; empty in library calls.
    fresh : bool
        Outputs take the place of earlier ones.
    outputs : list of dict
        What was published, or was there already, in order: path, rows, nbytes, shards.
    checkpoints : Checkpointer or None
        On the command line, after `keep_checkpoints`.
    attempt : Attempt or None
        On the command line: this attempt at the run, with its journal (on rank 0) and its epoch.
    error : BaseException or None
        What the job ended with, once it has ended.
    notice : Notice or None
        On the command line: tells that somebody outside wants the job to commit and leave.

    Raises
    ------
    MemoryTooSmall
        On any rank.

    Notes
    -----
    Collective: yes. ``with session:`` makes it the one that `current` finds.
    """

    def __init__(self, world: World, run_dir: Path | None = None, memory: str | int | None = None, seed: int = 0,
                 params: Mapping[str, Any] | None = None, *, name: str = "", log: logging.Logger | None = None, progress: Progress | None = None,
                 command_line: bool = False, scratch: str | Path | None = None) -> None:
        self.world = world
        self.run_dir = run_dir
        self.seed = seed
        self.params = dict(params or {})
        self.name = name
        self.log = log or logging.getLogger(LOG)
        self.progress = progress if world.rank == 0 else None
        self.command_line = command_line
        self.action_count = 0
        self.stages: list[StageTotals] = []
        self.decisions: list[str] = []
        self.code = ""
        self.fresh = False
        self.outputs: list[dict[str, Any]] = []
        self.attempt: Attempt | None = None
        self.checkpoints: Checkpointer | None = None
        self.notice: Notice | None = None
        self.error: BaseException | None = None
        self.agreed_error: BaseException | None = None
        self._said: set[str] = set()
        self._tokens: list[Token[Session | None]] = []
        self._began_s = time.monotonic()
        with world.together("share out the memory"):
            self.memory = budget_of(memory, world.node_size)
        trim(self.memory.limit_nbytes)
        self.scratch = Scratch(scratch)
        self.spool = self.new_spool()
        if world.node_rank == 0:
            self.scratch.sweep()

    def new_spool(self) -> Spool:
        """Scratch for rows by partition, or for batches."""
        return Spool(self.scratch)

    @contextmanager
    def keep_checkpoints(self, pace: Pace) -> Iterator[None]:
        """In here the job is committed now and then, and what an earlier attempt has committed is taken over. Collective: yes.

        Parameters
        ----------
        pace : Pace
            How often.
        """
        assert self.attempt is not None and self.run_dir is not None
        notice = self.notice
        noticed = (lambda: notice.name is not None) if notice is not None else None
        self.checkpoints = Checkpointer(self, self.run_dir, self.attempt.journal, pace, noticed)
        try:
            yield
        finally:
            self.checkpoints.close()

    @property
    def grace_s(self) -> float | None:
        """Seconds that a rank that failed waits for the others; None: as long as any wait."""
        return GRACE_S if self.command_line and self.world.size > 1 else None

    def execute(self, plan: Node, outlet: Outlet) -> Any:
        """Run a plan into an outlet.

        Parameters
        ----------
        plan : Node
            Its last node.
        outlet : Outlet

        Returns
        -------
        any
            What the outlet makes, on every rank, or on ``outlet.root`` only.

        Raises
        ------
        HpcmrError
            The same on all ranks: what went wrong first, with rank, split and record.

        Notes
        -----
        Collective: yes.
        """
        try:
            self.action_count += 1
            action = Action(self, self.action_count, plan, outlet)
            result = action.run()
            self.world.settle()
        except (Exception, KeyboardInterrupt) as error:
            self.world.settle(error)
            if isinstance(error, KeyboardInterrupt) or (isinstance(error, HpcmrError) and (error.ranks or error.rank is None)):
                self.agreed_error = error
            raise
        finally:
            trim()
            if self.progress:
                self.progress.clear()
        self.stages += action.totals
        return result

    def noticed(self) -> str | None:
        """Name of the signal by which this rank was told to commit and leave; None: go on."""
        return self.notice.name if self.notice is not None else None

    # -- talking ---------------------------------------------------------------------------------------------------

    def say(self, message: str, once: str | None = None) -> None:
        """Into the log, on rank 0; a message with a key `once` is said once in a session."""
        if self.world.rank != 0 or (once is not None and once in self._said):
            return
        if once is not None:
            self._said.add(once)
        if self.progress:
            self.progress.clear()
        self.log.info("%s", message)

    def report(self) -> str:
        """On rank 0: the table of all stages, and how much was read how fast; empty if nothing ran."""
        if not self.stages:
            return ""
        return "\n".join([end_table(self.stages), *self.decisions]) + "\n" + summary(self.stages, time.monotonic() - self._began_s, self.world.size)

    def last_words(self, error: BaseException) -> None:
        """The others do not come to hear of `error`: say it here and end the job. Command line only; does not return."""
        shared = place_error(to_shared(error), (self.world.rank,))
        if self.attempt is not None:
            self.attempt.end(shared)
        print(error_report(shared, self.world.size), file=sys.stderr, flush=True)
        self.world.abort(shared.exit_code if isinstance(shared, HpcmrError) else EXIT_FAILED)

    # -- being current ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        self._tokens.append(_running.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _running.reset(self._tokens.pop())


def current(comm: MPI.Comm | None = None) -> Session:
    """The session of the job that runs, or that of a library user's communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Ranks that take part; it is duplicated at the first call, never used itself. None: the ranks of the job that runs, else all
        ranks of the launcher, else this process alone.

    Notes
    -----
    Collective: yes, over the ranks in question.
    """
    running = _running.get()
    if running is not None and (comm is None or running.world.spans(comm)):
        return running
    world = World.of(comm)
    if world not in _library:
        _library[world] = Session(world)
    return _library[world]
