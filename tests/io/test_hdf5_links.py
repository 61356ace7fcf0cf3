"""Masters: links and virtual data sets are followed natively, beside the master only, and nothing missing becomes a fill value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.errors import DataError, InputError
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.io.hdf5_layout import Raw, Virtual
from tests.io.test_hdf5 import read


def write(path: Path, name: str, data: Any, **options: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=data, **options)


def master(path: Path, name: str, layout: h5py.VirtualLayout) -> None:
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(name, layout, fillvalue=-99)


def test_soft_and_external_links(tmp_path: Path) -> None:
    write(tmp_path / "data" / "one.h5", "deep/x", np.arange(5))
    write(tmp_path / "m.h5", "own/y", np.arange(5) * 2)
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file["own/deep"] = h5py.ExternalLink("data/one.h5", "/deep")
        file["all/x"] = h5py.ExternalLink("data/one.h5", "deep/x")
        file["all/y"] = h5py.SoftLink("/own/y")
        file["all/w"] = h5py.SoftLink("/own/deep/x")
        file["alias"] = h5py.SoftLink("all")
    expected = {"w": list(range(5)), "x": list(range(5)), "y": list(range(0, 10, 2))}
    assert read(Hdf5Source(tmp_path / "m.h5", "all"))[2] == expected
    assert read(Hdf5Source(tmp_path / "m.h5", "/alias", ["x"]))[2] == {"x": expected["x"]}
    assert read(Hdf5Source(tmp_path / "m.h5", "/own/deep/x"))[2] == {"x": expected["x"]}


def test_a_master_that_was_moved_with_its_files(tmp_path: Path) -> None:
    write(tmp_path / "part.h5", "x", [1, 2])
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = h5py.ExternalLink("/an/old/place/part.h5", "x")
    assert read(Hdf5Source(tmp_path / "m.h5"))[2]["x"] == [1, 2]


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "part.h5", "x", [1, 2])
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["soft/x"] = h5py.SoftLink("/gone")
        file["file/x"] = h5py.ExternalLink("gone.h5", "x")
        file["object/x"] = h5py.ExternalLink("part.h5", "gone")
        file["loop"] = h5py.SoftLink("/loop2")
        file["loop2"] = h5py.SoftLink("/loop")
    for group, what in (("soft", "the link '/soft/x' of .*m.h5' leads to '/gone', which is not in"), ("file", "gone.h5', and there is no such file"),
                        ("object", "leads to '/gone', which is not in .*part.h5'"), ("loop", "links that lead to one another")):
        for columns in (None, ["x"]):
            with pytest.raises(InputError, match=what):
                Hdf5Source(tmp_path / "m.h5", group, columns).survey()


def test_other_folders_need_follow(tmp_path: Path) -> None:
    write(tmp_path / "away" / "part.h5", "x", [1, 2])
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link.h5").symlink_to(tmp_path / "away" / "part.h5")
    layout = h5py.VirtualLayout((2,), "i8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "away" / "part.h5"), "x", (2,))
    master(tmp_path / "here" / "m.h5", "virtual/x", layout)
    with h5py.File(tmp_path / "here" / "m.h5", "a") as file:
        file["up/x"] = h5py.ExternalLink("../away/part.h5", "x")
        file["absolute/x"] = h5py.ExternalLink(str(tmp_path / "away" / "part.h5"), "x")
        file["symlink/x"] = h5py.ExternalLink("link.h5", "x")
        file["passwd/x"] = h5py.ExternalLink("/etc/passwd", "x")
    for group in ("up", "absolute", "symlink", "virtual"):
        with pytest.raises(InputError, match=r"outside the folder .*here'; if that is meant, allow it with follow=\['.*away'\]"):
            Hdf5Source(tmp_path / "here" / "m.h5", group).survey()
        assert read(Hdf5Source(tmp_path / "here" / "m.h5", group, follow=[tmp_path / "away"]))[2]["x"] == [1, 2]
    with pytest.raises(InputError, match="outside"):
        Hdf5Source(tmp_path / "here" / "m.h5", "passwd").survey()
    (tmp_path / "m.h5").symlink_to(tmp_path / "here" / "m.h5")
    assert read(Hdf5Source(tmp_path / "m.h5", "up", follow=[tmp_path / "away"]))[2]["x"] == [1, 2]


def external(path: Path, values: Any, *parts: tuple[Path | str, int, int]) -> Path:
    """A data set whose values HDF5 writes into other files."""
    with h5py.File(path, "w") as file:
        file.create_dataset("g/x", values.shape, values.dtype, external=[(str(name), at, n) for name, at, n in parts])[...] = values
    return path


def test_external_storage_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)         # HDF5 takes names from there, hpcmr from the folder of the file
    values = np.arange(60, dtype=">f4").reshape(20, 3)
    one = external(tmp_path / "one.h5", values, ("one.raw", 100, 240))
    two = external(tmp_path / "two.h5", values, ("a.raw", 0, 96), (tmp_path / "b.raw", 8, h5py.h5f.UNLIMITED))
    records = np.array([(i, i / 7) for i in range(9)], [("a", "<i4"), ("b", ">f8")])
    three = external(tmp_path / "three.h5", records, ("c.raw", 0, 48), ("d.raw", 5, 60))
    for path in (one, two):
        for split_nbytes in (1 << 20, 50):
            _, splits = Hdf5Source(path, "g", split_nbytes=split_nbytes).survey()
            assert np.array_equal(read(Hdf5Source(path, "g", split_nbytes=split_nbytes))[2]["x"], values)
        assert isinstance(splits[0].part[0][0].sets[0].node, Raw | Virtual)
    assert read(Hdf5Source(three, "g/x", ["b", "a"], split_nbytes=70))[2] == {"b": records["b"].tolist(), "a": records["a"].tolist()}
    layout = h5py.VirtualLayout((20, 3), ">f4")
    layout[:] = h5py.VirtualSource("two.h5", "g/x", (20, 3))
    master(tmp_path / "m.h5", "x", layout)
    assert np.array_equal(read(Hdf5Source(tmp_path / "m.h5"))[2]["x"], values)


def test_external_storage_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    values, away = np.arange(20), tmp_path / "away"
    for path, where, what in ((external(tmp_path / "here" / "a.h5", values, (away / "a.raw", 0, 160)), "away/a.raw", "outside the folder"),
                              (external(tmp_path / "here" / "b.h5", values, ("here/c.raw", 0, 160)), "", "there is no such file"),
                              (external(tmp_path / "d.h5", values, ("d.raw", 0, 84), ("e.raw", 0, 160)), "", "begins in .*d.raw' and ends"),
                              (external(tmp_path / "f.h5", values.astype("u1"), ("/dev/null", 0, 20)), "", "leads to '/dev/null', outside")):
        with pytest.raises(InputError, match=rf"'/g/x' of .*\.h5', which keeps its values in other files.*{where}.*{what}"):
            Hdf5Source(path, "g").survey()
    assert read(Hdf5Source(tmp_path / "here" / "a.h5", "g", follow=[tmp_path / "away"]))[2]["x"] == values.tolist()
    short = external(tmp_path / "s.h5", values, ("s.raw", 0, 160))
    (tmp_path / "s.raw").write_bytes(b"x" * 159)
    with pytest.raises(InputError, match=r"wants bytes 0 to 160 of .*s.raw', which has 159"):
        Hdf5Source(short, "g").survey()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([(), (3,)]), st.booleans(), st.integers(1, 200), st.integers(1, 200))
def test_virtual_files_one_behind_the_other(tmp_path: Path, sizes: list[int], shape: tuple[int, ...], chunked: bool,
                                            split_nbytes: int, batch_nbytes: int) -> None:
    for old in tmp_path.glob("*.h5"):
        old.unlink()
    whole = np.arange(sum(sizes) * int(np.prod(shape)), dtype=">f4").reshape(-1, *shape)
    layout, first = h5py.VirtualLayout(whole.shape, "f8"), 0
    for i, n in enumerate(sizes):
        options = {"chunks": (min(2, n), *shape), "compression": "gzip"} if chunked and n else {}
        write(tmp_path / f"100%{i}.h5", "g/x", whole[first:first + n].astype("f8" if i % 2 else ">f4"), **options)
        if n:
            layout[first:first + n] = h5py.VirtualSource(f"100%%{i}.h5", "g/x", (n, *shape))
        first += n
    master(tmp_path / "m.h5", "x", layout)
    schema, splits, rows = read(Hdf5Source(tmp_path / "m.h5", split_nbytes=split_nbytes, batch_nbytes=batch_nbytes))
    assert str(schema["x"].type).startswith("float64") and np.array_equal(np.array(rows["x"]).reshape(whole.shape), whole)
    if len(splits) > 2 and len(sizes) > 2:
        assert max(len(s.part[0][0].sets[0].node.mappings) for s in splits) <= len([n for n in sizes if n])


def test_virtual_sources_are_read_directly(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((1000,), "f8")
    for i in range(10):
        write(tmp_path / f"p{i}.h5", "x", np.arange(100.0) + 100 * i)
        layout[100 * i:100 * i + 100] = h5py.VirtualSource(tmp_path / f"p{i}.h5", "x", (100,))
    master(tmp_path / "m.h5", "x", layout)
    _, splits, rows = read(Hdf5Source(tmp_path / "m.h5", split_nbytes=1000))
    assert rows["x"] == list(range(1000))
    for split in splits:
        node = split.part[0][0].sets[0].node
        assert isinstance(node, Virtual) and len(node.mappings) <= 3 and all(isinstance(m.source, Raw) for m in node.mappings)


def test_virtual_selections_of_every_regular_kind(tmp_path: Path) -> None:
    a, b = np.arange(24).reshape(6, 4), np.arange(100, 124).reshape(6, 4)
    write(tmp_path / "a.h5", "x", a)
    write(tmp_path / "b.h5", "x", b, chunks=(2, 2))
    write(tmp_path / "line.h5", "x", np.arange(12) * 10)
    one, two, line = (h5py.VirtualSource(tmp_path / f"{n}.h5", "x", s) for n, s in (("a", (6, 4)), ("b", (6, 4)), ("line", (12,))))

    interleaved = h5py.VirtualLayout((12, 4), "i8")
    interleaved[0::2], interleaved[1::2] = one, two
    beside = h5py.VirtualLayout((6, 8), "i8")
    beside[:, :4], beside[:, 4:] = one, two
    stacked = h5py.VirtualLayout((2, 6, 4), "i8")
    stacked[0], stacked[1] = one, two
    column = h5py.VirtualLayout((6,), "i8")
    column[:] = one[:, 2]
    thinned = h5py.VirtualLayout((3, 2), "i8")
    thinned[:] = two[::2, 1::2]
    across = h5py.VirtualLayout((6, 2), "i8")
    across[:, 0], across[:, 1] = line[:6], line[6:]
    halves = h5py.VirtualLayout((12,), "i8")
    halves[:6], halves[6:] = line[6:], line[:6]
    one_row = h5py.VirtualLayout((4,), "i8")
    one_row[:] = one[3, :]
    expected = {"interleaved": np.stack([a, b], 1).reshape(12, 4), "beside": np.hstack([a, b]), "stacked": np.stack([a, b]), "column": a[:, 2],
                "thinned": b[::2, 1::2], "across": np.stack([np.arange(6) * 10, np.arange(6, 12) * 10], 1),
                "halves": np.roll(np.arange(12) * 10, 6), "one_row": a[3]}
    for name, values in expected.items():
        master(tmp_path / "m.h5", name, locals()[name])
        for split_nbytes, batch_nbytes in ((1 << 20, 1 << 20), (70, 40), (1, 1)):
            rows = read(Hdf5Source(tmp_path / "m.h5", name, split_nbytes=split_nbytes, batch_nbytes=batch_nbytes))[2]
            assert rows[name] == values.tolist(), name


def test_virtual_blocks_with_gaps_between_them(tmp_path: Path) -> None:
    """Selections of several blocks that h5py's slices cannot express."""
    write(tmp_path / "a.h5", "x", np.arange(20))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        for start in (0, 2):
            target, source = h5py.h5s.create_simple((12,)), h5py.h5s.create_simple((20,))
            target.select_hyperslab((start,), (3,), (4,), (2,))
            source.select_hyperslab((start * 4,), (3,), (3,), (2,))
            plist.set_virtual(target, b"a.h5", b"x", source)
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((12,)), plist)
        expected = file["x"][:].tolist()
    assert sorted(expected) == sorted([0, 1, 3, 4, 6, 7, 8, 9, 11, 12, 14, 15])
    for batch_nbytes in (1 << 20, 40, 8):
        assert read(Hdf5Source(tmp_path / "m.h5", batch_nbytes=batch_nbytes))[2]["x"] == expected


