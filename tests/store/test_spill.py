"""Rows on scratch come back bit by bit, or not at all; and nothing is left behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.store import paths, segment
from hpcmr.store.scratch import Scratch, choose
from hpcmr.store.spill import Spool
from tests.store.support import bits, columns


def parts_of(batch, starts, first=0):
    return Partitioned(batch, np.array(starts, np.int64), first)


def same(a: Batch, b: Batch):
    assert a.names == b.names and a.nrows == b.nrows
    assert a.schema == b.schema
    for name in a.names:
        assert bits(a[name]) == bits(b[name]), name


def numbers(n, seed=0):
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, rng.integers(0, 30), dtype=np.uint8)) for _ in range(n)]
    return Batch.of({"k": rng.integers(-9, 9, n), "x": rng.normal(size=(n, 3)), "s": words, "#origin": np.arange(n, dtype=np.uint64)})


@pytest.fixture
def scratch(tmp_path):
    made = Scratch(tmp_path)
    yield made
    made.close()


def run_folders(base):
    home = paths.scratch_home(base)
    return sorted(os.listdir(home)) if home.exists() else []


@st.composite
def pieces(draw):
    """Some pieces of the same columns and partitions, cut anywhere."""
    count, width = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    sizes = draw(st.lists(st.lists(st.integers(0, 6), min_size=count, max_size=count), min_size=1, max_size=4))
    kinds = draw(st.integers(0, 2**31))
    out = []
    for counts in sizes:
        n = sum(counts)
        out.append((n, np.concatenate([[0], np.cumsum(counts)])))
    return count, width, kinds, out, [[draw(columns(n)) for _ in range(width)] for n, _ in out]


@given(pieces())
@settings(max_examples=60)
def test_any_columns_come_back(tmp_path_factory, drawn):
    count, width, _, cut, cols = drawn
    first = cols[0]
    batches = [Batch({f"c{i}": c for i, c in enumerate(row)}, n) for (n, _), row in zip(cut, cols, strict=True)]
    kept = [(b, s) for b, (_, s) in zip(batches, cut, strict=True) if b.schema == batches[0].schema]
    assert first is cols[0] and width == len(first)
    scratch = Scratch(tmp_path_factory.mktemp("s"))
    spool = Spool(scratch)
    half = max(1, len(kept) // 2)
    spool.append([parts_of(b, s, 7) for b, s in kept[:half]])
    spool.append([parts_of(b, s, 7) for b, s in kept[half:]])
    for i in range(count):
        wanted = [b.slice(int(s[i]), int(s[i + 1])) for b, s in kept]
        wanted = [b for b in wanted if b.nrows]
        found = list(spool.read(7 + i))
        assert sum(p.batch.nrows for p in found) == sum(b.nrows for b in wanted)
        assert all(p.first == 7 + i and p.count == 1 for p in found)
        for name in batches[0].names:
            assert [v for p in found for v in bits(p.batch[name])] == [v for b in wanted for v in bits(b[name])]
    spool.close()
    assert run_folders(scratch.base) == []


def test_larger_than_a_block_and_in_limited_pieces(scratch, monkeypatch):
    monkeypatch.setattr(segment, "BLOCK_NBYTES", 4096)
    spool, batches = Spool(scratch), [numbers(3000, seed) for seed in range(5)]
    for i, b in enumerate(batches):
        starts = [0, 10, 10, 2900 - i, 3000]
        before = spool.nbytes_written
        assert spool.append([parts_of(b, starts), parts_of(b.slice(5, 5), [0, 0, 0, 0, 0])]) == spool.nbytes_written - before > 3000 * 40
    whole = list(spool.read(2))
    assert len(whole) == 1
    same(whole[0].batch, Batch.concat([b.slice(10, 2900 - i) for i, b in enumerate(batches)]))
    limit = spool.nbytes_of(2) // 2
    found = list(spool.read(2, limit))
    assert 2 <= len(found) <= 4
    same(Batch.concat([p.batch for p in found]), whole[0].batch)
    assert [list(spool.read(p)) for p in (1, 4, -1)] == [[], [], []]


def test_put_get_drop(scratch):
    spool = Spool(scratch)
    a, b = spool.put(numbers(100, 1)), spool.put(Batch.of({"other": [1.5, 2.5]}))
    same(spool.get(a), numbers(100, 1))
    same(spool.get(a), numbers(100, 1))
    spool.drop(a)
    spool.drop(a)
    assert spool.get(b)["other"].values.tolist() == [1.5, 2.5]
    assert scratch.files == 1
    spool.drop(b)
    assert run_folders(scratch.base) == []


def test_the_values_under_nulls_stay(scratch):
    """What spilled must be what was there, bit by bit: an operator may look below a null."""
    values, valid = np.arange(4.0), np.array([True, False, True, False])
    spool = Spool(scratch)
    spool.append([parts_of(Batch({"x": FixedColumn(values, valid)}), [0, 4])])
    column = next(iter(spool.read(0))).batch["x"]
    assert column.values.tolist() == [0, 1, 2, 3] and column.valid.tolist() == valid.tolist()


def test_a_file_is_a_shard(scratch):
    spool = Spool(scratch)
    b = numbers(50)
    spool.append([parts_of(b, [0, 20, 50])])
    (path,) = scratch.folder().glob("*.h5")
    with h5py.File(path) as f:
        assert f.attrs["format"] == "hpcmr-table"
        assert f["k"][:].tolist() == b["k"].values.tolist()
        assert f["s/offsets"][-1] == len(f["s/data"])


def test_private(scratch):
    spool = Spool(scratch)
    spool.put(numbers(5))
    folder = scratch.folder()
    for place in (folder, folder.parent):
        assert place.stat().st_mode & 0o777 == 0o700
    assert [p.stat().st_mode & 0o777 for p in folder.iterdir()] == [0o600, 0o600]


def test_somebody_elses_folder_is_refused(tmp_path):
    paths.scratch_home(tmp_path).mkdir(mode=0o755)
    with pytest.raises(StorageError, match="is not a private folder of yours"):
        Scratch(tmp_path).folder()
    other = tmp_path / "b"
    other.mkdir()
    paths.scratch_home(other).symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is not a private folder of yours"):
        Scratch(other).folder()


# -- damage -------------------------------------------------------------------------------------------------------------------------


def arrays_of(path: Path) -> list[tuple[int, int]]:
    with h5py.File(path) as f:
        found = []
        f.visititems(lambda name, x: found.append((x.id.get_offset(), x.id.get_storage_size())) if isinstance(x, h5py.Dataset) else None)
    return [(a, n) for a, n in found if a is not None and n]


def test_every_flipped_bit_is_noticed(scratch):
    spool, b = Spool(scratch), numbers(40)
    mask = np.arange(40) % 3 > 0
    b.columns["l"] = ListColumn(np.arange(40), np.arange(40) + 1, BytesColumn.from_list([b"ab"] * 40, False))
    b.columns["n"] = FixedColumn(np.arange(40), mask)
    spool.append([parts_of(b, [0, 40])])
    (path,) = scratch.folder().glob("*.h5")
    raw, rng = path.read_bytes(), np.random.default_rng(3)
    for start, nbytes in arrays_of(path):
        for at in {start, start + nbytes - 1, start + int(rng.integers(nbytes))}:
            bad = bytearray(raw)
            bad[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            with pytest.raises(StorageError, match=r"damaged: bytes .* are not those that were written.*--scratch"):
                list(spool.read(0))
    path.write_bytes(raw)
    same(next(iter(spool.read(0))).batch, b)


def test_truncated_swapped_missing(scratch):
    spool = Spool(scratch)
    spool.append([parts_of(numbers(40, 1), [0, 40])])
    spool.append([parts_of(numbers(40, 2), [0, 40])])
    one, two = sorted(scratch.folder().glob("*.h5"))
    first, second = one.read_bytes(), two.read_bytes()
    start, nbytes = max(arrays_of(one))
    one.write_bytes(first[:start + nbytes // 2])
    with pytest.raises(StorageError, match="damaged: it ends at byte"):
        list(spool.read(0))
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(StorageError, match="damaged"):
        list(spool.read(0))
    one.unlink()
    with pytest.raises(StorageError, match=f"cannot read back scratch '{one}'.*ENOENT"):
        list(spool.read(0))


@pytest.mark.parametrize("number", [28, 5])
def test_a_disk_that_is_full_or_broken(scratch, monkeypatch, number):
    spool = Spool(scratch)
    spool.append([parts_of(numbers(40, 1), [0, 40])])
    done = []

    def pwrite(fd, data, offset):
        done.append(len(data))
        if len(done) > 2:
            raise OSError(number, os.strerror(number))
        return os.write(fd, data[:1])

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: pwrite(fd, parts[0], offset))
    with pytest.raises(StorageError, match=r"cannot write scratch '.*spill-0+2.h5': .*MiB of .* are free; .*--scratch"):
        spool.append([parts_of(numbers(4000, 2), [0, 4000])])
    monkeypatch.undo()
    assert len(list(scratch.folder().glob("*.h5"))) == 1
    assert next(iter(spool.read(0))).batch.nrows == 40
    spool.close()
    assert run_folders(scratch.base) == []


# -- who made it --------------------------------------------------------------------------------------------------------------------

SPILLS = """
import os, sys, time
import numpy as np
from hpcmr.data.batch import Batch
from hpcmr.store.scratch import Scratch
from hpcmr.store.spill import Spool
scratch = Scratch(sys.argv[1])
Spool(scratch).put(Batch.of({"x": np.arange(10)}))
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_what_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", SPILLS, str(tmp_path), "60"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        assert len(run_folders(tmp_path)) == 1
        assert Scratch(tmp_path).sweep() == 0
        assert len(run_folders(tmp_path)) == 1
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(run_folders(tmp_path)) == 1
    assert Scratch(tmp_path).sweep() == 1
    assert not paths.scratch_home(tmp_path).exists()


