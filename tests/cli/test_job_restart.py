"""One run, many starts: done, changed, claimed by somebody else, told to stop, stopped dead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmr.run.status import read_status
from hpcmr.store import sealed
from tests.support.data import write_events, write_texts
from tests.support.killing import Attempt, Run
from tests.support.launch import check, needs_launcher, run_job

JOB = """
import hpcmr as mr
import helper

def job(ctx):
    mr.read_text("texts").flat_map(helper.words).map(lambda w: (w, ctx.params.get("x", 1))).group_by("key").agg(n=mr.count()).write_hdf5("out")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts", files=2, lines=20)
    (tmp_path / "helper.py").write_text("def words(line):\n    return line.split()\n")
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def start(folder: Path, *words: str, code: int = 0, n: int = 0) -> Any:
    return check(run_job(["job", "--run-dir", "run", *words], n=n, cwd=folder), code)


def test_a_run_that_is_done_and_one_that_is_another(folder: Path) -> None:
    first = start(folder)
    again = start(folder)
    assert again.stdout == first.stdout
    assert "is done already" in again.stderr
    assert (folder / "run" / "spec" / "helper.py").exists()
    assert {p.stat().st_mode & 0o777 for p in (folder / "run").rglob("*")} <= {0o600, 0o700}
    assert (read_status(folder / "run") or {})["outputs"] == [{"name": "out", "path": str(folder / "out"), "rows": int(first.stdout.split("\t")[1])}]
    (folder / "helper.py").write_text("def words(line):\n    return line.split()[::-1]\n")
    os.utime(folder / "texts" / min(os.listdir(folder / "texts")), (1, 1))
    said = start(folder, "--set", "x=2", code=2).stderr
    for part in ("job: x was not set, is 2", "code: helper.py was changed", "was written anew", "--fresh", "which is done"):
        assert part in said
    identity = folder / "run" / "spec" / "identity.json"
    body = sealed.parse(identity.read_bytes(), KEYS := tuple(json.loads(identity.read_bytes()))[:-1], 1 << 20)
    identity.write_bytes(sealed.render({**body, "version": 99}, KEYS))
    assert "format: the run directory has version 99" in start(folder, code=2).stderr
    fresh = start(folder, "--fresh", "--set", "x=2")
    assert fresh.stdout == first.stdout
    assert "is done already" in start(folder, "--set", "x=2").stderr
    for path in (folder / "out").iterdir():
        path.unlink()
    (folder / "out").rmdir()
    gone = start(folder, "--set", "x=2")
    assert "is gone since the run was done" in gone.stderr
    assert (folder / "out" / "manifest.json").exists()


def test_what_failed_before_anything_was_committed_begins_anew(folder: Path) -> None:
    (folder / "helper.py").write_text("def words(line):\n    raise ValueError(line)\n")
    start(folder, code=1)
    told = read_status(folder / "run") or {}
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert "ValueError" in told["reason"]
    assert "ValueError" in (folder / "run" / "logs" / "e0001-r00000.log").read_text()
    (folder / "helper.py").write_text("def words(line):\n    return line.split()\n")
    assert "begins anew" in start(folder).stderr
    assert (read_status(folder / "run") or {})["attempt"] == 2


