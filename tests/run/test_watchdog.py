"""The roll: who works is waited for, who does not answer is named. Ranks are played by files; SIGSTOP is in tests/cli/test_job_restart.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmr.comm.pulse import PULSE, Pulse
from hpcmr.comm.waiting import Backoff, stall_limit_s
from hpcmr.errors import HpcmrError, Stopped
from hpcmr.run import watchdog
from hpcmr.run.owner import this_owner
from hpcmr.run.watchdog import Rank, Watchdog
from tests.support.launch import check, run_job

LIMIT_S = 0.2


class FakeAttempt:
    """What the watchdog wants of an attempt."""

    def __init__(self, run_dir: Path, stands: bool) -> None:
        self.run_dir, self.epoch, self.notes, self.ends, self._stands = run_dir, 1, [], [], stands  # type: ignore[var-annotated]
        (run_dir / "logs").mkdir()

    def stands(self) -> bool:
        return self._stands

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, error: BaseException) -> None:
        self.ends.append(error)


@pytest.fixture(autouse=True)
def pulse() -> Iterator[Pulse]:
    PULSE.__init__()        # type: ignore[misc]
    yield PULSE
    PULSE.__init__()        # type: ignore[misc]


def dog(tmp_path: Path, stands: bool = False, can_lose: bool = False, pid: int = 0) -> Watchdog:
    owner = this_owner()
    me = Rank(0, "here", owner["pid"], owner["boot"], owner["start"])
    made = Watchdog(FakeAttempt(tmp_path, stands), [me, Rank(1, "there", pid, owner["boot"] if pid else "", 0)], 0, LIMIT_S, can_lose)  # type: ignore[arg-type]
    made.look_s, made.answer_s = 0.02, 0.3
    return made


def wait_for(what: Any, limit_s: float = 10) -> Any:
    until = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)
    return what()


def answer(made: Watchdog, idle_s: float) -> None:
    """Rank 1 answers the roll that is called now."""
    call = json.loads(wait_for(lambda: (made.folder / "call.json").exists() and (made.folder / "call.json").read_text()))
    (made.folder / "r00001.tmp").write_text(json.dumps({"token": call["token"], "idle_s": idle_s, "where": "in a function of the user's"}))
    (made.folder / "r00001.tmp").rename(made.folder / "r00001.json")


def test_a_rank_that_works_is_waited_for(tmp_path: Path) -> None:
    made = dog(tmp_path)
    made.start()
    for _ in range(2):
        answer(made, 0.0)
        wait_for(lambda: not made.folder.exists())
        began = time.monotonic()
    wait_for(made.folder.exists)
    assert time.monotonic() - began > LIMIT_S / 2, "it calls again at once"
    made.stop()
    assert PULSE.verdict is None


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    made = dog(tmp_path)
    made.start()
    PULSE.phase, PULSE.waiting = "stage 2 of 3, write", "tick"
    PULSE.table = [[0] * 13, [0, 0, 0, 0, 4, 0, 0, 0, 0, 17, 0, 0, 0]]
    error = wait_for(lambda: PULSE.verdict)
    made.stop()
    assert isinstance(error, HpcmrError) and error.exit_code == 1
    for part in ("rank 1 did not answer", "process 0 on there", "17 pieces done and 4 left", "stage 2 of 3, write", "no checkpoint"):
        assert part in error.message
    log = (tmp_path / "logs" / "e0001-r00000.log").read_text()
    assert "test_a_rank_that_does_not_answer_is_named" in log, "no stacks"


def test_all_answer_and_none_moves(tmp_path: Path) -> None:
    made = dog(tmp_path, stands=True)
    made.start()
    answer(made, 99.0)
    error = wait_for(lambda: PULSE.verdict)
    made.stop()
    assert isinstance(error, Stopped) and error.exit_code == 75
    assert "every rank answers, and none of them moves" in error.message
    assert "rank 1: in a function of the user's" in error.message


def test_progress_and_calls_of_others(tmp_path: Path) -> None:
    """A rank that moves calls nobody; it answers, and obeys a verdict."""
    made = dog(tmp_path)
    made.start()
    until = time.monotonic() + 4 * LIMIT_S
    while time.monotonic() < until:
        PULSE.beat()
        assert not made.folder.exists()
        time.sleep(0.01)
    made.folder.mkdir()
    (made.folder / "call.json").write_text('{"token": "t", "rank": 1}')
    PULSE.beat()
    said = json.loads(wait_for(lambda: (made.folder / "r00000.json").exists() and (made.folder / "r00000.json").read_text()))
    assert said["token"] == "t" and said["idle_s"] < LIMIT_S
    (made.folder / "verdict.json").write_text('{"token": "t", "missing": [7, "x"]}')
    wait_for(lambda: (tmp_path / "logs" / "e0001-r00000.log").exists())
    made.stop()
    assert PULSE.verdict is None


@pytest.mark.parametrize("left", [[], ["call.json"], ["call.json", "verdict.json"]])
def test_who_called_was_stopped_over_it(tmp_path: Path, left: list[str]) -> None:
    made = dog(tmp_path)
    made.folder.mkdir()
    for name in left:
        (made.folder / name).write_text('{"token": "t", "rank": 1, "missing": []}')
    made.answer_s = 0.1
    made.start()
    until = time.monotonic() + 20
    while PULSE.verdict is None and time.monotonic() < until:
        if made.folder.exists():
            with contextlib.suppress(OSError):
                os.utime(made.folder, (1, 1))
        time.sleep(0.05)
    made.stop()
    assert "rank 1 did not answer" in str(PULSE.verdict)


def test_where_ranks_may_be_lost_they_are_killed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    made = dog(tmp_path, can_lose=True, pid=child.pid)
    made.everybody[1] = Rank(1, "here", child.pid, made.me.boot, watchdog.started_at(child.pid) or 0)
    made.start()
    assert child.wait(10) == -9
    wait_for(lambda: made.attempt.notes)        # type: ignore[attr-defined]
    made.stop()
    assert PULSE.verdict is None, "the others go on"


def test_waits_end_with_the_verdict_and_have_no_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCMR_STALL_S", "0.01")
    PULSE.watched = True
    assert stall_limit_s() == float("inf")
    pause = Backoff()
    threading.Timer(0.05, lambda: setattr(PULSE, "verdict", HpcmrError("it stands still"))).start()
    began = time.monotonic()
    while pause.pause():
        assert time.monotonic() - began < 10
    assert time.monotonic() - began > 0.03


def test_a_main_thread_that_does_not_wait_is_ended(tmp_path: Path) -> None:
    """The user's code hangs: the process ends with the stacks, without a launcher."""
    (tmp_path / "job.py").write_text("import time\n\ndef job(ctx):\n    hang()\n\ndef hang():\n    time.sleep(100)\n")
    done = check(run_job(["job", "--run-dir", "run", "--stall-timeout", "300ms"], n=0, cwd=tmp_path, timeout_s=30), 1)
    assert "every rank answers, and none of them moves" in done.stderr
    assert "in hang" in (tmp_path / "run" / "logs" / "e0001-r00000.log").read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
