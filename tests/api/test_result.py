"""Rows in memory."""

from __future__ import annotations

import numpy as np
import pytest

from hpcmr.api.result import Result
from hpcmr.data.batch import Batch
from hpcmr.errors import JobSpecError


def result() -> Result:
    masked = np.ma.MaskedArray([1.0, 2.0, 3.0], [False, True, False])
    return Result(Batch.of({"n": np.arange(3), "pos": np.ones((3, 2)), "word": ["a", "b\udcff", None], "raw": [b"x", b"", b"z"], "m": masked,
                            "many": [[1], [], [2, 3]]}))


def test_columns() -> None:
    r = result()
    assert len(r) == 3
    assert r.columns == ("n", "pos", "word", "raw", "m", "many")
    assert list(r) == list(r.columns)
    assert "n" in r
    assert "k" not in r
    assert r["n"].dtype == np.int64
    assert r["pos"].shape == (3, 2)
    assert r["word"] == ["a", "b\udcff", None]
    assert r["raw"] == [b"x", b"", b"z"]
    assert r["many"] == [[1], [], [2, 3]]
    assert r["m"].mask.tolist() == [False, True, False]
    assert set(dict(r)) == set(r.columns)
    with pytest.raises(JobSpecError, match="did you mean 'word'"):
        r["wrod"]


def test_rows() -> None:
    row = list(result().rows())[1]
    assert (row.n, row.word, row.raw, row.m, row.many) == (1, "b\udcff", b"", None, [])
    assert next(iter(Result(Batch.of({"a b": [1]})).rows())) == (1,)


def test_shown() -> None:
    text = repr(Result(Batch.of({"n": np.arange(25)})))
    assert text.splitlines()[0] == "n: int64"
    assert text.splitlines()[-1] == "... 25 rows"
    assert len(text.splitlines()) == 12


def test_to_pandas() -> None:
    pd = pytest.importorskip("pandas")
    frame = result().to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["n"].tolist() == [0, 1, 2]
    assert frame["pos"][0].tolist() == [1.0, 1.0]
