"""Arrays on the ranks: each rank reads its own part, and the result does not show where the parts end."""

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.io.arrays import ArraySource
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.collect import Collect
from hpcmr.ops.head import Head
from hpcmr.run.session import Session
from tests.run.test_real_operators import bits
from tests.run.toys import Call, Guess, plan, rows_of

pytestmark = pytest.mark.mpi

ROWS = 3001


def source(world, split_rows=170):
    """The same rows on any number of ranks, unevenly; the second of three or more ranks has none."""
    weights = np.array([1 + r % 3 if r != 1 or world.size < 3 else 0 for r in range(world.size)])
    ends = ROWS * np.cumsum(weights) // weights.sum()
    a, b = (int(ends[world.rank - 1]) if world.rank else 0), int(ends[world.rank])
    return ArraySource(world, {n: v[a:b] for n, v in rows_of(3, ROWS).items()}, split_nbytes=16 * split_rows)


def twice(batch, origin):
    return Batch.of({"k": np.repeat(batch["k"].values % 5, 2), "x": np.repeat(batch["x"].values, 2)})


AGGS = (Agg("count", None, "n"), Agg("sum", "x", "total"), Agg("first", "x", "first"), Agg("last", "x", "last"))


@pytest.mark.parametrize("steps", [(), (twice,), (twice, twice)])
def test_the_same_bits_as_on_one_rank(subworld, steps):
    for outlet, operator in ((Collect, None), (lambda: Head(99), None), (Collect, lambda: Aggregate(("k",), AGGS))):
        found = []
        for world in (subworld, World()):
            calls = tuple(Call(s) if i else Guess(s) for i, s in enumerate(steps))
            found.append(bits(Session(world).execute(plan(source(world), calls, operator and operator()), outlet())))
        assert found[0] == found[1] and found[0][0][2]