def test_gone_at_the_end_of_a_process_that_forgot(tmp_path):
    subprocess.run([sys.executable, "-c", SPILLS, str(tmp_path), "0"], check=True, stdout=subprocess.DEVNULL)
    assert run_folders(tmp_path) == []


def test_marks_of_other_hosts_and_boots(tmp_path, scratch):
    home = scratch.folder().parent
    mark = json.loads((scratch.folder() / "owner").read_text())
    for name, change in {"other-host": {"host": "elsewhere", "boot": "x"}, "before-the-boot": {"boot": "x"}, "dead": {"pid": 1}}.items():
        (home / f"run-{name}").mkdir(mode=0o700)
        (home / f"run-{name}/owner").write_text(json.dumps(mark | change))
    (home / ".half-made").mkdir()
    os.utime(home / ".half-made", (1, 1))
    (home / ".being-made").mkdir()
    assert Scratch(tmp_path).sweep() == 3
    assert set(run_folders(tmp_path)) == {".being-made", "run-other-host", scratch.folder().name}


def test_where_scratch_lies(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    assert choose("rel", {})[0] == Path("rel").absolute()
    assert choose(None, {"SLURM_TMPDIR": str(a), "TMPDIR": str(b)}) == (a, "$SLURM_TMPDIR")
    assert choose(None, {"SLURM_TMPDIR": str(a / "gone"), "TMPDIR": str(b)}) == (b, "$TMPDIR")
    assert choose(None, {})[1] == "the system's temporary folder"


def test_partitions_of_all_sizes_beside_the_block(scratch):
    """A part that is written by itself comes behind what waits in the block; and a partition may have several kinds of rows."""
    block = segment.BLOCK_NBYTES // 8
    sizes = [3, block // 2 + 5, 7, block - 1, 2, block // 3, 2 * block + 1, 1]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    a = Batch.of({"k": np.random.default_rng(1).integers(-9, 9, int(starts[-1]))})
    b = Batch.of({"s": [b"x" * i for i in range(8)]})
    spool = Spool(scratch)
    spool.append([parts_of(a, starts)])
    spool.append([parts_of(b, np.arange(9))])
    spool.append([parts_of(a, starts)])
    for i, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        found = [p.batch for p in spool.read(i)]
        assert [f.names for f in found] == [("k",), ("s",), ("k",)]
        same(found[0], a.slice(start, stop))
        same(found[1], b.slice(i, i + 1))
        same(found[2], a.slice(start, stop))
    spool.close()
