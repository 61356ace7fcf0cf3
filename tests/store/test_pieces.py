"""Shards of checkpoints come back bit by bit, range by range, or not at all."""

import errno
import json
import os
import pickle
import threading
import time

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import DamagedCheckpoint, StorageError
from hpcmr.store import files, paths, pieces, segment
from hpcmr.store.pieces import PieceFile, checked_info, fault_of, infos_in, write_pieces
from tests.store.support import bits, columns

FILE = paths.piece_file(1, 1, 0, 0)


def same(a: Batch, b: Batch) -> None:
    assert a.names == b.names and a.nrows == b.nrows and a.schema == b.schema
    for name in a.names:
        assert bits(a[name]) == bits(b[name]), name


def parts_of(batch, starts, first=0):
    return Partitioned(batch, np.array(starts, np.int64), first)


def all_kinds(n=40):
    mask = np.arange(n) % 3 > 0
    words = BytesColumn.from_list([b"ab" * (i % 5) for i in range(n)], False)
    return Batch({"x": FixedColumn(np.arange(n) * 0.1, mask), "s": words, "l": ListColumn(np.arange(n), np.arange(n) + 1, words),
                  "e": ListColumn(np.zeros(n, np.int64), np.zeros(n, np.int64), BytesColumn.from_list([], True)),
                  "z": FixedColumn(np.zeros((n, 0), np.int16))}, n)


@st.composite
def drawn(draw):
    count, width = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    sizes = draw(st.lists(st.lists(st.integers(0, 6), min_size=count, max_size=count), min_size=1, max_size=3))
    out = []
    for counts in sizes:
        n = sum(counts)
        out.append(parts_of(Batch({f"c{i}": draw(columns(n)) for i in range(width)}, n), np.concatenate([[0], np.cumsum(counts)]), 7))
    return [p for p in out if p.batch.schema == out[0].batch.schema], draw(st.sampled_from([1, 50, 1 << 20]))


@given(drawn())
@settings(max_examples=60, deadline=None)
def test_any_columns_come_back_in_any_range(tmp_path_factory, case):
    parts, run_nbytes = case
    folder = tmp_path_factory.mktemp("p")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "RUN_NBYTES", run_nbytes)
        info = write_pieces(folder, FILE, parts)
    file = PieceFile(folder, json.loads(json.dumps(info)))
    file.verify()
    count = parts[0].count
    for i in range(count + 1):
        for j in range(i, count + 1):
            found = file.read(7 + i, 7 + j)
            assert found.first == 7 + i and found.count == j - i
            for q in range(i, j):
                same(found.part(7 + q), Batch.concat([p.part(7 + q) for p in parts]))
    assert file.rows == sum(p.batch.nrows for p in parts)
    each = sum(file.nbytes_of(7 + q, 8 + q) for q in range(count))      # an offset between two partitions belongs to both
    assert file.nbytes_of(0, 100) <= each <= file.nbytes_of(0, 100) + 8 * 9 * count * len(file.schema)
    assert file.read(0, 3).batch.nrows == file.read(50, 60).count == 0


def test_it_opens_in_any_hdf5_and_is_private(tmp_path):
    info = write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40], 3)])
    with h5py.File(tmp_path / FILE) as f:
        assert f["x"][:].tolist() == (np.arange(40) * 0.1).tolist() and f["s/offsets"][-1] == len(f["s/data"])
        assert f["%index"].id.get_offset() == info["at"][0] and len(f["%index"]) == info["at"][1]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600 and (tmp_path / "pieces").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "pieces") == [os.path.basename(FILE)] and info["nbytes"] == os.path.getsize(tmp_path / FILE)
    assert PieceFile(tmp_path, info).schema == all_kinds().schema


def test_nothing_at_all(tmp_path):
    """No rows, no partitions, no columns."""
    for n, part in enumerate([parts_of(all_kinds(0), [0, 0, 0], 5), parts_of(all_kinds(0), [0]), parts_of(Batch({}, 4), [0, 1, 4])]):
        info = write_pieces(tmp_path, paths.piece_file(1, 1, 0, n), [part])
        file = PieceFile(tmp_path, info)
        file.verify()
        same(file.read(0, 10).batch, part.batch)


