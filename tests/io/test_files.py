"""Which files a name stands for, and in which order."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmr.errors import InputError
from hpcmr.io.files import find_files


def names(paths: object, root: Path, kind: str = "text") -> list[str]:
    return [os.path.relpath(f.path, root) for f in find_files(paths, kind)]  # type: ignore[arg-type]


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub.txt", "sub/deep/d.log", ".hidden", "é.txt", "Z.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_folder_is_recursive_and_sorted_by_path_bytes(tree: Path) -> None:
    got = names(tree, tree)
    assert got == ["Z.txt", "a.txt", "b.txt", "sub.txt", "sub/c.txt", "sub/deep/d.log", "é.txt"]
    assert got == sorted(got, key=os.fsencode)


def test_glob_is_sorted_and_recursive(tree: Path) -> None:
    assert names(str(tree / "*.txt"), tree) == ["Z.txt", "a.txt", "b.txt", "sub.txt", "é.txt"]
    assert names(str(tree / "**" / "*.log"), tree) == ["sub/deep/d.log"]


def test_order_does_not_depend_on_the_listing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = names(tree, tree)
    real = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            self.entries = list(real(path))[::-1]

        def __enter__(self) -> Reversed:
            return self

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(tree, tree) == want


def test_lists_keep_their_order_and_repeats(tree: Path) -> None:
    asked = [tree / "b.txt", tree / "a.txt", str(tree / "sub*" / "c.txt"), tree / "b.txt"]
    assert names(asked, tree) == ["b.txt", "a.txt", "sub/c.txt", "b.txt"]


def test_sizes_and_times(tree: Path) -> None:
    info = find_files(tree / "a.txt")[0]
    assert info.nbytes == 5 and info.mtime_ns == os.stat(tree / "a.txt").st_mtime_ns


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "run[1].txt").write_bytes(b"x")
    (tmp_path / "run1.txt").write_bytes(b"y")
    assert names(tmp_path / "run[1].txt", tmp_path) == ["run[1].txt"]


def test_hidden_file_when_named(tree: Path) -> None:
    assert names(tree / ".hidden", tree) == [".hidden"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.txt"
    with open(raw, "wb") as f:
        f.write(b"x")
    assert [os.fsencode(f.path) for f in find_files(tmp_path)] == [raw]


def test_links(tree: Path, tmp_path: Path) -> None:
    os.symlink(tree / "sub", tree / "other")
    os.symlink(tree, tree / "sub" / "circle")
    assert [n for n in names(tree, tree) if n.startswith("other")] == ["other/c.txt", "other/deep/d.log"]


def test_dangling_link_is_an_error(tree: Path) -> None:
    os.symlink(tree / "nowhere", tree / "broken.txt")
    with pytest.raises(InputError, match=r"broken\.txt.*link to.*nowhere"):
        find_files(tree)


def test_hdf5_folder_takes_hdf5_files_only(tree: Path) -> None:
    with pytest.raises(InputError, match=r"hold no file named \*\.h5"):
        find_files(tree, "hdf5")
    (tree / "snap.h5").write_bytes(b"x")
    (tree / "sub" / "snap.HDF5").write_bytes(b"x")
    assert names(tree, tree, "hdf5") == ["snap.h5", "sub/snap.HDF5"]


@pytest.mark.parametrize(("asked", "message"), [
    ("nothing-*.txt", r"no text input matches '.*nothing-\*\.txt' \(looked in '"),
    ("no/such/folder/x.txt", "there is no folder"),
    ("a.tx", r"there is no such file in .*did you mean '.*a\.txt'\?"),
    ("a.txt/below", "there is no folder"),
])
def test_what_is_not_there(tree: Path, asked: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_files(str(tree / asked))


def test_nothing_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list of paths is empty"):
        find_files([])
    with pytest.raises(InputError, match="empty string"):
        find_files("")
    with pytest.raises(InputError, match="hold no file"):
        find_files(tmp_path)


def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        find_files(tmp_path / "pipe")


def test_special_files_of_a_folder_are_passed_over(tree: Path) -> None:
    want = names(tree, tree)
    os.mkfifo(tree / "pipe", 0o777)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tree / "sock"))
        os.chmod(tree / "sock", 0o777)
        assert names(tree, tree) == want


def test_unreadable_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(tree / "b.txt", 0o600)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("b.txt"))   # root may read everything
    with pytest.raises(InputError, match=r"b\.txt' may not be read"):
        find_files(tree)
