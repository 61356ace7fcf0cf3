"""When checkpoints are due."""

import math

import pytest

from hpcmr.run.policy import FIXED_S, MTBF_S, Pace, estimate_s, interval_s

HOUR = 3600.0


@pytest.mark.parametrize("cost_s, mtbf_s, expected", [
    (1, 24 * HOUR, 415.7), (10, 24 * HOUR, 1314.5), (60, 24 * HOUR, 3220.0), (1, 4.2 * HOUR, 173.9), (300, 168 * HOUR, 19049.0),
    (60, HOUR, 3000.0),         # 2 % of the time
    (0.3, 60, 15.0),
])
def test_the_interval_is_that_of_young_and_bounded_by_a_share_of_the_time(cost_s, mtbf_s, expected):
    assert interval_s(cost_s, mtbf_s) == pytest.approx(expected, rel=1e-3)
    assert cost_s / interval_s(cost_s, mtbf_s) <= 0.02 + 1e-12


def test_before_the_first_checkpoint_its_cost_is_estimated_from_bytes():
    pace = Pace(mtbf_s=HOUR)
    assert pace.interval_s(0) == interval_s(FIXED_S, HOUR)
    assert pace.interval_s(10 << 30) == interval_s(estimate_s(10 << 30), HOUR) > pace.interval_s(1 << 30)
    pace.measured(2 * estimate_s(1 << 30), 1 << 30)         # what one costs tells what others do, by their bytes
    assert pace.cost_s(1 << 20) == 2 * estimate_s(1 << 20) and pace.interval_s(0) == interval_s(2 * FIXED_S, HOUR)
    pace.measured(4 * estimate_s(0), 0)
    assert pace.cost_s(1 << 30) == 3 * estimate_s(1 << 30)


def test_a_short_job_has_no_checkpoint():
    assert not Pace().due(45.0, 0) and not Pace().due_at_boundary(20.0, 0)
    assert Pace().due(interval_s(FIXED_S, MTBF_S), 0)


def test_a_boundary_takes_half_the_interval():
    pace = Pace(every_s=10.0)
    assert [pace.due(s, 1 << 40) for s in (9.9, 10.0)] == [False, True]
    assert [pace.due_at_boundary(s, 0) for s in (4.9, 5.0)] == [False, True]
    pace.measured(100.0, 0)
    assert pace.interval_s(0) == 10.0


def test_a_boundary_costs_no_more_than_its_share():
    pace, nbytes = Pace(mtbf_s=1.0), 10 << 30
    assert not pace.due_at_boundary(pace.cost_s(nbytes) / 0.02 * 0.99, nbytes)
    assert pace.due_at_boundary(pace.cost_s(nbytes) / 0.02, nbytes)


def test_off():
    pace = Pace(every_s=0)
    assert pace.off and pace.interval_s(0) == math.inf
    assert not pace.due(1e9, 0) and not pace.due_at_boundary(1e9, 0)
    assert not Pace().off and not Pace(every_s=1).off
