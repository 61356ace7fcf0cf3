"""Every verb, stopped at a cut in each of its passes and continued by another session on another number of ranks: the same rows, bit by bit.

Nothing is killed: the first attempt is told to stop as a signal would tell it, commits, and ends with `Stopped`. 3 ranks and then 2 where there
are so many; with ``HPCMR_TEST_LONG=1`` every pair of 1, 2, 3, 4 and 7, and several places in each pass.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

import hpcmr as mr
from hpcmr.api.table import Table
from hpcmr.comm.world import World
from hpcmr.errors import Refused, Stopped
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.ops import join as join_module
from hpcmr.plan.nodes import Read
from hpcmr.run import drive
from hpcmr.run.drive import Drive
from hpcmr.run.feed import SplitFeed
from hpcmr.run.policy import Pace
from hpcmr.run.session import Session
from hpcmr.store.digest import digest
from hpcmr.store.journal import Journal
from hpcmr.store.reader import StoredTable

pytestmark = pytest.mark.mpi
LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
ROWS = 1800
SPLIT_NBYTES = 4000
PASSES_MAX = 3                 # of a job, those that are stopped unless all are
READS: list[int] = []          # splits that this rank has read to their end


class Counted(Hdf5Source):
    def read(self, split: Any) -> Iterator[Any]:
        yield from super().read(split)
        READS.append(split.index)


def write_input(folder: Path) -> None:
    rng = np.random.default_rng(5)
    with h5py.File(folder / "events.h5", "w") as file:
        group = file.create_group("events")
        group["key"] = np.where(rng.random(ROWS) < 0.3, 7, rng.integers(0, 40, ROWS))
        group["x"] = rng.normal(size=ROWS) * 10.0 ** rng.integers(-9, 9, ROWS)
        group["small"] = rng.integers(-100, 100, ROWS).astype(np.int16)
        group["w"] = np.array([b"word%d" % (k * k % 23) for k in range(ROWS)])


class Job:
    """What a job is given: its input, and where its outputs go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def events(self) -> Table:
        source = Counted(str(self.folder / "events.h5"), "/events", ["key", "x", "small", "w"], split_nbytes=SPLIT_NBYTES)
        return Table(Read("events", "test", source))


@mr.batch
def doubled(columns: dict[str, Any]) -> dict[str, Any]:
    return {**columns, "x": columns["x"] * 1.1}


def halves(row: Any) -> Iterator[Any]:
    yield {"key": row.key, "x": row.x / 3}
    if row.small > 0:
        yield {"key": -row.key, "x": row.x / 7}


def spread(key: int, rows: list[float]) -> dict[str, float]:
    return {"width": max(rows) - min(rows)}


def iterated(job: Job) -> Any:
    def step(state: tuple[Table, float]) -> tuple[Table, float]:
        rows, _ = state
        made = rows.map(doubled).group_by("key").agg(x=mr.mean("x"), small=mr.max("small"))
        return made, made.select("x").reduce(lambda a, b: a + b)

    rows, total = mr.iterate((job.events.select("key", "x", "small"), 0.0), step, count=3, until=lambda before, after: before[1] == after[1])
    return [rows.sort_by("key").collect(), total]


def persisted(job: Job) -> Any:
    rows = job.events.map(doubled).persist(key="key")
    first = rows.group_by("key").agg(n=mr.count(), x=mr.sum("x"))
    top = rows.top_k(3, by="x").collect()
    again = rows.join(first.filter(mr.col("n") > 40), on="key").collect()
    rows.unpersist()
    return [first.collect(), top, again]


def written(job: Job) -> Any:
    job.events.map(doubled).write_hdf5(job.folder / "out")
    with StoredTable.open(job.folder / "out") as table:
        return digest(table)


def sorted_and_written(job: Job) -> Any:
    job.events.map(doubled).sort_by("small", "x").write_hdf5(job.folder / "sorted")
    with StoredTable.open(job.folder / "sorted") as table:
        return digest(table)


