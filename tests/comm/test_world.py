"""World: objects, agreement on errors, being a guest, strict mode."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hpcmr.comm import launcher
from hpcmr.comm.world import World
from hpcmr.errors import DataError, HpcmrError, InputError, RemoteError


def test_serial_world_needs_no_mpi_library():
    code = (
        "import sys; from hpcmr.comm.world import World; w = World.of(); "
        "assert w.size == 1 and w.comm is None; assert 'mpi4py.MPI' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=launcher.clean_env(), check=True, timeout=60)


@pytest.mark.mpi
def test_objects(subworld):
    w = subworld
    assert w.bcast({"from": w.rank}) == {"from": 0}
    assert w.bcast(w.rank, root=w.size - 1) == w.size - 1
    assert w.allgather("x" * w.rank) == ["x" * r for r in range(w.size)]
    assert w.gather(w.rank, root=w.size - 1) == (list(range(w.size)) if w.rank == w.size - 1 else None)
    w.barrier()


@pytest.mark.mpi
def test_objects_of_any_size_and_buffers_stay_writable(world):
    big = np.arange(200_000) if world.rank == 0 else None
    got = world.bcast(big)
    got[0] = 7
    assert got[1:].tolist() == list(range(1, 200_000))
    assert [len(x) for x in world.allgather(np.zeros(world.rank * 1000))] == [r * 1000 for r in range(world.size)]


@pytest.mark.mpi
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_objects_larger_than_a_chunk(world, chunk, monkeypatch):
    monkeypatch.setattr("hpcmr.comm.mpi_world.CHUNK_NBYTES", chunk)
    assert world.bcast("abc" * 100) == "abc" * 100
    assert world.allgather("r" * (50 + world.rank)) == ["r" * (50 + r) for r in range(world.size)]
    assert world.gather(world.rank) in (None, list(range(world.size)))


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
def test_allreduce(subworld, dtype):
    w = subworld
    mine = np.array([[w.rank, 1], [10 - w.rank, 0]], dtype)
    assert w.allreduce(mine).tolist() == [[sum(range(w.size)), w.size], [sum(10 - r for r in range(w.size)), 0]]
    assert w.allreduce(mine, "max").tolist() == [[w.size - 1, 1], [10, 0]]
    assert w.allreduce(mine, "min").tolist() == [[0, 1], [11 - w.size, 0]]
    assert w.allreduce(np.zeros(0, dtype)).shape == (0,)


@pytest.mark.mpi
def test_alltoall_of_counts(subworld):
    w = subworld
    got = w.alltoall(np.array([[w.rank, d] for d in range(w.size)], np.int64))
    assert got.tolist() == [[s, w.rank] for s in range(w.size)]


@pytest.mark.mpi
def test_agree_returns_where_nobody_failed(subworld):
    subworld.agree(None)
    with subworld.together("nothing"):
        pass


@pytest.mark.mpi
def test_an_error_on_one_rank_is_raised_on_all(subworld):
    w = subworld
    last = w.size - 1
    with pytest.raises(InputError) as caught, w.together("open inputs"):
        if w.rank == last:
            raise InputError("no such file", split="a.txt[0:9]", record=3)
    e = caught.value
    assert (e.rank, e.ranks, e.split, e.record, str(e)) == (last, (last,), "a.txt[0:9]", 3, "no such file")
    assert "no such file" in e.trace and "test_world.py" in e.trace


@pytest.mark.mpi
def test_errors_on_all_ranks_become_that_of_the_lowest(subworld):
    w = subworld
    with pytest.raises(DataError, match="from rank 0") as caught:
        w.agree(DataError(f"from rank {w.rank}"))
    assert caught.value.ranks == tuple(range(w.size))


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("no")


@pytest.mark.mpi
@pytest.mark.parametrize("error", [ValueError("bad value"), MemoryError(), Unpicklable("odd"), SystemExit(3)])
def test_foreign_errors_become_remote_errors(world, error):
    with pytest.raises(RemoteError) as caught, world.together("x"):
        if world.rank == world.size - 1:
            raise error
    assert str(caught.value) == (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


@pytest.mark.mpi
def test_keyboard_interrupt_stays(world):
    with pytest.raises(KeyboardInterrupt), world.together("x"):
        if world.rank == 0:
            raise KeyboardInterrupt


@pytest.mark.mpi
def test_on_root(world):
    assert world.on_root(lambda: ["from", world.rank]) == ["from", 0]
    with pytest.raises(InputError, match="none"):
        world.on_root(lambda: (_ for _ in ()).throw(InputError("none")))


@pytest.mark.mpi
def test_first_on_node_runs_the_leader_first(world, mpi_tmp_path):
    mark = mpi_tmp_path / "compiled"

    def compile_kernels():
        assert mark.exists() == (world.node_rank != 0)
        mark.touch()

    world.first_on_node(compile_kernels)
    with pytest.raises(RemoteError, match="ValueError: no compiler"):
        world.first_on_node(lambda: int("x") if False else (_ for _ in ()).throw(ValueError("no compiler")))


@pytest.mark.mpi
def test_strict_mode_names_ranks_that_took_another_way(world, monkeypatch):
    monkeypatch.setenv("HPCMR_STRICT", "1")
    world.barrier()
    if world.size > 1:
        with pytest.raises(HpcmrError, match=r"rank 0: .*barrier.*rank 1: .*bcast"):
            world.barrier() if world.rank == 0 else world.bcast(1)


@pytest.mark.mpi
def test_a_wait_gives_up_and_names_who_is_missing(world, monkeypatch):
    if world.size < 2:
        pytest.skip("needs two ranks")
    part = World.of(world.comm.Split(0))
    monkeypatch.setenv("HPCMR_STALL_S", "0.3")
    monkeypatch.setattr("hpcmr.comm.mpi_world.HERE_GRACE_S", 2.0)
    if world.rank != world.size - 1:
        with pytest.raises(HpcmrError, match=rf"no progress in .*barrier: rank {world.size - 1} did not come"):
            part.barrier()
    monkeypatch.undo()
    world.barrier()


@pytest.mark.mpi
def test_guest_duplicates_once_and_leaves_the_users_communicator_alone(world):
    if world.size < 2:
        pytest.skip("needs a launcher")
    from mpi4py import MPI

    users = MPI.COMM_WORLD.Split(0)
    handler = users.Get_errhandler()
    ours = World.of(users)
    assert World.of(users) is ours and ours.comm != users
    assert users.Get_errhandler() == handler and ours.comm.Get_errhandler() == MPI.ERRORS_RETURN
    copy = users.Dup()
    assert World.of(copy) is not ours
    copy.Free()
    inner = ours.comm
    users.Free()
    assert inner == MPI.COMM_NULL
    handler.Free()


def test_stall_limit_reads_the_environment(monkeypatch):
    from hpcmr.comm.waiting import Backoff, stall_limit_s

    monkeypatch.setenv("HPCMR_STALL_S", "2.5")
    assert stall_limit_s() == 2.5
    monkeypatch.setenv("HPCMR_STALL_S", "0")
    assert stall_limit_s() == float("inf")
    pause = Backoff(0.01)
    while pause.pause():
        pass


def test_collective_functions_say_so():
    for name in ("bcast", "allgather", "gather", "barrier", "allreduce", "alltoall", "agree", "on_root", "first_on_node"):
        assert "every rank must call it" in getattr(World, name).__doc__


def test_no_launcher_variable_survives_clean_env():
    env = {
        **os.environ,
        "OMPI_COMM_WORLD_SIZE": "4",
        "PMI_RANK": "1",
        "PMIX_RANK": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "PATH": "/bin",
    }
    clean = launcher.clean_env(env)
    assert launcher.started(clean) is None and clean["PATH"] == "/bin" and clean["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
