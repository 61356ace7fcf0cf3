"""Copying strings together, lower case, and numbers from digits, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import BytesColumn
from hpcmr.kernels.strings import gather_bytes, lower_ascii, parse_float64, parse_int64


def places(rows: list[bytes], writeable: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    column = BytesColumn.from_list(rows, text=False)
    data = column.data.copy() if writeable else column.data
    return np.ascontiguousarray(column.starts), np.ascontiguousarray(column.ends), data


@given(st.lists(st.binary(max_size=40), max_size=30), st.randoms(use_true_random=False), st.integers(0, 9), st.booleans())
def test_gather_bytes(rows: list[bytes], random: object, slack: int, writeable: bool) -> None:
    starts, ends, data = places(rows, writeable)
    order = np.arange(len(rows))
    random.shuffle(order)  # type: ignore[attr-defined]
    starts, ends = starts[order], ends[order]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    out = np.full(int(offsets[-1]) + slack, 0xAA, np.uint8)
    gather_bytes(starts, ends, data, offsets, out)
    assert out[:offsets[-1]].tobytes() == b"".join(rows[i] for i in order)
    assert (out[offsets[-1]:] == 0xAA).all()              # nothing is written behind the last row


def test_gather_of_nothing() -> None:
    none = np.zeros(0, np.int64)
    gather_bytes(none, none, np.zeros(0, np.uint8), np.zeros(1, np.int64), np.zeros(0, np.uint8))


@given(st.binary(max_size=100), st.integers(0, 20))
def test_lower_ascii(raw: bytes, lo: int) -> None:
    data = np.frombuffer(raw, np.uint8)
    lo = min(lo, len(raw))
    out = np.full(len(raw) - lo + 3, 7, np.uint8)
    lower_ascii(data, lo, len(raw), out)
    assert out.tobytes() == raw[lo:].lower() + b"\x07\x07\x07"


@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=20))
def test_integers(values: list[int]) -> None:
    starts, ends, data = places([f"{'+' if v > 0 and v % 2 else ''}{v}".encode() for v in values])
    out = np.empty(len(values), np.int64)
    assert parse_int64(starts, ends, data, out) == -1
    assert out.tolist() == values


@pytest.mark.parametrize("bad", [b"", b"-", b"+", b"1.0", b"x", b"1 2", b"--1", b"9223372036854775808", b"-9223372036854775809",
                                 b"99999999999999999999", b"18446744073709551617"])
def test_no_integer(bad: bytes) -> None:
    starts, ends, data = places([b" 7\t", bad])
    assert parse_int64(starts, ends, data, np.empty(2, np.int64)) == 1


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False, places=3),
                min_size=1, max_size=20))
def test_floats_have_the_bits_of_float(values: list[object]) -> None:
    rows = [str(v).encode() for v in values]
    starts, ends, data = places(rows)
    out, hard = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    left = set(hard[:parse_float64(starts, ends, data, out, hard)].tolist())
    for i, row in enumerate(rows):
        if i not in left:
            assert np.float64(float(row)).tobytes() == out[i].tobytes(), row


def test_easy_floats_are_not_hard() -> None:
    rows = [b"0", b"-0.0", b"3.14", b" 2.5e-3 ", b"1E5", b"7.", b".5", b"+12345678901234.5"]
    starts, ends, data = places(rows)
    out = np.zeros(len(rows))
    assert parse_float64(starts, ends, data, out, np.zeros(len(rows), np.int64)) == 0
    assert out.tolist() == [float(r) for r in rows] and np.signbit(out[1])


def test_hard_floats_are_left_to_the_caller() -> None:
    rows = [b"3", b".", b"e5", b"5e", b"", b"nan", b"1_0", b"1e400", b"12345678901234567890", b"0x1p3", b"1.2.3", b"5e+"]
    starts, ends, data = places(rows)
    hard = np.zeros(len(rows), np.int64)
    assert parse_float64(starts, ends, data, np.zeros(len(rows)), hard) == len(rows) - 1
    assert hard[:len(rows) - 1].tolist() == list(range(1, len(rows)))
