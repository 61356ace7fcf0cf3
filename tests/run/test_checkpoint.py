"""Jobs that are cut, stopped in every state, and go on on another number of ranks."""

import os
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.errors import HpcmrError, Refused, Stopped, StorageError, Superseded
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.collect import Collect
from hpcmr.ops.group import GroupRows
from hpcmr.ops.join import Join
from hpcmr.ops.sort import Sort
from hpcmr.plan.nodes import Pair
from hpcmr.run import drive
from hpcmr.run.checkpoint import Checkpointer
from hpcmr.run.generation import Record, joined_runs, runs_of
from hpcmr.run.policy import Pace
from hpcmr.run.session import Session
from hpcmr.store.journal import Journal
from tests.run.test_real_operators import AGGS, bits, often
from tests.run.toys import Call, Gather, Numbers, SumByKey, plan, then

SIZES = [700, 0, 1, 350, 900, 99, 501, 340, 3, 600]
FEW = [150, 80, 0, 41]
MANY = 3 * SIZES
mpi = pytest.mark.mpi


class Counter:
    """Batches that went by on this rank; a notice comes once there were `limit`."""

    def __init__(self, limit=None):
        self.count, self.limit = 0, limit

    def __call__(self, batch, origin):
        self.count += 1
        return batch

    def noticed(self):
        return self.limit is not None and self.count >= self.limit


class Attempt:
    def __init__(self, world, run_dir, limit=None, every_s=0.0, source=None):
        self.counter, self.source = Counter(limit), source or Numbers(SIZES)
        self.session = Session(world)
        journal = None
        if world.rank == 0:
            journal = Journal(run_dir)
            journal.claim({"host": "test", "pid": os.getpid()})
        self.journal = journal
        self.session.checkpoints = Checkpointer(self.session, run_dir, journal, Pace(every_s=every_s), self.counter.noticed)

    def run(self, make, outlet=None):
        """The result; None if it was stopped."""
        look = Call(self.counter)
        try:
            return self.session.execute(make(self.source, look), Collect() if outlet is None else outlet)
        except Stopped:
            return None
        finally:
            self.session.checkpoints.close()


PLANS = {
    "map": lambda source, look: plan(source, (look,)),
    "aggregate": lambda source, look: plan(source, (look,), Aggregate(("k",), AGGS), (look,)),
    "raw": lambda source, look: plan(source, (look,), often(Aggregate(("k",), AGGS[:3], "raw")), (look,)),
    "often": lambda source, look: plan(source, (look,), often(Aggregate(("k",), AGGS)), (look,)),
    "combined": lambda source, look: plan(source, (look,), GroupRows(("k",), lambda key, values: sum(values), combiner="sum"), (look,)),
    "twice": lambda source, look: then(plan(source, (look,), GroupRows(("k",), "list"), (look,)), (), Aggregate(("k",), AGGS[:1]), (look,), 4),
    "sort": lambda source, look: plan(source, (look,), Sort(("x",)), (look,), 32),
    "join": lambda source, look: then(Pair("join", "", plan(source, (look,)), plan(Numbers(FEW), (look,)),
                                           Join(("k",), ("k",), how="inner", broadcast_nbytes=0), 8), (look,)),
}


@pytest.fixture
def at_once(monkeypatch):
    """Ranks tick after each piece."""
    monkeypatch.setattr(drive, "TICK_MIN_S", 0.0)


@contextmanager
def first_ranks(world, n):
    """The first n ranks; None on the others, who wait at the end."""
    part = world
    if n < world.size:
        comm = world.comm.Split(int(world.rank >= n), world.rank)
        part = World.of(comm) if world.rank < n else None
    yield part
    world.barrier()


def sizes_of(world):
    """Numbers of ranks to go on on, in turn."""
    return [n for n in (world.size, 1, 2, world.size, 3) if n <= world.size]