def test_a_run_directory_that_others_can_write_to_is_refused(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run").chmod(0o777)
    assert "may be written to by everybody" in start(folder, code=2).stderr


# -- two attempts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_events(folder / "events.h5", n=24_000, keys=300)
    return folder


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run."""
    run = Run(tmp_path_factory.mktemp("calm") / "r", data, "agg", 0.0)
    run.whole(0)
    return run.digest()


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "r", data, "agg", 0.03)
    try:
        yield made
    finally:
        made.sweep()


def ended(attempt: Attempt, code: int) -> str:
    assert attempt.wait() == code, attempt.told()
    return attempt.told()


def until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.005)


def test_one_goes_on_and_the_other_stops(run: Run, calm: str) -> None:
    """The second one names the owner. A stopped owner is superseded, and wakes up to find that it can commit nothing."""
    first = run.start(0)
    assert first.until_generation(), first.told()
    said = ended(run.start(0), 2)
    assert f"attempt 1, process {first.process.pid} of" in said
    os.kill(first.process.pid, signal.SIGSTOP)
    until_stopped(first.process.pid)
    second = run.start(0)
    said = ended(second, 0)
    assert "is stopped (state T); it is superseded" in said
    assert run.digest() == calm
    before = [(e["slot"], e["kind"]) for e in run.entries()]
    about = {p: p.stat().st_mtime_ns for p in (run.folder / "out").iterdir()}
    os.kill(first.process.pid, signal.SIGCONT)
    said = ended(first, 2)
    assert "attempt 2" in said and "superseded" in said
    assert [(e["slot"], e["kind"]) for e in run.entries()] == before
    assert {p: p.stat().st_mtime_ns for p in (run.folder / "out").iterdir()} == about
    told = read_status(run.run_dir) or {}
    assert (told["attempt"], told["state"]) == (2, "done")


def test_two_starts_at_once(run: Run, calm: str) -> None:
    both = [run.start(0), run.start(0)]
    codes = sorted(a.wait() for a in both)
    assert codes == [0, 2], "\n".join(a.told() for a in both)
    assert run.digest() == calm


# -- told to stop, and stopped dead --------------------------------------------------------------------------------------


@needs_launcher
@pytest.mark.parametrize(("number", "whom"), [(signal.SIGUSR1, "launcher"), (signal.SIGTERM, "rank")])
def test_notice(run: Run, calm: str, number: signal.Signals, whom: str) -> None:
    """One rank sees it, or all do: the job commits, leaves with 75 through the launcher, and goes on with another number of ranks."""
    first = run.start(2)
    assert first.until_generation(), first.told()
    behind = run.generations()
    os.kill(first.process.pid if whom == "launcher" else max(run.ranks()), number)
    said = ended(first, 75)
    assert said.count("told to stop: a checkpoint is committed") == 1
    assert run.generations() > behind
    told = read_status(run.run_dir) or {}
    assert (told["state"], told["exit_code"]) == ("checkpointed", 75)
    again = run.start(0)
    said = ended(again, 0)
    assert "continuing the run in" in said and "attempt 1 was told to stop" in said
    assert run.digest() == calm
    assert run.continued()


def test_notice_without_a_launcher(run: Run) -> None:
    """As early as can be: a signal in the middle of the beginning does no harm."""
    attempt = run.start(0)
    while not run.entries():
        assert attempt.running(), attempt.told()
        time.sleep(0.002)
    os.kill(attempt.process.pid, signal.SIGUSR2)
    ended(attempt, 75)
    assert run.generations() == 1


@needs_launcher
@pytest.mark.parametrize("victim", [0, 1] if os.environ.get("HPCMR_TEST_LONG") else [0])
def test_a_rank_that_is_stopped_ends_the_job(run: Run, calm: str, victim: int) -> None:
    """The launcher comes back, too; and the run goes on from its checkpoint."""
    first = run.start(2, {"HPCMR_STALL_S": "1.5"})
    assert first.until_generation(), first.told()
    pids = sorted(run.ranks())
    rank = {pid: rank_of(pid) for pid in pids}
    pid = next(p for p in pids if rank[p] == victim)
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    said = ended(first, 75)
    assert time.monotonic() - began < 30
    for part in (f"rank {victim} did not answer", f"rank {victim} (process {pid} on", "stopped (state T)", "a checkpoint stands"):
        assert part in said
    told = read_status(run.run_dir) or {}
    assert (told["state"], told["exit_code"]) == ("checkpointed", 75)
    assert "most recent call first" in (run.run_dir / "logs" / f"e0001-r{1 - victim:05d}.log").read_text()
    run.sweep()
    ended(run.start(0), 0)
    assert run.digest() == calm
    assert run.continued()


def rank_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = item.partition(b"=")
            if name in (b"OMPI_COMM_WORLD_RANK", b"PMI_RANK"):
                return int(value)
    return -1


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5min", 300), ("1h30min", 5400), ("2d", 172800), ("0", 0), ("1.5h", 5400), ("90", 90)])
def test_durations(text: str, seconds: float) -> None:
    from hpcmr.cli.durations import duration

    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-1s", "1h30", "nan", "1e9", "5s5"])
def test_what_is_no_duration(text: str) -> None:
    import argparse

    from hpcmr.cli.durations import duration

    with pytest.raises(argparse.ArgumentTypeError, match="30s, 5min"):
        duration(text)

