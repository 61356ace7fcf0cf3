"""The watchdog: finds a job that stands still, tells which rank does not answer, and ends it. On the command line only.

Each rank has a thread that makes no MPI calls. Where its process has made no progress for the time limit, it calls the roll in the run
directory; the threads of all ranks look there, and answer::

    logs/.roll-e0002-n8/        made by whoever calls (mkdir: one wins)
        call.json               who, when
        r00003.json             rank 3 answers: where it is, and for how long nothing has moved there
        verdict.json            nothing moves anywhere, or somebody does not answer: all that answered write their stacks into their logs

A rank that still makes progress answers so, and the call is off: it may work for as long as it likes, and the others wait. A rank that is
stopped, or hangs in a call that does not let its threads run, does not answer. The end: ranks that do not answer are killed by those
of their node, the waits of the caller end with the verdict, and its error aborts the job; if that does not happen, the thread ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.comm.pulse import PULSE
from hpcmr.errors import EXIT_RESUMABLE, HpcmrError, Stopped
from hpcmr.run.attempt import Attempt, open_log
from hpcmr.run.drive import LEFT, PIECES
from hpcmr.run.owner import started_at, state_of, this_owner
from hpcmr.run.progress import show_seconds
from hpcmr.run.report import error_report, show_ranks
from hpcmr.store import paths

if TYPE_CHECKING:
    from hpcmr.run.session import Session

LOOKS = 20                   # in a time limit
LOOK_MIN_S, LOOK_MAX_S = 0.05, 15.0
ANSWER_MAX_S = 100.0         # network file systems may hide a new name for a minute
END_GRACE_S = 5.0            # for the error to come up on the main thread, at most
SHOWN = 12


@dataclass(frozen=True)
class Rank:
    """Where a rank runs."""

    rank: int
    node: str
    pid: int
    boot: str
    start: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.node})"


@contextlib.contextmanager
def watched(session: Session, limit_s: float) -> Iterator[None]:
    """Watch over the ranks of `session` while the body runs. Collective: yes, at its beginning.

    Parameters
    ----------
    session : Session
        With an attempt.
    limit_s : float
        Seconds without progress after which the job stands still; 0: never, and all waits are without end.
    """
    assert session.attempt is not None
    owner = this_owner()
    mine = Rank(session.world.rank, session.world.node, owner["pid"], owner["boot"], owner["start"])
    everybody = session.world.allgather(mine)
    dog = Watchdog(session.attempt, everybody, session.world.rank, limit_s, can_lose=session.world.watch is not None) if limit_s > 0 else None
    PULSE.watched, PULSE.verdict = True, None
    PULSE.phase = ""
    PULSE.beat()
    if dog is not None:
        dog.start()
    try:
        yield
    finally:
        PULSE.watched = False
        if dog is not None:
            dog.stop()


class Watchdog:
    """The thread of one rank.

    Parameters
    ----------
    attempt : Attempt
    everybody : list of Rank
        In rank order.
    rank : int
        Which of them this is.
    limit_s : float
    can_lose : bool
        The job survives the death of ranks: those that do not answer are killed, and the others go on.
    """

    def __init__(self, attempt: Attempt, everybody: list[Rank], rank: int, limit_s: float, can_lose: bool = False) -> None:
        self.attempt, self.everybody, self.me, self.limit_s, self.can_lose = attempt, everybody, everybody[rank], limit_s, can_lose
        self.look_s = min(LOOK_MAX_S, max(LOOK_MIN_S, limit_s / LOOKS))
        self.answer_s = max(3 * self.look_s + 1, min(ANSWER_MAX_S, limit_s / 10))
        self.folder = paths.logs(attempt.run_dir) / f".roll-e{attempt.epoch:04d}-n{len(everybody)}"
        self._ended = threading.Event()
        self._not_before_s = 0.0
        self._answered = self._obeyed = ""
        self._thread = threading.Thread(target=self._run, name="hpcmr watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * self.look_s)

    def _run(self) -> None:
        while not self._ended.wait(self.look_s):
            with contextlib.suppress(OSError, ValueError):      # a file system that fails for a while: the next look is near
                self._look()

    def _look(self) -> None:
        if self.folder.name in os.listdir(self.folder.parent):
            self._answer()
        elif self.idle_s() > self.limit_s and time.monotonic() >= self._not_before_s:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
                self._call()

    def idle_s(self) -> float:
        """How long nothing has moved in this process."""
        return time.monotonic() - PULSE.beat_s

    # -- the roll --------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Somebody calls the roll."""
        call = _read(self.folder / "call.json")
        token = str(call.get("token", ""))
        if not token:
            self._clear_stale()
            return
        if self._answered != token:
            self._answered = token
            _write(self.folder / f"r{self.me.rank:05d}.json", {"token": token, "idle_s": self.idle_s(), "where": PULSE.where()})
        verdict = _read(self.folder / "verdict.json")
        if verdict.get("token") == token and self._obeyed != token:
            self._obeyed = token
            self._obey(verdict)
        else:
            self._clear_stale()

    def _clear_stale(self) -> None:
        """Whoever called is gone, or stopped: the next one may."""
        if time.time() - os.stat(self.folder).st_mtime > 3 * self.answer_s + 5 and self.idle_s() > self.limit_s:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self) -> None:
        token = f"{self.me.rank}-{time.monotonic_ns():x}"
        _write(self.folder / "call.json", {"token": token, "rank": self.me.rank})
        self._answered = token
        answers: dict[int, dict[str, Any]] = {self.me.rank: {"idle_s": self.idle_s(), "where": PULSE.where()}}
        until = time.monotonic() + self.answer_s
        while len(answers) < len(self.everybody) and time.monotonic() < until and not self._ended.wait(min(0.2, self.look_s)):
            self._hear(token, answers)
            if any(a["idle_s"] < self.limit_s for a in answers.values()):
                break
        moved_s = min(a["idle_s"] for a in answers.values())
        if moved_s < self.limit_s or self._ended.is_set():
            # Somebody works on what the others wait for. The next call comes when nothing can have moved there for the time limit.
            shutil.rmtree(self.folder, ignore_errors=True)
            self._not_before_s = time.monotonic() + self.limit_s - moved_s
            return
        self._condemn(token, answers)

    def _hear(self, token: str, answers: dict[int, dict[str, Any]]) -> None:
        for name in os.listdir(self.folder):
            if name.startswith("r") and name.endswith(".json") and name[1:-5].isdecimal() and int(name[1:-5]) not in answers:
                said = _read(self.folder / name)
                if said.get("token") == token and isinstance(said.get("idle_s"), int | float):
                    answers[int(name[1:-5])] = said

    # -- the end ---------------------------------------------------------------------------------------------------

    def _condemn(self, token: str, answers: dict[int, dict[str, Any]]) -> None:
        missing = [m for m in self.everybody if m.rank not in answers]
        text = self._tell(missing, answers)
        _write(self.folder / "verdict.json", {"token": token, "missing": [m.rank for m in missing]})
        self._obeyed = token
        self._obey({"missing": [m.rank for m in missing]})
        self._ended.wait(max(1.0, min(10.0, 2 * self.look_s)))          # the others write their stacks
        if self.can_lose and missing:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.attempt.note(text)
            print(f"hpcmr job: {text}; they were killed, and the others go on", file=sys.stderr, flush=True)
            self._not_before_s = time.monotonic() + self.limit_s
            return
        if self._ended.is_set():
            return
        self._end(text)

    def _tell(self, missing: list[Rank], answers: dict[int, dict[str, Any]]) -> str:
        """What is said of it, and with what error the job ends."""
        lines = [f"no progress for {show_seconds(self.idle_s())} (--stall-timeout {self.limit_s:g} s): " + (
            f"rank{'s' if len(missing) > 1 else ''} {show_ranks([m.rank for m in missing])} did not answer" if missing
            else "every rank answers, and none of them moves")]
        lines += [f"  {m}: {self._last_of(m)}" for m in missing[:SHOWN]]
        lines += [f"  rank {r}: {answers[r].get('where')}" for r in sorted(answers)[:SHOWN]]
        more = len(self.everybody) - min(SHOWN, len(missing)) - min(SHOWN, len(answers))
        lines += [f"  ... and {more} more"] if more else []
        return "\n".join([*lines, f"stacks of the ranks that answered are in {str(self.folder.parent)!r}"])

    def _last_of(self, missing: Rank) -> str:
        """What is known of a rank that does not answer."""
        said = []
        if self._beside(missing):
            state = state_of(missing.pid)
            words = {"T": "stopped (state T)", "D": "hangs in the system (state D)", "Z": "dead, and not yet gone", "": "gone"}
            said.append(words.get(state, f"state {state}"))
        if PULSE.table is not None and missing.rank < len(PULSE.table):
            row = PULSE.table[missing.rank]
            since = show_seconds(time.monotonic() - PULSE.table_s)
            said.append(f"last heard {since} before, with {int(row[PIECES]):,} pieces done and {int(row[LEFT]):,} left")
        phase = PULSE.phase or "outside of any action"
        return f"{'; '.join(said)} in {phase}" if said else f"last known phase: {phase}"

    def _beside(self, other: Rank) -> bool:
        """Whether a rank runs on this machine, and is still that process."""
        return bool(other.boot) and other.boot == self.me.boot and started_at(other.pid) in (other.start, None)

    def _obey(self, verdict: dict[str, Any]) -> None:
        """Write down where this rank is; where ranks may be lost, kill those of this node that do not answer."""
        with contextlib.suppress(OSError):
            fd = open_log(self.attempt.run_dir, self.attempt.epoch, self.me.rank)
            with os.fdopen(fd, "a") as file:
                file.write(f"the job stands still: {self.me} is in {PULSE.where()}; nothing moved for {self.idle_s():.1f} s\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        for number in verdict.get("missing", ()):
            other = self.everybody[number] if isinstance(number, int) and 0 <= number < len(self.everybody) else None
            if other is not None and other != self.me and self.can_lose and self._beside(other):
                with contextlib.suppress(OSError):
                    os.kill(other.pid, signal.SIGKILL)

    def _end(self, text: str) -> None:
        """Let the main thread's waits end with the verdict, which aborts the job; if it does not wait, end the process from here."""
        stands = self.attempt.stands()
        # With the rank: an error without one counts as agreed on by all.
        error: HpcmrError = (Stopped(f"{text}\na checkpoint stands: start the same job again to go on from there", rank=self.me.rank) if stands
                             else HpcmrError(f"{text}\nno checkpoint had been committed", rank=self.me.rank))
        error.trace = ""
        PULSE.verdict = error
        if self._ended.wait(min(END_GRACE_S, self.limit_s)):
            return
        print(error_report(error, len(self.everybody)), file=sys.stderr, flush=True)
        self.attempt.end(error)
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(EXIT_RESUMABLE if stands else error.exit_code)


def _write(path: Path, value: dict[str, Any]) -> None:
    """A small file that appears whole."""
    wait = path.with_name(f".{path.name}.tmp")
    fd = os.open(wait, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(value, file)
    os.rename(wait, path)


def _read(path: Path) -> dict[str, Any]:
    """A small file; empty where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}
    with os.fdopen(fd) as file:
        value = json.loads(file.read(1 << 16))
    return value if isinstance(value, dict) else {}
