"""Dealing: every split once, the same everywhere, even, and better after every correction."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.run.deal import SPLIT_COST_NBYTES, deal, promise, redeal

NBYTES = st.lists(st.integers(0, 1 << 26), max_size=60)
SIZES = st.integers(1, 9)


def flat(queues):
    return sorted(s for q in queues for s in q)


@given(NBYTES, SIZES)
def test_every_split_is_dealt_once_in_contiguous_ranges(nbytes, size):
    queues = deal(np.array(nbytes, np.int64), size)
    assert len(queues) == size
    assert [s for q in queues for s in q] == list(range(len(nbytes)))


@given(NBYTES, SIZES)
def test_ranges_are_even_to_within_a_split(nbytes, size):
    cost = np.array(nbytes, np.int64) + SPLIT_COST_NBYTES
    loads = [int(cost[q].sum()) if q else 0 for q in deal(np.array(nbytes, np.int64), size)]
    if nbytes:
        assert max(loads) <= cost.sum() / size + cost.max()


@st.composite
def dealings(draw):
    nbytes = np.array(draw(st.lists(st.integers(0, 1 << 26), min_size=1, max_size=40)), np.int64)
    size = draw(SIZES)
    done = draw(st.integers(0, len(nbytes)))
    queues = [[s for s in q if s >= done] for q in deal(nbytes, size)]
    kept = [draw(st.integers(0, len(q))) for q in queues]
    speeds = [draw(st.sampled_from([0.0, 1e6, 3e6, 1e8])) for _ in queues]
    return nbytes, queues, kept, speeds


def ends_of(nbytes, queues, speeds):
    known = [s for s in speeds if s > 0]
    typical = sum(known) / len(known) if known else 1.0
    cost = nbytes + SPLIT_COST_NBYTES
    return [float(cost[q].sum()) / (s or typical) if q else 0.0 for q, s in zip(queues, speeds, strict=True)]


@given(dealings())
def test_dealing_again_keeps_every_split_and_what_was_promised(given_):
    nbytes, queues, kept, speeds = given_
    busy = [float(nbytes[q[:k]].sum()) if k else 0.0 for q, k in zip(queues, kept, strict=True)]
    again = redeal(queues, kept, busy, speeds, nbytes)
    assert flat(again) == flat(queues)
    for old, new, k in zip(queues, again, kept, strict=True):
        assert new[:k] == old[:k] and new == sorted(new[:k]) + sorted(new[k:])
    assert again == redeal(queues, kept, busy, speeds, nbytes)


@given(dealings())
def test_dealing_again_ends_no_later(given_):
    nbytes, queues, kept, speeds = given_
    cost = nbytes + SPLIT_COST_NBYTES
    busy = [float(cost[q[:k]].sum()) if k else 0.0 for q, k in zip(queues, kept, strict=True)]
    again = redeal(queues, kept, busy, speeds, nbytes)
    assert max(ends_of(nbytes, again, speeds)) <= max(ends_of(nbytes, queues, speeds)) * (1 + 1e-9)


@given(dealings())
def test_floors_are_kept(given_):
    nbytes, queues, kept, speeds = given_
    floors = [max([-1, *q[:k]]) for q, k in zip(queues, kept, strict=True)]
    again = redeal(queues, kept, [0.0] * len(queues), speeds, nbytes, floors)
    assert flat(again) == flat(queues)
    for new, k, floor in zip(again, kept, floors, strict=True):
        assert all(s > floor for s in new[k:]) and new == sorted(new)


def test_a_slow_rank_is_relieved():
    nbytes = np.full(20, 1 << 20)
    again = redeal([list(range(10)), list(range(10, 20))], [1, 1], [float(1 << 20)] * 2, [1e6, 9e6], nbytes)
    assert 1 <= len(again[0]) <= 3 and len(again[1]) >= 17


def test_idle_ranks_get_their_share():
    nbytes = np.full(30, 1 << 20)
    again = redeal([list(range(30)), [], []], [1, 0, 0], [float(1 << 20), 0.0, 0.0], [0.0, 0.0, 0.0], nbytes)
    assert sorted(len(q) for q in again) == [10, 10, 10]


def test_promises_last_until_the_tick_is_through():
    assert promise(0, 0.1, 1.0) == 0
    assert promise(10, 0.0, 1.0) == 1
    assert promise(10, 0.1, 0.0) == 1
    assert promise(10, 0.1, 0.2) == 4
    assert promise(3, 0.1, 10.0) == 3
