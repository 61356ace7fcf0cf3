"""``hpcmr job`` in processes of its own: what comes of it, and what becomes of ranks that go astray."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import check, needs_launcher, run_job

TEXTS = {"a.txt": "The cat and the hat\nand the bat\n", "b.txt": "a cat, a bat\n\n  the end"}
JOB = """
import hpcmr as mr

def job(ctx):
    words = mr.read_text("texts").flat_map(str.split)
    words.map(lambda w: (w, len(w))).group_by("key").agg(n=mr.count()).write_hdf5(ctx.output("counts"))
    words.write_hdf5(ctx.output("words"))
"""
TOML = '[input]\npaths = "texts"\n[map]\nfunction = "words"\n[reduce]\nfunction = "sum"\n'
MINE = """
def mapper(line):
    for word in line.split():
        yield word, len(word)

def total(key, values):
    return sum(values)

def as_text(key, values):
    return ",".join(map(str, values))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text)
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def words() -> list[str]:
    return " ".join(TEXTS.values()).split()


def rows(folder: Path, path: str) -> list[dict[str, Any]]:
    done = check(run_job(["cat", path, "--format", "jsonl"], n=0, cwd=folder))
    return [json.loads(line) for line in done.stdout.splitlines()]


def values(folder: Path, path: str) -> dict[Any, Any]:
    return {row["key"]: row["value"] for row in rows(folder, path)}


@needs_launcher
@pytest.mark.launcher
def test_outputs_are_told_in_order_and_found_again(folder: Path) -> None:
    arguments = ["job", "--set", "output.words=w", "--set", "output.counts=c"]
    done = check(run_job(arguments, n=3, cwd=folder))
    assert done.stdout == f"c\t{len(set(words()))}\nw\t{len(words())}\n"
    assert {r["key"]: r["n"] for r in rows(folder, "c")} == Counter(words())
    assert [r["value"] for r in rows(folder, "w")] == words()
    (folder / "job.py").write_text(JOB + "# the same, edited\n")
    assert "before its code was changed" in check(run_job(arguments, n=0, cwd=folder), 2).stderr
    (folder / "job.py").write_text(JOB)
    again = check(run_job(arguments, n=0, cwd=folder))
    assert again.stdout == done.stdout
    assert again.stderr.count("published by this very run already") == 2


def test_the_run_directory_is_the_default_place(folder: Path) -> None:
    one = check(run_job(["job", "-q", "--run-dir", "here"], n=0, cwd=folder))
    assert [line.partition("\t")[0] for line in one.stdout.splitlines()] == ["here/output/counts", "here/output/words"]
    assert one.stderr == ""
    two = check(run_job(["job", "-q"], n=0, cwd=folder))
    assert two.stdout.startswith("hpcmr-runs/job-")


def test_loud_and_logged(folder: Path) -> None:
    (folder / "job.py").write_text(JOB + "    ctx.log.info('in the middle')\n")
    told = check(run_job(["job", "-v"], n=0, cwd=folder)).stderr
    assert "stage 1 over splits" in told
    assert "in the middle" in told
    assert "rows/s" in told


def test_explain(folder: Path) -> None:
    done = check(run_job(["job", "--explain"], n=0, cwd=folder))
    assert [line for line in done.stdout.splitlines() if "=>" in line][-1].endswith("output/words')")
    assert "read_text('texts')" in done.stdout
    assert "# job.py:5" in done.stdout
    assert not (folder / "hpcmr-runs").exists()


