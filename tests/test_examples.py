"""The examples give what their sequential twins give."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.launch import ROOT, check, needs_launcher, run_job, run_ranks

EXAMPLES = ROOT / "examples"
ROWS = 20_000


def twin(example: str, name: str = "sequential") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{example}_{name}", EXAMPLES / example / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("particles") / "snapshot.h5"
    twin("particles", "generate").generate(path, ROWS)
    return path


def rows_of(path: Path) -> list[dict[str, object]]:
    lines = check(run_job(["cat", path, "--format", "jsonl"], n=0)).stdout.splitlines()
    return [json.loads(line) for line in lines]


def run(spec: Path, out: Path, n: int, *settings: str) -> list[dict[str, object]]:
    pairs = [word for s in (*settings, f"output.path={out}") for word in ("--set", s)]
    done = check(run_job(["job", spec, *pairs], n=n, timeout_s=120, cwd=out.parent))
    path, rows = done.stdout.rstrip("\n").split("\t")
    assert (out.parent / path).samefile(out)
    found = rows_of(out)
    assert len(found) == int(rows)
    return found


def test_word_count_is_short_and_without_python() -> None:
    lines = [line for line in (EXAMPLES / "wordcount/job.toml").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) < 15
    assert not any(".py" in line or ":" in line for line in lines)


@needs_launcher
def test_word_count(tmp_path: Path) -> None:
    found = run(EXAMPLES / "wordcount/job.toml", tmp_path / "counts", 3)
    expected = twin("wordcount").count(sorted((EXAMPLES / "wordcount/texts").iterdir()))
    assert {r["key"]: r["value"] for r in found} == expected


@needs_launcher
def test_word_count_of_another_folder_with_odd_bytes(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    shutil.copytree(EXAMPLES / "wordcount/texts", texts)
    (texts / "z.txt").write_bytes(b"caf\xc3\xa9 caf\xe9 nul\0byte (in) --- \xff\xfe no end of line")
    found = run(EXAMPLES / "wordcount/job.toml", tmp_path / "counts", 3, f"input.paths=['{texts}/*.txt']")
    assert {r["key"]: r["value"] for r in found} == twin("wordcount").count(sorted(texts.iterdir()))


@needs_launcher
def test_inverted_index(tmp_path: Path) -> None:
    found = run(EXAMPLES / "inverted_index/job.toml", tmp_path / "index", 3)
    expected = twin("inverted_index").index(sorted((EXAMPLES / "inverted_index/texts").iterdir()))
    assert {r["key"]: r["value"] for r in found} == expected


@needs_launcher
def test_particle_statistics(tmp_path: Path, snapshot: Path) -> None:
    found = run(EXAMPLES / "particles/stats.py", tmp_path / "stats", 3, f"input={snapshot}")
    expected = twin("particles").statistics(snapshot)
    assert len(found) == len(expected)
    for row in found:
        n, total, mean, low, high = expected[row["cell"]]
        assert (row["n"], row["total"], row["mean"], row["low"], row["high"]) == (n, total, mean, low, high)


@needs_launcher
@pytest.mark.parametrize("speed", ["kernel", "batch", "plain"])
def test_three_speeds(tmp_path: Path, snapshot: Path, speed: str) -> None:
    found = run(EXAMPLES / "three_speeds/job.py", tmp_path / "shells", 2, f"input={snapshot}", f"speed={speed}")
    assert {r["shell"]: (r["n"], r["energy"]) for r in found} == twin("three_speeds").shells(snapshot)


@needs_launcher
@pytest.mark.parametrize("k", [12])
def test_kmeans(tmp_path: Path, k: int) -> None:
    twin("kmeans", "generate").generate(tmp_path / "points.h5", ROWS)
    found = run(EXAMPLES / "kmeans/kmeans.py", tmp_path / "clusters", 3, f"input={tmp_path / 'points.h5'}", f"k={k}")
    assert {r["cluster"]: (r["n"], r["x"], r["y"]) for r in found} == twin("kmeans").kmeans(tmp_path / "points.h5", k)


@needs_launcher
@pytest.mark.parametrize("n", [1, 3])
def test_pagerank(tmp_path: Path, n: int) -> None:
    lines = [line for line in (EXAMPLES / "pagerank/pagerank.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 60
    twin("pagerank", "generate").generate(tmp_path / "links.h5", 500, 3000)
    found = run(EXAMPLES / "pagerank/pagerank.py", tmp_path / "ranks", n, f"input={tmp_path / 'links.h5'}", "tolerance=1e-4")
    assert [(r["page"], r["rank"]) for r in found] == twin("pagerank").pagerank(tmp_path / "links.h5", tolerance=1e-4)


@needs_launcher
@pytest.mark.parametrize("n", [1, 3])
def test_in_situ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    import h5py

    monkeypatch.syspath_prepend(EXAMPLES / "in_situ")
    words = ["--particles", "3000", "--steps", "12", "--every", "4", "--out", tmp_path / "maps.h5"]
    check(run_ranks([EXAMPLES / "in_situ/simulation.py", *words], n=n, timeout_s=120))
    with h5py.File(tmp_path / "maps.h5") as file:
        found = {int(name[5:]): {row[0]: row[1:] for row in zip(*(group[c][:].tolist() for c in ("cell", "n", "mass", "energy")), strict=True)}
                 for name, group in file.items()}
    assert found == twin("in_situ").maps(3000, 12, 4)
    assert len(found) == 3
    assert all(list(cells) == sorted(cells) for cells in found.values())
