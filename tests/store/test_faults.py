"""When storage fails: a `StorageError` that names the path, nothing left behind, an earlier output as it was."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import HpcmrError, InputError, Refused, StorageError
from hpcmr.store import paths
from hpcmr.store.export import export
from hpcmr.store.publish import publish
from hpcmr.store.reader import StoredTable
from hpcmr.store.writer import TableWriter
from tests.store.support import leftovers, store


def table(rows: int = 3000) -> Batch:
    return Batch.of({"a": np.arange(rows), "s": [f"value {i}" for i in range(rows)]})


def write(folder: Path, count: int = 1, *, replace: bool = False) -> None:
    """As a rank does it: on any error everything of the attempt goes."""
    writer = TableWriter(folder, 0, table().schema, attempt="new", shard_nbytes=100_000)
    try:
        for i in range(count):
            writer.append(i, table())
        infos = writer.close()
    except BaseException:
        writer.abandon()
        raise
    publish(folder, table().schema, infos, attempt="new", replace=replace)


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.disk_full
def test_disk_full_while_writing(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"ENOSPC.*nothing was published.*free some space") as caught:
        write(small_disk / "out", 100)
    assert str(small_disk) in str(caught.value)
    assert os.listdir(small_disk) == []
    write(small_disk / "out")
    assert StoredTable.open(small_disk / "out").rows == 3000


@pytest.mark.disk_full
def test_disk_full_keeps_the_earlier_output(small_disk: Path) -> None:
    write(small_disk / "out")
    with pytest.raises(StorageError, match="ENOSPC"):
        write(small_disk / "out", 100, replace=True)
    assert os.listdir(small_disk) == ["out"]
    StoredTable.open(small_disk / "out").verify()


@pytest.mark.disk_full
@pytest.mark.parametrize("kind", ["h5", "csv", "tsv", "npz"])
def test_disk_full_while_exporting(small_disk: Path, tmp_path: Path, kind: str) -> None:
    pieces = [table(30_000)] * 10
    store(tmp_path / "out", pieces)
    (small_disk / f"x.{kind}").write_bytes(b"earlier")
    with pytest.raises(StorageError, match="ENOSPC"):
        export(StoredTable.open(tmp_path / "out"), small_disk / f"x.{kind}", kind, replace=True)
    assert os.listdir(small_disk) == [f"x.{kind}"]
    assert (small_disk / f"x.{kind}").read_bytes() == b"earlier"


CALLS = ["open", "pwrite", "pwritev", "fsync", "rename", "ftruncate", "mkdir"]


class Failing:
    """Fails the `nth` call of an `os` function, or all from there on."""

    def __init__(self, real: Callable[..., Any], nth: int, code: int, lasting: bool, under: str) -> None:
        self.real, self.nth, self.code, self.lasting, self.calls, self.under = real, nth, code, lasting, 0, under

    def __call__(self, *args: Any, **options: Any) -> Any:
        if isinstance(args[0], str | os.PathLike) and self.under not in str(args[0]):
            return self.real(*args, **options)
        self.calls += 1
        if self.calls == self.nth or (self.lasting and self.calls > self.nth):
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, lasting: bool) -> None:
    folder = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    store(folder, [Batch.of({"old": [1]})])
    for nth in range(1, 200):
        failing = Failing(getattr(os, call), nth, code, lasting, str(tmp_path))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing)
                write(folder, 3, replace=True)
        except StorageError as error:
            assert str(tmp_path) in str(error) and errno.errorcode[code] in str(error)
        if failing.calls < nth:
            break
        # An error behind the rename that publishes comes too late to undo it; either way the output is whole.
        if call == "rename" and lasting and leftovers(folder):
            assert leftovers(folder) == [".out.new.old"]
            os.rename(tmp_path / ".out.new.old", folder)
        else:
            assert leftovers(folder) == []
            found = StoredTable.open(folder)
            found.verify()
            assert found.rows in (1, 9000)
            with monkeypatch.context() as patch:
                write(folder, 3, replace=True)
            assert leftovers(folder) == []
    else:
        pytest.fail("the calls never ended")


@pytest.mark.parametrize("nbytes", [1, 1000])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    real = os.pwrite
    step = 7 if nbytes == 1 else nbytes
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:step], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: real(fd, parts[0][:step], at))
    write(tmp_path / "out")
    StoredTable.open(tmp_path / "out").verify()


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: real(fd, [parts[0][:100]], at))
    found = StoredTable.open(tmp_path / "out")
    found.verify()
    assert found["s"][-1] == "value 2999"


@pytest.mark.parametrize(("code", "says"), [(errno.EACCES, "EACCES.*you may write to"), (errno.EROFS, "EROFS.*read-only"),
                                            (errno.EDQUOT, "EDQUOT.*quota")])
def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    def refuse(path: Any, *args: Any, **options: Any) -> int:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match=says):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_existing_output_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(Refused, match="there already"):
        write(tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
    write(tmp_path / "out", 2, replace=True)
    assert StoredTable.open(tmp_path / "out").rows == 6000 and leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_foreign_things_are_never_replaced(tmp_path: Path, what: str) -> None:
    if what == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("mine")
    for replace in (False, True):
        with pytest.raises(HpcmrError):
            write(tmp_path / "out", replace=replace)
    assert leftovers(tmp_path / "out") == []
    assert (tmp_path / "out" if what == "file" else tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_becomes_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert StoredTable.open(tmp_path / "out").rows == 3000


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_files_are_private(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o600}


def damaged(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(tmp_path / "out" / paths.part_name(0))
    with StoredTable.open(tmp_path / "out") as found:
        found.verify()
        found["s"][:]


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)


@pytest.mark.parametrize(("change", "says"), [
    (truncate, "bytes where the manifest says"), (os.unlink, "is missing"),
    (lambda p: (os.unlink(p), p.mkdir()), "is not a file"), (lambda p: (os.rename(p, p.with_name("x")), os.symlink("x", p)), "cannot be opened"),
    (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes where the manifest says"), (lambda p: p.write_bytes(bytes(p.stat().st_size)), "damaged"),
])
def test_a_damaged_shard_is_noticed(tmp_path: Path, change: Callable[[Path], Any], says: str) -> None:
    write(tmp_path / "out")
    with pytest.raises(HpcmrError, match=says):
        damaged(tmp_path, change)


def test_swapped_shards_are_noticed(tmp_path: Path) -> None:
    pieces = [Batch.of({"a": np.arange(1000) + 1000 * i}) for i in range(2)]
    store(tmp_path / "out", pieces, ranks=2)
    a, b = (tmp_path / "out" / paths.part_name(i) for i in range(2))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(HpcmrError, match="damaged"):
        StoredTable.open(tmp_path / "out").verify()


def test_every_flipped_bit_of_a_shard_is_noticed(tmp_path: Path) -> None:
    store(tmp_path / "out", [Batch.of({"a": np.arange(40), "s": ["x"] * 39 + [None], "l": [[1, 2]] * 40})])
    path = tmp_path / "out" / paths.part_name(0)
    good = path.read_bytes()
    found = StoredTable.open(tmp_path / "out")
    rng = np.random.default_rng(5)
    with open(path, "r+b") as file:
        for at in range(0, len(good), 3):
            file.seek(at)
            file.write(bytes([good[at] ^ (1 << int(rng.integers(8)))]))
            file.flush()
            with pytest.raises(HpcmrError, match="damaged"):
                found.verify()
            # Reading what was changed gives an error or other values, never a crash.
            try:
                for name in found:
                    found[name][:]
            except HpcmrError:
                pass
            file.seek(at)
            file.write(good[at:at + 1])
            file.flush()
    found.verify()


def test_discard_removes_outputs_only(tmp_path: Path) -> None:
    from hpcmr.store.publish import check_free, discard, existing

    write(tmp_path / "out")
    assert existing(tmp_path / "out") is not None and existing(tmp_path / "nothing") is None
    with pytest.raises(Refused, match="is there already"):
        check_free(tmp_path / "out")
    discard(tmp_path / "out")
    discard(tmp_path / "out")
    check_free(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(Refused, match="'notes'"):
        discard(tmp_path / "out")
    with pytest.raises(Refused, match="other things"):
        check_free(tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    for refuse in (discard, check_free):
        with pytest.raises(Refused):
            refuse(tmp_path / "file")


def test_reading_what_was_cut_later(tmp_path: Path) -> None:
    write(tmp_path / "out")
    found = StoredTable.open(tmp_path / "out")
    found["a"][0]
    os.truncate(tmp_path / "out" / paths.part_name(0), 100)
    with pytest.raises(HpcmrError, match="early"):
        found["a"][1000]
    with pytest.raises(InputError, match="bytes where the manifest says"):
        StoredTable.open(tmp_path / "out")
