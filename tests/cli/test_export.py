"""``hpcmr export``: ordinary files, complete or not at all."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcmr.cli.main import main
from hpcmr.data.batch import Batch
from hpcmr.data.schema import TEXT, ColumnType, Field, Schema
from tests.store.support import store

N = 2000


@pytest.fixture()
def stored(tmp_path: Path) -> Path:
    n = np.arange(N)
    batch = Batch.of({"n": n, "x": n / 7, "pos": (n[:, None] * [1, 2]).astype("f4"), "yes": n % 2 == 0,
                      "s": [f"é{i}" * (i % 3) for i in n], "b": [b"b%d" % i for i in n],
                      "gap": np.ma.MaskedArray(n, n % 2 == 0), "when": n.astype("datetime64[s]"),
                      "c": n + 1j, "h": n.astype("f2"), "k": np.array([b"ab", b"c"] * (N // 2))})
    store(tmp_path / "out", [batch.slice(a, a + 300) for a in range(0, N, 300)], ranks=3)
    return tmp_path / "out"


def export(*args: object) -> int:
    return main(["export", *map(str, args)])


def test_h5(stored: Path, tmp_path: Path, capfd: Any) -> None:
    assert export(stored, tmp_path / "x.h5") == 0
    assert capfd.readouterr() == (f"{tmp_path / 'x.h5'}\t{N}\n", "")
    n = np.arange(N)
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file) == ["n", "x", "pos", "yes", "s", "b", "gap", "gap.valid", "when", "c", "h", "k"]
        assert (file["n"][:] == n).all() and (file["x"][:] == n / 7).all() and file["pos"].shape == (N, 2) and file["yes"].dtype == bool
        assert h5py.check_string_dtype(file["s"].dtype).length is None and file["s"].asstr()[5] == "é5é5" and file["b"][3] == b"b3"
        assert (file["gap.valid"][:] == (n % 2 == 1)).all() and file["gap"][2] == 0 and file["gap"][3] == 3
        assert file["when"][7] == 7 and "hpcmr_type" in file["when"].attrs and file["c"][3] == 3 + 1j and file["h"].dtype == np.float16
        assert file["k"][0] == b"ab"


def test_npz(stored: Path, tmp_path: Path) -> None:
    assert export(stored, tmp_path / "x.npz") == 0
    n = np.arange(N)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert sorted(file) == sorted(["n", "x", "pos", "yes", "s", "b", "gap", "gap.valid", "when", "c", "h", "k"])
        assert (file["n"] == n).all() and file["s"].dtype.kind == "U" and file["s"][5] == "é5é5" and file["b"][3] == b"b3"
        assert file["when"].dtype == "M8[s]" and (file["pos"][:, 1] == 2 * n).all() and (file["gap.valid"] == (n % 2 == 1)).all()


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_csv_and_tsv(stored: Path, tmp_path: Path, kind: str, separator: str) -> None:
    assert export(stored, tmp_path / f"x.{kind}") == 0
    with open(tmp_path / f"x.{kind}", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=separator))
    assert len(rows) == N and rows[5]["s"] == "é5é5" and rows[4]["gap"] == "" and float(rows[9]["x"]) == 9 / 7 and rows[3]["pos"] == "[3.0, 6.0]"


def test_what_formats_have_no_word_for(tmp_path: Path, capfd: Any) -> None:
    batch = Batch.of({"nul": ["a\0b", "c", "d"], "bytes": [b"x\0", b"", b"y"], "l": [[1, 2], [], None],
                      "ll": [["a", "bc"], ["d"], []], "bad": [b"\xff".decode("utf-8", "surrogateescape"), "ok", None]})
    store(tmp_path / "out", [batch.slice(0, 1), batch.slice(1, 3)], ranks=2)
    assert export(tmp_path / "out", tmp_path / "x.h5") == 0
    said = capfd.readouterr().err
    assert "column 'nul'" in said and "'l.offsets'" in said
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["nul.offsets"][:].tolist() == [0, 3, 4, 5] and file["nul.data"][:].tobytes() == b"a\0bcd"
        assert file["l.offsets"][:].tolist() == [0, 2, 2, 2] and file["l.data"][:].tolist() == [1, 2]
        assert file["l.valid"][:].tolist() == [True, True, False]
        assert file["ll.offsets"][:].tolist() == [0, 2, 3, 3] and file["ll.data.offsets"][:].tolist() == [0, 1, 3, 4]
        assert file["ll.data.data"][:].tobytes() == b"abcd" and file["bad"][0] == b"\xff"
    assert export(tmp_path / "out", tmp_path / "x.npz") == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file["nul"].tolist() == ["a\0b", "c", "d"] and file["bytes.data"].tobytes() == b"x\0y"
        assert file["bad"].tolist() == ["\udcff", "ok", ""] and file["bad.valid"].tolist() == [True, True, False]


def test_strings_of_very_unequal_length(tmp_path: Path) -> None:
    """Padding them all to the longest would take a hundred times their bytes."""
    store(tmp_path / "out", [Batch.of({"s": ["x" * 100_000] + ["y"] * 99})])
    assert export(tmp_path / "out", tmp_path / "x.npz") == 0 and (tmp_path / "x.npz").stat().st_size < 200_000
    with np.load(tmp_path / "x.npz") as file:
        assert file["s.offsets"][:3].tolist() == [0, 100_000, 100_001] and len(file["s.data"]) == 100_099


@pytest.mark.parametrize("kind", ["h5", "csv", "tsv", "npz"])
def test_empty_and_odd_tables(tmp_path: Path, kind: str) -> None:
    schema = Schema((Field("a/b", ColumnType.fixed("f8", (2,)), (("units", "m"),)), Field("s", TEXT), Field("l", ColumnType.parse("list<text>"))))
    store(tmp_path / "out", [Batch.empty(schema)], schema=schema)
    assert export(tmp_path / "out", tmp_path / f"x.{kind}") == 0
    if kind == "h5":
        with h5py.File(tmp_path / "x.h5") as file:
            assert file["a%2fb"].shape == (0, 2) and file["a%2fb"].attrs["units"] == "m" and file["s"].shape == (0,)
    if kind == "npz":
        with np.load(tmp_path / "x.npz") as file:
            assert file["a%2fb"].shape == (0, 2) and file["l.offsets"].tolist() == [0]


def test_refusals(stored: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "x.csv").write_text("mine")
    (tmp_path / "d.csv").mkdir()
    assert export(stored, tmp_path / "x.csv") == 2
    assert "--force" in capfd.readouterr().err and (tmp_path / "x.csv").read_text() == "mine"
    assert export(stored, tmp_path / "x.csv", "--force") == 0 and (tmp_path / "x.csv").read_text().startswith("n,x")
    assert export(stored, tmp_path / "d.csv", "--force") == 2
    assert export(stored, tmp_path / "no" / "x.csv") == 1
    assert "ENOENT" in capfd.readouterr().err
    with pytest.raises(SystemExit) as left:
        export(stored, tmp_path / "x.xlsx")
    assert left.value.code == 2 and ".npz" in capfd.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "out", "x.csv"]