def test_read_once_more_than_was_asked_for_is_not_much(tmp_path, monkeypatch):
    """Digests are of runs of partitions: a read takes the runs that it touches, and no others."""
    n = 1 << 19
    info = write_pieces(tmp_path, FILE, [parts_of(Batch.of({"k": np.arange(n), "x": np.arange(n) * 0.5}), np.arange(0, n + 1, 512))])
    file, got, real = PieceFile(tmp_path, info), [], files.read_at
    assert len(file._segment.bounds) == 9
    monkeypatch.setattr(files, "read_at", lambda fd, out, at: got.append(len(out)) or real(fd, out, at))
    found = file.read(500, 510)
    assert found.batch["k"].values.tolist() == list(range(500 * 512, 510 * 512))
    assert sum(got) == pieces.RUN_NBYTES and len(got) == 2
    with (tmp_path / FILE).open("r+b") as f:       # damage elsewhere is not its business
        f.seek(1 << 20)
        f.write(b"\xff" * 64)
    same(file.read(500, 510).batch, found.batch)
    with pytest.raises(StorageError, match=r"damaged: bytes .* \(of 'k'\) are not those that were written; start the job again.*older checkpoint"):
        file.read(0, 1024)


# -- damage -------------------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(tmp_path):
    part = parts_of(all_kinds(), [0, 0, 10, 40, 40])
    info = write_pieces(tmp_path, FILE, [part])
    raw, rng = (tmp_path / FILE).read_bytes(), np.random.default_rng(3)
    body = {"pieces": [info]}
    assert fault_of(tmp_path, body, deep=True) is None
    with (tmp_path / FILE).open("r+b", buffering=0) as f:
        for at in [*range(0, len(raw), 11), *range(info["at"][0], sum(info["at"]))]:
            os.pwrite(f.fileno(), bytes([raw[at] ^ 1 << int(rng.integers(8))]), at)
            assert "is damaged" in fault_of(tmp_path, body, deep=True), at
            os.pwrite(f.fileno(), raw[at:at + 1], at)
    same(PieceFile(tmp_path, info).read(0, 4).batch, part.batch)


def test_what_was_read_is_what_was_written_or_an_error(tmp_path):
    """Bits flipped in the arrays: a read of all rows either fails or gives what was written (the bit was in the frame)."""
    part = parts_of(all_kinds(), [0, 0, 10, 40, 40])
    info = write_pieces(tmp_path, FILE, [part])
    raw, wrong = (tmp_path / FILE).read_bytes(), 0
    for at in range(0, len(raw), 29):
        (tmp_path / FILE).write_bytes(raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1:])
        try:
            same(PieceFile(tmp_path, info).read(0, 4).batch, part.batch)
        except StorageError:
            wrong += 1
    assert wrong > 9


def test_truncated_zeroed_swapped_stale_missing(tmp_path):
    info = write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40])])
    other = write_pieces(tmp_path, paths.piece_file(1, 1, 1, 0), [parts_of(all_kinds(), [0, 11, 40])])
    path, raw = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    for bad in (raw[:-1], raw[:100], b"", raw + b"x", (tmp_path / other["file"]).read_bytes(), raw[:4096] + bytes(len(raw) - 4096)):
        path.write_bytes(bad)
        assert "is damaged" in fault_of(tmp_path, [info], deep=True), len(bad)
    path.unlink()
    assert "is damaged: it cannot be read (No such file" in fault_of(tmp_path, [info])
    path.mkdir()
    assert "is damaged: it cannot be read" in fault_of(tmp_path, [info])
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DamagedCheckpoint, match="it is no plain file") as caught:
        PieceFile(tmp_path, info)
    assert pickle.loads(pickle.dumps(caught.value)).file == FILE


def test_infos_that_somebody_made_up(tmp_path):
    info = write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40])])
    for change in ({"file": "../x.h5"}, {"file": "/etc/passwd"}, {"file": "pieces/../../x.h5"}, {"file": 5}, {"nbytes": -1}, {"nbytes": 1.5},
                   {"rows": True}, {"rows": 10 ** 30}, {"first": None}, {"count": "4"}, {"at": [0]},
                   {"at": [0, 1 << 50]}, {"at": [-5, 10]}, {"at": None}, {"at": 7},
                   {"digest": "x" * 32}, {"digest": None}, {"more": 1}):
        with pytest.raises(StorageError, match="names a file of pieces that makes no sense"):
            checked_info({**info, **change})
    for no in (None, [], "x", {}):
        with pytest.raises(StorageError, match="makes no sense"):
            checked_info(no)
    for change in ({"rows": 41}, {"count": 3}, {"first": 9}, {"at": [0, 64]}, {"nbytes": info["nbytes"] - 1}, {"digest": "0" * 32}):
        assert "is damaged" in fault_of(tmp_path, {"a": [{"b": {**info, **change}}]})
    assert list(infos_in({"a": [{"b": info}, 5, None], "c": {"file": FILE}})) == [info]


