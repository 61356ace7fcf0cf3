"""Line ends found 64 bytes at a time, against plain loops."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.kernels.lines import count_newlines, find_lines, first_end, last_end

texts = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"\t", b"\v", b"a", b"\0", b"\xff", b"word " * 20]), max_size=60).map(b"".join)


def naive_lines(raw: bytes) -> list[bytes]:
    parts = raw.split(b"\n")
    if not parts[-1]:
        parts.pop()
    return [p[:-1] if p.endswith(b"\r") else p for p in parts]


@given(texts, st.integers(0, 70), st.integers(0, 70))
def test_find_lines(raw: bytes, before: int, behind: int) -> None:
    data = np.frombuffer(b"\n" * before + raw + b"\n" * behind, np.uint8).copy()
    starts, ends = np.empty(len(raw) + 1, np.int64), np.empty(len(raw) + 1, np.int64)
    n = find_lines(data, before, before + len(raw), starts, ends)
    assert [data[a:b].tobytes() for a, b in zip(starts[:n], ends[:n], strict=True)] == naive_lines(raw)


@given(texts, st.integers(0, 70), st.integers(0, 70))
def test_ends_and_counts(raw: bytes, before: int, behind: int) -> None:
    data = np.frombuffer(b"\n" * before + raw + b"\n" * behind, np.uint8).copy()
    lo, hi = before, before + len(raw)
    assert count_newlines(data, lo, hi) == raw.count(b"\n")
    for spaces, pattern in ((False, rb"\n"), (True, rb"[\t-\r ]")):
        found = [m.start() + lo for m in re.finditer(pattern, raw)] or [-1]
        assert (first_end(data, lo, hi, spaces), last_end(data, lo, hi, spaces)) == (found[0], found[-1])
