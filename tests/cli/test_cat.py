"""``hpcmr cat``: csv and jsonl, columns, limits, and readers that go away."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.cli.main import main
from hpcmr.data.batch import Batch
from tests.store.support import store


@pytest.fixture()
def stored(tmp_path: Path) -> Path:
    n = np.arange(4)
    batch = Batch.of({"n": n, "x": np.array([0.1, np.nan, np.inf, -1e-300]), "f": np.array([0.1, 1e20, 1e-5, -np.inf], "f4"), "yes": n % 2 == 0,
                      "pos": np.array([[0.5, np.nan]] * 4, "f4"),
                      "s": ["plain", 'a "quote", comma', "line\nend", b"\xff\x00".decode("utf-8", "surrogateescape")],
                      "b": [b"\xfe", b"", b"x", b" y "], "l": [["a", "b"], [], [","], None],
                      "gap": np.ma.MaskedArray(n, [0, 1, 0, 0]),
                      "c": np.array([1 + 2j, 1 - 2j, complex(np.nan, 0), 0]),
                      "when": np.array(["2020-01-02", "NaT", "1970-01-01", "2000-02-29"], "M8[D]"),
                      "for": np.arange(4).astype("m8[s]"), "k": np.array([b"ab", b"", b"abc", b"\xff"])})
    store(tmp_path / "out", [batch.slice(0, 1), batch.slice(1, 4)], ranks=2)
    return tmp_path / "out"


def cat(capfd: Any, *args: object) -> bytes:
    assert main(["cat", *map(str, args)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return bytes(out.encode("utf-8", "surrogateescape"))


def run(*args: object) -> bytes:
    done = subprocess.run([sys.executable, "-m", "hpcmr", "cat", *map(str, args)], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_jsonl(stored: Path) -> None:
    raw = run(stored, "--format", "jsonl")
    rows = [json.loads(line) for line in raw.decode("utf-8").splitlines()]       # valid UTF-8, whatever the rows hold
    assert list(rows[0]) == ["n", "x", "f", "yes", "pos", "s", "b", "l", "gap", "c", "when", "for", "k"]
    assert [r["n"] for r in rows] == [0, 1, 2, 3] and rows[3]["s"] == "\udcff\0" and b"\\udcff" in raw
    assert b'"x": NaN' in raw and b'"x": Infinity' in raw and b'"f": -Infinity' in raw and b'"f": 0.1,' in raw and b'"f": 1e-05,' in raw
    assert b'"pos": [0.5, NaN]' in raw and rows[0]["b"] == "\udcfe" and rows[0]["l"] == ["a", "b"] and rows[3]["l"] is None
    assert [r["gap"] for r in rows] == [0, None, 2, 3] and rows[0]["yes"] is True and rows[1]["c"] == [1.0, -2.0]
    assert [r["when"] for r in rows] == ["2020-01-02", "NaT", "1970-01-01", "2000-02-29"] and rows[2]["for"] == 2 and rows[3]["k"] == "\udcff"


def test_csv(stored: Path) -> None:
    raw = run(stored)
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")))
    assert len(rows) == 4 and rows[1]["s"] == 'a "quote", comma' and rows[2]["s"] == "line\nend" and rows[3]["s"] == "\udcff\0" and b"\xff\0" in raw
    assert [r["x"] for r in rows] == ["0.1", "NaN", "Infinity", "-1e-300"] and rows[0]["f"] == "0.1" and rows[1]["f"] == "1e+20"
    assert [r["gap"] for r in rows] == ["0", "", "2", "3"] and rows[0]["pos"] == "[0.5, NaN]" and rows[0]["l"] == '["a", "b"]' and rows[3]["l"] == ""
    assert [r["c"] for r in rows] == ["1.0+2.0j", "1.0-2.0j", "NaN+0.0j", "0.0+0.0j"] and rows[0]["when"] == "2020-01-02"
    assert rows[3]["b"] == " y " and rows[0]["yes"] == "true" and raw.startswith(b"n,x,f,yes,")


def test_columns_and_limit(stored: Path, capfd: Any) -> None:
    assert cat(capfd, stored, "--columns", "s,n", "--limit", "1") == b"s,n\nplain,0\n"
    assert cat(capfd, stored, "--columns", "n", "--limit", "0") == b"n\n"
    assert cat(capfd, stored, "--columns", "n", "--limit", "99") == b"n\n0\n1\n2\n3\n"
    assert cat(capfd, stored, "--columns", "n", "--limit", "2", "--format", "jsonl") == b'{"n": 0}\n{"n": 1}\n'


def test_odd_names(tmp_path: Path, capfd: Any) -> None:
    store(tmp_path / "out", [Batch.of({"a,b": [1], '%s "q"': [2], "": [3]})])
    assert cat(capfd, tmp_path / "out") == b'"a,b","%s ""q""",\n1,2,3\n'
    assert cat(capfd, tmp_path / "out", "--columns", "a,b") == b'"a,b"\n1\n'
    assert json.loads(cat(capfd, tmp_path / "out", "--format", "jsonl")) == {"a,b": 1, '%s "q"': 2, "": 3}


def test_empty_cells_of_one_column(tmp_path: Path, capfd: Any) -> None:
    store(tmp_path / "out", [Batch.of({"s": ["", "x"]})])
    assert cat(capfd, tmp_path / "out") == b's\n""\nx\n'


def test_empty_table(tmp_path: Path, capfd: Any) -> None:
    store(tmp_path / "out", [Batch.of({"a": [1], "b": [2]}).slice(0, 0)])
    assert cat(capfd, tmp_path / "out") == b"a,b\n"
    assert cat(capfd, tmp_path / "out", "--format", "jsonl") == b""


def test_a_broken_pipe_is_quiet(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"n": np.arange(300_000)})])
    process = subprocess.Popen([sys.executable, "-m", "hpcmr", "cat", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"n\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_no_broken_pipe(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"n": np.arange(30)})])
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "hpcmr", "cat", str(tmp_path / "out")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "ENOSPC" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("args", "says"), [(["nothing"], "does not exist"), (["{out}", "--columns", "zz"], "no column 'zz'"),
                                            (["{out}", "--limit", "-1"], "not a number of rows"), (["{out}", "--format", "xml"], "invalid choice"),
                                            ([], "PATH")])
def test_wrong_use(stored: Path, capfd: Any, args: list[str], says: str) -> None:
    try:
        code = main(["cat", *[a.format(out=stored) for a in args]])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "") and says in err
