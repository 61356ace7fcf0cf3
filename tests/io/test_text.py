"""Text read in any splits and blocks gives the lines that a plain loop over the bytes gives."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn
from hpcmr.data.source import Split
from hpcmr.errors import DataError, InputError, JobSpecError
from hpcmr.io.text import TextSource

PIECES = [b"\n", b"\n", b"\r\n", b"\r", b" ", b"\t", b"a", b"word", b"\0", b"\xff\xfe", "é".encode(), b"some more words", b"x" * 50]
texts = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


def naive_lines(raw: bytes) -> list[bytes]:
    parts = raw.split(b"\n")
    if not parts[-1]:
        parts.pop()
    return [p[:-1] if p.endswith(b"\r") else p for p in parts]


def read(source: TextSource, change: Callable[[list[Split]], None] | None = None) -> tuple[list[Split], list[list[dict[str, list[object]]]]]:
    """Batches as Python values, by split, read by another object as another rank would; the last split first."""
    schema, splits = source.survey()
    assert [s.index for s in splits] == list(range(len(splits)))
    other: TextSource = pickle.loads(pickle.dumps(source))
    other.adopt(schema, pickle.loads(pickle.dumps(splits)))
    if change:
        change(splits)
    got: dict[int, list[dict[str, list[object]]]] = {}
    for split in reversed(splits):
        got[split.index] = []
        for batch in other.read(split):
            batch.check(schema)
            assert batch.nrows > 0
            got[split.index].append(batch.to_pydict())
    other.close()
    return splits, [got[s.index] for s in splits]


def column(batches: list[list[dict[str, list[object]]]], name: str) -> list[object]:
    return [value for split in batches for batch in split for value in batch[name]]


def make(folder: Path, contents: list[bytes]) -> None:
    for old in folder.iterdir():
        old.unlink()
    for i, raw in enumerate(contents):
        (folder / f"f{i:03d}.txt").write_bytes(raw)


@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 120), st.integers(1, 60))
def test_lines_of_any_files_splits_and_blocks(tmp_path: Path, contents: list[bytes], split_nbytes: int, block_nbytes: int) -> None:
    make(tmp_path, contents)
    source = TextSource(tmp_path, None, file="doc", row="i", split_nbytes=split_nbytes, block_nbytes=block_nbytes)
    splits, batches = read(source)
    want = [(line, str(tmp_path / f"f{k:03d}.txt"), i) for k, raw in enumerate(contents) for i, line in enumerate(naive_lines(raw))]
    assert list(zip(column(batches, "line"), column(batches, "doc"), column(batches, "i"), strict=True)) == want
    assert sum(s.nbytes for s in splits) == sum(map(len, contents))


@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 120), st.integers(1, 60), st.booleans())
def test_blocks_hold_whole_words(tmp_path: Path, contents: list[bytes], split_nbytes: int, block_nbytes: int, with_file: bool) -> None:
    make(tmp_path, contents)
    source = TextSource(tmp_path, None, file="doc" if with_file else None, whole_blocks=True, split_nbytes=split_nbytes, block_nbytes=block_nbytes)
    _, batches = read(source)
    blocks = column(batches, "line")
    assert [w for b in blocks for w in b.split()] == [w for raw in contents for w in raw.split()]  # type: ignore[attr-defined]
    if with_file:
        got = [(w, doc) for b, doc in zip(blocks, column(batches, "doc"), strict=True) for w in b.split()]  # type: ignore[attr-defined]
        assert got == [(w, str(tmp_path / f"f{k:03d}.txt")) for k, raw in enumerate(contents) for w in raw.split()]


@given(texts, st.integers(1, 100), st.integers(1, 50))
def test_a_record_belongs_to_the_split_it_starts_in(tmp_path: Path, raw: bytes, split_nbytes: int, block_nbytes: int) -> None:
    make(tmp_path, [raw])
    splits, batches = read(TextSource(tmp_path, None, split_nbytes=split_nbytes, block_nbytes=block_nbytes))
    places, at = [], 0
    for part in raw.split(b"\n"):
        places.append(at)
        at += len(part) + 1
    for split, rows in zip(splits, batches, strict=True):
        if split.part[0] == "range":
            lo, hi = split.part[4:6]
            assert sum(len(b["line"]) for b in rows) == sum(lo <= p < hi for p in places if p < len(raw))


def test_one_file_in_one_to_many_splits(tmp_path: Path) -> None:
    raw = b"".join(b"line %d %s\n" % (i, b"." * (i % 37)) for i in range(500)) + b"the end"
    (tmp_path / "a.txt").write_bytes(raw)
    for count in (*range(1, 12), 100, 1000):
        splits, batches = read(TextSource(tmp_path, row="i", split_nbytes=-(-len(raw) // count), block_nbytes=333))
        assert len(splits) >= count * 0.9
        assert column(batches, "line") == raw.decode().splitlines()
        assert column(batches, "i") == list(range(501))


@pytest.mark.parametrize("raw", [b"", b"x", b"\n", b"\r", b"\r\n", b"\n\n", b"no end", b"a\n\nb", b"a\r\n\r\nb\r", b"\0\0\n\0", b"\xff\n\xc3"])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1 << 20, 1 << 16)])
def test_small_cases(tmp_path: Path, raw: bytes, sizes: tuple[int, int]) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    _, batches = read(TextSource(tmp_path, split_nbytes=sizes[0], block_nbytes=sizes[1]))
    assert [v.encode("utf-8", "surrogateescape") for v in column(batches, "line")] == naive_lines(raw)  # type: ignore[attr-defined]


@pytest.mark.parametrize("whole_blocks", [False, True])
def test_a_line_much_longer_than_blocks_and_splits(tmp_path: Path, whole_blocks: bool) -> None:
    long = os.urandom(1 << 20).hex().encode() + b"z" * (1 << 20)           # 3 MiB without white space
    raw = b"first\n" + long + b"\nlast one"
    (tmp_path / "a.txt").write_bytes(raw)
    for split_nbytes in (1 << 30, 1 << 20, 300_000):
        splits, batches = read(TextSource(tmp_path, None, whole_blocks=whole_blocks, split_nbytes=split_nbytes, block_nbytes=64 << 10))
        rows = column(batches, "line")
        if whole_blocks:
            assert [w for b in rows for w in b.split()] == raw.split()  # type: ignore[attr-defined]
        else:
            assert rows == [b"first", long, b"last one"]
    assert len(splits) > 10


def test_memory_of_a_long_line_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"y" * (2 << 20) + b"\nb\n")
    (tmp_path / "b.txt").write_bytes(b"c\n")
    source = TextSource(tmp_path, split_nbytes=1 << 20, block_nbytes=64 << 10)
    _, splits = source.survey()
    sizes = [len(batch["line"].data) for split in splits for batch in source.read(split)]  # type: ignore[union-attr]
    assert sizes[0] > 2 << 20 and sizes[-1] < 256 << 10


def test_splits_do_not_depend_on_blocks_and_hold_many_small_files(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i:03d}").write_bytes(b"%d\n" % i * (i % 5))
    splits, batches = read(TextSource(tmp_path, split_nbytes=1 << 19))
    assert 2 <= len(splits) <= 4 and all(len(b) == 1 for b in batches)
    assert column(batches, "line") == [str(i) for i in range(300) for _ in range(i % 5)]
    assert splits == TextSource(tmp_path, split_nbytes=1 << 19, block_nbytes=77).survey()[1]
    assert "000" not in splits[0].where and splits[0].where.endswith("files)")       # an empty file is in no split


def test_batches_are_views_of_one_buffer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some line\n" * 100_000)
    source = TextSource(tmp_path, block_nbytes=64 << 10)
    buffers = set()
    for batch in source.read(source.survey()[1][0]):
        line = batch["line"]
        assert isinstance(line, BytesColumn) and line.text
        buffers.add(line.data.ctypes.data)
    assert len(buffers) == 1


def first(source: TextSource) -> Batch:
    return next(iter(source.read(source.survey()[1][0])))


@pytest.mark.parametrize("nbytes", [20, 200_000])
@pytest.mark.parametrize("what", ["grown", "shrunk", "gone", "emptied"])
def test_a_file_that_changed_is_named(tmp_path: Path, nbytes: int, what: str) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(b"x" * (nbytes - 1) + b"\n")

    def change(splits: list[Split]) -> None:
        if what == "gone":
            path.unlink()
        else:
            os.truncate(path, {"grown": nbytes + 1, "shrunk": nbytes - 1, "emptied": 0}[what])

    message = "has vanished" if what == "gone" else f"it had {nbytes:,} bytes"
    with pytest.raises(DataError, match=rf"input\.txt.*{message}"):
        read(TextSource(tmp_path, split_nbytes=1 << 16), change)


def test_truncated_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(b"0123456\n" * 50_000)
    source = TextSource(tmp_path, split_nbytes=100_000, block_nbytes=10_000)
    batches = source.read(source.survey()[1][0])
    next(batches)
    os.truncate(path, 15_000)
    with pytest.raises(DataError, match=r"input\.txt' ends at byte 15,000.*truncated"):
        list(batches)


def test_no_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text input"):
        TextSource(tmp_path / "*.txt").survey()
    (tmp_path / "empty.txt").touch()
    assert TextSource(tmp_path / "*.txt").survey()[1] == []


def test_options(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é\n".encode())
    assert first(TextSource(tmp_path))["line"].to_list() == ["é"]
    assert first(TextSource(tmp_path, None))["line"].to_list() == ["é".encode()]
    for bad in ({"encoding": "latin-1"}, {"file": "line"}, {"file": "a", "row": "a"}, {"row": "i", "whole_blocks": True}):
        with pytest.raises(JobSpecError):
            TextSource(tmp_path, **bad)  # type: ignore[arg-type]
    assert TextSource(tmp_path).fingerprint() != TextSource(tmp_path, None).fingerprint()