def several(job: Job) -> Any:
    edge = job.events.quantile("x", [0.5])
    rows = job.events.filter(mr.col("x") > float(edge[0]))
    count = len(rows.collect())
    return [count, rows.head(count // 2), rows.histogram("small", 5), rows.reduce(lambda a, b: max(a, b))]


def shuffled(how: str) -> Callable[[Job], Any]:
    def job(job: Job) -> Any:
        other = job.events.filter(mr.col("small") > 80).select("key", "x").rename(x="y")
        return job.events.join(other, on="key", how=how).collect()

    return job


VERBS: dict[str, Callable[[Job], Any]] = {
    "map": lambda j: j.events.map(doubled).collect(),
    "flat_map": lambda j: j.events.flat_map(halves).collect(),
    "narrow": lambda j: j.events.filter(mr.col("small") > -50).with_columns(y=mr.col("x") / 3).select("y", "w").collect(),
    "head": lambda j: j.events.head(400),
    "reduce": lambda j: j.events.select("x").reduce(lambda a, b: a + b),
    "quantile": lambda j: j.events.quantile("x", [0.1, 0.5]),
    "approx quantile": lambda j: j.events.quantile("x", [0.1, 0.5], approx=True),
    "histogram": lambda j: j.events.histogram("x", 7),
    "weights": lambda j: j.events.histogram(["small", "key"], 4, weights="x"),
    "agg": lambda j: j.events.group_by("key").agg(n=mr.count(), s=mr.sum("x"), m=mr.mean("x"), f=mr.first("w"), v=mr.var("small")).collect(),
    "agg of text": lambda j: j.events.group_by("w").agg(n=mr.count(), s=mr.sum("x")).collect(),
    "mixed agg": lambda j: j.events.group_by("key").agg(md=mr.median("x"), b=mr.argmax("x", "w"), li=mr.list("small"),
                                                        d=mr.count_distinct("w")).collect(),
    "reduce_by_key": lambda j: j.events.select("key", "x").reduce_by_key(lambda a, b: a + b, key="key").collect(),
    "apply": lambda j: j.events.select("key", "x").group_by("key").apply(spread).collect(),
    "distinct": lambda j: j.events.select("key", "w").distinct().collect(),
    "top_k": lambda j: j.events.top_k(20, by="x").collect(),
    "sort": lambda j: j.events.sort_by("w", "x").collect(),
    "sort of a map": lambda j: j.events.map(doubled).sort_by("small").collect(),
    "broadcast join": lambda j: j.events.join(j.events.group_by("key").agg(n=mr.count()), on="key").collect(),
    "outer join": shuffled("outer"),
    "anti join": shuffled("anti"),
    "union": lambda j: j.events.select("key", "x").union(j.events.group_by("key").agg(x=mr.sum("x"))).collect(),
    "repartition": lambda j: j.events.map(doubled).repartition(5).collect(),
    "repartition by key": lambda j: j.events.repartition(by="key").collect(),
    "zip_with_index": lambda j: j.events.map(doubled).zip_with_index().collect(),
    "scan": lambda j: j.events.scan("x").collect(),
    "scan of a map": lambda j: j.events.map(doubled).scan("x", "max").collect(),
    "rank": lambda j: j.events.sort_by("small").rank().collect(),
    "lag": lambda j: j.events.lag("w", 100).collect(),
    "lead": lambda j: j.events.map(doubled).lead("x", 3).collect(),
    "window": lambda j: j.events.map(doubled).window("x", "mean", 30).collect(),
    "sample": lambda j: j.events.map(doubled).sample(count=100, seed=3).collect(),
    "aggregates on aggregates": lambda j: j.events.group_by("key", "w").agg(s=mr.sum("x")).group_by("key").agg(m=mr.max("s")).sort_by("m").collect(),
    "write": written, "sort and write": sorted_and_written, "persist": persisted, "iterate": iterated, "several": several,
}


# ---- attempts --------------------------------------------------------------------------------------------------------------


class Bell:
    """Tells the job to stop in one of its passes over pieces, when this rank has ended so many."""

    def __init__(self, target: int | None, after: int, surely: bool = True) -> None:
        self.target, self.after, self.surely = target, after, surely
        self.passes = -1
        self.now: Any = None

    @property
    def name(self) -> str | None:
        if self.target is None or self.passes != self.target or self.now is None:
            return None
        ended = self.surely and self.now._begun >= len(self.now._mine)        # it has fewer
        return "TEST" if self.now.tally.pieces >= self.after or ended else None


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Bell]:
    """The bell of the attempt that runs; a tick between any two pieces."""
    bells: list[Bell] = []
    run = Drive.run

    def counted(self: Drive) -> None:
        bell = bells[-1]
        bell.passes, bell.now = bell.passes + 1, self
        try:
            run(self)
        finally:
            bell.now = None

    monkeypatch.setattr(Drive, "run", counted)
    monkeypatch.setattr(drive, "TICK_MIN_S", 0.0)
    monkeypatch.setattr(join_module, "BROADCAST_NBYTES", 3000)
    return bells


def attempt(world: World, folder: Path, job: Callable[[Job], Any], bell: Bell, pace: Pace | None = None) -> Any:
    """One attempt at the run in `folder`: what the job returns, as plain values."""
    journal = Journal(folder / "run") if world.rank == 0 else None
    epoch = world.on_root(lambda: journal.claim({"host": "here", "pid": 1}) if journal is not None else 0)
    session = Session(world, run_dir=folder / "run", name="verbs")
    session.command_line = True
    session.attempt = SimpleNamespace(journal=journal, epoch=epoch, surveyed=lambda source: None, status=None)   # type: ignore[assignment]
    session.notice = bell      # type: ignore[assignment]
    with session.keep_checkpoints(pace or Pace(every_s=0)), session:
        found = plain(job(Job(folder)))
    return found


def plain(value: Any) -> Any:
    """Rows with their types and bits."""
    if hasattr(value, "batch"):
        return [(n, str(value.schema[n].type), plain(value.batch[n].to_list())) for n in value.columns]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.tobytes()
    return value.hex() if isinstance(value, float) else value


def worlds(world: World, sizes: tuple[int, int]) -> tuple[World | None, World | None]:
    """Worlds of the first so many ranks; None on the others."""
    made = []
    for n in sizes:
        comm = world.comm.Split(0 if world.rank < n else 1, world.rank) if world.size > 1 else None
        made.append(None if world.rank >= n else World.of(comm) if comm is not None else world)
    return made[0], made[1]


def pairs(size: int) -> list[tuple[int, int]]:
    if not LONG:
        return [(size, max(1, size - 1))]
    return [(a, b) for a, b in itertools.product((1, 2, 3, 4, 7), repeat=2) if max(a, b) == size]


@pytest.fixture
def folder(world: Any, mpi_tmp_path: Path) -> Path:
    if world.rank == 0:
        write_input(mpi_tmp_path)
    world.allgather(0)
    return mpi_tmp_path


def fresh(world: World, folder: Path, name: str) -> Path:
    """A folder with the same input."""
    path = folder / name

    def make() -> None:
        path.mkdir()
        (path / "events.h5").symlink_to(folder / "events.h5")

    world.on_root(make)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_goes_on_from_a_cut_in_each_of_its_passes(verb: str, world: Any, folder: Path, passes: list[Bell]) -> None:
    job = VERBS[verb]
    passes.append(Bell(None, 0))
    expected = attempt(world, fresh(world, folder, "whole"), job, passes[-1])
    count = int(world.allreduce(np.array([passes[-1].passes + 1], np.int64), "max")[0])
    for n, m in pairs(world.size):
        first, second = worlds(world, (n, m))
        for target in range(count) if LONG else sorted({*np.linspace(0, count - 1, PASSES_MAX).astype(int).tolist()}):
            for after in (0, 1, 3) if LONG else ((target + 1) % 3,):
                path = fresh(world, folder, f"{n}-{m}-{target}-{after}")
                if first is not None:
                    passes.append(Bell(target, after))
                    with pytest.raises(Stopped):
                        attempt(first, path, job, passes[-1])
                world.allgather(0)
                if second is not None:
                    passes.append(Bell(None, 0))
                    assert attempt(second, path, job, passes[-1]) == expected, (n, m, target, after)
                world.allgather(0)


@pytest.mark.parametrize("verb", ["map", "agg", "scan of a map", "outer join", "write"])
def test_a_job_goes_on_again_and_again(verb: str, world: Any, folder: Path, passes: list[Bell]) -> None:
    """It is stopped after each piece or two, by as many attempts as it takes; each goes on from the last cut."""
    job = VERBS[verb]
    passes.append(Bell(None, 0))
    expected = attempt(world, fresh(world, folder, "whole"), job, passes[-1])
    path = fresh(world, folder, "again")
    found, stops = None, 0
    while found is None:
        passes.append(Bell(0, 2, surely=False))
        try:
            found = attempt(world, path, job, passes[-1])
        except Stopped:
            stops += 1
    assert found == expected and stops >= 1


def test_what_is_in_the_ledger_is_not_read_again(world: Any, folder: Path, passes: list[Bell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitFeed, "peek", lambda feed, piece: Hdf5Source.read(feed.source, feed.splits[piece]))       # is no pass
    READS.clear()
    path = fresh(world, folder, "reads")
    job = VERBS["agg"]
    passes.append(Bell(0, 1))
    with pytest.raises(Stopped):
        attempt(world, path, job, passes[-1])
    before = [s for mine in world.allgather(list(READS)) for s in mine]
    READS.clear()
    passes.append(Bell(None, 0))
    attempt(world, path, job, passes[-1])
    after = [s for mine in world.allgather(list(READS)) for s in mine]
    assert before and after
    assert sorted(before + after) == list(range(len(before + after))), "each split was read to its end once"


def test_finished_actions_are_answered_and_not_run(world: Any, folder: Path, passes: list[Bell]) -> None:
    """The last iteration is stopped: those before it are not run again."""
    path = fresh(world, folder, "answers")
    passes.append(Bell(None, 0))
    expected = attempt(world, fresh(world, folder, "whole"), iterated, passes[-1])
    total = passes[-1].passes
    passes.append(Bell(total - 3, 0))
    with pytest.raises(Stopped):
        attempt(world, path, iterated, passes[-1])
    READS.clear()
    passes.append(Bell(None, 0))
    assert attempt(world, path, iterated, passes[-1]) == expected
    assert passes[-1].passes < total - 4 and not READS


def test_rows_of_arrays_are_known_to_a_restart_once_they_are_checkpointed(world: Any, folder: Path, passes: list[Bell]) -> None:
    """The second attempt has other arrays, which nobody looks at."""
    def job(factor: float) -> Callable[[Job], Any]:
        def run(job: Job) -> Any:
            mine = np.arange(world.rank * 500, world.rank * 500 + 500)
            kept = mr.from_arrays(None, {"key": mine % 17, "x": mine * 0.1 * factor}).map(doubled).checkpoint()
            return [kept.group_by("key").agg(x=mr.sum("x")).collect(), kept.sort_by("x").head(7)]

        return run

    passes.append(Bell(None, 0))
    expected = attempt(world, fresh(world, folder, "whole"), job(1.0), passes[-1])
    path = fresh(world, folder, "arrays")
    passes.append(Bell(1, 0))
    with pytest.raises(Stopped):
        attempt(world, path, job(1.0), passes[-1])
    passes.append(Bell(None, 0))
    assert attempt(world, path, job(3.0), passes[-1]) == expected


def test_another_action_at_its_place_is_refused_with_both_plans(world: Any, folder: Path, passes: list[Bell]) -> None:
    path = fresh(world, folder, "other")
    passes.append(Bell(0, 1))
    with pytest.raises(Stopped):
        attempt(world, path, VERBS["agg"], passes[-1])
    passes.append(Bell(None, 0))
    with pytest.raises(Refused, match=r"(?s)then: events -> group_by.*now: *events -> .*sort.*--fresh"):
        attempt(world, path, VERBS["sort"], passes[-1])