@mpi
@pytest.mark.parametrize("name", PLANS)
def test_stopped_again_and_again_a_job_comes_to_the_same_bits(world, mpi_tmp_path, at_once, name):
    alone = bits(Session(World()).execute(PLANS[name](Numbers(SIZES), Call(lambda b, o: b)), Collect()))
    ranks, limit, stops, read = sizes_of(world), 2, 0, 0
    while True:
        got = None
        with first_ranks(world, ranks[stops % len(ranks)]) as part:
            if part is not None:
                attempt = Attempt(part, mpi_tmp_path, limit)
                got = attempt.run(PLANS[name])
                read += len(set(attempt.source.read_here))
        done = world.bcast(got is not None)
        if done:
            break
        stops, limit = stops + 1, limit + 3
        assert stops < 60
    assert stops >= 2
    if got is not None:
        assert bits(got) == alone
    total = sum(world.allgather(read))
    if name in ("map", "aggregate", "often", "combined"):       # samples and columns are looked for at the beginning of each attempt
        assert total <= len(SIZES) + 5 * (stops + 1)


@mpi
@pytest.mark.parametrize("name", ["aggregate", "sort", "join"])
def test_generations_come_while_the_job_goes_on(world, mpi_tmp_path, at_once, name):
    """The job dies, unasked, some way behind its newest checkpoint."""
    alone = bits(Session(World()).execute(PLANS[name](Numbers(MANY), Call(lambda b, o: b)), Collect()))
    first = Attempt(world, mpi_tmp_path, every_s=0.001, source=Numbers(MANY))
    seen = Counter()

    def die(batch, origin):
        seen.count += 1
        time.sleep(0.03 if first.session.checkpoints.committed < 2 else 0.0)
        if first.session.checkpoints.committed >= 2 and seen.count > 3:
            raise ValueError("dead")
        return batch

    with pytest.raises(HpcmrError, match="dead"):
        first.run(lambda source, look: PLANS[name](source, Call(die)))
    left = sorted(f for f in os.listdir(mpi_tmp_path / "pieces") if f.endswith(".tmp"))
    assert left == []
    second = Attempt(world, mpi_tmp_path, source=Numbers(MANY))
    assert second.session.checkpoints.started_from > 0
    assert bits(second.run(PLANS[name])) == alone
    if world.rank == 0:
        assert first.session.checkpoints.committed >= 2
        assert len(list(Journal(mpi_tmp_path).generations())) == 2       # older ones were collected


@mpi
def test_a_job_that_is_short_writes_nothing(world, mpi_tmp_path):
    attempt = Attempt(world, mpi_tmp_path, every_s=None)
    attempt.run(PLANS["aggregate"], Gather())
    if world.rank == 0:
        assert [e.kind for e in Journal(mpi_tmp_path).entries] == ["claim"]
        assert os.listdir(mpi_tmp_path / "pieces") == []
    assert not [t for t in threading.enumerate() if t.name.startswith("hpcmr-checkpoint")]


@mpi
def test_another_plan_at_the_same_place_is_refused(world, mpi_tmp_path, at_once):
    assert Attempt(world, mpi_tmp_path, 3).run(PLANS["aggregate"]) is None
    with pytest.raises(Refused, match=r"(?s)action 1 .* not the one .*--fresh starts over"):
        Attempt(world, mpi_tmp_path).run(PLANS["sort"])


@mpi
def test_an_attempt_that_was_superseded_commits_nothing(world, mpi_tmp_path, at_once):
    old = Attempt(world, mpi_tmp_path, 3)
    if world.rank == 0:
        Journal(mpi_tmp_path).claim({"host": "another", "pid": 1})
    with pytest.raises(Superseded, match="another"):
        old.run(PLANS["aggregate"])
    world.barrier()
    assert os.listdir(mpi_tmp_path / "pieces") == []
    if world.rank == 0:
        assert not list(Journal(mpi_tmp_path).generations())


@mpi
def test_a_disk_that_is_full_is_told_on_all_ranks_and_the_older_generation_stands(world, mpi_tmp_path, at_once, monkeypatch):
    assert Attempt(world, mpi_tmp_path, 3).run(PLANS["aggregate"]) is None

    def full(*args):
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        if world.rank == world.size - 1:
            patch.setattr("hpcmr.run.checkpoint.write_pieces", full)
        with pytest.raises(StorageError, match="no space left"):
            Attempt(world, mpi_tmp_path, 6).run(PLANS["aggregate"])
    third = Attempt(world, mpi_tmp_path)
    assert third.session.checkpoints.started_from > 0
    alone = bits(Session(World()).execute(PLANS["aggregate"](Numbers(SIZES), Call(lambda b, o: b)), Collect()))
    assert bits(third.run(PLANS["aggregate"])) == alone


