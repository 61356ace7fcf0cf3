"""Progress lines, the table at the end, and the report of an error."""

import io
import os

import numpy as np
import pytest

from hpcmr.comm.world import World
from hpcmr.errors import FunctionError, InputError, RemoteError
from hpcmr.run.progress import Progress, progress_line, show_seconds
from hpcmr.run.report import error_report, show_ranks
from hpcmr.run.session import Session
from tests.run.toys import Gather, Numbers, SumByKey, plan


def test_a_line_tells_share_speed_and_time_left():
    line = progress_line("stage 1 of 2, read", 0.25, 10.0, 5_000_000, 1 << 30, 12)
    assert line == "stage 1 of 2, read: 25 %, 500 k rows/s, 102 MiB/s, 12 pieces, 30 s left"
    assert "beginning" in progress_line("s", 0.0, 0.1, 0, 0, 0)


@pytest.mark.parametrize(("seconds", "text"), [(0.214, "0.21 s"), (3.14, "3.1 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_seconds_for_people(seconds, text):
    assert show_seconds(seconds) == text


def test_a_log_gets_whole_lines_now_and_then():
    log = io.StringIO()
    session = Session(World(), progress=Progress(log, every_s=0.01))
    session.execute(plan(Numbers([100] * 20, slow_s=0.005), (), SumByKey()), Gather())
    lines = [line for line in log.getvalue().splitlines() if not line.startswith("stage 2 of 2, gather: ")]
    assert len(lines) >= 2 and all(line.startswith("stage 1 of 2, numbers -> sum_by_key: ") for line in lines), lines
    shares = [float(line.split(": ")[1].split(" %")[0]) for line in lines]
    assert shares == sorted(shares) and "\r" not in log.getvalue()


def test_a_terminal_gets_one_line_that_is_wiped(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 0

    monkeypatch.setattr("os.get_terminal_size", lambda fd=1: os.terminal_size((60, 20)))
    screen = Terminal()
    session = Session(World(), progress=Progress(screen, every_s=0.0))
    session.execute(plan(Numbers([100] * 20)), Gather())
    text = screen.getvalue()
    assert "\n" not in text and text.endswith("\r\033[K")
    assert max(len(part.replace("\033[K", "")) for part in text.split("\r")) <= 59


def test_the_table_at_the_end():
    session = Session(World())
    assert session.report() == ""
    session.execute(plan(Numbers([100] * 20), (), SumByKey()), Gather())
    head, first, second, last = session.report().splitlines()
    for word in ("stage", "seconds", "rows in", "rows out", "bytes in", "bytes out", "exchanged", "spilled", "imbalance", "peak memory"):
        assert word in head
    assert first.startswith("1 numbers -> sum_by_key") and "2,000" in first and second.startswith("2 gather")
    assert last.startswith("2,000 rows, 31.2 KiB read in ") and "on 1 rank" in last
    totals = session.stages[0]
    assert (totals.rows_in, totals.rows_out, totals.nbytes_in, totals.imbalance) == (2000, 50, 32000, 1.0) and totals.peak_nbytes > 1 << 20


def test_notices_are_said_once(caplog):
    session = Session(World())
    with caplog.at_level("INFO", "hpcmr"):
        session.say("slow", once="slow")
        session.say("slow", once="slow")
        session.say("always")
        session.say("always")
    assert [r.message for r in caplog.records] == ["slow", "always", "always"]


def test_a_report_of_a_failure():
    error = FunctionError("ValueError in f (a.py:3): no", split="x.h5[0:9]", record=1234567, trace="Traceback ...\n", rank=2)
    error.ranks = (2, 3, 4, 7)
    assert error_report(error, 8) == ("hpcmr job: ValueError in f (a.py:3): no\n  in      x.h5[0:9]\n  record  1,234,567\n"
                                      "  ranks   2-4, 7 of 8\nTraceback ...")


def test_a_refusal_is_its_message():
    assert error_report(InputError("no file matches 'a*'", rank=0, trace="Traceback"), 4) == "hpcmr job: no file matches 'a*'"


def test_other_reports():
    assert error_report(KeyboardInterrupt(), 4) == "hpcmr job: interrupted"
    assert error_report(RuntimeError("x"), 1, "hpcmr") == "hpcmr: RuntimeError: x"
    assert error_report(RemoteError("E: x", rank=0), 1) == "hpcmr job: E: x"


@pytest.mark.parametrize(("ranks", "text"), [((), ""), ((0,), "0"), ((0, 1, 2), "0-2"), ((0, 2, 3, 9), "0, 2-3, 9")])
def test_ranks(ranks, text):
    assert show_ranks(ranks) == text


def test_numbers_of_the_toys_round():
    """The tests' sums depend on the order of the rows."""
    x = np.concatenate([b["x"].values for b in Numbers([500]).read(Numbers([500]).survey()[1][0])])
    assert float(np.add.accumulate(x)[-1]) != float(np.add.accumulate(x[::-1])[-1])
