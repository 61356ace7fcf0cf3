"""``hpcmr inspect``: what is known of an output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.cli.main import main
from hpcmr.data.batch import Batch
from hpcmr.data.schema import INT64, TEXT, Field, Schema
from tests.store.support import store


@pytest.fixture()
def stored(tmp_path: Path) -> Path:
    schema = Schema((Field("n", INT64, (("units", "erg"), ("bad", float("nan")))), Field("word", TEXT)))
    batch = Batch.of({"n": np.arange(5000), "word": ["x"] * 5000})
    store(tmp_path / "out", [batch, batch], ranks=2, schema=schema, provenance={
        "writer": {"hpcmr": "0.1", "job": "count", "ranks": 2}, "inputs": [{"path": f"in-{i}.txt", "nbytes": 7} for i in range(30)]})
    return tmp_path / "out"


def test_for_people(stored: Path, capfd: Any) -> None:
    assert main(["inspect", str(stored)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for words in ("rows      10,000", "in 2 shards", "job: count", "in-0.txt", "and 20 more", "n     int64  (bad: ", "units: erg", "word  text",
                  "part-00001.h5", "xxh3-128:"):
        assert words in out


def test_json(stored: Path, capfd: Any) -> None:
    assert main(["inspect", str(stored), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["rows"] == 10000 and facts["schema"][0] == {"name": "n", "type": "int64", "attrs": {"units": "erg", "bad": {"$float": "nan"}}}
    assert [s["name"] for s in facts["shards"]] == ["part-00000.h5", "part-00001.h5"] and facts["writer"]["ranks"] == 2 and len(facts["inputs"]) == 30
    assert facts["nbytes"] == sum((stored / s["name"]).stat().st_size for s in facts["shards"])


def test_what_is_no_output(tmp_path: Path, capfd: Any) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "manifest.json" in capfd.readouterr().err


def test_a_damaged_manifest(stored: Path, capfd: Any) -> None:
    path = stored / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 10000', b'"rows": 10001'))
    assert main(["inspect", str(stored)]) == 2
    assert "digest does not match" in capfd.readouterr().err
