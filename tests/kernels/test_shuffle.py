"""Rows scattered by destination, against a stable argsort."""

from __future__ import annotations

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.scatter import count, groups_of_ranks, partitions_of_keys, place_strings, scatter_fixed, scatter_strings, weigh
from hpcmr.errors import DataError

TYPES = ["bool", "uint8", "int16", "float16", "float32", "int64", "float64", "complex64", "complex128", "datetime64[us]", "S1", "S3", "S8", "S16"]


def starts(groups: np.ndarray, n: int) -> np.ndarray:
    counts = np.bincount(groups, minlength=n)
    return np.cumsum(counts) - counts


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
@pytest.mark.parametrize("dtype", TYPES)
def test_fixed_values_of_any_width(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    for n, groups in ((0, 1), (1, 1), (500, 7), (500, 1000)):
        values = rng.integers(0, 100, (n, *shape)).astype("i8").astype(dtype)
        dest = rng.integers(0, groups, n).astype(np.uint16)
        out, at = np.zeros_like(values), starts(dest, groups)
        scatter_fixed(values, dest, at, out)
        assert out.tobytes() == values[np.argsort(dest, kind="stable")].tobytes()
        if values.size:
            assert (at == np.cumsum(np.bincount(dest, minlength=groups))).all()


def test_values_that_are_not_contiguous_not_aligned_or_read_only() -> None:
    dest = np.array([1, 0, 1, 0], np.uint16)
    odd = np.frombuffer(b"x" + np.arange(4, dtype=np.complex64).tobytes(), np.uint8)[1:].view(np.complex64)
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    for values in (np.arange(8, dtype=np.int32)[::2], odd, frozen, np.asfortranarray(np.arange(12.0).reshape(4, 3))):
        out = np.zeros_like(values, order="C")
        scatter_fixed(values, dest, np.array([0, 2]), out)
        assert (out == values[[1, 3, 0, 2]]).all()


def test_a_call_goes_on_behind_the_one_before() -> None:
    values, dest = np.arange(100), (np.arange(100) % 3).astype(np.uint16)
    at, out = starts(dest, 3), np.zeros(100, np.int64)
    for a in range(0, 100, 33):
        scatter_fixed(values[a : a + 33], dest[a : a + 33], at, out)
    assert (out == values[np.argsort(dest, kind="stable")]).all()


@pytest.mark.parametrize("seed", range(4))
def test_strings_there_and_in_their_places(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [bytes(rng.integers(0, 256, int(rng.choice([0, 1, 7, 8, 9, 30])), dtype=np.uint8)) for _ in range(200)]
    column = BytesColumn.from_list(rows, text=False)
    dest = rng.integers(0, 5, len(rows)).astype(np.uint16)
    order = np.argsort(dest, kind="stable")
    expected = b"".join(rows[i] for i in order)

    lengths = np.array([len(r) for r in rows])
    nbytes = np.bincount(dest, weights=lengths, minlength=5).astype(np.int64)
    out = np.zeros(len(expected), np.uint8)
    scatter_strings(column, dest, np.cumsum(nbytes) - nbytes, out)
    assert out.tobytes() == expected

    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    out = np.full(len(expected) + 8, 7, np.uint8)
    place_strings(column.data.copy(), dest, starts(dest, 5), offsets, out)
    assert out[:-8].tobytes() == expected
    assert (out[-8:] == 7).all()


def test_partition_is_the_top_of_the_hash() -> None:
    batch = Batch.of({"k": np.arange(200_000) % 977, "s": ["a", None] * 100_000, "x": np.ones(200_000)})
    layout = KeyLayout.of(batch.schema, ("k", "s")).for_batches(batch)
    hashes = encode_keys(batch.select(("k", "s")), layout).hashes
    assert (partitions_of_keys(batch, ("k", "s"), 10) == hashes >> np.uint64(54)).all()
    assert (partitions_of_keys(batch, ("k", "s"), 0) == 0).all()


def test_bytes_of_groups() -> None:
    batch = Batch.of({"x": np.zeros((4, 3), np.float32), "s": ["", "abc", "d", "ef"], "l": [[1], [], [2, 3], []]})
    groups = np.array([2, 0, 2, 0], np.uint16)
    assert count(groups, 3).tolist() == [2, 0, 2]
    assert weigh(batch, groups, 3).tolist() == [2 * 12 + 2 * 16 + 5 + 2 * 16, 0, 2 * 12 + 2 * 16 + 1 + 2 * 16 + 24]


def test_wrong_destinations() -> None:
    assert groups_of_ranks([0, 2], 2, 3).tolist() == [0, 2]
    assert groups_of_ranks([], 0, 3).tolist() == []
    with pytest.raises(DataError, match=r"dest\[70,000\] is 3; there are ranks 0 to 2"):
        groups_of_ranks(np.repeat([1, 3], 70_000), 140_000, 3)
    with pytest.raises(DataError, match=r"dest\[0\] is -1"):
        groups_of_ranks(np.array([-1], np.int8), 1, 3)
    for wrong in (np.zeros(2), np.zeros((2, 1), int), [0]):
        with pytest.raises(DataError, match="dest must be 2 integers"):
            groups_of_ranks(wrong, 2, 3)
