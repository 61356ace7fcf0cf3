"""Tables give their rows: every action, on however many ranks there are, against plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpcmr as mr
from hpcmr.errors import FunctionError, HpcmrError, JobSpecError, Refused

pytestmark = pytest.mark.mpi

LINES = [f"{'abcdefg'[i % 7]} {i} {i * 0.1:.3f}" for i in range(400)]


@pytest.fixture
def text(world: Any, mpi_tmp_path: Path) -> Path:
    """Four files of lines, made by rank 0."""
    def write() -> None:
        for k in range(4):
            (mpi_tmp_path / f"{k}.txt").write_text("\n".join(LINES[100 * k:100 * (k + 1)]) + "\n")

    world.on_root(write)
    return mpi_tmp_path


def fields(line: str) -> dict[str, Any]:
    name, number, value = line.split()
    return {"name": name, "number": int(number), "value": float(value)}


ROWS = [fields(line) for line in LINES]


def table(text: Path) -> mr.Table:
    return mr.read_text(str(text)).map(fields)


def test_collect_gives_all_rows_in_order_on_every_rank(text: Path) -> None:
    rows = table(text).collect()
    assert rows is not None
    assert rows.columns == ("name", "number", "value")
    assert rows["number"].tolist() == list(range(400))
    assert rows["name"] == [r["name"] for r in ROWS]
    assert rows["value"].dtype == np.float64


def test_root_limits_the_result(world: Any, text: Path) -> None:
    root = world.size - 1
    assert (table(text).collect(root=root) is not None) == (world.rank == root)
    assert (table(text).head(3, root=root) is not None) == (world.rank == root)
    assert (table(text).select("number").reduce(max, root=root) is not None) == (world.rank == root)


@pytest.mark.parametrize("n", [0, 1, 150, 1000])
def test_head(text: Path, n: int) -> None:
    rows = table(text).head(n)
    assert rows is not None
    assert rows["number"].tolist() == list(range(400))[:n]


def test_reduce(text: Path) -> None:
    numbers = table(text).select("number")
    assert numbers.reduce(lambda a, b: a + b) == sum(range(400))
    assert numbers.filter(lambda n: n > 1000).reduce(max) is None


def test_narrow_operations(text: Path) -> None:
    rows = (table(text).filter(lambda r: r.number % 3 == 0).with_columns(half=lambda r: r.number / 2, one=1).rename(name="n").drop("value")
            .select("half", "n", "one").collect())
    assert rows is not None
    expected = [(r["number"] / 2, r["name"], 1) for r in ROWS if r["number"] % 3 == 0]
    assert [tuple(r) for r in rows.rows()] == expected


def test_flat_map_of_one_column_gets_the_value(text: Path) -> None:
    rows = mr.read_text(str(text / "0.txt")).flat_map(str.split).collect()
    assert rows is not None
    assert rows.columns == ("value",)
    assert rows["value"] == [w for line in LINES[:100] for w in line.split()]


def test_group_by_and_aggregates(text: Path) -> None:
    rows = table(text).with_columns(nonzero=lambda r: r.number > 0).group_by("name").agg(
        mr.count(), mr.sum("value"), low=mr.min("number"), high=mr.max("number"), mean=mr.mean("value"),
        f=mr.first("number"), la=mr.last("number"), some=mr.any("nonzero"), every=mr.all("nonzero")).collect()
    assert rows is not None
    groups: dict[str, list[Any]] = defaultdict(list)
    for r in ROWS:
        groups[r["name"]].append(r)
    assert sorted(rows["name"]) == sorted(groups)
    for row in rows.rows():
        mine = groups[row.name]
        assert row.count == len(mine)
        assert row.value_sum == math.fsum(r["value"] for r in mine)
        assert (row.low, row.high) == (min(r["number"] for r in mine), max(r["number"] for r in mine))
        assert (row.f, row.la) == (mine[0]["number"], mine[-1]["number"])
        assert (row.some, row.every) == (True, row.name != "a")


def test_group_by_several_columns(text: Path) -> None:
    rows = table(text).with_columns(odd=lambda r: r.number % 2 == 1).group_by("odd", "name").agg(n=mr.count()).collect()
    assert rows is not None
    found = {(r.odd, r.name): r.n for r in rows.rows()}
    assert found == Counter((r["number"] % 2 == 1, r["name"]) for r in ROWS)


def test_reduce_by_key(text: Path) -> None:
    pairs = table(text).map(lambda r: (r.name, r.number))
    rows = pairs.reduce_by_key(lambda a, b: a + b).collect()
    assert rows is not None
    expected: Counter[str] = Counter()
    for r in ROWS:
        expected[r["name"]] += r["number"]
    assert dict(zip(rows["key"], rows["value"].tolist(), strict=True)) == expected


def test_the_three_speeds_agree(text: Path) -> None:
    numbers = table(text).select("number", "value")

    @mr.kernel(out={"k": "int64", "v": "float64"})
    def fast(row: Any, emit: Any) -> None:
        if row.number % 2 == 0:
            emit(row.number % 10, row.value)

    @mr.batch
    def quick(cols: Any) -> dict[str, Any]:
        keep = cols["number"] % 2 == 0
        return {"k": cols["number"][keep] % 10, "v": cols["value"][keep]}

    def plain(row: Any) -> list[dict[str, Any]]:
        return [{"k": row.number % 10, "v": row.value}] if row.number % 2 == 0 else []

    results = [numbers.flat_map(f).group_by("k").agg(s=mr.sum("v")).collect() for f in (fast, quick, plain)]
    told = [sorted(zip(r["k"].tolist(), r["s"].tolist(), strict=True)) for r in results if r is not None]
    assert told[0] == told[1] == told[2]
    assert [k for k, _ in told[0]] == [0, 2, 4, 6, 8]


def test_a_table_can_be_used_twice_and_groups_again(text: Path) -> None:
    by_name = table(text).group_by("name").agg(n=mr.count())
    once, again = by_name.collect(), by_name.group_by("n").agg(names=mr.count()).collect()
    assert once is not None
    assert again is not None
    sizes = Counter(Counter(r["name"] for r in ROWS).values())
    assert dict(zip(again["n"].tolist(), again["names"].tolist(), strict=True)) == sizes
    assert len(once) == 7


def test_write_and_open(world: Any, text: Path) -> None:
    table(text).write_hdf5(text / "out")
    stored = mr.open(text / "out")
    assert stored["number"][:].tolist() == list(range(400))
    world.barrier()
    with pytest.raises(Refused, match="is there already"):
        table(text).write_hdf5(text / "out")
    back = stored.to_table().filter(lambda r: r.number < 5).collect()
    assert back is not None
    assert back["number"].tolist() == list(range(5))


def test_share_with_the_group(world: Any, text: Path) -> None:
    table(text).write_hdf5(text / "shared", share="group")
    assert {p.stat().st_mode & 0o777 for p in (text / "shared").iterdir()} == {0o640}
    assert (text / "shared").stat().st_mode & 0o777 == 0o750
    world.barrier()
    with pytest.raises(JobSpecError, match=r"share='all'.*yours alone"):
        table(text).write_hdf5(text / "all", share="all")


def test_an_error_is_the_same_on_every_rank(text: Path) -> None:
    def breaks(row: Any) -> Any:
        if row.number == 250:
            raise KeyError("no such thing")
        return row.number

    with pytest.raises(FunctionError, match="no such thing") as caught:
        table(text).map(breaks).collect()
    assert caught.value.ranks
    assert caught.value.exit_code == 1
    rows = table(text).head(2)           # and the ranks go on together
    assert rows is not None
    assert len(rows) == 2


def test_unknown_columns_are_named(text: Path) -> None:
    for wrong in (lambda t: t.select("nmber"), lambda t: t.group_by("nmber").agg(mr.count()), lambda t: t.group_by("name").agg(mr.sum("nmber"))):
        with pytest.raises(JobSpecError, match="did you mean 'number'"):
            wrong(table(text)).collect()


def test_ranks_with_different_plans_are_told(world: Any, text: Path) -> None:
    if world.size == 1:
        pytest.skip("one rank cannot differ from itself")
    limit = world.rank
    with pytest.raises(HpcmrError, match="ranks came to different plans"):
        table(text).filter(lambda r: r.number > limit).collect()


def test_arrays_of_all_ranks_in_rank_order(world: Any) -> None:
    n = 5 + world.rank
    part = {"key": np.arange(n) % 3, "rank": np.full(n, world.rank), "name": [f"{world.rank}-{i}" for i in range(n)]}
    source = mr.from_arrays(world.comm, part)
    rows = source.collect()
    assert rows is not None
    assert rows["name"] == [f"{r}-{i}" for r in range(world.size) for i in range(5 + r)]
    part["key"] = part["key"].copy()
    by_key = source.group_by("key").agg(n=mr.count(), last=mr.last("name")).collect()
    assert by_key is not None
    assert int(by_key["n"].sum()) == sum(5 + r for r in range(world.size))
    assert by_key["last"][by_key["key"].tolist().index(0)].startswith(f"{world.size - 1}-")
