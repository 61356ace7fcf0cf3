"""distinct against plain Python: the first row of each, whatever is compared, and however rows are dealt, sealed and merged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.partitioning import partition_bits
from hpcmr.errors import JobSpecError
from hpcmr.ops.distinct import Distinct
from tests.support.small_engine import cut, run

VARIANTS: list[dict[str, Any]] = [{}, {"ranks": 3}, {"ranks": 2, "seal_every": 1}, {"seal_every": 2}, {"partitions": 1}]
rng = np.random.default_rng(2)
N = 120
COLUMNS: dict[str, list[Any]] = {
    "i": rng.integers(0, 6, N).tolist(), "f": rng.choice([0.0, -0.0, 1.5, math.nan, math.inf], N).tolist(),
    "t": rng.choice(["", "a", "é", "x" * 30, "x" * 30 + "y"], N).tolist(), "b": rng.choice([b"", b"\xff\xfe", b"a\x00"], N).tolist(),
    "n": [None if v < 2 else v for v in rng.integers(0, 6, N).tolist()], "row": list(range(N)),
}


def comparable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple("nan" if isinstance(v, float) and math.isnan(v) else v for v in values)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("names", [("i",), ("f",), ("t",), ("b",), ("n",), ("i", "t"), ("f", "n", "b"), ("row",)])
def test_the_first_row_of_each(names: tuple[str, ...], variant: dict[str, Any]) -> None:
    expected: dict[Any, int] = {}
    for row, key in enumerate(zip(*(COLUMNS[n] for n in names), strict=True)):
        expected.setdefault(comparable(key), row)
    for splits in (1, 5):
        found = run(lambda: Distinct(names), cut(COLUMNS, splits), **variant)
        assert found.names == tuple(COLUMNS)
        assert sorted(found["row"].to_list()) == sorted(expected.values())
        partitions = variant.get("partitions", 8)
        layout = KeyLayout.of(found.schema, names)
        where = encode_keys(found, layout.for_batches(found)).hashes >> np.uint64(64 - partition_bits(partitions)) if partitions > 1 else np.zeros(1)
        assert (np.diff(where.astype(np.int64)) >= 0).all()
        if names == ("i",):
            for p in set(where.tolist()):
                mine = np.array(found["i"].to_list())[where == p] if partitions > 1 else np.array(found["i"].to_list())
                assert (np.diff(mine) > 0).all()


def test_all_columns_equal_rows_and_one_row() -> None:
    same = {"a": [1] * 20, "t": ["x"] * 20}
    assert run(lambda: Distinct(()), cut(same, 3), ranks=2).to_pydict() == {"a": [1], "t": ["x"]}
    assert run(lambda: Distinct(()), cut({"a": [5]}, 1)).to_pydict() == {"a": [5]}
    pairs = run(lambda: Distinct(()), cut({k: COLUMNS[k] for k in ("i", "n")}, 4), ranks=3)
    rows = list(zip(pairs["i"].to_list(), pairs["n"].to_list(), strict=True))
    assert len(rows) == len(set(rows)) and set(rows) == set(zip(COLUMNS["i"], COLUMNS["n"], strict=True))


def test_columns_that_cannot_be_compared_are_refused() -> None:
    for values in (np.zeros((2, 3)), [[1], [2]]):
        with pytest.raises(JobSpecError, match="cannot be a key"):
            Distinct(()).bind(Batch.of({"x": values}).schema)
    with pytest.raises(JobSpecError, match="no column 'y'"):
        Distinct(("y",)).bind(Batch.of({"x": [1]}).schema)
