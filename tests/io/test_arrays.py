"""Arrays in memory, on any number of ranks: the same splits hold the same rows, however the rows are spread."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.schema import Schema
from hpcmr.data.source import Split
from hpcmr.errors import InputError
from hpcmr.io.arrays import ArraySource, local_pieces


def together(parts: list[dict[str, Any]], **options: Any) -> tuple[list[ArraySource], list[tuple[Schema, list[Split]]]]:
    """Survey on as many threads as there are parts; the first error that a rank raises is raised here, after all of them raised it."""
    size = len(parts)
    barrier, board = threading.Barrier(size), [None] * size
    sources = [ArraySource(SimpleNamespace(rank=r), part, **options) for r, part in enumerate(parts)]
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        def allgather(item: Any) -> list[Any]:
            board[rank] = item
            barrier.wait(10)
            return list(board)

        try:
            results[rank] = sources[rank].survey_distributed(allgather)
        except InputError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    if any(isinstance(r, Exception) for r in results):
        assert len({str(r) for r in results}) == 1
        raise results[0]
    return sources, results


def rows_by_split(sources: list[ArraySource], surveyed: list[tuple[Schema, list[Split]]]) -> dict[int, dict[int, dict[str, Any]]]:
    """Row within the split -> values, by split, as the engine sees them."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for source, (schema, splits) in zip(sources, surveyed, strict=True):
        for split in splits:
            row = source.origin_row(split)
            for batch in source.read(split):
                batch.check(schema)
                values = batch.to_pydict()
                for i in range(batch.nrows):
                    place = found.setdefault(split.index, {})
                    assert row + i not in place
                    place[row + i] = {n: v[i] for n, v in values.items()}
                row += batch.nrows
    return found


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 500), st.integers(1, 200))
def test_splits_do_not_depend_on_who_holds_the_rows(n: int, cuts: list[int], split_nbytes: int, batch_nbytes: int) -> None:
    data: dict[str, Any] = {"x": np.arange(n), "p": np.arange(2 * n, dtype=np.float32).reshape(n, 2), "s": [f"é{i}" * (i % 5) for i in range(n)],
                            "m": np.ma.masked_array(np.arange(n, dtype=np.int16), np.arange(n) % 3 == 0)}
    bounds = [0, *sorted(min(c, n) for c in cuts), n]
    parts = [{k: v[a:b] for k, v in data.items()} for a, b in pairwise(bounds)]
    many = rows_by_split(*together(parts, split_nbytes=split_nbytes, batch_nbytes=batch_nbytes))
    one = rows_by_split(*together([data], split_nbytes=split_nbytes))
    assert many == one
    assert sorted(one) == list(range(len(one)))
    rows = [one[s][i] for s in sorted(one) for i in range(len(one[s]))]
    assert [r["x"] for r in rows] == list(range(n)) and [r["s"] for r in rows] == data["s"]
    assert [r["m"] for r in rows] == [None if i % 3 == 0 else i for i in range(n)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 30))
