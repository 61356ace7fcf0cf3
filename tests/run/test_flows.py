"""Plans of any shape: unions, pairs, kept rows, operators that look at all rows first. Toy operations, so that only the engine is tested."""

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.schema import FLOAT64, INT64, Schema
from hpcmr.errors import DataError, JobSpecError
from hpcmr.ops.hold import Hold, Kept
from hpcmr.plan.nodes import Pair, Persist, Read, Union
from hpcmr.run.session import Session
from tests.run.toys import SCHEMA, Call, Gather, Itself, Numbers, SumByKey, expected_rows, plan, same_bits, then

pytestmark = pytest.mark.mpi

SIZES = [250, 0, 1, 99, 100, 101, 777, 3, 3, 3, 450]
FEW = [30, 1, 0, 44]


def execute(world, node, outlet=None, session=None):
    session = session or Session(world)
    before = session.memory.taken_nbytes
    got = session.execute(node, outlet or Gather())
    assert session.memory.taken_nbytes == before
    return got


def alone(node):
    return Session(World()).execute(node, Gather())


def doubled(batch, origin):
    return Batch.of({"k": batch["k"].values, "x": 2 * batch["x"].values})


def rows_of(*nodes):
    return {n: np.concatenate([r[n] for r in nodes]) for n in ("k", "x")}


# ---- union -----------------------------------------------------------------------------------------------------------


def test_a_union_has_the_rows_of_each_table_one_behind_the_other(subworld):
    same = Numbers(SIZES)
    node = Union("union", "", (plan(same, (Call(doubled),)), plan(Numbers(FEW)), plan(same)))
    got = execute(subworld, then(node, (Call(lambda b, o: b),)))
    one, few = expected_rows(SIZES), expected_rows(FEW)
    want = rows_of({"k": one["k"], "x": 2 * one["x"]}, few, one)
    assert all(np.array_equal(got[n].values, want[n]) for n in want)


def test_partitions_and_splits_in_one_union(subworld):
    def node():
        grouped = plan(Numbers(SIZES), (), SumByKey())
        return then(Union("union", "", (plan(Numbers(FEW)), grouped, plan(Numbers(SIZES)))), (), SumByKey(), (), 4)

    got = execute(subworld, node())
    assert same_bits(got, alone(node()))
    rows = rows_of(expected_rows(FEW), expected_rows(SIZES), expected_rows(SIZES))
    assert np.isclose(got["x"].values.sum(), rows["x"].sum()) and got.nrows == len(np.unique(rows["k"]))


def test_a_union_of_different_columns_is_refused(subworld):
    other = Call(lambda b, o: Batch.of({"k": b["k"].values}))
    other.bind = lambda schema: Schema.of({"k": INT64})
    with pytest.raises(JobSpecError, match="table 2 has no column 'x'"):
        execute(subworld, Union("union", "", (plan(Numbers(FEW)), plan(Numbers(FEW), (other,)))))


# ---- operators that do more ------------------------------------------------------------------------------------------


class Surveyor(SumByKey):
    """Looks at all rows first, and agrees on how many there are."""

    survey = True

    def open(self, ctx, estimate):
        super().open(ctx, estimate)
        self.observed, self.consumed = set(), set()
        self.total = None

    def observe(self, batch, origin):
        assert self.total is None
        self.observed |= {(origin.split, origin.row + i, x) for i, x in enumerate(batch["x"].values.tolist())}

    def settle(self, together):
        self.total = int(together.allreduce(np.array([len(self.observed)], np.int64))[0])
        below = together.exscan(np.array([len(self.observed)], np.int64))
        sizes = together.allgather(len(self.observed))
        assert int(below[0]) == sum(sizes[:together.rank]) and sum(sizes) == self.total
        everywhere = together.allgather_batch(Batch({"r": FixedColumn(np.full(together.rank, together.rank)),
                                                   "s": BytesColumn.from_list(["é"] * together.rank, True)}))
        assert everywhere["r"].to_list() == [r for r in range(together.size) for _ in range(r)]
        assert everywhere["s"].to_list() == ["é"] * len(everywhere)

    def weights(self):
        return np.arange(self.ctx.partitions, dtype=np.int64) if self.total else None

    def consume(self, batch, origin):
        assert self.total is not None
        self.consumed |= {(origin.split, origin.row + i, x) for i, x in enumerate(batch["x"].values.tolist())}
        super().consume(batch, origin)


