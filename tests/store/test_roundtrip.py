"""What is written comes back, bit by bit, however it is cut into pieces, ranks and shards."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn
from hpcmr.data.schema import FLOAT64, INT64, TEXT, ColumnType, Field, Schema
from hpcmr.errors import ConservationError, DataError, Refused
from hpcmr.store import shard, writer
from hpcmr.store.digest import digest
from hpcmr.store.reader import StoredTable
from hpcmr.store.writer import TableWriter
from tests.store.support import batches, bits, leftovers, store


def cut(batch: Batch, at: list[int]) -> list[Batch]:
    edges = [0, *sorted(min(a, batch.nrows) for a in at), batch.nrows]
    return [batch.slice(a, b) for a, b in itertools.pairwise(edges)]


@given(batches(), st.lists(st.integers(0, 200), max_size=6), st.sampled_from([1, 2, 3]), st.sampled_from([500, 3000, 1 << 20]), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, batch: Batch, at: list[int], ranks: int, shard_nbytes: int,
                    small_buffers: bool) -> None:
    folder = tmp_path_factory.mktemp("trip") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        if small_buffers:       # every array goes through the file, and is moved
            patch.setattr(shard, "BUFFER_NBYTES", 64)
            patch.setattr(writer, "SLICE_NBYTES", 1000)
        made = store(folder, cut(batch, at), ranks=ranks, shard_nbytes=shard_nbytes)
    assert leftovers(folder) == []
    assert made.rows == batch.nrows
    with StoredTable.open(folder) as table:
        table.verify()
        assert table.schema == batch.schema
        assert table.manifest == made
        for name in batch.names:
            assert bits(table.read(name, 0, table.rows)) == bits(batch[name])
            again = [b for part in table.batches(batch_rows=7) for b in bits(part[name])]
            assert again == bits(batch[name])
    for part in made.shards:
        with h5py.File(folder / part.name) as file:
            assert file.attrs["format"] == "hpcmr-table"


def test_h5py_reads_the_columns(tmp_path: Path) -> None:
    schema = Schema((Field("a", INT64, (("units", "erg"), ("scale", 2.5), ("bad", b"\0\xff"))), Field("b", ColumnType.fixed("bool")),
                     Field("pos", ColumnType.fixed("float32", (3,))), Field("when", ColumnType.fixed("datetime64[s]")), Field("word", TEXT)))
    batch = Batch.of({"a": np.arange(5), "b": np.arange(5) % 2 == 0, "pos": np.arange(15, dtype="f4").reshape(5, 3),
                      "when": np.arange(5).astype("datetime64[s]"), "word": ["", "é", "x\0y", "long" * 9, "z"]})
    store(tmp_path / "out", [batch], schema=schema)
    with h5py.File(tmp_path / "out" / "part-00000.h5") as file:
        assert file["a"][:].tolist() == [0, 1, 2, 3, 4]
        assert (file["a"].attrs["units"], file["a"].attrs["scale"]) == ("erg", 2.5)
        assert file["b"].dtype == bool and file["b"][:].tolist() == [True, False, True, False, True]
        assert (file["pos"][:] == batch["pos"].values).all()            # type: ignore[union-attr]
        assert file["when"].dtype == np.int64 and file["when"].attrs["hpcmr_type"] == str(ColumnType.fixed("datetime64[s]"))
        offsets, data = file["word/offsets"][:], file["word/data"][:].tobytes()
        assert [data[a:b].decode() for a, b in itertools.pairwise(offsets)] == batch["word"].to_list()
        assert file["word"].attrs["hpcmr_type"] == "text"
        for name in ("a", "b", "pos", "when", "word/offsets", "word/data"):
            data = file[name]
            assert data.chunks is None and data.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY
        assert "word%valid" not in file
    assert dict(StoredTable.open(tmp_path / "out").schema["a"].attrs) == {"units": "erg", "scale": 2.5, "bad": b"\0\xff"}


@pytest.mark.parametrize("dealing", [[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]])
@pytest.mark.parametrize("shard_nbytes", [64, 1 << 20])
def test_order_of_rows_is_the_order_of_pieces(tmp_path: Path, dealing: list[int], shard_nbytes: int) -> None:
    pieces = [Batch.of({"x": np.arange(10) + 10 * i}) for i in range(4)]
    made = store(tmp_path / "out", pieces, ranks=2, deal=dealing, shard_nbytes=shard_nbytes)
    assert StoredTable.open(tmp_path / "out")["x"][:].tolist() == list(range(40))
    if dealing == [0, 0, 1, 1] and shard_nbytes > 64:
        assert made.segments == ((0, 0, 20), (1, 0, 20))


def test_a_piece_of_two_ranks_is_in_rank_order(tmp_path: Path) -> None:
    infos = []
    for rank in (1, 0):
        table = TableWriter(tmp_path / "out", rank, Schema.of({"x": INT64}), attempt="t")
        table.append(5, Batch.of({"x": np.array([rank])}))
        infos += table.close()
    writer_schema = Schema.of({"x": INT64})
    from hpcmr.store.publish import publish

    publish(tmp_path / "out", writer_schema, infos, attempt="t")
    assert StoredTable.open(tmp_path / "out")["x"][:].tolist() == [0, 1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_empty_table(tmp_path: Path, ranks: int) -> None:
    schema = Schema.of({"a": INT64, "b": TEXT, "c": ColumnType.parse("list<text>"), "d": FLOAT64})
    made = store(tmp_path / "out", [Batch.empty(schema)] * 3, ranks=ranks)
    assert (made.rows, made.shards, made.segments) == (0, (), ())
    table = StoredTable.open(tmp_path / "out")
    assert [table[n][:].tolist() for n in table] == [[]] * 4
    assert table["b"].dtype == object and list(table.batches()) == []
    digest(table)


def test_no_columns(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch({}, 7), Batch({}, 3)])
    table = StoredTable.open(tmp_path / "out")
    assert len(table) == 10 and sum(b.nrows for b in table.batches(batch_rows=4)) == 10


def test_shards_are_as_few_as_promised(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def strings(longest: int) -> BytesColumn:
        return BytesColumn.from_list([b"x" * int(n) for n in rng.integers(0, longest, 40)], True)

    pieces = [Batch({"w": strings(2000 if i % 3 else 10), "v": strings(30)}) for i in range(60)]
    nbytes = 200_000
    made = store(tmp_path / "out", pieces, shard_nbytes=nbytes)
    assert 1 < len(made.shards) <= 1 + made.nbytes // nbytes
    assert all(s.nbytes >= nbytes for s in made.shards[:-1])
    StoredTable.open(tmp_path / "out").verify()


def test_full_shards_of_fixed_columns_are_exact(tmp_path: Path) -> None:
    """Nothing is moved, and no hole stays, where the number of rows was known."""
    batch = Batch.of({"a": np.arange(100_000), "b": np.arange(100_000) / 7})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpcmr.store.files.move_bytes", lambda *a: pytest.fail("bytes were moved"))
        made = store(tmp_path / "out", [batch.slice(i, i + 1000) for i in range(0, 100_000, 1000)], shard_nbytes=800_000)
    assert [s.rows for s in made.shards] == [50_000, 50_000]
    assert all(s.nbytes < 800_000 + 20_000 for s in made.shards)


def test_one_record_longer_than_a_shard(tmp_path: Path) -> None:
    pieces = [Batch.of({"s": ["a" * 5, "b"]}), Batch.of({"s": ["c" * 3_000_000]}), Batch.of({"s": ["d", "e" * 100]})]
    store(tmp_path / "out", pieces, shard_nbytes=100_000)
    assert [len(s) for s in StoredTable.open(tmp_path / "out")["s"][:]] == [5, 1, 3_000_000, 1, 100]


def test_strings_that_get_shorter_after_the_plan(tmp_path: Path) -> None:
    pieces = [Batch.of({"s": ["x" * 3000] * 200, "n": np.arange(200)})] + [Batch.of({"s": ["y"] * 2000, "n": np.arange(2000)})] * 60
    made = store(tmp_path / "out", pieces, shard_nbytes=1_500_000)
    table = StoredTable.open(tmp_path / "out")
    table.verify()
    assert table.rows == 200 + 120_000 and table["n"][200:2200].tolist() == list(range(2000)) and table["s"][-1] == "y"
    assert all(s.nbytes >= 1_500_000 for s in made.shards[:-1])


def test_equal_content_gives_an_equal_digest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 70_000
    batch = Batch.of({"a": np.ma.MaskedArray(rng.integers(0, 9, n), rng.random(n) < 0.1), "w": ["w" * int(k) for k in rng.integers(0, 9, n)],
                      "l": [[1, 2][:int(k)] for k in rng.integers(0, 3, n)]})
    found = set()
    for i, (step, size, ranks) in enumerate([(n, 1 << 20, 1), (999, 100_000, 1), (5000, 1 << 30, 3)]):
        store(tmp_path / f"o{i}", [batch.slice(a, a + step) for a in range(0, n, step)], ranks=ranks, shard_nbytes=size)
        found.add(digest(StoredTable.open(tmp_path / f"o{i}")))
    assert len(found) == 1


def test_digest_tells_contents_apart(tmp_path: Path) -> None:
    variants = [{"a": [1, 2, 3]}, {"a": [1, 3, 2]}, {"b": [1, 2, 3]}, {"a": np.array([1, 2, 3], "i4")}, {"a": [1.0, 2.0, 3.0]}, {"a": [1, 2]},
                {"a": ["1", "2", "3"]}, {"a": ["12", "", "3"]}, {"a": [b"1", b"2", b"3"]}, {"a": [1, None, 3]}, {"a": [1, 0, 3]},
                {"a": [[1, 2], [3]]}, {"a": [[1], [2, 3]]}, {"a": np.array([[1, 2, 3]])}, {"a": [0.0]}, {"a": [-0.0]},
                {"a": [1, 2, 3], "b": [1, 2, 3]}]
    found = []
    for i, v in enumerate(variants):
        store(tmp_path / str(i), [Batch.of(v)])
        found.append(digest(StoredTable.open(tmp_path / str(i))))
    assert len(set(found)) == len(found)


def naive_streams(values: list[object], kind: ColumnType) -> list[bytes]:
    """The streams of a column in a block, by the words of docs/reference/digest.md."""
    streams = [bytes(v is not None for v in values)]
    if kind.is_fixed:
        return [*streams, b"".join(np.array(0 if v is None else v, kind.np_dtype).tobytes() for v in values)]
    rows = [() if v is None else v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values]
    streams.append(struct.pack(f"<{len(rows)}q", *[len(r) for r in rows]))             # type: ignore[arg-type]
    if kind.item is None:
        return [*streams, b"".join(map(bytes, rows))]                                  # type: ignore[arg-type]
    return streams + naive_streams([x for r in rows for x in r], kind.item)            # type: ignore[attr-defined]


def test_digest_as_the_reference_defines_it(tmp_path: Path) -> None:
    n = 65536 + 3
    batch = Batch.of({"v": [math.sqrt(i) for i in range(n)], "word": [f"w{i % 7}" if i % 5 else None for i in range(n)],
                      "l": [["a", "\udcff"][:i % 3] if i % 11 else None for i in range(n)], "gap": [None if i == 65_534 else i for i in range(n)]})
    store(tmp_path / "out", [batch.slice(a, a + 7000) for a in range(0, n, 7000)], shard_nbytes=300_000)
    data = b"hpcmr-digest-1\n" + struct.pack("<QQ", 4, n)
    for f in batch.schema:
        for text in (f.name, str(f.type)):
            data += struct.pack("<Q", len(text.encode())) + text.encode()
    values = batch.to_pydict()
    for a, b in ((0, 65536), (65536, n)):
        for f in batch.schema:
            data += b"".join(map(xxhash.xxh3_128_digest, naive_streams(values[f.name][a:b], f.type)))
    assert digest(StoredTable.open(tmp_path / "out")) == f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    schema = Schema.of({"x": INT64})
    table = TableWriter(tmp_path / "out", 0, schema, attempt="t")
    with pytest.raises(DataError, match="x: float64"):
        table.append(0, Batch.of({"x": [1.0]}))
    table.append(3, Batch.of({"x": [1]}))
    with pytest.raises(ConservationError, match="piece 2"):
        table.append(2, Batch.of({"x": [1]}))
    table.abandon()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="attempt"):
        TableWriter(tmp_path / "out", 0, schema, attempt="../x")
    with pytest.raises(DataError, match="rename"):
        TableWriter(tmp_path / "out", 0, Schema.of({"\ud800": INT64}), attempt="t")
    with pytest.raises(Refused, match="does not end in a name"):
        TableWriter(Path("/"), 0, schema, attempt="x")


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"b": [1], "a": [2]})], schema=Schema.of({"a": INT64, "b": INT64}))
    table = StoredTable.open(tmp_path / "out")
    assert (table.columns, table["a"][0], table["b"][0]) == (("a", "b"), 2, 1)
