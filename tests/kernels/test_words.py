"""Words found 64 bytes at a time, against ``bytes.split``."""

from __future__ import annotations

import string

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.kernels.words import SLACK, find_words, trim_punctuation

pieces = [b" ", b"\t", b"\n", b"\v", b"\f", b"\r", b"\0", b"\x1c", b"\x1f", b"\x85", b"\xa0", b"\xff", b"\xc3\xa9",
          b"a", b"b,", b"'c", b"it's", b"--", b"x" * 63, b"y" * 64, b"a b c d e f g h i j k l m n o p q r s t u v w x y z"]
rows_of_text = st.lists(st.lists(st.sampled_from(pieces), max_size=30).map(b"".join), max_size=12)
PUNCTUATION = string.punctuation.encode()


def find(rows: list[bytes], gap: int = 0, behind: int = 0, readonly: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    raw = b"".join(r + b"z" * gap for r in rows) + b"z" * behind
    data = np.frombuffer(raw, np.uint8) if readonly else np.frombuffer(raw, np.uint8).copy()
    lengths = np.array([len(r) for r in rows], np.int64)
    row_ends = np.cumsum(lengths + gap) - gap
    room = int(((lengths + 1) // 2).sum()) + SLACK
    starts, ends, counts = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(len(rows), np.int64)
    n = find_words(data, row_ends - lengths, row_ends, starts, ends, counts)
    return data, starts[:n], ends[:n], counts


def by_row(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> list[list[bytes]]:
    words = [data[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]
    stops = np.cumsum(counts)
    return [words[b - c:b] for b, c in zip(stops, counts, strict=True)]


@given(rows_of_text, st.integers(0, 1), st.sampled_from([0, 1, 63, 64, 200]), st.booleans())
def test_words_are_those_of_split(rows: list[bytes], gap: int, behind: int, readonly: bool) -> None:
    assert by_row(*find(rows, gap, behind, readonly)) == [r.split() for r in rows]


@given(rows_of_text)
def test_trimming(rows: list[bytes]) -> None:
    data, starts, ends, counts = find(rows)
    n = trim_punctuation(data, starts, ends, counts)
    assert by_row(data, starts[:n], ends[:n], counts) == [[t for w in r.split() if (t := w.strip(PUNCTUATION))] for r in rows]


def test_every_byte_alone() -> None:
    rows = [bytes([a]) * k for a in range(256) for k in (1, 64, 65)]
    assert by_row(*find(rows)) == [r.split() for r in rows]


def test_words_that_fill_the_room() -> None:
    for n in (1, 2, 63, 64, 65, 127, 128, 129, 1000):
        rows = [(b"a " * n)[:n]]
        assert by_row(*find(rows)) == [rows[0].split()]


def test_a_word_much_longer_than_a_vector() -> None:
    assert by_row(*find([b"  " + b"q" * 100_000 + b" r"])) == [[b"q" * 100_000, b"r"]]