def test_virtual_strings_records_and_masters_of_masters(tmp_path: Path) -> None:
    kind = np.dtype([("a", "i4"), ("b", "f8")])
    words, records = h5py.VirtualLayout((6,), h5py.string_dtype()), h5py.VirtualLayout((6,), kind)
    for i in range(2):
        write(tmp_path / f"{i}.h5", "s", [f"é{i}{k}" for k in range(3)], dtype=h5py.string_dtype())
        write(tmp_path / f"{i}.h5", "r", np.array([(i, k) for k in range(3)], kind))
        words[3 * i:3 * i + 3] = h5py.VirtualSource(f"{i}.h5", "s", (3,))
        records[3 * i:3 * i + 3] = h5py.VirtualSource(f"{i}.h5", "r", (3,))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_virtual_dataset("s", words)
        file.create_virtual_dataset("r", records)
    top = h5py.VirtualLayout((4,), h5py.string_dtype())
    top[:] = h5py.VirtualSource("m.h5", "s", (6,))[1:5]
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file.create_virtual_dataset("s", top)
    assert read(Hdf5Source(tmp_path / "m.h5", "s", batch_nbytes=100))[2]["s"] == [f"é{i}{k}" for i in range(2) for k in range(3)]
    assert read(Hdf5Source(tmp_path / "m.h5", "r", ["b", "a"], batch_nbytes=24))[2] == {"b": [0.0, 1.0, 2.0] * 2, "a": [0, 0, 0, 1, 1, 1]}
    assert read(Hdf5Source(tmp_path / "top.h5"))[2]["s"] == ["é01", "é02", "é10", "é11"]


