"""Whatever goes wrong on any rank ends all ranks, soon, with one error that tells where."""

import time

import pytest

from hpcmr.data.schema import Schema
from hpcmr.errors import DataError, FunctionError, RemoteError
from hpcmr.run.report import error_report
from hpcmr.run.session import Session
from tests.run.toys import Call, Gather, Guess, Numbers, SumByKey, plan
from tests.support.launch import needs_launcher, run_ranks

SIZES = [300] * 24


def execute(world, steps=(), operator=None, source=None, after=(), outlet=None):
    """Run, and see that a second action works on the same ranks afterwards."""
    session = Session(world)
    source = source or Numbers(SIZES)
    outlet = outlet or Gather()
    began = time.monotonic()
    try:
        session.execute(plan(source, steps, operator, after), outlet)
    finally:
        assert time.monotonic() - began < 10
        assert outlet.abandoned and source.closed
        assert session.memory.taken_nbytes == 0
        assert session.execute(plan(Numbers([10, 10])), Gather()).nrows == 20


def failing(split, kind=None):
    def fail(batch, origin):
        if origin.split == split and origin.row >= 100:
            raise kind or ValueError("bad luck")
        return batch

    return Call(fail)


@pytest.mark.mpi
@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("split", [0, 7, 23])
def test_an_exception_in_a_step(subworld, split, often):
    with pytest.raises(RemoteError, match="ValueError: bad luck") as e:
        execute(subworld, (failing(split),), SumByKey(often))
    assert e.value.split == f"numbers[{split}]" and len(e.value.ranks) == 1 and "in fail" in e.value.trace


@pytest.mark.mpi
def test_an_error_of_ours_stays_what_it_is(subworld):
    with pytest.raises(FunctionError) as e:
        execute(subworld, (failing(11, FunctionError("f raised", record=123, trace="user's lines")),))
    assert (e.value.record, e.value.split, e.value.trace) == (123, "numbers[11]", "user's lines")
    report = error_report(e.value, subworld.size)
    assert report.count("user's lines") == 1 and "record  123" in report and "numbers[11]" in report


@pytest.mark.mpi
def test_errors_on_all_ranks_are_one(subworld):
    def fail(batch, origin):
        raise ValueError(f"at {origin.split}")

    with pytest.raises(RemoteError) as e:
        execute(subworld, (Call(fail),))
    assert e.value.rank == 0 and 1 <= len(e.value.ranks) <= subworld.size and e.value.message == "ValueError: at 0"


@pytest.mark.mpi
@pytest.mark.parametrize("where", ["survey", "adopt", "read", "bind", "open", "consume", "drain", "seal", "merge", "finish"])
def test_an_exception_anywhere_in_source_or_operator(subworld, where):
    class Source(Numbers):
        pass

    class Operator(SumByKey):
        pass

    home = Source if hasattr(Numbers, where) else Operator
    right = getattr(home, where)

    def wrong(self, *args):
        if subworld.rank == subworld.size - 1 or where == "survey":
            raise DataError(f"{where} fails")
        return right(self, *args)

    setattr(home, where, wrong)
    with pytest.raises(DataError, match=f"{where} fails") as e:
        execute(subworld, (), Operator(), Source(SIZES))
    assert e.value.ranks


@pytest.mark.mpi
@pytest.mark.parametrize("where", ["begin", "open", "take", "local", "combine"])
def test_an_exception_anywhere_in_the_outlet(subworld, where):
    class Outlet(Gather):
        pass

    right = getattr(Outlet, where)

    def wrong(self, *args):
        if subworld.rank == subworld.size - 1 or where in ("begin", "combine"):
            raise DataError(f"{where} fails")
        return right(self, *args)

    setattr(Outlet, where, wrong)
    with pytest.raises(DataError, match=f"{where} fails"):
        execute(subworld, outlet=Outlet())


@pytest.mark.mpi
def test_an_exception_while_columns_are_found(subworld):
    def fail(batch, origin):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RemoteError, match="ZeroDivisionError") as e:
        execute(subworld, (Guess(fail),))
    assert e.value.split == "numbers[0]"


@pytest.mark.mpi
def test_an_interrupt_stays_an_interrupt(subworld):
    with pytest.raises(KeyboardInterrupt):
        execute(subworld, (failing(3, KeyboardInterrupt()),))


@pytest.mark.mpi
def test_a_busy_rank_hears_of_an_error_in_the_middle_of_its_split(world):
    """Rank 0 fails at once; the others are in splits of many slow batches."""
    if world.size == 1:
        pytest.skip("needs two ranks")

    def step(batch, origin):
        if world.rank == 0:
            raise ValueError("early")
        time.sleep(0.05)
        return batch

    began = time.monotonic()
    with pytest.raises(RemoteError, match="early"):
        Session(world).execute(plan(Numbers([100 * 400] * world.size), (Call(step),)), Gather())
    assert time.monotonic() - began < 5


@pytest.mark.mpi
def test_unknown_columns_in_a_stage_behind(subworld):
    class Needs(Call):
        def bind(self, schema: Schema) -> Schema:
            schema["zz"]
            return schema

    with pytest.raises(Exception, match="there is no column 'zz'"):
        execute(subworld, (), SumByKey(), after=(Needs(lambda b, o: b),))


SCRIPT = """
import sys, time
from hpcmr.comm.world import World
from hpcmr.run.command import run_job
from hpcmr.run.session import Session, current
from tests.run.toys import Call, Gather, Numbers, plan
import hpcmr.run.session
hpcmr.run.session.GRACE_S = 1.0
world = World.of()

def body():
    current().execute(plan(Numbers([100] * 10)), Gather())
    what = sys.argv[1]
    def step(batch, origin):
        if origin.split == 5:
            raise ValueError("trouble in the step")
        if what == "stuck" and origin.split > 5:
            time.sleep(30)
        return batch
    if what in ("step", "stuck"):
        current().execute(plan(Numbers([100] * 10), (Call(step),)), Gather())
    elif world.rank == world.size - 1:
        raise ValueError("trouble in the job")
    elif what == "away":
        time.sleep(30)
    elif what == "between":
        current().execute(plan(Numbers([100] * 10)), Gather())

sys.exit(run_job(Session(world, name="t", command_line=True), body))
"""


@needs_launcher
@pytest.mark.parametrize(("what", "n"), [("step", 3), ("step", 0), ("stuck", 3), ("end", 3), ("between", 3), ("away", 3)])
def test_one_report_and_exit_code_1_on_the_command_line(tmp_path, what, n):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    began = time.monotonic()
    done = run_ranks([script, what], n, 60)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 20
    trouble = "trouble in the step" if what in ("step", "stuck") else "trouble in the job"
    assert done.stderr.count(f"ValueError: {trouble}\n") == 2, done.stderr      # the head of the report and the end of its traceback
    assert done.stderr.count("Traceback") == 1
    if what in ("step", "stuck"):
        assert "numbers[5]" in done.stderr
