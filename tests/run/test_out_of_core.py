"""Jobs on inputs of many times the memory: the same bits, within the budget, written to scratch once, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpcmr as mr
from hpcmr.comm.world import World
from hpcmr.errors import MemoryTooSmall, StorageError
from hpcmr.run import rounds, shelf
from hpcmr.run.session import Session
from hpcmr.store import paths, spill
from tests.store.support import bits
from tests.support.launch import ROOT, check, needs_launcher, run_job

ROWS = {"large": 20_000_000, "middle": 10_000_000, "bare": 20_000}


def arrays(n, keys, seed=0):
    rng = np.random.default_rng(seed)
    return {"k": rng.integers(0, keys, n), "v": rng.normal(size=n) * 10.0 ** rng.integers(-8, 8, n)}


def left_in(scratch):
    home = paths.scratch_home(scratch)
    return sorted(os.listdir(home)) if home.exists() else []


# -- in the ranks of this test --------------------------------------------------------------------------------------------------------


@pytest.fixture
def always(monkeypatch):
    """Everything goes to scratch, however much memory there is, in many segments."""
    monkeypatch.setattr(rounds, "RESERVE_SHARE", 0.5)
    monkeypatch.setattr(rounds, "ROUND_SHARE", 4096)
    monkeypatch.setattr(shelf, "FINISH_SHARE", 0.5)


def collected(world, table, path, **options):
    session = Session(world, scratch=path, **options)
    with session:
        found = table().collect()
    return {name: bits(found.batch[name]) for name in found.batch.names}, session


def same_and_spilled(world, path, table):
    """The rows of `table` with and without scratch; returns the figures of the run with it."""
    saved = rounds.RESERVE_SHARE, rounds.ROUND_SHARE, shelf.FINISH_SHARE
    rounds.RESERVE_SHARE, rounds.ROUND_SHARE, shelf.FINISH_SHARE = 2, 8, 8
    wanted, plain = collected(world, table, path)
    rounds.RESERVE_SHARE, rounds.ROUND_SHARE, shelf.FINISH_SHARE = saved
    found, session = collected(world, table, path, memory="4GiB")
    assert found == wanted
    if world.rank == 0:
        assert sum(s.spilled_nbytes for s in plain.stages) == 0
        assert sum(s.spilled_nbytes for s in session.stages) > 0
    assert left_in(path) == []
    return session


def words(comm_size, rank, n=3000):
    rng = np.random.default_rng(rank)
    return [b"word" * int(i % 9) + str(i).encode() for i in rng.integers(0, 400, n // comm_size)]


TABLES = {
    "aggregate": lambda rows: rows.group_by("k").agg(s=mr.sum("v"), n=mr.count(), lo=mr.min("v")),
    "strings": lambda rows: rows.group_by("w").agg(s=mr.sum("v"), f=mr.first("w")),
    "rows": lambda rows: rows.select("k", "v").reduce_by_key(lambda a, b: a + b, key="k"),
    "twice": lambda rows: rows.group_by("k", "w").agg(s=mr.sum("v")).group_by("k").agg(t=mr.sum("s"), n=mr.count()),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", TABLES)
def test_the_same_bits_through_scratch(world, mpi_tmp_path, always, name):
    mine = arrays(3000 // world.size, 500, world.rank) | {"w": words(world.size, world.rank)}
    same_and_spilled(world, mpi_tmp_path / str(world.rank), lambda: TABLES[name](mr.from_arrays(getattr(world, "comm", None), mine)))


@pytest.mark.mpi
def test_scratch_that_is_damaged_is_noticed_on_all_ranks(world, mpi_tmp_path, always, monkeypatch):
    """One flipped bit in a file of the rank that owns the rows: all ranks raise the same error, nothing is left, the next job is right."""
    close_file = os.close
    done = []

    def close(fd):
        name = os.readlink(f"/proc/self/fd/{fd}")
        close_file(fd)
        if name.endswith(".h5") and "/hpcmr-" in name and not done:
            with h5py.File(name) as f:
                place = f["state"].id.get_offset()
            raw = bytearray(open(name, "rb").read())
            raw[place + 3] ^= 1
            open(name, "wb").write(raw)
            done.append(name)

    mine = arrays(3000 // world.size, 500, world.rank)
    table = lambda: TABLES["aggregate"](mr.from_arrays(getattr(world, "comm", None), mine))  # noqa: E731
    path = mpi_tmp_path / str(world.rank)
    with monkeypatch.context() as m:
        m.setattr(spill.os, "close", close)
        with pytest.raises(StorageError, match=r"scratch .* is damaged: bytes .*--scratch"):
            collected(world, table, path, memory="4GiB")
    assert left_in(path) == []
    same_and_spilled(world, path, table)


@pytest.mark.mpi
def test_a_full_disk_ends_the_job_on_all_ranks(world, mpi_tmp_path, always, monkeypatch):
    def full(call):
        """The disk takes the folder of scratch and its owner's mark, and no rows."""
        def write(fd, data, offset):
            if "spill-" in os.readlink(f"/proc/self/fd/{fd}"):
                raise OSError(28, os.strerror(28))
            return call(fd, data, offset)

        return write

    for name in ("pwrite", "pwritev"):
        monkeypatch.setattr(os, name, full(getattr(os, name)))
    mine = arrays(3000 // world.size, 500, world.rank)
    path = mpi_tmp_path / str(world.rank)
    with pytest.raises(StorageError, match=r"cannot write scratch .*ENOSPC.*--scratch"):
        collected(world, lambda: TABLES["aggregate"](mr.from_arrays(getattr(world, "comm", None), mine)), path)
    assert left_in(path) == []


def test_a_partition_that_does_not_fit_names_the_limit(tmp_path, always):
    """One group larger than the budget."""
    rows = 6_000_000
    table = mr.from_arrays(None, {"k": np.zeros(rows, np.int64), "v": np.ones(rows)}).group_by("k").agg(all=mr.list("v"))
    said = r"of this rank's 64 MiB .*give at least --memory \d+MiB"
    with pytest.raises(MemoryTooSmall, match=said), Session(World(), memory="64MiB", scratch=tmp_path):
        table.collect()
    assert left_in(tmp_path) == []


def test_a_partition_that_cannot_be_sorted_names_the_limit(tmp_path):
    """24 MB of rows of one key, for which there is room, but not to sort them; with a little more it goes through."""
    table = mr.from_arrays(None, {"k": np.zeros(1_000_000, np.int64), "v": np.ones(1_000_000)}).group_by("k").agg(all=mr.list("v"))
    said = r"to sort the 1,000,000 rows of partition \d+ as a whole, needs .* of this rank's 64 MiB .*give at least --memory \d+MiB"
    with pytest.raises(MemoryTooSmall, match=said), Session(World(), memory="64MiB", scratch=tmp_path):
        table.collect()
    with Session(World(), memory="200MiB", scratch=tmp_path) as session:
        assert len(table.collect()["all"][0]) == 1_000_000
        assert 100 << 20 < session.memory.peak_nbytes <= 200 << 20 and session.memory.taken_nbytes < 9 << 20
    assert left_in(tmp_path) == []


def test_groups_for_python_functions_are_finished_in_blocks(tmp_path):
    """600,000 rows of three objects each would not fit as a whole."""
    keys = np.random.default_rng(5).permutation(600_000) // 2
    table = mr.from_arrays(None, {"k": keys, "v": np.ones(600_000), "w": keys}).reduce_by_key(lambda a, b: (a.v + b.v, a.w), key="k")
    with Session(World(), memory="64MiB", scratch=tmp_path):
        found = table.collect()
    assert sorted(found["k"].tolist()) == list(range(300_000)) and (found["v"] == 2).all() and (found["w"] == found["k"]).all()


BLOCKED = {
    "list": lambda rows: rows.group_by("k").agg(all=mr.list("v"), first=mr.first("v")),
    "top": lambda rows: rows.group_by("k").agg(top=mr.top_k("v", 3)),
    "distinct": lambda rows: rows.select("k").distinct(),
    "repartition": lambda rows: rows.repartition(by="k"),
    "fold": lambda rows: rows.reduce_by_key(lambda a, b: a + b, key="k"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", BLOCKED)
def test_the_same_in_blocks_of_any_size(world, mpi_tmp_path, monkeypatch, name):
    mine = arrays(3000 // world.size, 170, world.rank)

    def found(block):
        monkeypatch.setattr("hpcmr.ops.keyed_rows.BLOCK_ROWS", block)
        return collected(world, lambda: BLOCKED[name](mr.from_arrays(getattr(world, "comm", None), mine)), mpi_tmp_path / str(world.rank))[0]

    assert found(1) == found(64) == found(1 << 16)


def test_collect_obeys_the_budget():
    table = mr.from_arrays(None, {"v": np.ones(5_000_000)})
    said = r"collect, which brings 40,000,000 bytes of rows to every rank, needs .*give at least --memory \d+MiB"
    with Session(World(), memory="64MiB"), pytest.raises(MemoryTooSmall, match=said):
        table.collect()
    with Session(World(), memory="96MiB"):
        assert len(table.collect()) == 5_000_000


# -- jobs of their own: peak memory, and what a crash leaves ------------------------------------------------------------------------------

JOB = """
import hpcmr as mr
from pathlib import Path

def job(ctx):
    rows = mr.read_hdf5(ctx.params["input"], "/", columns=["k", "v"])
    if ctx.params["way"] == "raw":
        t = rows.group_by("k").agg(s=mr.sum("v"), n=mr.count())
    else:
        t = rows.group_by("k").agg(s=mr.sum("v"), n=mr.count(), f=mr.first("v"))
    t.write_hdf5(ctx.output("out"))
    text = Path("/proc/self/status").read_text()
    peak = int(text.split("VmHWM:")[1].split()[0]) << 10
    found = ctx.comm.gather(peak, 0)
    if ctx.rank == 0:
        from hpcmr.run.session import current
        spilled = sum(s.spilled_nbytes for s in current(None).stages)
        Path(ctx.params["log"]).write_text(f"{max(found)} {spilled}")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files of mostly distinct keys: one much larger than the budget of all ranks, and one that says what a bare process takes."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "job.py").write_text(JOB)
    for name, n in ROWS.items():
        with h5py.File(folder / f"{name}.h5", "w") as f:
            for key, values in arrays(n, 1 << 60).items():
                f[key] = values
    return folder


def run_one(inputs, tmp_path, name, way, n, *more):
    log = tmp_path / f"{name}.log"
    words = ["job", inputs / "job.py", "-q", "--run-dir", tmp_path / f"run-{name}", "--scratch", tmp_path / "scratch"]
    for setting in (f"input='{inputs}/{name}.h5'", f"way='{way}'", f"log='{log}'", f"output.out='{tmp_path}/{name}'"):
        words += ["--set", setting]
    done = run_job([*words, *more], n, timeout_s=120)
    check(done)
    return tuple(int(x) for x in log.read_text().split())


@needs_launcher
@pytest.mark.parametrize(("n", "way", "name"), [(1, "raw", "large"), (3, "states", "middle")])
def test_peak_memory(inputs, tmp_path, n, way, name):
    """320 MB of rows, or 640 MB of states, through 64 MiB a rank: the budget, 15 % and the bare process hold it; no byte is written thrice."""
    limit = 64 << 20
    bare, _ = run_one(inputs, tmp_path, "bare", way, n)
    bare, _ = run_one(inputs, tmp_path, "bare", way, n, "--fresh")         # kernels are compiled now
    peak, spilled = run_one(inputs, tmp_path, name, way, n, "--memory", "64MiB")
    assert peak <= bare + 1.15 * limit
    assert 0 < spilled <= 2 * ROWS[name] * (16 if way == "raw" else 64)
    assert left_in(tmp_path / "scratch") == []
    assert json.loads((tmp_path / name / "manifest.json").read_text())["rows"] == ROWS[name]


GROUP_NBYTES = 384 << 20


@pytest.fixture
def control_group():
    """A control group with a limit; its file of processes."""
    for base, name in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = base / f"hpcmr-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(GROUP_NBYTES))
            yield group / "cgroup.procs"
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group with a memory limit can be made here")


def test_a_limit_of_the_control_group_is_found_and_obeyed(inputs, tmp_path, control_group):
    """Without --memory: a job on 320 MB (1.3 GB of states) is not killed where all of its memory may have 384 MiB."""
    run_one(inputs, tmp_path, "bare", "states", 0)
    words = ["-m", "hpcmr", "job", inputs / "job.py", "-q", "--run-dir", tmp_path / "run", "--scratch", tmp_path / "scratch", "--set",
             f"input='{inputs}/large.h5'", "--set", "way='states'", "--set", f"log='{tmp_path}/log'", "--set", f"output.out='{tmp_path}/out'"]
    line = ["sh", "-c", f'echo $$ > {control_group}; exec "$@"', "sh", sys.executable, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    peak, spilled = (int(x) for x in (tmp_path / "log").read_text().split())
    assert peak < GROUP_NBYTES and spilled > 0


def test_what_a_killed_job_left_is_removed_by_the_next(inputs, tmp_path):
    scratch = tmp_path / "scratch"
    line = [sys.executable, "-m", "hpcmr", "job", str(inputs / "job.py"), "-q", "--run-dir", str(tmp_path / "run"), "--scratch", str(scratch),
            "--memory", "64MiB", "--set", f"input='{inputs}/large.h5'", "--set", "way='states'", "--set", f"log='{tmp_path}/log'",
            "--set", f"output.out='{tmp_path}/out'"]
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not any("spill-" in p.name for p in scratch.rglob("*.h5")) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(left_in(scratch)) == 1
    Session(World(), scratch=scratch)
    assert left_in(scratch) == []