def endless(path: Path, pattern: bytes, block: int) -> None:
    """A virtual data set without end, of one file for each block."""
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        target = h5py.h5s.create_simple((block,), (h5py.h5s.UNLIMITED,))
        target.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (block,), (block,))
        plist.set_virtual(target, pattern, b"x", h5py.h5s.create_simple((block,)))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((0,), (h5py.h5s.UNLIMITED,)), plist)


def test_virtual_with_numbered_files(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"f-{i}.h5", "x", np.arange(4) + 4 * i)
    endless(tmp_path / "m.h5", b"f-%b.h5", 4)
    assert read(Hdf5Source(tmp_path / "m.h5", batch_nbytes=24))[2]["x"] == list(range(12))
    (tmp_path / "f-1.h5").unlink()
    with pytest.raises(InputError, match=r"ends where .*f-1.h5' is missing, though there is 'f-2.h5'"):
        Hdf5Source(tmp_path / "m.h5").survey()


def test_virtual_that_grows_with_its_source(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "x", np.arange(7), maxshape=(None,))
    layout = h5py.VirtualLayout((7,), "i8", maxshape=(None,))
    layout[:h5py.h5s.UNLIMITED] = h5py.VirtualSource(tmp_path / "a.h5", "x", (7,), maxshape=(None,))[:h5py.h5s.UNLIMITED]
    master(tmp_path / "m.h5", "x", layout)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["x"].resize((9,))
        file["x"][7:] = [7, 8]
    assert read(Hdf5Source(tmp_path / "m.h5"))[2]["x"] == list(range(9))


