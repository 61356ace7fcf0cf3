"""Actions from plan to result: order, schemas, rounds, counts, agreement on plans."""

import time

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.errors import ConservationError, HpcmrError, JobSpecError, MemoryTooSmall
from hpcmr.run.session import Session, current
from tests.run.toys import Call, Gather, Guess, Numbers, SumByKey, expected_rows, plan, same_bits, then

pytestmark = pytest.mark.mpi

SIZES = [250, 0, 1, 99, 100, 101, 777, 3, 3, 3, 450, 120, 80]


def run(world, *args, outlet=None, **kwargs):
    return Session(world).execute(plan(*args, **kwargs), outlet or Gather())


def doubled(batch, origin):
    return Batch.of({"k": batch["k"].values, "x": 2 * batch["x"].values})


def test_rows_come_in_the_order_of_the_input(subworld):
    got = run(subworld, Numbers(SIZES))
    for name, values in expected_rows(SIZES).items():
        assert np.array_equal(got[name].values, values)


def test_steps_see_every_row_once_with_its_origin(subworld):
    seen = []

    def look(batch, origin):
        seen.append((origin.split, origin.row, batch.nrows))
        return batch.slice(0, batch.nrows // 2)

    got = run(subworld, Numbers(SIZES), (Call(look), Call(doubled)))
    every = sorted(s for part in subworld.allgather(seen) for s in part)
    assert sum(n for _, _, n in every) == sum(SIZES)
    assert every == [(i, a, min(100, n - a)) for i, n in enumerate(SIZES) for a in range(0, n, 100)]
    assert got.nrows == sum(n // 2 for _, _, n in every)


@pytest.mark.parametrize("often", [False, True])
def test_groups_have_the_same_bits_however_often_state_is_exchanged(subworld, often):
    got = run(subworld, Numbers(SIZES), (), SumByKey(often))
    rows = expected_rows(SIZES)
    sums = dict.fromkeys(np.unique(rows["k"]).tolist(), 0.0)
    for k, x in zip(rows["k"].tolist(), rows["x"].tolist(), strict=True):
        sums[k] += x
    assert dict(zip(got["k"].values.tolist(), got["x"].values.tolist(), strict=True)) == sums
    alone = Session(World()).execute(plan(Numbers(SIZES), (), SumByKey()), Gather())
    assert same_bits(got, alone)


@pytest.mark.parametrize("partitions", [1, 2, 64])
def test_operators_follow_operators(subworld, partitions):
    first = plan(Numbers(SIZES), (), SumByKey(), (Call(doubled),), partitions)
    session = Session(subworld)
    got = session.execute(then(first, (), SumByKey(), (), partitions), Gather())
    once = Session(subworld).execute(plan(Numbers(SIZES), (), SumByKey(), (Call(doubled),), partitions), Gather())
    assert same_bits(got, once)
    if subworld.rank == 0:
        assert [s.rows_in for s in session.stages] == [sum(SIZES), got.nrows, got.nrows]
        assert [s.rows_out for s in session.stages] == [got.nrows, got.nrows, got.nrows]


def test_columns_are_found_on_the_first_row_that_comes(subworld):
    def late(batch, origin):
        return batch.slice(0, batch.nrows if origin.split >= 6 else 0)

    def renamed(batch, origin):
        return Batch.of({"new": batch["x"].values.astype("float32" if origin.split == 6 else "float64")})

    steps = (Call(late), Guess(renamed), Guess(lambda b, o: Batch.of({"n": b["new"].values})))
    with_groups = plan(Numbers(SIZES), (), SumByKey(), (Guess(doubled),))
    got = Session(subworld).execute(plan(Numbers(SIZES), steps), Gather())
    assert got.names == ("n",)
    assert steps[1].schema.names == ("new",) and str(steps[1].schema["new"].type) == "float32"
    assert Session(subworld).execute(with_groups, Gather()).nrows > 0


def test_columns_of_no_rows(subworld):
    nothing = Call(lambda b, o: b.slice(0, 0))
    got = run(subworld, Numbers(SIZES), (nothing, Guess(doubled)))
    assert got.nrows == 0 and got.names == ()
    got = run(subworld, Numbers([]))
    assert got.nrows == 0 and got.names == ("k", "x")
    got = run(subworld, Numbers([]), (), SumByKey())
    assert got.nrows == 0


def test_every_rank_sees_the_same_sample(subworld):
    operator = SumByKey()
    run(subworld, Numbers(SIZES), (Call(doubled),), operator)
    assert operator.estimate is not None
    assert np.array_equal(operator.estimate["x"].values, 2 * expected_rows(SIZES)["x"][:100])


def test_the_result_goes_where_it_is_asked_for(subworld):
    root = subworld.size - 1
    got = run(subworld, Numbers(SIZES), outlet=Gather(root))
    assert (got is None) == (subworld.rank != root)
    if got is not None:
        assert got.nrows == sum(SIZES)


def test_enough_is_enough(subworld):
    source = Numbers([100] * 400)
    got = run(subworld, source, outlet=Gather(limit=150))
    assert np.array_equal(got["x"].values, expected_rows([100] * 2)["x"][:150])
    assert len(source.read_here) <= 4
    got = run(subworld, Numbers(SIZES), (), SumByKey(), outlet=Gather(limit=3))
    assert got.nrows == 3


def test_a_slow_rank_gives_work_away(world):
    if world.size == 1:
        pytest.skip("needs two ranks")
    for ascending in (False, True):
        source = Numbers([100] * 60, slow_s=0.03 if world.rank == world.size - 1 else 0.003)
        session = Session(world)
        got = session.execute(plan(source), Gather(ascending=ascending))
        assert np.array_equal(got["x"].values, expected_rows([100] * 60)["x"])
        read = world.allgather(len(source.read_here))
        assert sum(read) == 60 and read[-1] < 60 // world.size, read


def test_plans_that_differ_are_refused(world):
    session = Session(world)
    mine = [Guess(doubled)] if world.rank == world.size - 1 and world.size > 1 else [Call(doubled)]
    if world.size == 1:
        assert session.execute(plan(Numbers(SIZES), tuple(mine)), Gather()).nrows
        return
    with pytest.raises(JobSpecError, match="different plans in action 1") as e:
        session.execute(plan(Numbers(SIZES), tuple(mine)), Gather())
    assert "guess" in str(e.value) and f"rank {world.size - 1}:" in str(e.value)
    assert session.execute(plan(Numbers(SIZES)), Gather()).nrows == sum(SIZES)


def test_rows_that_vanish_stop_the_job(subworld):
    class Forgetful(SumByKey):
        def consume(self, batch, origin):
            super().consume(batch, origin)
            self.rows_in -= 1

    outlet = Gather()
    with pytest.raises(ConservationError, match="rows taken in by the operator"):
        run(subworld, Numbers(SIZES), (), Forgetful(), outlet=outlet)
    assert outlet.abandoned


def test_splits_that_differ_between_ranks_stop_the_job(world):
    class Twice(Numbers):
        def survey(self):
            schema, splits = super().survey()
            return schema, [*splits, splits[-1]]

        def adopt(self, schema, splits):
            pass

    assert run(world, Twice([10, 10, 10])).nrows == 40      # a split is known by its place in the list


def test_memory_that_is_too_small_is_refused(subworld):
    with pytest.raises(MemoryTooSmall, match=r"64 MiB at least: give --memory 64MiB"):
        Session(subworld, memory="1MiB" if subworld.rank == 0 else "1GiB")


class Greedy(SumByKey):
    def open(self, ctx, estimate):
        super().open(ctx, estimate)
        ctx.take(1 << 30, "a table")


def test_memory_that_runs_out_names_what_needs_it(subworld):
    with pytest.raises(MemoryTooSmall, match=r"a table needs 1 GiB, and of this rank's 128 MiB only 128 MiB are left"):
        Session(subworld, memory="128MiB").execute(plan(Numbers(SIZES), (), Greedy()), Gather())


def test_current_session(world):
    mine = current()
    assert current() is mine and mine.world is World.of()
    with Session(world, name="job") as session:
        assert current() is session
    assert current() is mine
    if world.comm is not None:
        half = world.comm.Split(world.rank % 2, world.rank)
        assert current(half).world.size == half.size and current(half) is current(half)
        got = current(half).execute(plan(Numbers(SIZES), (), SumByKey()), Gather())
        assert got.nrows > 0


def test_the_engine_costs_little_per_split(world):
    session = Session(world)
    began = time.perf_counter()
    session.execute(plan(Numbers([1] * 500), (), SumByKey(), (), 64), Gather())
    assert (time.perf_counter() - began) / 500 < 0.01


def test_user_errors_in_binding_come_from_every_rank(subworld):
    class Picky(Call):
        def bind(self, schema):
            if subworld.rank == subworld.size - 1:
                schema["nope"]
            return schema

    with pytest.raises(HpcmrError, match="no column 'nope'") as e:
        run(subworld, Numbers(SIZES), (Picky(doubled),))
    assert e.value.ranks == (subworld.size - 1,)
