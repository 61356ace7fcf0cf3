"""Each thing that can be wrong with an HDF5 input is one message: what, where, what to do."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from hpcmr.errors import InputError
from hpcmr.io import hdf5_nodes
from hpcmr.io.hdf5 import Hdf5Source


def make(path: Path, **columns: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[f"g/{name}"] = values
    return path


def refused(*args: Any, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        Hdf5Source(*args, **options).survey()
    assert caught.value.exit_code == 2 and not str(caught.value).endswith(".")


def test_no_input(tmp_path: Path) -> None:
    refused(tmp_path / "*.h5", match="no hdf5 input matches")
    refused([], match="no hdf5 input")
    refused(tmp_path / "gone.h5", match="no hdf5 input .*gone.h5'")
    refused(tmp_path, match=r"hold no file named \*.h5")


def test_empty_other_and_truncated_files(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").write_bytes(b"")
    refused(tmp_path / "empty.h5", match=r"empty.h5' is empty \(0 bytes\)")
    (tmp_path / "text.h5").write_text("key,value\n" * 200)
    refused(tmp_path / "text.h5", match="text.h5' is not an HDF5 file: it begins with b'key,valu'; for text use read_text")
    whole = make(tmp_path / "a.h5", x=np.arange(1000)).read_bytes()
    for n in (8, 50, 600, len(whole) - 100):
        (tmp_path / "cut.h5").write_bytes(whole[:n])
        refused(tmp_path / "cut.h5", match="cut.h5' (is truncated: it has|cannot be opened as HDF5)")


def test_truncated_to_any_length_is_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.h5", x=np.arange(100, dtype="i2")).read_bytes()
    for n in range(0, len(whole), 37):
        (tmp_path / "cut.h5").write_bytes(whole[:n])
        refused(tmp_path / "cut.h5", match="cut.h5'")


def test_a_file_whose_header_hides_that_it_was_truncated(tmp_path: Path) -> None:
    """The end of file in the superblock is made to agree; the rows still go on behind it."""
    path = tmp_path / "a.h5"
    make(path, x=np.arange(1000))
    with h5py.File(path) as file:
        offset = file["g/x"].id.get_offset()
    raw = path.read_bytes()
    assert raw[40:48] == struct.pack("<Q", len(raw))
    cut = raw[:offset + 800]
    path.write_bytes(cut[:40] + struct.pack("<Q", len(cut)) + cut[48:])
    refused(path, "g", match=r"truncated|cannot be opened")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.h5", x=[1])
    path.chmod(0)
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(path, match="may not be read by this user")


def test_being_written(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = [1, 2]
        file.flush()
        copy = path.read_bytes()
    (tmp_path / "b.h5").write_bytes(copy)
    refused(tmp_path / "b.h5", match="it is being written, or its writer died: see h5clear|truncated")


def test_missing_groups_and_data_sets(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", key=[1, 2], value=[[1.0, 2.0]] * 2)
    refused(path, "events", match=r"no group or data set 'events' in .*a.h5'; its data sets are /g/key 2, /g/value 2x2$")
    refused(path, "/g/kei", match=r"did you mean '/g/key'\?")
    refused(path, "/G", match=r"did you mean '/g'\?")
    refused(path, "/", match=r"the group '/' of .*a.h5' holds no data set; its data sets are /g/key 2, /g/value 2x2.*group=")
    refused(path, "/g/key/x", match="'/g/key' of .* is a data set, not a group")
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    refused(tmp_path / "none.h5", match="holds no data set; it holds no data set|holds no data set")
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for i in range(30):
            file[f"g/x{i:02d}"] = [0]
    refused(tmp_path / "many.h5", "h", match="/g/x11 1 and 18 more")


def test_columns(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", key=[1, 2], value=[1.0, 2.0, 3.0], other=[1, 2])
    refused(path, "g", match=r"group 'g' of .*a.h5' have unequal lengths: key 2, other 2, value 3 rows; choose some")
    refused(path, "g", ["kye"],
            match=r"there is no column 'kye' in '/g' of .*a.h5'; the columns are 'key', 'other', 'value' \(did you mean 'key'\?\)")
    refused(path, "/g/key", ["value"], match="there is no column 'value'.* the columns are 'key'")
    assert Hdf5Source(path, "g", ["key", "other"]).survey()[0].names == ("key", "other")
    make(path, rec=np.zeros(3, [("alpha", "i4"), ("beta", "f8")]))
    refused(path, "g/rec", ["alhpa"], match=r"no column 'alhpa' in '/g/rec'.*did you mean 'alpha'")
    refused(path, "g", match="'/g/rec' of .*a.h5' is compound: read it by itself with group='/g/rec'")


def test_data_sets_without_rows(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", x=3, y=[1])
    refused(tmp_path / "a.h5", "g", match="the data set '/g/x' of .*a.h5' is a scalar, it has no rows; name the data sets that have")
    make(tmp_path / "b.h5", x=h5py.Empty("f4"))
    refused(tmp_path / "b.h5", "g/x", match="is a null, it has no rows")
    make(tmp_path / "c.h5", x=np.zeros((2, 2), [("a", "i4")]))
    refused(tmp_path / "c.h5", "g/x", match="compound data set in 2 dimensions")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["t"] = np.dtype("i4")
    refused(tmp_path / "d.h5", "t", match="is neither a group nor a data set")


@pytest.mark.parametrize(("change", "what"), [
    (lambda f: f.create_dataset("g/y", data=[1, 2]), r"a.h5' and .*b.h5' do not have the same columns: 'y' is only in .*b.h5'"),
    (lambda f: f.move("g/x", "g/z"), r"a.h5' and .*b.h5' do not have the same columns: 'x' is only in .*a.h5'"),
    (lambda f: f.__delitem__("g/x") or f.create_dataset("g/x", data=[1.0, 2.0]), "'x' is int64 in .*a.h5' and float64 in .*b.h5'; read them apart"),
    (lambda f: f.__delitem__("g/x") or f.create_dataset("g/x", data=[[1], [2]]), r"'x' is int64 in .*a.h5' and int64\[1\] in .*b.h5'"),
    (lambda f: f["h"].attrs.__setitem__("z", "text"), "'z' is int64 in .*a.h5' and text in .*b.h5'"),
])
def test_files_of_unequal_schema(tmp_path: Path, change: Callable[[h5py.File], Any], what: str) -> None:
    for name in "ab":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["g/x"] = [1, 2]
            file.create_group("h").attrs["z"] = 1
            if name == "b":
                change(file)
    refused(tmp_path, "g", attrs={"z": "/h@z"}, match=what)


def test_byte_orders_may_differ(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", x=np.arange(3, dtype="<i4"))
    make(tmp_path / "b.h5", x=np.arange(3, dtype=">i4"))
    assert str(Hdf5Source(tmp_path, "g").survey()[0]["x"].type) == "int32"


@pytest.mark.parametrize(("dtype", "name"), [
    (np.longdouble, "float type float128|float type longdouble"),
    (h5py.ref_dtype, "reference"), (h5py.regionref_dtype, "reference"), ("V7", "opaque type"),
    (h5py.vlen_dtype(h5py.string_dtype()), "variable-length lists of other things than numbers"),
    (np.dtype([("a", "i4"), ("b", [("c", "i4")])]), "the field 'b' of .* unsupported dtype: compound type .*with fields 'c'"),
])
def test_unsupported_types(tmp_path: Path, dtype: Any, name: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (3,), dtype)
        file["y"] = [1, 2, 3]
    refused(tmp_path / "a.h5", "/x", match=rf"'/x' of .*a.h5' has an unsupported dtype: .*({name}).*columns=\[\.\.\.\]|{name}")
    assert Hdf5Source(tmp_path / "a.h5", columns=["y"]).survey()[0].names == ("y",)


def test_strings_in_several_dimensions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (3, 2), h5py.string_dtype())
    refused(tmp_path / "a.h5", match="unsupported dtype: strings in several dimensions")


def test_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(100), chunks=(10,), **hdf5plugin.Zstd())
    Hdf5Source(tmp_path / "a.h5").survey()
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    refused(tmp_path / "a.h5",
            match=r"'/x' of .*a.h5' is compressed with the filter 32015.*, which is not there; install it: pip install 'hpcmr\[filters\]'")
    monkeypatch.undo()
    monkeypatch.setattr(hdf5_nodes, "_more_filters", lambda: type("Old", (), {"FILTERS": {"lz4": 32004}}))
    refused(tmp_path / "a.h5", match="filter 32015.*hdf5plugin, which is installed, does not have it: compress the file anew")


def test_attributes(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", x=[1])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["g"].attrs["Redshift"] = 0.5
        file["g"].attrs["ref"] = file["g"].ref
    refused(tmp_path / "a.h5", "g", attrs={"z": "/g@Redshfit"},
            match=r"'/g' of .*a.h5' has no attribute 'Redshfit'; it has 'Redshift', 'ref' \(did you mean 'Redshift'\?\)")
    refused(tmp_path / "a.h5", "g", attrs={"z": "/Header@Redshift"}, match="attrs='/Header@Redshift': there is no '/Header' in .*a.h5'")
    refused(tmp_path / "a.h5", "g", attrs={"z": "/g@ref"}, match="the attribute of .*a.h5' has an unsupported dtype: object")


def test_a_result_of_ours_is_opened_otherwise(tmp_path: Path) -> None:
    make(tmp_path / "part-00000.h5", x=[1])
    (tmp_path / "manifest.json").write_text('{"format": "hpcmr-table", "version": 1}')
    refused(tmp_path, "g", match=r"is a result of hpcmr; open it with hpcmr.open\(path\).to_table\(\)")
