"""The same rows, in the same order, with the same bits, on any number of ranks: against an oracle, and against one another.

Ranks are started by the launcher of whichever MPI runs the tests; `make test` runs this file with both, and the digests of the one are
compared with those of the other.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np

from tests.support import data
from tests.support.launch import check, needs_launcher, run_job

RANKS = (0, 2, 3, 4, 7)        # 0: no launcher
AGGREGATES = """
import hpcmr as mr

def job(ctx):
    events = mr.read_hdf5(ctx.params["input"], "/events")
    aggs = dict(n=mr.count(), rows=mr.count("hard"))
    for c in ("hard", "value", "odd", "single", "small"):
        aggs |= {f"{c}_{f.__name__}": f(c) for f in (mr.sum, mr.mean, mr.min, mr.max, mr.var, mr.std, mr.first, mr.last)}
    aggs |= {"flag_any": mr.any("flag"), "flag_all": mr.all("flag")}
    events.group_by("key").agg(**aggs).write_hdf5(ctx.output("out"))
"""
COUNT = """
[job]
name = "count"
[input]
paths = "texts"
[map]
function = "words"
[reduce]
function = "sum"
"""


def digest(path: Path) -> str:
    return check(run_job(["digest", path], n=0)).stdout.strip()


def same_as_the_other_mpi(name: str, found: str) -> None:
    """Compare with what earlier runs of the same `make test` found, through a folder that all of them see."""
    folder = os.environ.get("HPCMR_TEST_SESSION")
    if folder:
        path = Path(folder) / f"digest-{name}"
        if path.exists():
            assert path.read_text() == found, "an earlier run of this session, with the other MPI, gave another digest"
        whole = path.with_name(f"{path.name}-{os.getpid()}")
        whole.write_text(found)
        whole.replace(path)         # another run may be reading it


def run(spec: Path, out: Path, n: int, *settings: str) -> str:
    pairs = [word for s in (*settings, f"output.path={out}") for word in ("--set", s)]
    check(run_job(["job", spec, *pairs], n=n, timeout_s=120, cwd=out.parent))
    return digest(out)


@needs_launcher
def test_word_count_on_any_number_of_ranks(tmp_path: Path) -> None:
    data.write_texts(tmp_path / "texts")
    spec = tmp_path / "job.toml"
    spec.write_text(COUNT)
    found = {n: run(spec, tmp_path / f"out{n}", n) for n in RANKS}
    assert len(set(found.values())) == 1, found
    rows = check(run_job(["cat", tmp_path / "out3", "--format", "jsonl"], n=0)).stdout.splitlines()
    expected: Counter[str] = Counter()
    for path in (tmp_path / "texts").iterdir():
        expected.update(w.decode("utf-8", "surrogateescape") for w in path.read_bytes().split())
    assert {r["key"]: r["value"] for r in map(json.loads, rows)} == expected
    same_as_the_other_mpi("words", found[3])


@needs_launcher
def test_listing_order_does_not_matter(tmp_path: Path) -> None:
    """Files made in another order are listed in another order by most file systems; names decide."""
    data.write_texts(tmp_path / "texts")
    (tmp_path / "other" / "texts").mkdir(parents=True)
    names = sorted(p.name for p in (tmp_path / "texts").iterdir())
    random.Random(5).shuffle(names)
    for name in names:
        (tmp_path / "other" / "texts" / name).write_bytes((tmp_path / "texts" / name).read_bytes())
    digests = set()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "job.toml").write_text(COUNT.replace('"words"', '"lines"').replace('"sum"', '"list"').replace("[reduce]", "value = 1\n[reduce]"))
        digests.add(run(folder / "job.toml", folder / "out", 3))
    assert len(digests) == 1


@needs_launcher
def test_aggregates_on_any_number_of_ranks(tmp_path: Path) -> None:
    columns = data.write_events(tmp_path / "events.h5")
    spec = tmp_path / "job.py"
    spec.write_text(AGGREGATES)
    found = {n: run(spec, tmp_path / f"out{n}", n, f"input={tmp_path / 'events.h5'}") for n in RANKS}
    assert len(set(found.values())) == 1, found
    check_aggregates(tmp_path / "out3", columns)
    same_as_the_other_mpi("aggregates", found[3])


def within_ulps(got: float, expected: float, ulps: int) -> bool:
    """Equal but for `ulps`; where squares leave the range of float64, anything that is no number says so."""
    if math.isinf(expected):
        return not math.isfinite(got)
    if not math.isfinite(got) or not math.isfinite(expected):
        return data.bits(got) == data.bits(expected)
    return abs(got - expected) <= ulps * math.ulp(expected)


def check_aggregates(path: Path, columns: dict[str, np.ndarray]) -> None:
    import hpcmr

    table = hpcmr.open(path)
    keys = np.asarray(table["key"][:])
    assert sorted(keys.tolist()) == sorted(set(columns["key"].tolist()))
    for i in np.concatenate([np.arange(0, len(keys), 25), np.flatnonzero(keys == 10 ** 15)]):
        rows = np.flatnonzero(columns["key"] == keys[i])
        assert table["n"][i:i + 1][0] == len(rows)
        for name in ("hard", "value", "odd", "single", "small"):
            values = columns[name][rows]
            got = {f: table[f"{name}_{f}"][i:i + 1][0] for f in ("sum", "mean", "min", "max", "var", "std", "first", "last")}
            where = f"{name} of key {keys[i]}"
            if name == "small":
                assert got["sum"] == int(values.astype(object).sum()), where
            else:
                assert data.bits(float(got["sum"])) == data.bits(data.exact_sum(values)), where
            assert data.bits(float(got["mean"])) == data.bits(data.exact_mean(values)), where
            assert data.bits(float(got["min"])) == data.bits(float(np.min(values))), where
            assert data.bits(float(got["max"])) == data.bits(float(np.max(values))), where
            assert data.bits(float(got["first"])) == data.bits(float(values[0])), where
            assert data.bits(float(got["last"])) == data.bits(float(values[-1])), where
            assert within_ulps(float(got["var"]), data.exact_variance(values), 4), where
            assert within_ulps(float(got["std"]), math.sqrt(data.exact_variance(values)), 4), where
        assert table["flag_any"][i:i + 1][0] == columns["flag"][rows].any()
        assert table["flag_all"][i:i + 1][0] == columns["flag"][rows].all()
    single = int(np.flatnonzero(keys == 10 ** 15)[0])
    assert table["hard_sum"][single:single + 1][0] == columns["hard"][columns["key"] == 10 ** 15][0]


@needs_launcher
def test_many_partitions_and_files(tmp_path: Path) -> None:
    """Enough bytes for several splits and partitions, in several files; still one digest."""
    for i in range(3):
        data.write_events(tmp_path / f"e{i}.h5", n=400_000, keys=50_000, seed=i)
    spec = tmp_path / "job.py"
    spec.write_text("import hpcmr as mr\n\ndef job(ctx):\n    t = mr.read_hdf5(ctx.params['input'], '/events', columns=['key', 'hard', 'odd'])\n"
                    "    t.group_by('key').agg(n=mr.count(), a=mr.sum('hard'), b=mr.mean('odd'), c=mr.last('hard')).write_hdf5(ctx.output('out'))\n")
    found = {n: run(spec, tmp_path / f"out{n}", n, f"input={tmp_path}/e*.h5") for n in (0, 3, 4)}
    assert len(set(found.values())) == 1, found
    same_as_the_other_mpi("partitions", found[3])


@needs_launcher
def test_rows_without_a_key_keep_the_order_of_the_input(tmp_path: Path) -> None:
    data.write_texts(tmp_path / "texts", files=5, lines=50)
    spec = tmp_path / "job.py"
    spec.write_text("import hpcmr as mr\n\ndef job(ctx):\n    lines = mr.read_text(ctx.params['input'])\n"
                    "    lines.filter(lambda line: len(line) > 3).write_hdf5(ctx.output('out'))\n")
    found = {n: run(spec, tmp_path / f"out{n}", n, f"input={tmp_path / 'texts'}") for n in (0, 3, 7)}
    assert len(set(found.values())) == 1, found
    rows = check(run_job(["cat", tmp_path / "out7", "--format", "jsonl"], n=0)).stdout.splitlines()
    lines = [line.decode("utf-8", "surrogateescape") for p in sorted((tmp_path / "texts").iterdir()) for line in p.read_bytes().split(b"\n")]
    assert [json.loads(r)["line"] for r in rows] == [line for line in lines if len(line) > 3]