@mpi
def test_what_went_to_scratch_is_copied_in(world, mpi_tmp_path, at_once, monkeypatch):
    """All that is received is spilled at once: a checkpoint has to fetch it there."""
    from hpcmr.run.shelf import Shelf

    monkeypatch.setattr(Shelf, "make_room", lambda self, nbytes: self.spill())
    alone = bits(Session(World()).execute(PLANS["often"](Numbers(SIZES), Call(lambda b, o: b)), Collect()))
    limit, got = 4, None
    while got is None:
        got = Attempt(world, mpi_tmp_path, limit).run(PLANS["often"])
        limit += 8
    assert limit > 12 and bits(got) == alone


# -- drive ---------------------------------------------------------------------------------------------------------------


class Whole(SumByKey):
    """Rounds come between pieces only; rank 0 wants one soon."""

    whole_splits = True

    def pressure(self):
        return 1.0 if self.ctx.rank == 0 and self.fresh else 0.0


@mpi
@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_owes_a_round_posts_no_tick(world, monkeypatch, fails):
    """One rank is in a long piece when a round is decided; a tick would be due, or it fails, before the piece is over."""
    monkeypatch.setattr(drive, "TICK_MAX_S", 0.01)
    monkeypatch.setattr(drive, "TICK_MIN_S", 0.0)
    slow = world.size - 1
    source = Numbers([400] * world.size, slow_s=0.05 if world.rank == slow else 0.0)

    def look(batch, origin):
        if fails and world.rank == slow and origin.row >= 300:
            raise ValueError("in the middle")
        return batch

    make = plan(source, (Call(look),), Whole())
    if fails:
        with pytest.raises(HpcmrError, match="in the middle"):
            Session(world).execute(make, Gather())
    else:
        got = Session(world).execute(make, Gather())
        assert bits(got) == bits(Session(World()).execute(plan(Numbers([400] * world.size), (), Whole()), Gather()))


@mpi
@pytest.mark.parametrize("fails", [False, True])
def test_memory_that_runs_out_before_a_cut(world, mpi_tmp_path, monkeypatch, fails):
    """All others wait at the cut for the piece of one rank, which needs rounds before it is over, or fails."""
    monkeypatch.setattr(drive, "TICK_MAX_S", 0.01)
    monkeypatch.setattr(drive, "TICK_MIN_S", 0.0)
    slow = world.size - 1
    sizes = [800] * world.size

    def look(batch, origin):
        if fails and world.rank == slow and origin.row >= 600:
            raise ValueError("in the middle")
        return batch

    first = Attempt(world, mpi_tmp_path, None, 0.0, Numbers(sizes, slow_s=0.02 if world.rank == slow else 0.0))
    first.session.checkpoints.noticed = lambda: world.rank == 0

    def make(source, _):
        return plan(source, (Call(look),), SumByKey(often=world.rank == slow))

    if fails:
        with pytest.raises(HpcmrError, match="in the middle"):
            first.run(make, Gather())
        return
    assert first.run(make, Gather()) is None
    got = Attempt(world, mpi_tmp_path, source=Numbers(sizes)).run(make, Gather())
    assert bits(got) == bits(Session(World()).execute(plan(Numbers(sizes), (), SumByKey()), Gather()))


# -- plain values ----------------------------------------------------------------------------------------------------------


def test_ledgers():
    assert runs_of([5, 1, 2, 3, 9]) == [[1, 4], [5, 6], [9, 10]]
    assert joined_runs([[[0, 2], [5, 6]], [[2, 5]], []]) == [[0, 6]]
    record = Record(ledger=[[1, 4], [6, 7]])
    assert record.left(9) == [0, 4, 5, 7, 8] and record.left(3) == [0] and record.done == 4
    assert Record().left(2) == [0, 1]


def test_a_record_of_another_version_is_an_error():
    assert Record.from_json(Record(complete=True, counts=[1]).to_json()) == Record(complete=True, counts=[1])
    for value in (None, {"what": 1}, [1]):
        with pytest.raises(StorageError, match="cannot read"):
            Record.from_json(value)


def test_rows_of_the_toys_do_round():
    rows = np.concatenate([b["x"].values for s in range(3) for b in Numbers(SIZES).read(Numbers(SIZES).survey()[1][s])])
    assert rows.sum() != rows[::-1].cumsum()[-1] and Batch.of({"x": rows}).nrows == len(rows)