@pytest.mark.parametrize("held", [False, True])
def test_a_survey_sees_the_rows_that_are_consumed(subworld, held):
    operator, source = Surveyor(), Numbers(SIZES)
    got = execute(subworld, plan(source, (Call(doubled),) if held else (), operator))
    seen, consumed = (set().union(*subworld.allgather(s)) for s in (operator.observed, operator.consumed))
    assert len(seen) == sum(SIZES) == operator.total and seen == consumed
    assert same_bits(got, alone(plan(Numbers(SIZES), (Call(doubled),) if held else (), SumByKey())))
    read = sum(subworld.allgather(len(source.read_here)))
    assert read >= len(SIZES) * (1 if held else 2)


def test_a_survey_of_what_another_operator_made(subworld):
    node = then(plan(Numbers(SIZES), (), SumByKey()), (Call(doubled),), Surveyor())
    assert same_bits(execute(subworld, node), alone(plan(Numbers(SIZES), (), SumByKey(), (Call(doubled),))))


class InParts(SumByKey):
    """Seals a part of what it holds at a time, and gives partitions in blocks."""

    def seal(self):
        later, self.fresh = self.fresh[2:], self.fresh[:2]
        part = super().seal()
        self.fresh = later
        return part

    def pending(self):
        return bool(self.fresh)

    def finish_blocks(self, partition):
        whole = self.finish(partition)
        yield whole.slice(0, 0)
        for i in range(0, whole.nrows, 3):
            yield whole.slice(i, i + 3)


@pytest.mark.parametrize("often", [False, True])
def test_seals_of_a_part_and_partitions_in_blocks(subworld, often):
    operator = InParts(often)
    got = execute(subworld, plan(Numbers(SIZES), (), operator))
    assert same_bits(got, alone(plan(Numbers(SIZES), (), SumByKey())))
    assert operator.sealed > 1


# ---- pairs -----------------------------------------------------------------------------------------------------------

JOINED = Schema.of({"k": INT64, "x": FLOAT64, "y": FLOAT64})


class Side(SumByKey):
    keys = ("k",)

    def observe(self, batch, origin):
        self.seen += batch.nrows

    def open(self, ctx, estimate):
        super().open(ctx, estimate)
        self.seen = 0

    def rows(self, partition):
        parts = [p.part(partition) for p in self.merged]
        k, x, o = (np.concatenate([p[n].values for p in parts] or [np.zeros(0)]) for n in ("k", "x", "o"))
        self.rows_out += len(k)
        order = np.lexsort((o, k))
        return k[order].astype(np.int64), x[order]


class Match:
    """The step of a broadcast join: each left row with each right row of its key."""

    name = "match"

    def __init__(self, right, outer):
        self.k, self.y, self.used = right["k"].values, right["x"].values, np.zeros(right.nrows, np.int64)
        if outer:
            self.tail = self._tail

    def fingerprint(self):
        return ()

    def bind(self, schema):
        return JOINED

    def apply(self, batch, origin):
        a, b = pairs(batch["k"].values, self.k)
        self.used[b] = 1
        return Batch.of({"k": batch["k"].values[a], "x": batch["x"].values[a], "y": self.y[b]})

    def _tail(self, together):
        free = together.allreduce(self.used, "max") == 0
        return Batch.of({"k": self.k[free], "x": np.full(int(free.sum()), np.nan), "y": self.y[free]})


def pairs(left, right):
    a, b = np.nonzero(left[:, None] == right[None, :])
    return a, b


class Join(Itself):
    name = "join"
    rule = "as it is told"

    def __init__(self, way, survey=False, outer=False):
        self.way, self.survey, self.outer = way, survey, outer
        self.settled = 0
        self.closed = None

    def fingerprint(self):
        return (self.way,)

    def bind(self, left, right):
        assert left == right == SCHEMA
        self.left, self.right = Side(), Side()
        return JOINED

    def choose(self, nbytes, rows):
        self.size = (nbytes, rows)
        return self.way, f"{rows} rows"

    def probe(self, right):
        self.everywhere = right
        return Match(right, self.outer)

    def open(self, ctx, estimate):
        ctx.take(100, "a join")
        self.ctx, self.closed = ctx, False
        for side in (self.left, self.right):
            side.open(ctx, estimate)

    def settle(self, together):
        self.settled += 1
        if self.survey:
            self.seen = [int(together.allreduce(np.array([s.seen], np.int64))[0]) for s in (self.left, self.right)]

    def finish_blocks(self, partition):
        (k, x), (j, y) = self.left.rows(partition), self.right.rows(partition)
        a, b = pairs(k, j)
        yield Batch.of({"k": k[a], "x": x[a], "y": y[b]})

    def close(self):
        assert self.closed is False
        self.closed = True
        self.ctx.give(100)


