"""Counts, displacements and one record beyond 2^31 bytes, for real: in `make test-all` on two ranks, where there is the memory for it."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hpcmr.comm.exchange import exchange
from hpcmr.comm.limits import meminfo
from hpcmr.comm.rows import exchange_rows
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.partitioning import Partitioned

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
BEYOND = (1 << 31) + 4096 * 3
NEED_NBYTES = 6 << 30


@pytest.fixture(autouse=True)
def _room_for_it(world: World) -> None:
    if os.environ.get("HPCMR_TEST_LONG") != "1":
        pytest.skip("one of the long tests; HPCMR_TEST_LONG=1 runs them, as make test-all does")
    if world.size != 2:
        pytest.skip("runs on two ranks")
    free = int(world.allreduce(np.array([meminfo("MemAvailable")], np.int64), "min")[0])
    if free < NEED_NBYTES:
        pytest.skip(f"needs {NEED_NBYTES >> 30} GiB of free memory, there are {free / 2**30:.1f}")


def marked(nbytes: int) -> tuple[np.ndarray, list[int]]:
    """Zeros that cost no memory until they are written to, with a few marks about the places where 32 bits end."""
    data = np.zeros(nbytes, np.uint8)
    places = [0, 1, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, nbytes - 1]
    for i, place in enumerate(places):
        data[place] = i + 1
    return data, places


def check(data: np.ndarray, places: list[int]) -> None:
    assert [int(data[p]) for p in places] == [i + 1 for i in range(len(places))]
    assert sum(int(np.count_nonzero(data[a : a + (1 << 26)])) for a in range(0, len(data), 1 << 26)) == len(places)


def test_more_than_two_gib_to_one_peer_in_one_record(world: World) -> None:
    """A string of over 2^31 bytes, which is many rounds, behind a short one."""
    data, places = marked(BEYOND)
    first = np.array([0, 1], np.int64)
    rows = BytesColumn(first, np.array([1, BEYOND], np.int64), data, False) if world.rank == 0 else BytesColumn.from_list([], text=False)
    part = Partitioned(Batch({"s": rows}), np.array([0, len(rows)], np.int64))
    got = exchange(world, part, np.array([0, 0, 1], np.int64))
    if world.rank == 0:
        assert got == []
        return
    column = got[0].batch["s"]
    assert isinstance(column, BytesColumn)
    assert column.offsets().tolist() == [0, 1, BEYOND]
    check(column.data, places)


def test_rows_whose_places_lie_beyond_two_gib(world: World) -> None:
    class Plenty:
        def take(self, nbytes: int, what: str) -> None:
            pass

        def available(self) -> int:
            return 1 << 40

    data, places = marked(BEYOND)
    values = data.reshape(-1, 4096) if world.rank == 0 else np.zeros((0, 4096), np.uint8)
    got = exchange_rows(world, Batch({"x": FixedColumn(values)}), np.ones(len(values), np.uint16), Plenty())
    column = got["x"]
    assert isinstance(column, FixedColumn)
    if world.rank == 0:
        assert len(column) == 0
    else:
        check(column.values.reshape(-1), places)
