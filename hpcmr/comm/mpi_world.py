"""The ranks of an MPI communicator: see `hpcmr.comm.world`, which makes them.

Every call is a nonblocking one and a wait that has an end (`hpcmr.comm.waiting`), and ends at once where a rank has died and somebody
watches for that (`hpcmr.comm.recovery`).
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.collective import collective, pack_error, place_error
from hpcmr.comm.pulse import PULSE
from hpcmr.comm.waiting import Backoff
from hpcmr.comm.world import World, cause_of, mpi_module
from hpcmr.errors import HpcmrError, RankDied

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.comm.recovery import Watch

T = TypeVar("T")
WINDOW_NBYTES = 16 << 20     # memory that the ranks of a node share where they send through their leader
CHUNK_NBYTES = 1 << 30       # objects travel in pieces below 2^31 bytes
TAG_OBJECT, TAG_HERE = 31001, 31002
HERE_GRACE_S = 3.0           # how long ranks that gave up waiting collect the names of the others


class MpiWorld(World):
    """Ranks of an MPI communicator. Made by `World.of`.

    Parameters
    ----------
    users : mpi4py.MPI.Comm
    node : int, optional
        For tests: a number that ranks of one pretended node have in common; they must be able to share memory. None: nodes as they are.
    leaders : bool, optional
        Whether exchanges go through node leaders; None: by the rule of `hpcmr.comm.leaders.worth_leaders`.
    adopt : bool
        Work on `users` itself: it is nobody else's.
    watch : callable, optional
        Makes the `Watch` of this world, which it is given; called before anything is waited for.

    Attributes
    ----------
    node_of : (size,) int64
        Node of each rank; nodes are numbered by their lowest rank.
    """

    comm: MPI.Comm

    def __init__(self, users: MPI.Comm, *, node: int | None = None, leaders: bool | None = None, adopt: bool = False,
                 watch: Callable[[MpiWorld], Watch] | None = None) -> None:
        super().__init__()
        self.leaders = leaders
        self._window: Any = None
        self._shared = np.zeros(0, np.uint8)
        self._mpi = mpi_module()
        self.comm = users if adopt else users.Dup()
        self.comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        self.node_comm: Any = self._mpi.COMM_NULL
        self.watch = None if watch is None else watch(self)
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.node_comm = (self.comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank) if node is None
                           else self.comm.Split(node, self.rank))
        self.node_comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        self.node_rank, self.node_size = self.node_comm.Get_rank(), self.node_comm.Get_size()
        first = np.array([self.rank], np.int64)
        self.wait(self.node_comm.Ibcast(first, 0), "number the nodes")
        leader = np.zeros(self.size, np.int64)
        self.wait(self.comm.Iallgather(first, leader), "number the nodes")
        lowest, self.node_of = np.unique(leader, return_inverse=True)
        self.node_count = len(lowest)

    def spans(self, comm: MPI.Comm) -> bool:
        """Whether `comm` has the ranks of this world, in the same order. Not collective."""
        return self._mpi.Comm.Compare(self.comm, comm) in (self._mpi.IDENT, self._mpi.CONGRUENT)

    def free(self) -> None:
        """Free our communicators; called when the user's communicator is freed."""
        if self._window is not None:
            self._shared = self._shared[:0].copy()
            self._window.Unlock_all()
            self._window.Free()
            self._window = None
        for comm in (self.node_comm, self.comm) if self.watch is None else ():       # freeing waits for ranks that may be dead
            if comm != self._mpi.COMM_NULL:
                comm.Free()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, request: MPI.Request, what: str, limit_s: float | None = None) -> None:
        """Wait for a request of a nonblocking call, kindly and not for ever.

        Raises
        ------
        HpcmrError
            MPI reported an error, or nothing came within the time limit (``HPCMR_STALL_S``).
        """
        pause: Backoff | None = None
        try:
            while not request.Test():
                if self.watch is not None:
                    self.watch.look()
                if pause is None:
                    pause = Backoff(limit_s)
                    PULSE.waiting = what
                if not pause.pause():
                    raise self.stalled(what)
        except self._mpi.Exception as e:
            self.forsake([request])
            raise self.mpi_error(e, what) from e
        except RankDied:
            self.forsake([request])
            raise
        PULSE.beat()

    def posted(self, call: Callable[[MPI.Comm], MPI.Request], what: str) -> MPI.Request:
        """The request of a nonblocking call on our communicator, whose errors are ours."""
        try:
            return call(self.comm)
        except self._mpi.Exception as e:
            raise self.mpi_error(e, what) from e

    def forsake(self, requests: Sequence[Any]) -> None:
        """Nobody will wait for these any more: keep the memory that they write to until they are through."""
        if self.watch is not None:
            self.watch.lost.extend(requests)

    def testsome(self, requests: Sequence[MPI.Request], what: str) -> list[tuple[int, int]]:
        """Index of each request that has completed by now, and the bytes that its message had (for a receive)."""
        statuses: list[MPI.Status] = []
        try:
            done = self._mpi.Request.Testsome(requests, statuses) or []
            if done:
                PULSE.beat()
            elif self.watch is not None:
                self.watch.look()
            return [(i, s.Get_count(self._mpi.BYTE)) for i, s in zip(done, statuses, strict=False)]
        except self._mpi.Exception as e:
            self.forsake(requests)
            raise self.mpi_error(e, what) from e
        except RankDied:
            self.forsake(requests)
            raise

    def mpi_error(self, error: BaseException, what: str) -> HpcmrError:
        """What an error of MPI means: any may be the first sign of a death."""
        died = self.watch.suspect() if self.watch is not None else None
        if died is not None:
            return died
        return HpcmrError(f"MPI failed on rank {self.rank} ({self.node}) in {what}: {error}", rank=self.rank)

    def stalled(self, what: str) -> HpcmrError:
        """The error of a wait that gave up. Ranks that gave up tell each other, so that the ones missing can be named."""
        if isinstance(PULSE.verdict, HpcmrError):
            return PULSE.verdict
        note = np.array([self.rank], np.int64)
        others = [r for r in range(self.size) if r != self.rank]
        for r in others:
            self.comm.Isend(note, r, TAG_HERE)
        missing, got, until = set(others), np.zeros(1, np.int64), time.monotonic() + HERE_GRACE_S
        while missing and time.monotonic() < until:
            for r in sorted(missing):
                if self.comm.Iprobe(r, TAG_HERE):
                    self.comm.Recv(got, r, TAG_HERE)
                    missing.discard(r)
            time.sleep(0.01)
        whom = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, sorted(missing)))} did not come" if missing else "every rank is waiting"
        return HpcmrError(f"no progress in {what}: {whom} within the time limit (HPCMR_STALL_S); a rank has died, stopped or taken another way",
                          rank=self.rank)

    # -- objects ---------------------------------------------------------------------------------------------------

    @collective
    def bcast(self, obj: T, root: int = 0) -> T:
        """`obj` of rank `root`, on every rank. For small objects; data go through `exchange`."""
        raw = _pickled(obj) if self.rank == root else np.zeros(0, np.uint8)
        raw = self._bcast_bytes(raw, root)
        return obj if self.rank == root else _unpickled(raw)  # type: ignore[no-any-return]

    def _bcast_bytes(self, raw: NDArray[np.uint8], root: int) -> NDArray[np.uint8]:
        nbytes = np.array([len(raw)], np.int64)
        self.wait(self.comm.Ibcast(nbytes, root), "bcast")
        data = raw if self.rank == root else np.empty(int(nbytes[0]), np.uint8)
        for at in range(0, len(data), CHUNK_NBYTES):
            self.wait(self.comm.Ibcast(data[at:at + CHUNK_NBYTES], root), "bcast")
        return data

    @collective
    def allgather(self, obj: T) -> list[T]:
        """The objects of all ranks, in rank order, on every rank."""
        raw = _pickled(obj)
        nbytes = np.zeros(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(raw)], np.int64), nbytes), "allgather")
        ends = np.cumsum(nbytes)
        if int(ends[-1]) > CHUNK_NBYTES:      # displacements are 32-bit before MPI-4
            return [_unpickled(self._bcast_bytes(raw if r == self.rank else raw[:0], r)) for r in range(self.size)]
        data = np.empty(int(ends[-1]), np.uint8)
        starts = ends - nbytes
        self.wait(self.comm.Iallgatherv(raw, [data, nbytes.tolist(), starts.tolist(), self._mpi.BYTE]), "allgather")
        return [_unpickled(data[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    @collective
    def allgather_bytes(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of all ranks, one rank's behind the other's, on every rank."""
        nbytes = np.zeros(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(raw)], np.int64), nbytes), "allgather")
        ends = np.cumsum(nbytes)
        out = np.empty(int(ends[-1]), np.uint8)
        starts = (ends - nbytes).tolist()
        if len(out) <= CHUNK_NBYTES:
            self.wait(self.comm.Iallgatherv(raw, [out, nbytes.tolist(), starts, self._mpi.BYTE]), "allgather")
            return out
        for r, (a, b) in enumerate(zip(starts, ends.tolist(), strict=True)):      # displacements are 32-bit before MPI-4
            if r == self.rank:
                out[a:b] = raw
            for at in range(a, b, CHUNK_NBYTES):
                self.wait(self.comm.Ibcast(out[at:min(at + CHUNK_NBYTES, b)], r), "allgather")
        return out

    @collective
    def gather(self, obj: T, root: int = 0) -> list[T] | None:
        """The objects of all ranks, in rank order, on rank `root`; None elsewhere."""
        raw = _pickled(obj)
        nbytes = np.zeros(self.size, np.int64)
        self.wait(self.comm.Iallgather(np.array([len(raw)], np.int64), nbytes), "gather")
        if self.rank != root:
            for at in range(0, len(raw), CHUNK_NBYTES):
                self.wait(self.comm.Isend(raw[at:at + CHUNK_NBYTES], root, TAG_OBJECT), "gather")
            return None
        parts = [raw if r == root else np.empty(int(n), np.uint8) for r, n in enumerate(nbytes)]
        for r, part in enumerate(parts):
            for at in range(0, len(part) if r != root else 0, CHUNK_NBYTES):
                self.wait(self.comm.Irecv(part[at:at + CHUNK_NBYTES], r, TAG_OBJECT), "gather")
        return [_unpickled(part) for part in parts]

    @collective
    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.wait(self.comm.Ibarrier(), "barrier")

    @collective
    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]:
        """Element-wise ``sum``, ``min`` or ``max`` over ranks: array of the shape and dtype (int64, uint64, float64) of `array`, new."""
        return self._allreduce(array, op, "allreduce")

    @collective
    def alltoall(self, table: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row d of ``(size, n) int64`` goes to rank d; row s of the result came from rank s."""
        mine = np.ascontiguousarray(table)
        out = np.empty_like(mine)
        self.wait(self.comm.Ialltoall(mine, out), "alltoall of counts")
        return out

    def _allreduce(self, array: NDArray[Any], op: str, what: str, limit_s: float | None = None) -> NDArray[Any]:
        ops = {"sum": self._mpi.SUM, "min": self._mpi.MIN, "max": self._mpi.MAX}
        mine = np.ascontiguousarray(array)
        out = np.empty_like(mine)
        self.wait(self.comm.Iallreduce(mine, out, ops[op]), what, limit_s)
        return out

    # -- the node --------------------------------------------------------------------------------------------------

    def node_window(self) -> NDArray[np.uint8]:
        """Memory that the ranks of this node share: ``(WINDOW_NBYTES,) uint8``, made at the first call. Collective on the node."""
        if self._window is None:
            mine = WINDOW_NBYTES if self.node_rank == 0 else 0
            window = self._mpi.Win.Allocate_shared(mine, 1, self._mpi.INFO_NULL, self.node_comm)
            window.Set_errhandler(self._mpi.ERRORS_RETURN)
            window.Lock_all(self._mpi.MODE_NOCHECK)
            memory, _ = window.Shared_query(0)
            self._window, self._shared = window, np.frombuffer(memory, np.uint8)
        return self._shared

    @collective
    def has_window(self) -> bool:
        """Whether the ranks of every node can share memory; where they cannot, no later exchange goes through leaders."""
        if self._window is None:
            able = 1
            try:
                self.node_window()
            except (self._mpi.Exception, MemoryError):       # a container with little shared memory, an MPI without windows
                able = 0
            if not self._allreduce(np.array([able], np.int64), "min", "share memory on nodes")[0]:
                self.leaders = False
                return False
        return True

    def node_sync(self, what: str) -> None:
        """Wait for the ranks of this node; what they wrote to the window before can be read after. Collective on the node."""
        self._window.Sync()
        self.wait(self.node_comm.Ibarrier(), what)
        self._window.Sync()

    def node_allgather(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        """Arrays of equal shape of all ranks of this node: ``(node_size, *shape) int64``. Collective on the node."""
        out = np.empty((self.node_size, *array.shape), np.int64)
        self.wait(self.node_comm.Iallgather(np.ascontiguousarray(array), out), "allgather on a node")
        return out

    # -- errors ----------------------------------------------------------------------------------------------------

    @collective
    def agree(self, error: BaseException | None, what: str = "", limit_s: float | None = None) -> None:
        """Return if no rank has an error; else raise the same one on all ranks (see `World.agree`)."""
        if isinstance(error, RankDied):
            raise error        # every other rank comes to hear of that by itself
        step = what or "agree"
        mine = np.array([self.size if error is None else self.rank], np.int64)
        first = int(self._allreduce(mine, "min", step, limit_s)[0])
        if first == self.size:
            return
        failed = np.zeros(self.size, np.int64)
        failed[self.rank] = error is not None
        ranks = tuple(np.flatnonzero(self._allreduce(failed, "max", step)).tolist())
        raw = pack_error(error) if self.rank == first and error is not None else b""
        data = self._bcast_bytes(np.frombuffer(raw, np.uint8).copy(), first)
        shared: BaseException = pickle.loads(data.tobytes())
        raise place_error(shared, ranks) from cause_of(error)

    @collective
    def first_on_node(self, fn: Callable[[], None]) -> None:
        """Run `fn` on one rank per node, and on the others of the node once it is through: who compiles first fills the cache."""
        name = getattr(fn, "__qualname__", "first_on_node")
        with self.together(name):
            try:
                if self.node_rank == 0:
                    fn()
            finally:
                self.wait(self.node_comm.Ibarrier(), name)
            if self.node_rank != 0:
                fn()

    def abort(self, code: int) -> NoReturn:
        """End the whole job with `code`, at once and on all ranks. For the command line only, never for library calls."""
        sys.stdout.flush()
        sys.stderr.flush()
        # Of the world, not of our duplicate: aborting a duplicate, MPICH's launcher returned 9 for 1 in 8 of 14 runs, in none this way.
        mpi_module().COMM_WORLD.Abort(code)
        raise SystemExit(code)

    def compare_calls(self, name: str) -> None:
        """With ``HPCMR_STRICT=1``: raise unless every rank entered the collective function `name`."""
        mine = np.zeros(64, np.uint8)
        raw = np.frombuffer(name.encode()[:64], np.uint8)
        mine[:len(raw)] = raw
        names = np.zeros((self.size, 64), np.uint8)
        self.wait(self.comm.Iallgather(mine, names), f"the call of {name}")
        if (names != mine).any():
            said = ", ".join(f"rank {r}: {row.tobytes().rstrip(bytes(1)).decode()}" for r, row in enumerate(names))
            raise HpcmrError(f"ranks entered different collective functions ({said}); every rank must make the same calls in the same order")


def _pickled(obj: Any) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(pickle.dumps(obj, protocol=5)), np.uint8)


def _unpickled(raw: NDArray[np.uint8]) -> Any:
    return pickle.loads(raw.data)
