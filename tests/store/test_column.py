"""Columns of a stored table behave like NumPy arrays, and read what they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpcmr
from hpcmr.api.output import Output
from hpcmr.data.batch import Batch
from hpcmr.errors import DataError, InputError, JobSpecError, Refused
from hpcmr.store import column
from hpcmr.store.source import StoredSource
from tests.store.support import store

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards whose rows interleave."""
    path = tmp_path_factory.mktemp("columns") / "out"
    store(path, [whole().slice(i, i + 50) for i in range(0, ROWS, 50)], ranks=3, deal=[0, 1, 2, 2, 1, 0], shard_nbytes=1 << 20)
    return path


def whole() -> Batch:
    n = np.arange(ROWS)
    return Batch.of({"n": n, "pos": n[:, None] * [1.0, 10.0, 100.0], "gap": np.ma.MaskedArray(n, n % 7 == 0), "s": [f"s{i}" for i in n],
                     "b": [b"\xff" * (i % 3) for i in n.tolist()], "l": [["x", "y"][:i % 3] if i % 5 else None for i in n.tolist()],
                     "t": n.astype("datetime64[s]")})


slices = st.builds(slice, *[st.none() | st.integers(-2 * ROWS, 2 * ROWS)] * 2, st.none() | st.integers(-9, 9).filter(bool))


@given(slices)
def test_slices(folder: Path, chosen: slice) -> None:
    with Output.open(folder) as out:
        full = whole().to_pydict()
        for name in ("n", "s", "b", "l"):
            assert out[name][chosen].tolist() == full[name][chosen]
        assert np.array_equal(out["pos"][chosen, 1], np.arange(ROWS)[chosen] * 10.0)
        assert out["gap"][chosen].tolist() == full["gap"][chosen]


@given(st.lists(st.integers(-ROWS, ROWS - 1), max_size=20), st.sampled_from([1, 40, 4096]))
def test_lists_of_rows(folder: Path, rows: list[int], gap: int) -> None:
    with pytest.MonkeyPatch.context() as patch, Output.open(folder) as out:
        patch.setattr(column, "GAP_ROWS", gap)
        full = whole().to_pydict()
        for name in ("n", "s", "gap", "l"):
            assert out[name][rows].tolist() == [full[name][r] for r in rows]


def test_masks_and_single_rows(folder: Path) -> None:
    out = hpcmr.open(folder)
    assert out["n"][out["n"][:] % 100 == 1].tolist() == [1, 101, 201]
    assert (out["n"][-1], out["s"][5], out["pos"][2, 1], out["l"][1]) == (299, "s5", 20.0, ["x"])
    assert out["l"][0] is None and out["gap"][7] is np.ma.masked
    assert out["t"][3] == np.datetime64(3, "s") and out["t"].dtype == np.dtype("datetime64[s]")
    assert out["b"][2] == b"\xff\xff" and out["n"][...].shape == (ROWS,)
    assert out["n"][:0].dtype == np.int64 and out["pos"][5:5].shape == (0, 3)
    assert list(out["n"])[:3] == [0, 1, 2]


def test_arrays(folder: Path) -> None:
    out = hpcmr.open(folder)
    assert np.asarray(out["pos"]).shape == out["pos"].shape == (ROWS, 3)
    assert np.sum(out["n"]) == ROWS * (ROWS - 1) // 2
    assert (len(out), out.columns, "n" in out, "x" in out, list(out)[:2]) == (ROWS, whole().names, True, False, ["n", "pos"])
    assert np.asarray(out["n"], np.float32).dtype == np.float32
    assert "300 rows" in repr(out) and "int64" in repr(out["n"])


@pytest.mark.parametrize("index", [ROWS, -ROWS - 1, [0, ROWS], [True, False], 1.5, "n", [[1, 2]], np.zeros(3, bool)])
def test_wrong_indices(folder: Path, index: Any) -> None:
    with pytest.raises(IndexError, match="column 'n'"):
        hpcmr.open(folder)["n"][index]


def test_unknown_column(folder: Path) -> None:
    with pytest.raises(JobSpecError, match="did you mean 'pos'"):
        hpcmr.open(folder)["poss"]


def test_batches_do_not_depend_on_shards(tmp_path: Path, folder: Path) -> None:
    rng = np.random.default_rng(2)
    lengths = np.where(rng.random(3000) < 0.01, 100_000, 5)
    batch = Batch.of({"s": ["x" * int(k) for k in lengths], "n": np.arange(3000), "l": [list(range(int(k) % 90)) for k in lengths]})
    found = []
    for i, (step, ranks) in enumerate([(3000, 1), (77, 3)]):
        store(tmp_path / str(i), [batch.slice(a, a + step) for a in range(0, 3000, step)], ranks=ranks, shard_nbytes=300_000)
        with Output.open(tmp_path / str(i)) as out:
            cuts = [b.nrows for b in out.batches()]
            assert max(b.nbytes for b in out.batches()) < 6 << 20
            splits = StoredSource(out.path, split_nbytes=100_000).survey()[1]
            found.append((cuts, out.content_nbytes(), [s.part[1:] for s in splits], [s.nbytes for s in splits]))
    assert found[0] == found[1] and len(found[0][0]) > 1 and len(found[0][2]) > 3


def test_source(folder: Path) -> None:
    source = StoredSource(folder, ["s", "n"], split_nbytes=1000)
    schema, splits = source.survey()
    assert schema.names == ("s", "n") and [s.index for s in splits] == list(range(len(splits))) and len(splits) > 3
    reader = StoredSource(folder, ["s", "n"], split_nbytes=1000)
    reader.adopt(schema, splits)
    rows = [r for s in splits for b in reader.read(s) for r in b.to_pydict()["n"]]
    assert rows == list(range(ROWS))
    reader.close()
    assert source.fingerprint() == reader.fingerprint() != StoredSource(folder).fingerprint()
    with pytest.raises(JobSpecError):
        StoredSource(folder, ["zz"]).survey()
    with pytest.raises(InputError):
        StoredSource(folder.parent).survey()


def test_source_notices_that_the_output_was_replaced(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"n": [1, 2]})])
    source = StoredSource(tmp_path / "out")
    _, splits = source.survey()
    store(tmp_path / "out", [Batch.of({"n": [3, 4]})], replace=True)
    with pytest.raises(DataError, match="replaced"):
        list(source.read(splits[0]))


def test_empty_source(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"n": [1]}).slice(0, 0)])
    assert StoredSource(tmp_path / "out").survey()[1] == []


def test_to_pandas(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = hpcmr.open(folder).to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == list(whole().names) and len(frame) == ROWS
    assert frame["n"].sum() == ROWS * (ROWS - 1) // 2 and frame["s"][3] == "s3" and list(frame["pos"][2]) == [2.0, 20.0, 200.0]
    assert list(hpcmr.open(folder).to_pandas(["s"]).columns) == ["s"]


def test_to_pandas_without_pandas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(Refused, match="pip install pandas"):
        hpcmr.open(folder).to_pandas()


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    import os

    store(tmp_path / "out", [Batch.of({"n": np.arange(100) + 100 * i}) for i in range(60)], shard_nbytes=800)
    before = len(os.listdir("/proc/self/fd"))
    with Output.open(tmp_path / "out") as out:
        assert out["n"][:].tolist() == list(range(6000)) and len(out.manifest.shards) == 60
        assert len(os.listdir("/proc/self/fd")) <= before + 33
    assert len(os.listdir("/proc/self/fd")) == before
