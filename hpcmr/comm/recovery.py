"""When ranks die and the others go on: Open MPI's ULFM (``mpirun --with-ft ulfm``), and nothing else knows of it.

Off unless `enable` is called, which the command line does and library calls never do. From then on every wait of a `World` looks now
and then whether a rank has died (`Watch.look`), and takes any error of MPI for a sign of it. Who finds a death revokes all communicators
of the job: every other rank, whatever it waits for, comes to hear of it at its next look, and raises `RankDied` too. Then all that live
meet in `recover`, which makes a world of them, and the job's body is run again on that (`hpcmr.run.command`).

What a rank has when others die is worth nothing before all agree that they have it: `Watch.settle`, at the end of each action, is an
agreement that deaths cannot tear apart. Each rank that leaves a world because of a death takes part in one last agreement of it, so that
no rank is left waiting in one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hpcmr.comm import world as worlds
from hpcmr.comm.launcher import FT_FLAGS, library_family
from hpcmr.comm.mpi_world import TAG_HERE, MpiWorld
from hpcmr.comm.waiting import Backoff, stall_limit_s
from hpcmr.comm.world import World, mpi_module
from hpcmr.errors import HpcmrError, RankDied, Refused

if TYPE_CHECKING:
    from mpi4py import MPI

LOOK_EVERY_S = 0.02         # a look takes microseconds
PATIENCE_S = 2.0            # an error of MPI may come before MPI knows of the death behind it
FINALIZE_LIMIT_S = 5.0
DRAIN_S = 0.2
SHRINKS_MAX = 1000


@dataclass(frozen=True)
class Member:
    """A process of the job: its rank as the launcher gave it, which it keeps in all messages, and where it runs."""

    rank: int
    node: str
    pid: int


@dataclass(frozen=True)
class Death:
    """A member that died, and when that was noticed (seconds since 1970)."""

    member: Member
    at: float

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"rank {self.member.rank} (process {self.member.pid} on {self.member.node}) died at {clock}"


class Watch:
    """Watches over the ranks of one world.

    Parameters
    ----------
    world : MpiWorld
    members : sequence of Member
        In rank order of the world.
    deaths : sequence of Death
        Of earlier worlds of this job.
    lineage : str
        Names the job from its start on all its ranks, whoever dies: what a rank that died has claimed, those that live may go on with.

    Attributes
    ----------
    members, deaths, lineage
    lost : list of mpi4py.MPI.Request
        What was on the way when a rank died, and the memory that it writes to.
    """

    def __init__(self, world: MpiWorld, members: Sequence[Member], deaths: Sequence[Death], lineage: str) -> None:
        self.world = world
        self.lineage = lineage
        self.members = tuple(members)
        self.deaths = tuple(deaths)
        self._mpi = mpi_module()
        self.lost: list[Any] = []
        self._guarded: list[Any] = []
        self._looked_s = 0.0
        self._noticed: dict[int, float] = {}       # when a rank of this world was first seen to be dead
        self._settled = False                      # the last agreement of this world has been

    def guard(self, comm: MPI.Comm) -> None:
        """Revoke `comm` as well when a rank dies: a rank may be waiting in it."""
        self._guarded.append(comm)

    # -- noticing --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Raise `RankDied` if MPI knows of a death; looks every `LOOK_EVERY_S` only, and may be called as often as one likes."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            if self._dead():
                raise self.died()

    def suspect(self) -> RankDied | None:
        """MPI reported an error: the `RankDied` that is behind it, None if it has another reason."""
        until = time.monotonic() + PATIENCE_S
        while not self._dead():
            if time.monotonic() > until:
                return None
            with contextlib.suppress(self._mpi.Exception):
                self._mpi.COMM_SELF.Iprobe(0, TAG_HERE)      # lets MPI take in what it was told
            time.sleep(1e-3)
        return self.died()

    def _dead(self) -> bool:
        """Whether a rank of this world died, or another rank has said so by revoking."""
        try:
            failed = self.world.comm.Get_failed()
            n = failed.Get_size()
            if n > len(self._noticed):
                everybody = self.world.comm.Get_group()
                for r in self._mpi.Group.Translate_ranks(failed, list(range(n)), everybody):
                    self._noticed.setdefault(int(r), time.time())
                everybody.Free()
            failed.Free()
            return n > 0 or bool(self.world.comm.Is_revoked())
        except self._mpi.Exception:
            return True

    def died(self) -> RankDied:
        """The error of a death; from here on every call on this world's communicators fails, on all ranks."""
        for comm in (self.world.comm, self.world.node_comm, *self._guarded):
            with contextlib.suppress(self._mpi.Exception):
                if comm != self._mpi.COMM_NULL and not comm.Is_revoked():
                    comm.Revoke()
        known = tuple(Death(self.members[r], at) for r, at in sorted(self._noticed.items()))
        error = RankDied("; ".join(map(str, known)) or "another rank has seen that ranks died")
        error.deaths = known
        return error

    def reason(self, error: BaseException) -> RankDied | None:
        """The death behind any error that comes out of a job, if there is one."""
        if isinstance(error, RankDied):
            return error
        cause: BaseException | None = error
        seen: set[int] = set()       # causes and contexts together may go round in a circle
        while cause is not None and not isinstance(cause, self._mpi.Exception) and id(cause) not in seen:
            seen.add(id(cause))
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, self._mpi.Exception):
            return self.suspect()
        return self.died() if self._dead() else None

    # -- agreeing --------------------------------------------------------------------------------------------------

    def settle(self, have: bool = True) -> None:
        """Return on all ranks if all of them live and have what was being made, else raise `RankDied` on all. Collective: yes.

        A rank that comes to hear of a death elsewhere calls this with False before it leaves the world; that is its last agreement here.
        """
        fine = have
        if not self._settled:
            self._settled = not have
            fine = agreed(self.world.comm, have)
            self._settled = self._settled or not fine
        if not fine:
            self._dead()
            raise self.died()

    # -- leaving ---------------------------------------------------------------------------------------------------

    def leave(self, code: int) -> int:
        """The end of the process: after a death it does not return, but exits with `code` at once.

        `MPI_Finalize` may wait for the dead for ever, so that it is left out after a death, and given `FINALIZE_LIMIT_S` where nobody
        has died so far. Leaving without works under ``--with-ft`` only: plain Open MPI makes exit code 1 of it.
        """
        if self.deaths or self._dead():
            _exit(code)
        late = threading.Timer(FINALIZE_LIMIT_S, _exit, [code])
        late.daemon = True
        late.start()
        self._mpi.Finalize()
        late.cancel()
        return code