def join(operator, left=None, right=None):
    return Pair("join", "", left or plan(Numbers(SIZES)), right or plan(Numbers(FEW), (Call(doubled),)), operator, 8)


def joined_in_order():
    left, right = expected_rows(SIZES), expected_rows(FEW)
    a, b = pairs(left["k"], right["k"])
    return left["k"][a], left["x"][a], 2 * right["x"][b]


@pytest.mark.parametrize("outer", [False, True])
def test_a_small_right_side_goes_everywhere(subworld, outer):
    operator = Join("broadcast", outer=outer)
    got = execute(subworld, then(join(operator), (Call(lambda b, o: b),)))
    right = expected_rows(FEW)
    assert np.array_equal(operator.everywhere["k"].values, right["k"]) or operator.everywhere.nrows == 0
    assert operator.size == (16 * sum(FEW), sum(FEW))
    k, x, y = joined_in_order()
    n = len(k)
    assert np.array_equal(got["k"].values[:n], k) and np.array_equal(got["x"].values[:n], x) and np.array_equal(got["y"].values[:n], y)
    free = ~np.isin(right["k"], k)
    assert np.array_equal(got["k"].values[n:], right["k"][free] if outer else [])


def test_rows_that_come_last_are_in_their_place_of_a_union(subworld):
    operator = Join("broadcast", outer=True)
    narrow = Call(lambda b, o: Batch.of({"k": b["k"].values, "x": b["y"].values}))
    narrow.bind = lambda schema: SCHEMA
    node = Union("union", "", (then(join(operator), (narrow,)), plan(Numbers(FEW))))
    for outlet in (Gather(), Gather(ascending=True)):
        got = execute(subworld, node, outlet)
        assert np.array_equal(got["x"].values[-sum(FEW):], expected_rows(FEW)["x"])
        free = ~np.isin(expected_rows(FEW)["k"], joined_in_order()[0])
        n = len(joined_in_order()[0])
        assert np.array_equal(got["k"].values[n:n + free.sum()], expected_rows(FEW)["k"][free])


@pytest.mark.parametrize("survey", [False, True])
def test_both_sides_meet_at_the_owners(subworld, survey):
    operator = Join("shuffle", survey)
    session = Session(subworld)
    got = execute(subworld, join(operator), session=session)
    assert operator.settled == 1 and operator.closed
    if survey:
        assert operator.seen == [sum(SIZES), sum(FEW)]
    assert same_bits(got, alone(join(Join("shuffle"))))
    want = sorted(zip(*(v.tolist() for v in joined_in_order()), strict=True))
    assert sorted(zip(*(got[n].values.tolist() for n in ("k", "x", "y")), strict=True)) == want
    assert session.decisions == [f"join: shuffle, {sum(FEW)} rows"]
    if subworld.rank == 0:
        assert [(s.rows_in, s.rows_out) for s in session.stages][-1] == (len(want), len(want))


def test_joins_of_joins_and_of_groups(subworld):
    def node(way):
        narrow = Call(lambda b, o: Batch.of({"k": b["k"].values, "x": b["y"].values}))
        narrow.bind = lambda schema: SCHEMA
        first = then(join(Join(way), right=plan(Numbers(FEW), (), SumByKey())), (narrow,))
        return join(Join("shuffle"), plan(Numbers(FEW), (), SumByKey()), first)

    got = execute(subworld, node("broadcast"))
    assert same_bits(got, alone(node("broadcast"))) and got.nrows > 0
    assert same_bits(execute(subworld, node("shuffle")), alone(node("shuffle")))


@pytest.mark.parametrize("where", ["bind", "choose", "probe", "open", "settle", "finish_blocks"])
def test_an_error_in_a_pair_ends_all_ranks(subworld, where):
    class Wrong(Join):
        pass

    def wrong(self, *args):
        if subworld.rank == subworld.size - 1:
            raise DataError(f"{where} fails")
        return getattr(Join, where)(self, *args)

    setattr(Wrong, where, wrong)
    session, outlet, source = Session(subworld), Gather(), Numbers(SIZES)
    with pytest.raises(DataError, match=f"{where} fails"):
        session.execute(join(Wrong("broadcast" if where == "probe" else "shuffle"), plan(source)), outlet)
    assert outlet.abandoned and source.closed and session.memory.taken_nbytes == 0


