"""Ranks of a running job are killed, and the others finish it: the same bits, exit code 0, and a report that says so."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

import hpcmr
from hpcmr.comm import launcher
from tests.support.data import write_events
from tests.support.launch import check, has_launcher, run_ranks

JOB = Path(__file__).with_name("dying.py")
OUTPUTS = ["held", "stats", "sorted"]
RANKS = 4
SEED = int(os.environ.get("HPCMR_FAULT_SEED", "20250"))
RANDOM_RUNS = int(os.environ.get("HPCMR_FAULT_RUNS", "6"))
JOB_S = 1.2          # about what the job takes, in which random deaths fall

# Each phase x {rank 0, one in the middle, the last, two at once}; what is to the right happens to the ranks that the left has spared.
LAUNCHES = ["reading@2:0 exchange:3", "reading@2:1 exchange:0", "reading@2:3 exchange:1+2", "reading:0+2 checkpoint:3", "exchange:1 checkpoint:0",
            "checkpoint:1+2 merge:0", "checkpoint:1 merge:3", "merge:1+3 output:0", "merge:2 output:3", "output:1 publish:0", "user:1 output:0+2",
            "reading:2 new-world:1 tell:0", "exchange@5:3 shrink:0 exchange@9:2"]
"""The last two: deaths while others recover, and of rank 0 while it speaks."""


pytestmark = [pytest.mark.launcher, pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not launcher.bound_mpi().ft:
        pytest.skip("this MPI cannot go on after the death of a rank")
    path = tmp_path_factory.mktemp("events") / "events.h5"
    write_events(path, n=48_000)
    return path


@pytest.fixture(scope="module")
def digests(events: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an undisturbed run makes, on one rank."""
    folder = tmp_path_factory.mktemp("calm")
    check(run_ranks(["-m", "hpcmr", *words(events, folder)], n=0, cwd=folder))
    return made(folder)


def words(events: Path, folder: Path) -> list[str]:
    places = [word for name in OUTPUTS for word in ("--set", f"output.{name}='{folder}/out/{name}'")]
    return ["job", str(JOB), "--set", f"input='{events}'", *places, "--checkpoint-every", "0.05s"]


def made(folder: Path) -> list[str]:
    assert sorted(os.listdir(folder / "out")) == sorted(OUTPUTS), "something temporary was left"
    return [hpcmr.open(folder / "out" / name).digest() for name in OUTPUTS]


def survive(deaths: str, events: Path, folder: Path, digests: list[str]) -> list[int]:
    """Run the job with these deaths; returns the ranks that died."""
    log = folder / "deaths"
    log.touch()
    args = ["-m", "hpcmr", "launch", "-n", str(RANKS), *words(events, folder)]
    done = check(run_ranks(args, n=0, cwd=folder, timeout_s=60, env={"DEATHS": deaths, "DEATHS_LOG": str(log)}))
    told = [line.split() for line in log.read_text().splitlines()]
    dead = [int(rank) for _, what, rank in told if what == "died"]
    print(f"{deaths}: dead {dead}; {done.stderr[-3000:]}", file=sys.stderr)
    assert made(folder) == digests
    shown = [line.split("\t")[0].rpartition("/")[2] for line in done.stdout.splitlines()]
    assert shown[-3:] == OUTPUTS
    for rank in dead:
        assert f"  rank {rank} (process " in done.stderr
    assert ("degraded: " in done.stderr) == bool(dead)
    for at, rank in ((float(t), r) for t, what, r in told if what == "died"):
        again = [float(t) for t, what, _ in told if what == "works" and float(t) > at]
        if again:
            print(f"rank {rank} died, computing again {min(again) - at:.3f} s later", file=sys.stderr)
    return dead


@pytest.mark.parametrize("deaths", LAUNCHES)
def test_any_rank_may_die_in_any_phase(deaths: str, events: Path, digests: list[str], tmp_path: Path) -> None:
    dead = survive(deaths, events, tmp_path, digests)
    assert sorted(dead) == sorted(int(r) for word in deaths.split() for r in word.partition(":")[2].split("+")), "not all died where they should"


@pytest.mark.parametrize("run", range(RANDOM_RUNS))
def test_random_ranks_die_at_random_times(run: int, events: Path, digests: list[str], tmp_path: Path) -> None:
    draw = random.Random(SEED + run)
    victims = draw.sample(range(RANKS), draw.choice([2, 2, 3]))
    survive(" ".join(f"time@{draw.uniform(0, JOB_S):.3f}:{r}" for r in victims), events, tmp_path, digests)


def test_recovery_that_cannot_be_is_refused(events: Path, tmp_path: Path) -> None:
    """The calls are there without ``--with-ft`` as well, and do nothing."""
    done = check(run_ranks(["-m", "hpcmr", *words(events, tmp_path), "--recover"], n=2, cwd=tmp_path), 2)
    assert "--with-ft ulfm" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_recovery_a_death_ends_the_job(events: Path, tmp_path: Path) -> None:
    args = ["-m", "hpcmr", "launch", "-n", "2", *words(events, tmp_path), "--no-recover"]
    done = run_ranks(args, n=0, cwd=tmp_path, env={"DEATHS": "reading:1"})
    assert done.returncode not in (0, 2, 75)