def test_pieces_cover_all_rows_once(counts: list[int], rows: int) -> None:
    seen = []
    for rank in range(len(counts)):
        first = sum(counts[:rank])
        for split in local_pieces(rank, counts, rows):
            a, b, row = split.part
            assert 0 <= a < b <= counts[rank] and split.nbytes == b - a
            seen += [(split.index, row + i) for i in range(b - a)]
            assert split.index * rows + row == first + a
    assert seen == [(i // rows, i % rows) for i in range(sum(counts))]


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", ">i4", "f2", ">f8", "c8", "S3", "M8[ns]", "m8[s]"])
def test_every_type(dtype: str) -> None:
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)
    (source,), ((schema, splits),) = together([{"x": values}])
    (batch,) = source.read(splits[0])
    assert batch["x"].to_list() == values.tolist() and schema["x"].type.np_dtype.isnative


def test_values_of_python() -> None:
    (source,), ((_, splits),) = together([{"s": ["a", None], "b": [b"x", b""], "l": [[1, 2], []], "i": [1, None], "u": np.array(["é", "z"])}])
    (batch,) = source.read(splits[0])
    assert batch.to_pydict() == {"s": ["a", None], "b": [b"x", b""], "l": [[1, 2], []], "i": [1, None], "u": ["é", "z"]}


def test_arrays_are_not_copied_unless_they_must_be() -> None:
    plain, fixed = np.arange(10), np.arange(10)
    fixed.flags.writeable = False
    (source,), ((_, splits),) = together([{"plain": plain, "fixed": fixed, "every": np.arange(20)[::2], "turned": np.arange(20).reshape(2, 10).T}])
    (batch,) = source.read(splits[0])
    assert np.shares_memory(batch["plain"].values, plain)                      # type: ignore[union-attr]
    for name in ("fixed", "every", "turned"):
        flags = batch[name].values.flags                                       # type: ignore[union-attr]
        assert flags.c_contiguous and flags.writeable
    assert batch["every"].to_list() == list(range(0, 20, 2))


def test_ranks_without_rows_or_with_nulls_take_the_type_of_the_others() -> None:
    parts = [{"a": [], "s": [], "b": np.array([], "S1"), "l": []},
             {"a": np.array([1, 2], np.int8), "s": ["x", "y"], "b": np.array([b"x", b"long"]), "l": [[1], [2]]},
             {"a": [None], "s": [None], "b": np.array([b"yy"]), "l": [None]}]
    sources, surveyed = together(parts)
    assert {f.name: str(f.type) for f in surveyed[0][0]} == {"a": "int8", "s": "text", "b": "S4", "l": "list<int64>"}
    rows = rows_by_split(sources, surveyed)[0]
    assert [rows[i] for i in range(3)] == [{"a": 1, "s": "x", "b": b"x", "l": [1]}, {"a": 2, "s": "y", "b": b"long", "l": [2]},
                                           {"a": None, "s": None, "b": b"yy", "l": None}]


def test_no_rows_at_all() -> None:
    _, surveyed = together([{"x": np.zeros(0, np.int32)}] * 3)
    assert [splits for _, splits in surveyed] == [[], [], []] and str(surveyed[0][0]["x"].type) == "int32"
    assert ArraySource(SimpleNamespace(rank=0), {"x": [1, 2]}).survey()[1][0].part == (0, 2, 0)


@pytest.mark.parametrize(("parts", "what"), [
    ([{"x": [1]}, {"x": [1, 2], "y": [1]}], "columns of unequal length: x has 2 rows, y has 1 rows .on rank 1"),
    ([{"x": [1]}, {"y": [1]}], "the columns are 'x' on rank 0 and 'y' on rank 1; give all ranks the same names"),
    ([{"x": [1]}, {"x": []}, {"x": [1.5]}], "column 'x' is int64 on rank 0 and float64 on rank 2; convert it to one type"),
    ([{"x": np.zeros(2, np.longdouble)}], "column 'x': unsupported dtype"),
    ([{"x": np.zeros(2, "V3")}], "column 'x': unsupported dtype"),
    ([{"x": [1, "a"]}], "column 'x': values of types int, str do not make one column"),
    ([{"x": 3.0}], "column 'x' is a float; give an array, or a list of values, one for each row"),
    ([{"x": "abc"}], "column 'x' is a str; give an array"),
    ([{"x": {1: 2}}], "column 'x' is a dict; give an array"),
    ([{"x": np.array(3.0)}], "column 'x': a column needs at least one axis"),
    ([{}], "there is no column"),
    ([{3: [1]}], "the name of a column is a string, not 3"),
])
def test_errors_are_raised_on_all_ranks(parts: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        together(parts)
    assert str(caught.value).startswith("from_arrays: ")


@pytest.mark.mpi
def test_on_real_ranks(subworld: Any) -> None:
    n = 5 * subworld.rank + 3
    first = sum(5 * r + 3 for r in range(subworld.rank))
    source = ArraySource(subworld, {"x": np.arange(first, first + n)}, split_nbytes=8 * 7, batch_nbytes=16)
    schema, splits = source.survey_distributed(subworld.allgather)
    mine = [(s.index, source.origin_row(s), [v for b in source.read(s) for v in b["x"].to_list()]) for s in splits]
    rows = [(index, row + i, v) for part in subworld.allgather(mine) for index, row, values in part for i, v in enumerate(values)]
    assert rows == [(i // 7, i % 7, i) for i in range(len(rows))] and schema.names == ("x",)