# ---- kept rows -------------------------------------------------------------------------------------------------------


def test_kept_rows_are_made_once(subworld):
    session, source = Session(subworld), Numbers(SIZES)
    kept = Kept(plan(source, (Call(doubled),)))
    node = Persist("persist()", "", kept)
    first = session.execute(node, Gather())
    assert (kept.filled and session.memory.taken_nbytes > 0) or sum(SIZES) == 0 or subworld.size > 1
    read = len(source.read_here)
    again = session.execute(then(node, (), SumByKey(), (), 8), Gather())
    assert len(source.read_here) == read
    assert same_bits(first, alone(plan(Numbers(SIZES), (Call(doubled),))))
    assert same_bits(again, alone(plan(Numbers(SIZES), (Call(doubled),), SumByKey())))
    kept.drop()
    kept.drop()
    assert session.memory.taken_nbytes == 0
    assert same_bits(session.execute(node, Gather()), first) and kept.filled
    del node, kept
    assert session.memory.taken_nbytes == 0


def test_kept_rows_that_one_rank_has_dropped_are_made_again(world):
    session = Session(world)
    kept = Kept(plan(Numbers(SIZES)))
    node = Persist("persist()", "", kept)
    first = session.execute(node, Gather())
    if world.rank == world.size - 1:
        kept.drop()
    assert same_bits(session.execute(node, Gather()), first)


class Hashed(SumByKey):
    """Its partitions are those of a hash that others use."""

    keys = ("k",)
    partitioned_by = ("k",)


class Carrying(Call):
    def carries(self, names):
        return names


def test_rows_that_lie_with_their_owners_do_not_travel(subworld):
    session = Session(subworld)
    node = Persist("persist()", "", Kept(plan(Numbers(SIZES), (), Hashed())))
    first = session.execute(node, Gather())
    n = len(session.stages)
    again = session.execute(then(node, (Carrying(doubled),), Hashed(), (), None), Gather())
    moved = session.execute(then(node, (Call(doubled),), Hashed(), (), None), Gather())
    assert np.array_equal(again["k"].values, first["k"].values) and np.array_equal(again["x"].values, 2 * first["x"].values)
    assert sorted(moved["k"].values.tolist()) == sorted(first["k"].values.tolist())
    if subworld.rank == 0:
        sent = [s.exchanged_nbytes for s in session.stages[n:]]
        assert sent[0] < 200 and sent[1] < 200       # counts, but no rows
        assert subworld.size == 1 or session.stages[0].exchanged_nbytes > 200


class Memory:
    """A spool in memory."""

    def __init__(self):
        self.kept, self.count = {}, 0

    def put(self, batch):
        self.count += 1
        self.kept[self.count] = batch.take(np.arange(batch.nrows)).compact()
        return self.count

    def get(self, handle):
        return self.kept[handle]

    def drop(self, handle):
        del self.kept[handle]


class Budget:
    def __init__(self, nbytes, spool=None):
        self.free, self.spool = nbytes, spool

    def available(self):
        return self.free

    def take(self, nbytes, what):
        assert nbytes <= self.free, what
        self.free -= nbytes

    def give(self, nbytes):
        self.free += nbytes


def test_a_hold_that_does_not_fit_lies_in_the_spool():
    spool = Memory()
    ctx = Budget(1 << 20, spool)
    hold = Hold(ctx, "rows")
    rng = np.random.default_rng(1)
    batches = [Batch.of({"x": rng.normal(size=20000), "s": ["abc", "d", None, ""] * 5000}) for _ in range(12)]
    for i, batch in enumerate(batches):
        hold.take(i // 5, 20000 * (i % 5), batch)
    hold.seal()
    assert spool.kept and ctx.free > 0 and hold.rows == 240000
    for _ in range(2):
        found = [b for p in hold.pieces for b in hold.read(p)]
        assert Batch.concat(found).to_pydict() == Batch.concat(batches).to_pydict()
    hold.drop(0)
    assert [hold.nrows(p) for p in (0, 1, 2)] == [0, 100000, 40000]
    hold.close()
    hold.close()
    assert not spool.kept and ctx.free == 1 << 20


def test_a_plan_that_reads_one_source_twice(subworld):
    node = Read("numbers", "", Numbers(FEW))
    got = execute(subworld, Union("union", "", (node, node)))
    one = expected_rows(FEW)
    assert np.array_equal(got["x"].values, np.concatenate([one["x"], one["x"]]))
