"""Shards of checkpoints come back bit by bit, range by range, or not at all."""

import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.store import paths, pieces
from hpcmr.store.pieces import PieceFile, write_pieces
from tests.store.support import bits, columns

FILE = paths.piece_file(1, 1, 0, 0)


def same(a: Batch, b: Batch) -> None:
    assert a.names == b.names and a.nrows == b.nrows and a.schema == b.schema
    for name in a.names:
        assert bits(a[name]) == bits(b[name]), name


def parts_of(batch, starts, first=0):
    return Partitioned(batch, np.array(starts, np.int64), first)


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
def test_any_columns_come_back(tmp_path_factory, case):
    parts, run_nbytes = case
    folder = tmp_path_factory.mktemp("p")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "RUN_NBYTES", run_nbytes)
        info = write_pieces(folder, FILE, parts)
    file = PieceFile(folder, info)
    file.verify()
    count = parts[0].count
    for i in range(count + 1):
        for j in range(i, count + 1):
            found = file.read(7 + i, 7 + j)
            assert found.first == 7 + i and found.count == j - i
            for q in range(i, j):
                wanted = Batch.concat([p.part(7 + q) for p in parts])
                same(found.part(7 + q), wanted)
    assert file.rows == sum(p.batch.nrows for p in parts)
    assert file.nbytes_of(0, 100) <= sum(file.nbytes_of(7 + q, 8 + q) for q in range(count)) <= file.nbytes_of(0, 100) + 8 * 9 * count * len(file.schema)
