"""The cost model and the tables behind docs/explanation/performance.md."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench import model, tables
from tests.support.launch import ROOT, needs_launcher


def test_fit_finds_what_was_put_in() -> None:
    features = [(1.0, math.log2(n), float(n)) for n in (2, 4, 8, 16, 32, 64)]
    found = model.fit(("call", "log2(ranks)", "rank"), features, [3e-6 + 2e-5 * f[2] for f in features])
    np.testing.assert_allclose(found.factors, [3e-6, 0, 2e-5], rtol=1e-3, atol=1e-9)
    assert found.most < 1.01
    assert found(1, 10, 1024) == pytest.approx(3e-6 + 2e-5 * 1024, rel=1e-3)


def test_fit_has_no_costs_below_zero() -> None:
    found = model.fit(("call", "rank"), [(1.0, n) for n in (2, 4, 8)], [4e-6, 2e-6, 1e-6])
    assert (found.factors >= 0).all()


def pretended(ranks: int, cores: int = 2) -> dict[str, Any]:
    """What a run on `ranks` ranks would measure if each message took 10 microseconds of a core."""
    load = max(1.0, ranks / cores)
    calls = {n: load * 1e-5 * math.log2(ranks) for n in model.TREES}
    calls |= dict.fromkeys(("allreduce 512 KiB", "allgather 100 B", "alltoall 8 B", "tick", "gather 100 B"), load * 1e-05 * ranks)
    exchanges = [{"ranks": ranks, "nodes": nodes, "leaders": nodes > 1, "pair_nbytes": nbytes, "messages": 4 * (ranks - 1), "nbytes": nbytes * ranks,
                  "seconds": load * (1e-3 + (4e-5 if nodes == 1 else 5e-5) * ranks + 1e-10 * nbytes * ranks)}
                 for nodes in (1, 4) for nbytes in model.PAIR_NBYTES if ranks >= 4 * nodes or nodes == 1]
    job = {"seconds": load * 2e-2, "collective calls": 40, "ticks": 2}
    return {"ranks": ranks, "cores": cores, "started_s": 1 + 0.2 * load, "cpu_s": 0.5, "collectives": calls, "exchanges": exchanges, "job": job}


def test_model_is_evaluated_for_more_ranks_than_were_measured(capsys: pytest.CaptureFixture[str]) -> None:
    measured = [pretended(n) for n in (2, 4, 8, 16, 32, 64)]
    fitted = model.Model(measured)
    assert fitted.direct.factors[1] == pytest.approx(1e-5, rel=0.05)
    cluster = model.Cluster()
    assert model.call_s(fitted, cluster, "agree", 1024) < 3e-4 < model.call_s(fitted, cluster, "tick", 1024)
    direct, led = (model.exchange_s(fitted, cluster, 16384, 16384 * 64, 2, way) for way in (False, True))
    assert led < direct                                   # few bytes for each pair of very many ranks
    model.show(measured, [model.alone(n) for n in (64, 256)])
    said = capsys.readouterr().out
    assert "W3a, sorted" in said and "256 ranks" in said and "nan" not in said


def test_what_grows_with_ranks_is_measured_in_one_process() -> None:
    few, many = model.alone(4), model.alone(64)
    assert many["splits"] == 16 * few["splits"] and many["splits_nbytes"] > 10 * few["splits_nbytes"]
    assert many["partitions"] == 8192 and many["manifest_nbytes"] > 10 * few["manifest_nbytes"]


@needs_launcher
def test_model_measures_on_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(sys, "argv", ["model.py", "--ranks", "2", "--sizes", "64", "--seconds", "0.005", "--save", str(kept)])
    assert model.main() == 0
    found = json.loads(kept.read_text())["measured"][0]
    assert found["ranks"] == 2 and set(model.TREES) < set(found["collectives"])
    assert all(s > 0 for s in found["collectives"].values())
    assert [e["messages"] for e in found["exchanges"]] == [2, 6, 6]            # counts of the partitions, then two columns as well
    assert 20 < found["job"]["collective calls"] < 100
    assert "| agree |" in capsys.readouterr().out


def test_table_of_works_takes_the_medians_of_the_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [{"name": name, "work": "W2a", "seconds": s, "peak_mb": 100 * s} for s in (90, 1, 2, 3) for name in ("hpcmr", "hpcmr, published")]
    lines += [{"name": "duckdb", "work": "W2a", "seconds": s, "peak_mb": 50} for s in (80, 7, 8, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = tables.works(tables.medians(path, 3))
    assert "| 2.00 | 200 | duckdb 8.00 (50) | 4.0 |" in said
    assert "not measured" in said                         # of the other works
    assert "measured **2.00 s**" in tables.limits(tables.medians(path, 3), 30, 10)


def test_page_tells_how_its_tables_are_made() -> None:
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text()
    for command in ("make bench", "tests/bench/tables.py works", "tests/bench/tables.py limits", "tests/bench/model.py"):
        assert command in page