def agreed(comm: MPI.Comm, mine: bool) -> bool:
    """Whether all ranks of `comm` live and say yes; the same answer on all, whoever dies meanwhile. Also over a revoked communicator.

    Raises
    ------
    HpcmrError
        A rank that lives did not come within ``HPCMR_STALL_S``.
    """
    flag = np.array([mine], np.int32)
    pause = Backoff()
    try:
        request = comm.Iagree(flag)
        while not request.Test():
            if not pause.pause():
                raise HpcmrError(f"no progress in an agreement of all ranks after a death: a rank did not come within {stall_limit_s():.0f} s "
                                 "(HPCMR_STALL_S)")
    except mpi_module().Exception:
        return False
    return bool(flag[0])


# -- turning it on -----------------------------------------------------------------------------------------------------


def probe() -> str | None:
    """Why ranks of this process could not survive a death; None if they can. Local, takes less than a millisecond.

    Without ``--with-ft`` all calls of ULFM are there and do something, but nothing of use: what tells is that after a revocation
    point-to-point calls fail, and an agreement and a shrink still work.
    """
    MPI = mpi_module()
    vendor, version = MPI.get_vendor()
    mine = f"{vendor} {'.'.join(map(str, version))}"
    if library_family(MPI.Get_library_version()) != "openmpi":
        return f"{mine} cannot go on after the death of a rank; Open MPI 5 can"
    if not hasattr(MPI.Comm, "Iagree") or version < (5, 0, 0):
        return f"it takes Open MPI 5.0 and mpi4py 4.1 or newer, this is {mine}"
    comm = MPI.COMM_SELF.Dup()
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    stub = f"the calls for that are stubs here: start ranks with `mpirun {' '.join(FT_FLAGS)} ...`, or with `hpcmr launch`, which adds these flags"
    try:
        if comm.Get_failed().Get_size():
            return stub
        comm.Revoke()
        if not comm.Is_revoked() or not _fails(MPI, lambda: comm.Iprobe(0, TAG_HERE)) or not _fails(MPI, comm.Barrier):
            return stub
        if not agreed(comm, True) or agreed(comm, False):
            return stub
        alive = comm.Shrink()
        works = alive.Get_size() == 1 and not alive.Is_revoked()
        alive.Free()
        return None if works else stub
    except (MPI.Exception, NotImplementedError):
        return stub
    finally:
        with contextlib.suppress(MPI.Exception):
            comm.Free()


