"""HDF5 read in any splits and batches gives the rows that h5py gives."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.data.source import Split
from hpcmr.errors import DataError, JobSpecError
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.io.hdf5_layout import Axis, Raw, Stored

NUMBERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
TYPES = ["?", "S5", *(order + t for t in NUMBERS for order in "<>")]
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {}, "chunked": {"chunks": 7}, "gzip": {"chunks": 7, "compression": "gzip"},
    "lzf": {"chunks": 16, "compression": "lzf", "shuffle": True},
    "fletcher": {"chunks": 5, "fletcher32": True}, "lz4": {"chunks": 7, **hdf5plugin.LZ4()},
}


def read(source: Hdf5Source) -> tuple[Schema, list[Split], dict[str, list[Any]]]:
    """Rows as Python values, read by another object as another rank would, the last split first."""
    schema, splits = source.survey()
    assert [s.index for s in splits] == list(range(len(splits)))
    other: Hdf5Source = pickle.loads(pickle.dumps(source))
    other.adopt(schema, pickle.loads(pickle.dumps(splits)))
    got: dict[int, list[Batch]] = {}
    for split in reversed(splits):
        got[split.index] = []
        for batch in other.read(split):
            batch.check(schema)
            assert batch.nrows > 0
            got[split.index].append({n: list(v) for n, v in batch.to_pydict().items()})    # type: ignore[arg-type]
    other.close()
    rows: dict[str, list[Any]] = {n: [] for n in schema.names}
    for split in splits:
        for values in got[split.index]:
            for name in rows:
                rows[name].extend(values[name])      # type: ignore[index]
    return schema, splits, rows


def random_values(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Any bit patterns, NaN and infinities among the floats; bool is 0 or 1, strings have no NUL."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "S":
        return np.array([bytes(rng.integers(1, 256, rng.integers(0, dtype.itemsize + 1), np.uint8)) for _ in range(count)], dtype).reshape(shape)
    return rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype).reshape(shape)


def same(got: list[Any], expected: NDArray[Any]) -> bool:
    """Equal bit for bit, but for which NaN."""
    native = expected.astype(expected.dtype.newbyteorder("=")) if expected.dtype.kind != "S" else expected
    values = np.array(got, native.dtype).reshape(native.shape)
    return bool(np.array_equal(values, native, equal_nan=native.dtype.kind in "fc"))


@given(st.sampled_from(TYPES), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 60), st.sampled_from([(), (3,), (2, 2), (0,)]),
       st.integers(1, 400), st.integers(1, 200))
def test_any_type_in_any_layout(tmp_path: Path, code: str, layout: str, n: int, shape: tuple[int, ...], split_nbytes: int, batch_nbytes: int) -> None:
    dtype = np.dtype(code)
    a, b = random_values(dtype, (n, *shape), 1), np.arange(n, dtype=np.int32)
    options = dict(LAYOUTS[layout])
    if n * int(np.prod(shape)) == 0:
        options = {}
    elif "chunks" in options:
        options["chunks"] = (min(n, options["chunks"]), *((1, *shape[1:]) if shape else ()))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("g/a", data=a, **options)
        file.create_dataset("g/b", data=b)
    schema, splits, rows = read(Hdf5Source(tmp_path / "a.h5", "g", split_nbytes=split_nbytes, batch_nbytes=batch_nbytes))
    assert schema.names == ("a", "b") and schema["a"].type.shape == shape
    assert rows["b"] == b.tolist()
    assert same(rows["a"], a)
    assert sum(s.nbytes for s in splits) == n * max(1, a.itemsize * int(np.prod(shape)) + 4)


def test_contiguous_native_rows_need_no_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        for code in TYPES:
            file[f"t{TYPES.index(code):02d}"] = np.zeros(9, code)
        file["z"] = h5py.SoftLink("t03")
    _, (split,) = Hdf5Source(tmp_path / "a.h5").survey()
    assert all(isinstance(s.node, Raw) for s in split.part[0][0].sets)
    assert read(Hdf5Source(tmp_path / "a.h5"))[2]["t00"] == [False] * 9


def test_rows_with_a_user_block(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file["x"] = np.arange(100)
    assert read(Hdf5Source(tmp_path / "a.h5", split_nbytes=64))[2]["x"] == list(range(100))


def test_rows_that_were_never_written_are_the_fill_value_that_the_file_declares(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("c", (10,), "f4", fillvalue=7)
        file.create_dataset("k", (10,), "i8", chunks=(4,), fillvalue=-1)[2:5] = 3
    rows = read(Hdf5Source(tmp_path / "a.h5"))[2]
    assert rows["c"] == [7.0] * 10 and rows["k"] == [-1, -1, 3, 3, 3, -1, -1, -1, -1, -1]


def test_strings_of_every_kind(tmp_path: Path) -> None:
    words = ["", "a", "naïve", "x" * 300, "b"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("var_text", data=words, dtype=h5py.string_dtype())
        file.create_dataset("var_bytes", data=[w.encode() for w in words], dtype=h5py.string_dtype("ascii"), chunks=(2,), compression="gzip")
        file.create_dataset("fix_text", data=[w[:6].encode() for w in words], dtype=h5py.string_dtype("utf-8", 7))
        file.create_dataset("fix_bytes", data=np.array([b"", b"ab", b"a\0b", b"abc", b"\xff"], "S3"))
        file.create_dataset("unset", (5,), dtype=h5py.string_dtype())
        space = h5py.h5t.TypeID.copy(h5py.h5t.C_S1)
        space.set_size(4)
        space.set_strpad(h5py.h5t.STR_SPACEPAD)
        h5py.h5d.create(file.id, b"spaces", space, h5py.h5s.create_simple((5,))).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.array([b"ab  ", b"    ", b" a  ", b"abcd", b"x   "], "S4"), space)
    schema, _, rows = read(Hdf5Source(tmp_path / "a.h5", split_nbytes=100, batch_nbytes=60))
    assert {f.name: str(f.type) for f in schema} == {"var_text": "text", "var_bytes": "bytes", "fix_text": "text", "fix_bytes": "S3",
                                                     "unset": "text", "spaces": "S4"}
    assert rows["var_text"] == words and rows["var_bytes"] == [w.encode() for w in words]
    assert rows["fix_text"] == [w[:6] for w in words]
    assert rows["fix_bytes"] == [b"", b"ab", b"a\0b", b"abc", b"\xff"]
    assert rows["unset"] == [""] * 5
    assert rows["spaces"] == [b"ab", b"", b" a", b"abcd", b"x"]


def test_long_strings_make_small_splits(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("s", data=["x" * 10_000] * 50, dtype=h5py.string_dtype())
    _, splits, rows = read(Hdf5Source(tmp_path / "a.h5", split_nbytes=100_000))
    assert len(splits) >= 5 and rows["s"] == ["x" * 10_000] * 50


def test_bool_with_other_bytes_than_0_and_1(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.array([True, False, True, True])
        offset = file["x"].id.get_offset()
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    raw[offset:offset + 4] = b"\x02\x00\xff\x01"
    (tmp_path / "a.h5").write_bytes(raw)
    source = Hdf5Source(tmp_path / "a.h5")
    schema, splits = source.survey()
    source.adopt(schema, splits)
    (batch,) = source.read(splits[0])
    assert batch["x"].values.view(np.uint8).tolist() == [1, 0, 1, 1]      # type: ignore[union-attr]


def test_enumerations_arrays_lists_and_dates(tmp_path: Path) -> None:
    dates = np.array(["2020-01-01", "2021-02-03", "1969-12-31"], "M8[us]")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("enum", data=[1, 0, 5], dtype=h5py.enum_dtype({"A": 0, "B": 1, "F": 5}, basetype=">i2"))
        file.create_dataset("enum_chunked", data=[1, 0, 5], dtype=h5py.enum_dtype({"A": 0, "B": 1, "F": 5}, basetype=">i2"), chunks=(2,))
        array = file.create_dataset("array", (3, 2), np.dtype((">f4", (2,))))
        array[...] = np.arange(12.0).reshape(3, 2, 2)
        chunked = file.create_dataset("array_chunked", (3, 2), np.dtype((">f4", (2,))), chunks=(2, 1))
        chunked[...] = np.arange(12.0).reshape(3, 2, 2)
        lists = file.create_dataset("list", (3,), h5py.vlen_dtype("i4"))
        lists[0], lists[2] = [1, 2], [3]
        file["date"] = dates.astype(h5py.opaque_dtype(dates.dtype))
        file.create_dataset("date_chunked", data=dates.astype(h5py.opaque_dtype(dates.dtype)), chunks=(2,))
    schema, _, rows = read(Hdf5Source(tmp_path / "a.h5", split_nbytes=60, batch_nbytes=30))
    assert str(schema["enum"].type) == "int16" and rows["enum"] == rows["enum_chunked"] == [1, 0, 5]
    assert schema["array"].type.shape == (2, 2) and rows["array"] == rows["array_chunked"] == np.arange(12.0).reshape(3, 2, 2).tolist()
    assert rows["list"] == [[1, 2], [], [3]]
    assert rows["date"] == rows["date_chunked"] == dates.tolist()


@pytest.mark.parametrize("layout", ["contiguous", "gzip"])
def test_compound(tmp_path: Path, layout: str) -> None:
    kind = np.dtype({"names": ["a", "flag", "p", "s", "c"], "formats": [">i4", "?", ("<f8", (3,)), "S3", "<c16"],
                     "offsets": [1, 6, 8, 40, 48], "itemsize": 70})
    data = np.zeros(50, kind)
    data["a"], data["flag"], data["p"] = np.arange(50), np.arange(50) % 3 == 0, np.arange(150).reshape(50, 3) / 7
    data["s"], data["c"] = [b"%d" % i for i in range(50)], np.arange(50) * 1j
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("t/rec", data=data, **LAYOUTS[layout])
    schema, splits, rows = read(Hdf5Source(tmp_path / "a.h5", "/t/rec", split_nbytes=300, batch_nbytes=200))
    assert schema.names == ("a", "flag", "p", "s", "c") and len(splits) > 3
    assert isinstance(splits[0].part[0][0].sets[0].node, Raw if layout == "contiguous" else Stored)
    for name in schema.names:
        assert rows[name] == data[name].tolist()
    assert read(Hdf5Source(tmp_path / "a.h5", "t/rec", ["c", "a"]))[0].names == ("c", "a")


def test_compound_with_strings(tmp_path: Path) -> None:
    kind = np.dtype([("n", "i8"), ("s", h5py.string_dtype()), ("skip", h5py.string_dtype())])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rec"] = np.array([(i, "é" * i, "?") for i in range(10)], kind)
    rows = read(Hdf5Source(tmp_path / "a.h5", "rec", ["s", "n"], split_nbytes=200, batch_nbytes=100))[2]
    assert rows == {"s": ["é" * i for i in range(10)], "n": list(range(10))}


def test_a_single_data_set_is_a_column(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x/values"] = np.arange(6).reshape(3, 2)
    schema, _, rows = read(Hdf5Source(tmp_path / "a.h5", "/x/values"))
    assert schema.names == ("values",) and rows["values"] == [[0, 1], [2, 3], [4, 5]]


def test_columns_are_in_the_order_asked_else_of_creation_else_by_name(tmp_path: Path) -> None:
    for kept in (False, True):
        with h5py.File(tmp_path / f"{kept}.h5", "w") as file:
            group = file.create_group("g", track_order=kept)
            for name in "bca":
                group[name] = np.zeros(2)
            group.create_group("sub")
    assert read(Hdf5Source(tmp_path / "False.h5", "g"))[0].names == ("a", "b", "c")
    assert read(Hdf5Source(tmp_path / "True.h5", "g"))[0].names == ("b", "c", "a")
    assert read(Hdf5Source(tmp_path / "True.h5", "g", ["c", "b"]))[0].names == ("c", "b")


def make_parts(folder: Path, sizes: list[int]) -> list[int]:
    first = 0
    for i, n in enumerate(sizes):
        with h5py.File(folder / f"p{i:02d}.h5", "w") as file:
            file["g/x"] = np.arange(first, first + n)
            file["g/x"].attrs["units"] = "m"
            file["g/x"].attrs["time"] = i
            file.create_dataset("g/s", data=[f"r{k}" for k in range(n)], dtype=h5py.string_dtype())
            file.create_group("Header").attrs["z"] = 0.5 * i
            file["Header"].attrs["label"] = f"part {i}"
            file["Header"].attrs["box"] = np.array([i, 2, 3], ">i4")
        first += n
    return list(range(first))


def test_many_files_with_file_row_and_attributes(tmp_path: Path) -> None:
    sizes = [5, 0, 1, 40, 3, 7]
    expected = make_parts(tmp_path, sizes)
    attrs = {"z": "/Header@z", "label": "Header@label", "box": "/Header@box"}
    for split_nbytes, batch_nbytes in ((1 << 20, 1 << 20), (1 << 20, 300), (400, 100), (1, 1)):
        source = Hdf5Source(tmp_path / "p*.h5", "g", file="doc", row="i", attrs=attrs, split_nbytes=split_nbytes, batch_nbytes=batch_nbytes)
        schema, splits, rows = read(source)
        assert schema.names == ("s", "x", "doc", "i", "z", "label", "box")
        assert dict(schema["x"].attrs) == {"units": "m"}          # `time` differs from file to file
        assert rows["x"] == expected
        assert rows["i"] == [k for n in sizes for k in range(n)] and rows["s"] == [f"r{k}" for k in rows["i"]]
        part = [i for i, n in enumerate(sizes) for _ in range(n)]
        assert rows["doc"] == [str(tmp_path / f"p{i:02d}.h5") for i in part]
        assert rows["z"] == [0.5 * i for i in part] and rows["label"] == [f"part {i}" for i in part] and rows["box"] == [[i, 2, 3] for i in part]
    assert len(Hdf5Source(tmp_path, "g").survey()[1]) == 1
    assert "6" not in Path(splits[0].where).name and splits[0].where.endswith("p00.h5[0:1]")


def test_no_rows_is_no_split(tmp_path: Path) -> None:
    make_parts(tmp_path, [0, 0])
    schema, splits, _ = read(Hdf5Source(tmp_path, "g"))
    assert schema.names == ("s", "x") and splits == []


def test_splits_begin_at_chunks_and_are_cut_from_the_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(1000), chunks=(64,), compression="gzip")
        file["y"] = np.arange(1000)
    _, splits, rows = read(Hdf5Source(tmp_path / "a.h5", split_nbytes=1000 * 16 // 7 + 1, batch_nbytes=1000))
    starts = [s.part[0][1] for s in splits]
    assert len(starts) == 7 and all(a % 64 == 0 for a in starts) and rows["x"] == rows["y"] == list(range(1000))
    whole = read(Hdf5Source(tmp_path / "a.h5", split_nbytes=16))
    assert len(whole[1]) == 16 and whole[2]["x"] == list(range(1000))


def test_attributes_are_carried_as_plain_values(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=np.arange(3.0))
        x.attrs["units"] = "km/s"
        x.attrs["old"] = np.bytes_(b"erg")
        x.attrs["scale"] = np.float32(0.5)
        x.attrs["range"] = [1, 2]
        x.attrs["names"] = ["a", "b"]
        x.attrs["ref"] = x.ref
        x.attrs["empty"] = h5py.Empty("f4")
        x.attrs["big"] = np.zeros(100)
        x.make_scale("x")
    (field,) = Hdf5Source(tmp_path / "a.h5").survey()[0]
    assert dict(field.attrs) == {"units": "km/s", "old": "erg", "scale": 0.5, "range": [1, 2], "names": ["a", "b"]}
    assert Schema.from_json(Schema((field,)).to_json())["x"].attrs == field.attrs


def test_buffers_are_used_again(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(1000)
    source = Hdf5Source(tmp_path / "a.h5", split_nbytes=4000, batch_nbytes=800)
    schema, splits = source.survey()
    source.adopt(schema, splits)
    places = {batch["x"].values.ctypes.data for split in splits for batch in source.read(split)}       # type: ignore[union-attr]
    assert len(places) == 1
    one, other = source.read(splits[0]), source.read(splits[1])
    a, b = next(one)["x"].values, next(other)["x"].values                                               # type: ignore[union-attr]
    assert a[0] == 0 and b[0] == splits[1].part[0][1]


def test_files_that_changed_meanwhile(tmp_path: Path) -> None:
    for chunks in (None, (4,)):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=np.arange(10), chunks=chunks)
        source = Hdf5Source(path)
        schema, splits = source.survey()
        source.adopt(schema, splits)
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(DataError, match="has changed since the job began: it had"):
            list(source.read(splits[0]))
        path.unlink()
        with pytest.raises(DataError, match="has vanished"):
            list(source.read(splits[0]))


def test_damaged_chunks_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(1000), chunks=(100,), compression="gzip", fletcher32=True)
        place = file["x"].id.get_chunk_info(3).byte_offset
    raw = bytearray(path.read_bytes())
    raw[place + 5] ^= 0x10
    path.write_bytes(raw)
    source = Hdf5Source(path, batch_nbytes=800)
    schema, splits = source.survey()
    source.adopt(schema, splits)
    with pytest.raises(DataError, match=r"data set '/x' of .*a.h5' cannot be read from row 300 on.*damaged"):
        list(source.read(splits[0]))


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 4), st.integers(1, 3), st.integers(0, 30))
def test_places_of_an_axis(start: int, stride: int, blocks: int, block: int, at: int) -> None:
    axis = Axis(start, max(stride, block), blocks, block)
    places = [start + i * axis.stride + k for i in range(blocks) for k in range(block)]
    assert axis.places(0, axis.size).tolist() == places
    assert axis.before(at) == sum(p < at for p in places)
    assert axis.stop == (places[-1] + 1 if places else start)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="two columns are called 'x'"):
        Hdf5Source("a.h5", columns=["x"], row="x")
    with pytest.raises(JobSpecError, match=r"give a list: columns=\['x'\]"):
        Hdf5Source("a.h5", columns="x")
    with pytest.raises(JobSpecError, match="names no column"):
        Hdf5Source("a.h5", columns=[])
    with pytest.raises(JobSpecError, match="no attribute behind an @"):
        Hdf5Source("a.h5", attrs={"z": "/Header/Redshift"})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(JobSpecError, match="two columns are called 'x'"):
        Hdf5Source(tmp_path / "a.h5", file="x").survey()


def test_bench_reads_what_it_wrote() -> None:
    from argparse import Namespace

    from hpcmr.cli.bench import BENCHES

    figures = BENCHES["read"].function(Namespace(size=1 << 20, repeat=1))
    assert [unit for _, _, unit in figures] == ["GB/s of all ranks"] * 2 + ["%"] and all(value > 0 for _, value, _ in figures)


def test_follow_reaches_the_source(tmp_path: Path) -> None:
    import hpcmr

    (tmp_path / "away").mkdir()
    (tmp_path / "here").mkdir()
    with h5py.File(tmp_path / "away" / "x.h5", "w") as file:
        file["x"] = [1, 2]
    with h5py.File(tmp_path / "here" / "m.h5", "w") as file:
        file["x"] = h5py.ExternalLink("../away/x.h5", "x")
    table = hpcmr.read_hdf5(tmp_path / "here", follow=tmp_path / "away")
    assert table._node.source.survey()[0].names == ("x",)       # type: ignore[attr-defined]