def virtual_of(folder: Path, total: int, *parts: tuple[int, str, int]) -> Path:
    layout = h5py.VirtualLayout((total,), "i8")
    for first, name, n in parts:
        layout[first:first + n] = h5py.VirtualSource(name, "x", (n,))
    (folder / "m.h5").unlink(missing_ok=True)
    master(folder / "m.h5", "x", layout)
    return folder / "m.h5"


def test_what_virtual_data_sets_may_lack(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "x", np.arange(4))
    write(tmp_path / "other.h5", "y", np.arange(4))
    write(tmp_path / "text.h5", "x", [b"a"] * 4)
    part = (0, "a.h5", 4)
    for path, what in ((lambda: virtual_of(tmp_path, 8, part, (4, "gone.h5", 4)), "m.h5' leads to .*gone.h5', and there is no such file"),
                       (lambda: virtual_of(tmp_path, 8, part, (4, "other.h5", 4)), "leads to 'x' of .*other.h5', and there is no such data set"),
                       (lambda: virtual_of(tmp_path, 8, (0, "a.h5", 4)), "row 4 and others come from no source"),
                       (lambda: virtual_of(tmp_path, 6, (0, "a.h5", 4), (2, "a.h5", 4)), "from no source, or from two"),
                       (lambda: virtual_of(tmp_path, 9, (0, "a.h5", 9)), "wants more of '/x' of .*a.h5' than there is, its shape is"),
                       (lambda: virtual_of(tmp_path, 4, (0, "text.h5", 4)), "are of different types")):
        with pytest.raises(InputError, match=what):
            Hdf5Source(path()).survey()


