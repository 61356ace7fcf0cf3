"""Kill loops: SIGKILL for ranks, all ranks or the launcher at random times, restarts on random numbers of ranks; the same digest each time.

`make test-faults` sets ``HPCMR_FAULT_KILLS`` (400) and asks for all pairs of numbers of ranks; CI does 60 kills. A failure prints the seed.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.data import write_events, write_texts
from tests.support.killing import Run
from tests.support.launch import has_launcher

KILLS = int(os.environ.get("HPCMR_FAULT_KILLS", "60"))
SEED = int(os.environ.get("HPCMR_FAULT_SEED", "4"))
LONG = KILLS > 60
VERBS = ("words", "agg", "sort", "join", "iterate", "only", "fold", "several")
RANKS = [0, 0, 0, 1, 2, 3, 4] if LONG else [0, 0, 0, 2]
"""Numbers of ranks to draw from; 0: without a launcher."""
CHAIN = 4
"""Kills of one run before it is left alone."""
PAUSE_S = 0.03
AT_ONCE = 2

pytestmark = [pytest.mark.launcher, pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_events(folder / "events.h5", n=24_000, keys=300)
    write_texts(folder / "texts", files=3, lines=300)
    return folder


class Calm:
    """Digests of undisturbed runs, and how long these take from their first checkpoint to the end; each made once."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.locks = {verb: threading.Lock() for verb in (*VERBS, "apply")}
        self.known: dict[str, tuple[str, float]] = {}

    def __getitem__(self, verb: str) -> tuple[str, float]:
        with self.locks[verb]:
            if verb not in self.known:
                run = Run(self.folder / verb, self.data, verb, PAUSE_S)
                attempt = run.start(0)
                assert attempt.until_generation(), f"{verb}: no checkpoint before the end\n{attempt.told()}"
                began = os.times().elapsed
                assert attempt.wait() == 0, attempt.told()
                self.known[verb] = run.digest(), os.times().elapsed - began
        return self.known[verb]


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    yield Calm(data, tmp_path_factory.mktemp("calm"))


class Tally:
    """Where the kills fell: how many checkpoints there were, and what was killed."""

    def __init__(self) -> None:
        self.behind: list[int] = []
        self.how: Counter[str] = Counter()
        self.ranks: Counter[int] = Counter()
        self.late = 0

    def add(self, behind: int, how: str, ranks: int) -> None:
        self.behind.append(behind)
        self.how[how] += 1
        self.ranks[ranks] += 1

    def __str__(self) -> str:
        steps = Counter("0" if n == 0 else "1-3" if n <= 3 else "4-9" if n <= 9 else "10-19" if n <= 19 else "20 and more" for n in self.behind)
        shown = ", ".join(f"{k}: {steps[k]}" for k in ("0", "1-3", "4-9", "10-19", "20 and more"))
        return (f"{len(self.behind)} kills by checkpoints behind them: {shown}; killed {dict(self.how)}; ranks {dict(sorted(self.ranks.items()))}; "
                f"{self.late} came after the end")


TALLY = Tally()


@pytest.mark.parametrize("verb", VERBS)
def test_kills(verb: str, data: Path, calm: Calm, tmp_path: Path) -> None:
    wanted = -(-KILLS // len(VERBS))
    chains = -(-wanted // CHAIN)
    sizes = [wanted * (i + 1) // chains - wanted * i // chains for i in range(chains)]

    def chain(number: int) -> None:
        left = sizes[number]
        for more in range(4):           # a run that ends before it is killed is followed by another one
            if left:
                seed = f"{SEED}-{verb}-{number}-{more}"
                run = Run(tmp_path / f"{number}-{more}", data, verb, PAUSE_S)
                try:
                    left -= kill_and_continue(run, random.Random(seed), calm[verb], left)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}: {error}") from None
                finally:
                    run.sweep()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(chain, range(chains)))


def kill_and_continue(run: Run, rng: random.Random, calm: tuple[str, float], kills: int) -> int:
    """Returns how often it was killed before it came to its end."""
    digest, span_s = calm
    for done in range(kills):
        attempt = run.start(rng.choice(RANKS))
        if rng.random() < (0.3 if done else 0.1):
            alive = attempt.sleep(rng.uniform(0, 1 + span_s))               # any time, while it starts too
        else:
            alive = attempt.until_generation(run.generations() + 1) and attempt.sleep(rng.uniform(0, span_s / (kills + 1)))
        behind = run.generations()
        how = attempt.kill(rng) if alive else ""
        if not alive or run.is_done():
            assert alive or attempt.wait() == 0, attempt.told()
            TALLY.late += 1
            break
        TALLY.add(behind, how, attempt.ranks)
    else:
        done = kills
    last = run.whole(rng.choice(RANKS))
    assert run.digest() == digest, last.told()
    assert not run.processes()
    return done


@pytest.mark.parametrize(("verb", "place", "rank"), [
    ("agg", "map", 1), ("sort", "map", 0), ("fold", "reduce", 0), ("apply", "apply", 1), ("iterate", "job", 1), ("several", "job", 0),
    *([("agg", "map", 0), ("sort", "map", 1), ("join", "map", 2), ("words", "map", 2), ("only", "map", 1), ("fold", "reduce", 1),
       ("apply", "apply", 0), ("apply", "apply", 2), ("iterate", "map", 0), ("iterate", "job", 0), ("iterate", "job", 2), ("several", "job", 2)]
      if LONG else []),
])
def test_an_error_of_the_users_code_and_then_none(verb: str, place: str, rank: int, data: Path, calm: Calm, tmp_path: Path) -> None:
    """One report of it; without it the same job goes on from its last checkpoint."""
    run = Run(tmp_path / "r", data, verb, PAUSE_S)
    try:
        attempt = run.start(3 if LONG else 2)
        if place != "job" and verb != "sort":          # whose input is in before there is a checkpoint
            assert attempt.until_generation()
        run.fault.write_text(f"{place} {rank}")
        assert attempt.wait() == 1, attempt.told()
        assert f"a fault at {place} on rank {rank}" in attempt.told()
        assert attempt.told().count("hpcmr job: ") == 1 and attempt.told().count("Traceback (most recent call last)") <= 1, attempt.told()
        behind = run.generations()
        run.fault.unlink()
        again = run.whole(0)
        assert run.digest() == calm[verb][0]
        assert behind == 0 or run.continued(), again.told()
        assert not run.processes()
    finally:
        run.sweep()


@pytest.mark.skipif(not LONG, reason="in make test-faults")
@pytest.mark.parametrize("verb", [*VERBS, "apply"])
@pytest.mark.parametrize("before", [1, 2, 3, 4, 7])
def test_from_any_number_of_ranks_to_any_other(verb: str, before: int, data: Path, calm: Calm, tmp_path: Path) -> None:
    for after in (1, 2, 3, 4, 7):
        run = Run(tmp_path / str(after), data, verb, PAUSE_S)
        try:
            attempt = run.start(before)
            assert attempt.until_generation(), attempt.told()
            attempt.kill(random.Random(after))
            run.whole(after)
            assert run.continued()
            assert run.digest() == calm[verb][0], f"{verb}: {before} -> {after}"
        finally:
            run.sweep()


def test_where_the_kills_fell() -> None:
    if len(TALLY.behind) < KILLS // 2:
        pytest.skip("only with the kills themselves")
    print(TALLY)
    assert len(TALLY.behind) >= 0.9 * KILLS
    assert sum(n > 0 for n in TALLY.behind) >= 0.8 * len(TALLY.behind), str(TALLY)
