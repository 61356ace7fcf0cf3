"""Ticks: every rank learns every status, in order, and a late rank is waited for only as long as allowed."""

import time

import numpy as np
import pytest

from hpcmr.comm.tick import Tick
from hpcmr.errors import HpcmrError


@pytest.mark.mpi
def test_everyone_learns_every_status(subworld):
    tick = Tick(subworld, 3)
    assert not tick.done() and not tick.in_flight
    for turn in range(5):
        tick.post(np.array([subworld.rank, turn, -1]))
        assert tick.in_flight
        got = tick.wait()
        assert got.tolist() == [[r, turn, -1] for r in range(subworld.size)]
        assert not tick.in_flight
    assert tick.count == 5


@pytest.mark.mpi
def test_ranks_work_on_until_all_have_joined(world):
    tick = Tick(world, 1)
    time.sleep(0.02 * world.rank)
    tick.post(np.array([world.rank]))
    looks = 0
    while not tick.done():
        looks += 1
        time.sleep(0.001)
    assert tick.done() and tick.in_flight  # stays there until it is taken
    assert tick.wait()[:, 0].tolist() == list(range(world.size))
    got = world.allreduce(np.array([looks]), "max")
    assert world.size == 1 or int(got[0]) > 0


@pytest.mark.mpi
def test_other_collective_calls_may_happen_while_a_tick_is_on_the_way(world):
    tick = Tick(world, 2)
    tick.post(np.array([world.rank, 7]))
    assert world.allgather(world.rank) == list(range(world.size))
    assert tick.wait()[:, 1].tolist() == [7] * world.size


@pytest.mark.mpi
def test_a_status_that_changes_after_posting_does_not_travel(world):
    tick, status = Tick(world, 1), np.array([5])
    tick.post(status)
    status[0] = 6
    assert tick.wait()[:, 0].tolist() == [5] * world.size


@pytest.mark.mpi
def test_misuse(world):
    tick = Tick(world, 2)
    with pytest.raises(HpcmrError, match="post"):
        tick.wait()
    with pytest.raises(HpcmrError, match="2 numbers"):
        tick.post(np.zeros(3, np.int64))
    tick.post(np.zeros(2, np.int64))
    with pytest.raises(HpcmrError, match="still on the way"):
        tick.post(np.zeros(2, np.int64))
    tick.wait()


@pytest.mark.mpi
def test_a_rank_that_does_not_join_is_named(world, monkeypatch):
    if world.size < 2:
        pytest.skip("needs two ranks")
    monkeypatch.setattr("hpcmr.comm.mpi_world.HERE_GRACE_S", 2.0)
    monkeypatch.delenv("HPCMR_STRICT", raising=False)  # ranks do take different ways here
    from hpcmr.comm.world import World

    part = World.of(world.comm.Split(0))
    tick = Tick(part, 1)
    if world.rank > 0:
        tick.post(np.array([world.rank]))
        with pytest.raises(HpcmrError, match="rank 0 did not come"):
            tick.wait(timeout_s=0.3)
    world.barrier()
    if world.rank == 0:
        tick.post(np.array([0]))
    while not tick.done():  # so that no request outlives the test
        time.sleep(0.001)
