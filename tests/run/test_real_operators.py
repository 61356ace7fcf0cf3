"""The operators of the package under the engine: the same bits on any number of ranks, however often state is sealed and merged."""

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.collect import Collect
from hpcmr.ops.group import GroupRows
from hpcmr.ops.head import Head
from hpcmr.run.session import Session
from tests.run.toys import Call, Numbers, plan

pytestmark = pytest.mark.mpi

SIZES = [700, 0, 1, 350, 2000, 99, 501, 640, 3, 1200]
AGGS = (Agg("count", None, "n"), Agg("sum", "x", "total"), Agg("min", "x", "low"),
        *(Agg(f, "x", f) for f in ("max", "mean", "var", "std", "first", "last")))


def often(operator):
    """`operator` with a wish for a round whenever it has taken something in."""
    kind = type(operator)

    class Often(kind):
        fed = 0

        def consume(self, batch, origin):
            super().consume(batch, origin)
            self.fed = 1

        def pressure(self):
            return float(self.fed)

        def seal(self):
            self.fed = 0
            return super().seal()

    operator.__class__ = Often
    return operator


OPERATORS = {
    "aggregate": lambda: Aggregate(("k",), AGGS),
    "direct": lambda: Aggregate(("k",), AGGS[:3], "direct"),
    "radix": lambda: Aggregate(("k",), AGGS[:3], "radix"),
    "raw": lambda: Aggregate(("k",), AGGS[:3], "raw"),
    "list": lambda: GroupRows(("k",), "list"),
    "combined": lambda: GroupRows(("k",), lambda key, values: sum(values), combiner="sum"),
}


def bits(batch):
    out = []
    for name, column in batch.columns.items():
        inner = getattr(column, "child", column)
        out.append((name, inner.values.dtype.str, inner.values.tobytes(), column.starts.tolist() if inner is not column else None))
    return out


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_bits_on_any_number_of_ranks_however_often_state_moves(subworld, name):
    alone = bits(Session(World()).execute(plan(Numbers(SIZES), (), OPERATORS[name](), (), 8), Collect()))
    assert alone[0][2]
    for make in (OPERATORS[name], lambda: often(OPERATORS[name]())):
        session = Session(subworld)
        got = bits(session.execute(plan(Numbers(SIZES), (), make(), (), 8), Collect()))
        assert got == alone
        assert session.memory.taken_nbytes >= 0


def test_head_reads_little(subworld):
    source = Numbers([1000] * 60)
    got = Session(subworld).execute(plan(source, (Call(lambda b, o: b.slice(0, 10)),)), Head(25))
    whole = Session(subworld).execute(plan(Numbers([1000] * 60), (Call(lambda b, o: b.slice(0, 10)),)), Collect())
    assert bits(got) == bits(whole.slice(0, 25)) and len(source.read_here) < 30


def test_sums_do_round(subworld):
    """The order matters to a plain sum of these rows, so that equal bits above say something."""
    rows = np.concatenate([b["x"].values for s in range(3) for b in Numbers(SIZES).read(Numbers(SIZES).survey()[1][s])])
    assert np.add.reduce(rows) != np.add.accumulate(rows[::-1])[-1] or np.add.accumulate(rows)[-1] != np.add.accumulate(rows[::-1])[-1]