def test_a_source_that_vanishes_while_reading(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "x", np.arange(4), chunks=(2,))
    source = Hdf5Source(virtual_of(tmp_path, 4, (0, "a.h5", 4)))
    schema, splits = source.survey()
    source.adopt(schema, splits)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(DataError, match=r"a.h5' was there when the job began and has vanished"):
        list(source.read(splits[0]))


def test_virtual_mappings_that_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", "x", np.arange(6).reshape(2, 3))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_virtual(h5py.h5s.create_simple((3, 2)), b"a.h5", b"x", h5py.h5s.create_simple((2, 3)))
        h5py.h5d.create(file.id, b"turned", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((3, 2)), plist)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        target, source = h5py.h5s.create_simple((4,)), h5py.h5s.create_simple((2, 3))
        source.select_elements([(0, 0), (0, 2), (1, 1), (1, 0)])
        try:
            plist.set_virtual(target, b"a.h5", b"x", source)
            h5py.h5d.create(file.id, b"points", h5py.h5t.NATIVE_INT64, target, plist)
            points = True
        except (ValueError, RuntimeError):
            points = False       # HDF5 itself refuses points
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        target, source = h5py.h5s.create_simple((3,)), h5py.h5s.create_simple((2, 3))
        source.select_hyperslab((0, 0), (1, 1))
        source.select_hyperslab((1, 1), (1, 2), op=h5py.h5s.SELECT_OR)
        plist.set_virtual(target, b"a.h5", b"x", source)
        h5py.h5d.create(file.id, b"irregular", h5py.h5t.NATIVE_INT64, target, plist)
    for name, what in (("turned", r"maps '/x' of .*a.h5' to another shape, \[2, 3\] to \[3, 2\]"), ("irregular", "a mapping of irregular places"),
                       *([("points", "a mapping of irregular places")] if points else [])):
        with pytest.raises(InputError, match=what):
            Hdf5Source(tmp_path / "m.h5", name).survey()


def test_virtual_data_sets_in_a_circle(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        layout = h5py.VirtualLayout((4,), "i8")
        layout[:] = h5py.VirtualSource(f"{there}.h5", "x", (4,))
        master(tmp_path / f"{here}.h5", "x", layout)
    with pytest.raises(InputError, match="perhaps in a circle"):
        Hdf5Source(tmp_path / "a.h5").survey()