def _fails(MPI: Any, call: Any) -> bool:
    try:
        call()
    except MPI.Exception as error:
        return bool(error.Get_error_class() == MPI.ERR_REVOKED)
    return False


def enable(world: World) -> None:
    """Let the ranks of `world` survive deaths from here on.

    Raises
    ------
    Refused
        They cannot, and why.

    Notes
    -----
    Collective: yes.
    """
    if not isinstance(world, MpiWorld):
        return
    with world.together("turn on recovery"):
        why = probe()
        if why is not None:
            raise Refused(f"recovery in the run was asked for, but {why}")
    world.leaders = False       # one-sided windows do not survive a death
    members = world.allgather(Member(world.rank, socket.gethostname(), os.getpid()))
    world.watch = Watch(world, members, (), world.bcast(secrets.token_hex(8)))


# -- after a death -----------------------------------------------------------------------------------------------------


def recover(world: World) -> MpiWorld:
    """The world of those that live: revoke, shrink, agree; again if more die meanwhile. It takes the place of the job's world.

    Notes
    -----
    Collective: yes, over the ranks that live. The old world can't be used any more.
    """
    assert isinstance(world, MpiWorld)
    assert world.watch is not None
    old = world.watch
    old.died()
    _drain(old.lost)
    base, members, noticed = world.comm, old.members, dict(old._noticed)
    at = {members[r]: t for r, t in noticed.items()}
    deaths = list(old.deaths)
    for _ in range(SHRINKS_MAX):
        shrunk = _shrink(base)
        alive = _members(base, shrunk, members)
        deaths += [Death(m, at.get(m, time.time())) for m in members if m not in alive]
        made = _world_over(shrunk, alive, deaths, old.lineage)
        if agreed(shrunk, made is not None) and made is not None:
            worlds.replace_world(made)
            return made
        with contextlib.suppress(old._mpi.Exception):
            shrunk.Revoke()
        base, members = shrunk, alive
    raise HpcmrError(f"ranks went on dying while {len(members)} of them tried to go on")


def _drain(requests: list[Any]) -> None:
    """Requests of a revoked communicator end by themselves, most of them with an error; what does not stays in the list."""
    until = time.monotonic() + DRAIN_S
    while requests and time.monotonic() < until:
        requests[:] = [r for r in requests if not _ended(r)]


def _ended(request: MPI.Request) -> bool:
    MPI = mpi_module()
    try:
        return bool(request.Test())
    except MPI.Exception as error:
        return bool(error.Get_error_class() != MPI.ERR_PROC_FAILED_PENDING)


def _shrink(base: MPI.Comm) -> MPI.Comm:
    MPI = mpi_module()
    until = time.monotonic() + stall_limit_s()
    while True:
        try:
            shrunk = base.Shrink()
            shrunk.Set_errhandler(MPI.ERRORS_RETURN)
            return shrunk
        except MPI.Exception as error:
            if time.monotonic() > until:
                raise HpcmrError(f"MPI could not make a communicator of the ranks that live: {error}") from error


def _members(base: MPI.Comm, shrunk: MPI.Comm, members: Sequence[Member]) -> tuple[Member, ...]:
    group, within = shrunk.Get_group(), base.Get_group()
    places = mpi_module().Group.Translate_ranks(group, list(range(group.Get_size())), within)
    group.Free()
    within.Free()
    return tuple(members[int(p)] for p in places)


def _world_over(shrunk: MPI.Comm, members: Sequence[Member], deaths: Sequence[Death], lineage: str) -> MpiWorld | None:
    """A world on `shrunk`; None if somebody died again."""
    try:
        return MpiWorld(shrunk, adopt=True, leaders=False, watch=lambda w: Watch(w, members, deaths, lineage))
    except (mpi_module().Exception, HpcmrError):
        with contextlib.suppress(mpi_module().Exception):
            shrunk.Revoke()
        return None


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