@pytest.mark.parametrize(("settings", "expected"), [
    (["map.lowercase=true", "map.strip_punctuation=true"], Counter(w.lower().strip(",") for w in words())),
    (["map.value=2.5"], {w: 2.5 * n for w, n in Counter(words()).items()}),
    (["map.function=lines"], Counter(line for text in TEXTS.values() for line in text.splitlines())),
    (["map.function=regex", "map.pattern='([a-z])at'"], Counter("chbcb")),
    (["map.function=regex", "map.pattern='(?P<k>[a-z])at(?P<v>.?)'", "map.value=v", "reduce.function=list"],
     {"c": [" ", ","], "h": [""], "b": ["", ""]}),
    (["map.function=columns", "map.key=2", "map.value=1", "reduce.function=first"], {"cat": "The", "the": "and", "cat,": "a", "end": "the"}),
    (["map.function=mine.py:mapper"], {w: len(w) * n for w, n in Counter(words()).items()}),
    (["map.function=mine:mapper", "reduce.function=mine.py:as_text"], {w: ",".join([str(len(w))] * n) for w, n in Counter(words()).items()}),
    (["map.function=mine:mapper", "reduce.function=mine:total", "combine.function=sum"],
     {w: len(w) * n for w, n in Counter(words()).items()}),
    (["map.function=mine:mapper", "reduce.function=mine:total", "combine.function=mine:total"],
     {w: len(w) * n for w, n in Counter(words()).items()}),
    (["reduce.function=mean"], dict.fromkeys(words(), 1.0)),
], ids=str)
def test_mappers_and_reducers(folder: Path, settings: list[str], expected: dict[Any, Any]) -> None:
    (folder / "wc.toml").write_text(TOML)
    pairs = [word for s in [*settings, "output.path=out"] for word in ("--set", s)]
    check(run_job(["job", "wc.toml", *pairs], n=0, cwd=folder))
    assert values(folder, "out") == dict(expected)


def test_inverted_index_and_order(folder: Path) -> None:
    (folder / "index.toml").write_text(TOML.replace('"words"', '"words"\nvalue = "file"').replace('"sum"', '"distinct"\norder = "descending"'))
    check(run_job(["job", "index.toml", "--set", "output.path=out"], n=0, cwd=folder))
    documents: dict[str, list[str]] = defaultdict(list)
    for name, text in TEXTS.items():
        for word in dict.fromkeys(text.split()):
            documents[word].append(str(folder / "texts" / name))
    assert values(folder, "out") == documents
    assert [r["key"] for r in rows(folder, "out")] == sorted(documents, reverse=True)


def test_sorted_by_value(folder: Path) -> None:
    (folder / "wc.toml").write_text(TOML)
    check(run_job(["job", "wc.toml", "--set", "output.path=out", "--set", "output.sort=value", "--set", "output.order=descending"], n=0, cwd=folder))
    counts = Counter(words())
    assert [(r["key"], r["value"]) for r in rows(folder, "out")] == sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))


BREAKS = {
    "one-rank-between-actions": (
        "    if ctx.rank == 1: raise ValueError('only here')\n    mr.read_text('texts').collect()\n", "ValueError: only here"),
    "one-rank-after-the-actions": (
        "    mr.read_text('texts').collect()\n    if ctx.rank == 2: raise ValueError('only here')\n", "ValueError: only here"),
    "others-wait-elsewhere": ("    if ctx.rank == 1: raise ValueError('only here')\n    ctx.comm.barrier()\n", "ValueError: only here"),
    "sys-exit": ("    import sys; sys.exit(0)\n", "SystemExit"),
    "other-plans": ("    mr.read_text('texts').filter(lambda s, n=ctx.rank: True).head()\n", "different plans"),
}


@needs_launcher
@pytest.mark.launcher
@pytest.mark.parametrize("name", BREAKS)
def test_an_error_of_the_job_ends_all_ranks_with_one_report(folder: Path, name: str) -> None:
    body, said = BREAKS[name]
    (folder / "job.py").write_text(f"import hpcmr as mr\n\ndef job(ctx):\n{body}")
    began = time.monotonic()
    done = check(run_job(["job"], n=3, cwd=folder, timeout_s=50), 2 if name == "other-plans" else 1)
    assert time.monotonic() - began < 40
    assert done.stderr.count("hpcmr job: ") == 1, done.stderr
    assert said in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") <= 1, done.stderr
    assert done.stdout == ""


@needs_launcher
@pytest.mark.launcher
@pytest.mark.parametrize("where", ["ranks 1 of 3", "all ranks"])
def test_an_error_while_the_job_is_imported(folder: Path, where: str) -> None:
    only = "if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1': " if where != "all ranks" else ""
    (folder / "job.py").write_text(f"import os\n{only}raise RuntimeError('at import')\n\ndef job(ctx): pass\n")
    done = check(run_job(["job"], n=3, cwd=folder), 1)
    assert done.stderr.count("hpcmr job: RuntimeError: at import") == 1, done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1