def test_indices_that_somebody_made_up(tmp_path):
    """With digests that fit: an error, no crash, and no memory beyond the file's size."""
    info = write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40])])
    raw, (at, size) = (tmp_path / FILE).read_bytes(), info["at"]
    index = raw[at:at + size]
    n = int.from_bytes(index[:8], "little")
    header = json.loads(index[8:8 + n])
    made_up = [{"count": 1 << 40}, {"runs": 1 << 40}, {"cuts": 0}, {"cuts": 1 << 40}, {"rows": 1 << 62}, {"schema": 5}, {"schema": [["x", "object"]]},
               {"schema": [["x", "S99999999999999"]]}, {"schema": [["x", "list<" * 500 + "int8" + ">" * 500]]}, {"schema": []}, {"arrays": []},
               {"arrays": header["arrays"][::-1]}, {"arrays": [[a, 1 << 61, c] for a, _, c in header["arrays"]]}, {"frame": 1},
               {"arrays": [[a, b, 99] for a, b, _ in header["arrays"]]}, {"arrays": [[a, -1, c] for a, _, c in header["arrays"]]}]
    contents = [index[:8] + json.dumps({**header, **change}, separators=(",", ":")).encode() for change in made_up]
    contents = [len(c[8:]).to_bytes(8, "little") + c[8:] for c in contents]
    contents = [c + index[8 + n + max(0, len(c) - 8 - n):] if len(c) <= size else c[:size] for c in contents]
    rng = np.random.default_rng(5)
    for _ in range(100):
        bad = bytearray(index)
        where = int(rng.integers(size // 8)) * 8
        bad[where:where + 8] = int(rng.choice([-1, 1 << 62, 0, 3, 1 << 31])).to_bytes(8, "little", signed=True)
        contents.append(bytes(bad))
    found = 0
    for number, content in enumerate(contents):
        content = content.ljust(size)[:size]
        (tmp_path / FILE).write_bytes(raw[:at] + content + raw[at + size:])
        why = fault_of(tmp_path, [{**info, "digest": xxhash.xxh3_128_hexdigest(content)}], deep=True)
        if why is None and number >= len(made_up):        # padding, or other numbers that make sense
            assert PieceFile(tmp_path, {**info, "digest": xxhash.xxh3_128_hexdigest(content)}).read(0, 2).batch.nrows == 40
        else:
            assert "is damaged" in why
            found += 1
    assert found > 60


# -- disks, threads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_is_full_or_broken(tmp_path, monkeypatch, number):
    for name in ("open", "pwrite", "pwritev", "ftruncate", "fsync", "rename"):
        real = getattr(os, name)

        def fail(*args, name=name, real=real, **options):
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(StorageError, match=rf"cannot write '.*{FILE}'.*{errno.errorcode[number]}.*checkpoints that were committed before"):
                write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40])])
        assert os.listdir(tmp_path / "pieces") == [], name
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at, real=os.pwrite: real(fd, data[:5], at))      # short writes are gone on with
    monkeypatch.setattr(os, "pwritev", lambda fd, data, at, real=os.pwritev: real(fd, [data[0][:3]], at))
    info = write_pieces(tmp_path, FILE, [parts_of(all_kinds(), [0, 10, 40])])
    assert fault_of(tmp_path, [info], deep=True) is None


def test_writing_and_reading_leave_the_interpreter_to_others(tmp_path):
    """Another thread goes on while one writes and reads: it never waits for long."""
    n = 1 << 21
    part = parts_of(Batch.of({"k": np.arange(n), "x": np.arange(n) * 0.5}), np.linspace(0, n, 65).astype(np.int64))
    write_pieces(tmp_path, paths.piece_file(1, 1, 0, 9), [part])       # h5py is loaded
    ended, waits = threading.Event(), []

    def work():
        info = write_pieces(tmp_path, FILE, [part])
        same_rows = PieceFile(tmp_path, info).read(0, 64).batch.nrows
        assert same_rows == n
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    last = time.perf_counter()
    while not ended.is_set():
        time.sleep(0)
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    thread.join()
    assert len(waits) > 10
    assert sum(w for w in waits if w > 0.02) < 0.5 * sum(waits)


def test_parts_of_several_rounds_are_read_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "BLOCK_NBYTES", 1000)
    rng = np.random.default_rng(2)
    parts = []
    for _ in range(5):
        sizes = rng.integers(0, 300, 20)
        n = int(sizes.sum())
        words = [bytes(rng.integers(97, 123, rng.integers(0, 30), dtype=np.uint8)) for _ in range(n)]
        parts.append(parts_of(Batch.of({"k": rng.integers(-9, 9, n), "s": words}), np.concatenate([[0], np.cumsum(sizes)]), 4))
    monkeypatch.setattr(pieces, "RUN_NBYTES", 10_000)
    file = PieceFile(tmp_path, write_pieces(tmp_path, FILE, parts))
    found = file.read(9, 17)
    for p in range(9, 17):
        same(found.part(p), Batch.concat([part.part(p) for part in parts]))
