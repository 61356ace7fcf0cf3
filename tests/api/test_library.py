"""Library calls in a program that is parallel already, against what the rows of all ranks say must come out."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

import hpcmr
from hpcmr.comm.mpi_world import MpiWorld
from hpcmr.comm.rows import exchange_rows
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.data.scatter import partitions_of_keys
from hpcmr.errors import DataError, HpcmrError, InputError, JobSpecError, MemoryTooSmall, RemoteError

pytestmark = pytest.mark.mpi
WORDS = ["", "a", "bb", "ccc" * 9, "é", "the same word that is longer than a key's words hold"]


def columns_of(n: int, seed: Any) -> dict[str, Any]:
    """Columns of all kinds; keys repeat."""
    rng = np.random.default_rng(seed)
    mark = rng.integers(0, 50, n)
    price = np.ma.MaskedArray(rng.random(n).astype(np.float32), rng.random(n) < 0.2)
    x = rng.choice([0.0, -0.0, np.nan, 1.5, np.inf, 1e-300], n)
    return {
        "id": mark,
        "x": x,
        "pos": rng.random((n, 3)),
        "flag": mark % 2 == 0,
        "tag": np.array([f"t{m}" for m in mark], "S5"),
        "when": mark.astype("datetime64[s]"),
        "price": price,
        "word": [WORDS[m % len(WORDS)] for m in mark],
        "raw": [bytes([255, 0]) * (m % 3) for m in mark.tolist()],
        "items": [[float(k) for k in range(m % 4)] for m in mark.tolist()],
        "row": np.arange(n),
    }


def column(values: Any) -> list[Any]:
    return [repr(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]


def rows_of(columns: dict[str, Any]) -> list[tuple[str, ...]]:
    return list(zip(*(column(v) for v in columns.values()), strict=True))


def together(world: World, parts: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [row for part in parts for row in rows_of(part)]


def lengths(kind: str, size: int) -> list[int]:
    return {"even": [40] * size, "some empty": [0 if r % 2 == 0 else 30 for r in range(size)], "none": [0] * size,
            "one row": [int(r == size - 1) for r in range(size)], "uneven": [7 * r * r + 1 for r in range(size)]}[kind]


KINDS = ["even", "some empty", "none", "one row", "uneven"]


def mine_and_all(world: World, kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    parts = [columns_of(n, (5, r)) for r, n in enumerate(lengths(kind, world.size))]
    if kind == "none":
        parts = [{"id": np.zeros(0, np.int64), "word": [], "row": np.zeros(0, np.int64)} for _ in parts]
    return parts[world.rank], parts


@pytest.mark.parametrize("kind", ["some empty", "none", "one row", "uneven"])
def test_shuffle_to_chosen_ranks(subworld: World, kind: str) -> None:
    w = subworld
    mine, parts = mine_and_all(w, kind)
    dests = [np.random.default_rng((6, r)).integers(0, w.size, len(p["row"])) for r, p in enumerate(parts)]
    got = hpcmr.shuffle(w.comm, mine, dest=dests[w.rank])
    rows = [row for p, d in zip(parts, dests, strict=True) for row, to in zip(rows_of(p), d, strict=True) if to == w.rank]
    assert list(got) == list(mine)
    assert rows_of(got) == rows
    if kind not in ("none", "one row"):
        assert all(got[n].dtype == mine[n].dtype for n in ("id", "x", "pos", "flag", "tag", "when", "price"))


@pytest.mark.parametrize("key", ["id", "x", "tag", "word", "price", ["id", "word"], ["when", "flag", "raw"]], ids=str)
def test_shuffle_by_key(world: World, key: Any) -> None:
    w = world
    mine, parts = mine_and_all(w, "uneven")
    got = hpcmr.shuffle(w.comm, mine, key=key)
    whole = [row for part in w.allgather(got) for row in rows_of(part)]

    names = (key,) if isinstance(key, str) else tuple(key)
    rows = together(w, parts)
    bits = min(10, (len(rows) - 1).bit_length())
    partition = np.concatenate([partitions_of_keys(Batch.of(p), names, bits) for p in parts])
    assert whole == [rows[i] for i in np.argsort(partition, kind="stable")]      # by partition, source rank, row
    places = [set(zip(*(column(np.asarray(part[n]) + 0.0 if n == "x" else part[n]) for n in names), strict=True)) for part in w.allgather(got)]
    assert sum(len(p) for p in places) == len(set().union(*places))              # no key on two ranks


def test_shuffle_gives_all_ranks_of_a_small_table_something(world: World) -> None:
    got = hpcmr.shuffle(world.comm, {"k": np.arange(world.rank, 4000, world.size)}, key="k")
    assert 0.5 < len(got["k"]) * world.size / 4000 < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_gather(world: World, kind: str) -> None:
    w = world
    mine, parts = mine_and_all(w, kind)
    for root in {0, w.size - 1}:
        got = hpcmr.gather(w.comm, mine, root=root)
        assert (got is None) == (w.rank != root)
        assert got is None or rows_of(got) == together(w, parts)


@pytest.mark.parametrize("n", [0, 1, 100])
def test_scatter_and_broadcast(world: World, n: int) -> None:
    w = world
    for root in {0, w.size - 1}:
        given = columns_of(n, 9) if n else {"id": np.zeros(0, np.int32), "word": np.array([], "S3")}
        mine = given if w.rank == root else None
        rows = rows_of(given)
        cuts = [n // w.size * r + min(r, n % w.size) for r in range(w.size + 1)]
        assert rows_of(hpcmr.scatter(w.comm, mine, root=root)) == rows[cuts[w.rank] : cuts[w.rank + 1]]
        got = hpcmr.broadcast(w.comm, mine, root=root)
        assert list(got) == list(given)
        assert rows_of(got) == rows


def test_arrays_that_are_read_only_or_not_contiguous(world: World) -> None:
    frozen = np.arange(10.0)
    frozen.flags.writeable = False
    given = {"a": frozen, "b": np.arange(60).reshape(3, 20).T[::2], "c": np.asfortranarray(np.arange(20).reshape(10, 2))}
    expected = rows_of(given)
    assert rows_of(hpcmr.broadcast(world.comm, given)) == expected
    assert rows_of(hpcmr.scatter(world.comm, given)) == expected[-(-10 * world.rank // world.size) : 10] or world.size > 1
    assert rows_of(hpcmr.shuffle(world.comm, given, dest=np.full(10, world.size - 1 - world.rank))) == expected
    gathered = hpcmr.gather(world.comm, given)
    assert gathered is None or rows_of(gathered) == expected * world.size


def test_what_comes_out_does_not_look_at_what_went_in(world: World) -> None:
    given = {"a": np.arange(10)}
    got = hpcmr.shuffle(world.comm, given, dest=np.full(10, world.rank))
    there = hpcmr.gather(world.comm, given)
    given["a"][:] = -1
    assert got["a"].tolist() == list(range(10))
    assert there is None or there["a"].min() == 0


class Plenty:
    def take(self, nbytes: int, what: str) -> None:
        pass

    def available(self) -> int:
        return 1 << 40


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("block", "turn"), [(16, 7), (200, 64 << 20), (1 << 20, 50)])
def test_blocks_and_rounds_of_any_size_give_the_same(world: World, block: int, turn: int, skewed: bool) -> None:
    from hpcmr.comm.rows import Parts
    from hpcmr.data.partitioning import owner_bounds

    mine = Batch.of(columns_of(30 + world.rank, (7, world.rank)))
    groups = np.zeros(mine.nrows, np.uint16) if skewed else partitions_of_keys(mine, ("id",), 5)
    bounds = owner_bounds(np.ones(32, np.int64), world.size)
    dest = np.repeat(np.arange(world.size), np.diff(bounds)).astype(np.uint16)[groups]
    for parts in (None, Parts(groups, bounds)):
        expected = exchange_rows(world, mine, dest, Plenty(), parts)
        got = exchange_rows(world, mine, dest, Plenty(), parts, block_nbytes=block, round_nbytes=turn)
        assert got.schema == expected.schema
        assert repr(got.to_pydict()) == repr(expected.to_pydict())


def test_one_record_larger_than_a_round_and_a_block(world: World) -> None:
    long = "x" * 300_000 if world.rank == 0 else "y"
    mine = Batch.of({"k": [1, 2, 3], "s": ["a", long, "b"], "big": np.full((3, 5000), world.rank)})
    dest = np.full(3, world.size - 1, np.uint16)
    got = exchange_rows(world, mine, dest, Plenty(), block_nbytes=1 << 14, round_nbytes=1 << 12)
    if world.rank == world.size - 1:
        assert [len(s) for s in got.to_pydict()["s"]] == [n for r in range(world.size) for n in (1, 300_000 if r == 0 else 1, 1)]
        assert got["big"].values[::3, -1].tolist() == list(range(world.size))


# -- errors ------------------------------------------------------------------------------------------------------------


def same_error(world: World, kind: type[HpcmrError], match: str, call: Any) -> None:
    """The call raises the same on all ranks, and the communicator works afterwards."""
    with pytest.raises(kind, match=match) as caught:
        call()
    assert type(caught.value) is kind
    assert len(set(world.allgather(str(caught.value)))) == 1
    assert hpcmr.shuffle(world.comm, {"a": [1]}, dest=[0])["a"].tolist() == [1] * (world.size if world.rank == 0 else 0)


def test_errors_are_the_same_on_every_rank(world: World) -> None:
    comm, last = world.comm, world.rank == world.size - 1
    good = {"a": np.arange(4), "b": np.ones(4)}

    def only_last(bad: Any, fine: Any) -> Any:
        return bad if last else fine

    same_error(world, JobSpecError, "give either key=", lambda: hpcmr.shuffle(comm, good))
    same_error(world, JobSpecError, "give either key=", lambda: hpcmr.shuffle(comm, good, key="a", dest=[0] * 4))
    same_error(world, JobSpecError, "there is no column 'z'", lambda: hpcmr.shuffle(comm, good, key="z"))
    same_error(world, JobSpecError, "name one column", lambda: hpcmr.shuffle(comm, good, key=["a", "a"]))
    same_error(world, JobSpecError, "cannot be a key", lambda: hpcmr.shuffle(comm, {"a": np.zeros((2, 2))}, key="a"))
    same_error(world, DataError, r"dest\[3\] is 99", lambda: hpcmr.shuffle(comm, good, dest=only_last([0, 0, 0, 99], [0] * 4)))
    same_error(world, DataError, "dest must be 4 integers", lambda: hpcmr.shuffle(comm, good, dest=only_last([0], [0] * 4)))
    same_error(world, InputError, "unequal length", lambda: hpcmr.shuffle(comm, only_last({"a": [1], "b": [1, 2]}, good), key="a"))
    same_error(world, InputError, "dict of arrays", lambda: hpcmr.gather(comm, only_last(7, good)))
    same_error(world, JobSpecError, "root=-1", lambda: hpcmr.gather(comm, good, root=-1))
    same_error(world, JobSpecError, "root='x'", lambda: hpcmr.broadcast(comm, good, root="x"))
    same_error(world, DataError, "dict of arrays", lambda: hpcmr.scatter(comm, None))
    same_error(world, DataError, "no column", lambda: hpcmr.broadcast(comm, {}))
    same_error(world, JobSpecError, "is no size", lambda: hpcmr.scatter(comm, good, memory="much"))


def test_calls_that_differ_are_named(world: World) -> None:
    if world.size < 2:
        pytest.skip("needs two ranks")
    good = {"a": np.arange(4)}
    first = world.rank == 0
    same_error(world, JobSpecError, r"ranks make different calls \(rank 0: gather to rank 0; rank",
               lambda: hpcmr.gather(world.comm, good) if first else hpcmr.scatter(world.comm, good))
    same_error(world, JobSpecError, "shuffle by key", lambda: hpcmr.shuffle(world.comm, {"a": [1], "b": [2]}, key="a" if first else "b"))
    same_error(world, InputError, "column 'a' is int64 on rank 0 and text on rank 1",
               lambda: hpcmr.shuffle(world.comm, {"a": [1]} if first else {"a": ["x"]}, key="a"))


def test_a_defect_on_one_rank_is_an_exception_on_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        if world.rank == world.size - 1:
            raise ZeroDivisionError("made up")
        return real(*args)

    from hpcmr.api import library

    real = library.partitions_of_keys
    monkeypatch.setattr(library, "partitions_of_keys", broken)
    same_error(world, RemoteError, "ZeroDivisionError: made up", lambda: hpcmr.shuffle(world.comm, {"a": [1]}, key="a"))


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_refused_on_all_ranks(world: World) -> None:
    n = 200_000
    given = {"a": np.arange(n), "b": np.ones((n, 2))}
    to_last = np.full(n, world.size - 1)
    same_error(world, MemoryTooSmall, r"column '[ab]' of a shuffle needs .* give memory=",
               lambda: hpcmr.shuffle(world.comm, given, dest=to_last, memory="2MiB"))
    same_error(world, MemoryTooSmall, "give memory=", lambda: hpcmr.gather(world.comm, given, memory="2MiB"))
    same_error(world, MemoryTooSmall, "give memory=", lambda: hpcmr.scatter(world.comm, given, memory=1000))
    if world.size > 1:
        same_error(world, MemoryTooSmall, "give memory=", lambda: hpcmr.broadcast(world.comm, given, memory=1000))
    need = 24 * n * world.size + (4 << 20)
    got = hpcmr.shuffle(world.comm, given, dest=to_last, memory=need)
    assert len(got["a"]) == (n * world.size if world.rank == world.size - 1 else 0)


def test_a_shuffle_takes_what_arrives_and_a_little(world: World) -> None:
    import tracemalloc

    n = 1_000_000
    given = {name: np.arange(n) for name in "abcd"}
    hpcmr.shuffle(world.comm, given, key="a")
    tracemalloc.start()
    got = hpcmr.shuffle(world.comm, given, key="a", memory="64MiB" if world.size < 4 else "256MiB")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrived = sum(v.nbytes for v in got.values())
    assert peak < arrived + 8 * n + (36 << 20)


# -- through the engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["some empty", "one row", "uneven"])
def test_reduce_by_key(world: World, kind: str) -> None:
    import math

    w = world
    counts = lengths(kind, w.size)
    parts = [(np.random.default_rng((8, r)).integers(0, 9, n), np.random.default_rng((9, r)).lognormal(0, 20, n)) for r, n in enumerate(counts)]
    keys, values = parts[w.rank]
    got = hpcmr.reduce_by_key(w.comm, {"k": keys, "v": values}, key="k", aggs={"total": hpcmr.sum("v"), "n": hpcmr.count()})
    folded = hpcmr.reduce_by_key(w.comm, {"k": keys, "v": values}, key="k", function=max)
    every = [(int(k), float(v)) for ks, vs in parts for k, v in zip(ks, vs, strict=True)]
    found = [t for p in w.allgather(got) for t in zip(*(p[c].tolist() for c in ("k", "total", "n")), strict=True)]
    assert len({k for k, _, _ in found}) == len(found)
    assert sorted(found) == [(k, math.fsum(v for j, v in every if j == k), sum(j == k for j, _ in every)) for k in sorted({k for k, _ in every})]
    tops = {k: v for p in w.allgather(folded) for k, v in zip(p["k"].tolist(), p["v"].tolist(), strict=True)}
    assert tops == {k: max(v for j, v in every if j == k) for k, _ in every}


def test_reduce_by_key_with_memory_and_wrong_arguments(world: World) -> None:
    given = {"k": [1, 2], "v": [0.5, 0.25]}
    got = hpcmr.reduce_by_key(world.comm, given, key=["k"], aggs=[hpcmr.sum("v")], memory="64MiB")
    assert sum(world.allgather(len(got["k"]))) == 2
    assert list(got) == ["k", "v_sum"]
    same_error(world, JobSpecError, "give either aggs=", lambda: hpcmr.reduce_by_key(world.comm, given, key="k"))
    same_error(world, MemoryTooSmall, "too little to start",
               lambda: hpcmr.reduce_by_key(world.comm, given, key="k", aggs=[hpcmr.count()], memory="1MiB"))
    same_error(world, DataError, "unequal length",
               lambda: hpcmr.reduce_by_key(world.comm, {"k": [1], "v": [1, 2]} if world.rank == 0 else given, key="k", aggs=[hpcmr.count()]))


@pytest.mark.parametrize("by", ["x", "word", ["flag", "id"]], ids=str)
def test_sort(world: World, by: Any) -> None:
    w = world
    parts = [columns_of(n, (12, r)) for r, n in enumerate(lengths("uneven", w.size))]
    got = hpcmr.sort(w.comm, parts[w.rank], by=by, descending=[False, True] if by == ["flag", "id"] else False)
    whole = together(w, w.allgather(got))
    rows = together(w, parts)
    flat = {n: [v for p in parts for v in (p[n].tolist() if isinstance(p[n], np.ndarray) else p[n])] for n in ("x", "word", "flag", "id")}
    orders: dict[str, Any] = {"x": lambda i: (np.isnan(flat["x"][i]), flat["x"][i] if flat["x"][i] == flat["x"][i] else 0.0, i),
                              "word": lambda i: (flat["word"][i].encode(), i), str(["flag", "id"]): lambda i: (flat["flag"][i], -flat["id"][i], i)}
    assert whole == [rows[i] for i in sorted(range(len(rows)), key=orders[str(by)])]


def test_every_rank_gets_a_share_of_a_sorted_table(world: World) -> None:
    n = 4000
    got = hpcmr.sort(world.comm, {"a": np.random.default_rng(world.rank).random(n)}, by="a")
    assert 0.7 < len(got["a"]) / n < 1.3


@pytest.mark.parametrize("how", ["inner", "left", "outer", "anti"])
def test_join(world: World, how: str) -> None:
    w = world
    lefts = [{"k": np.random.default_rng((13, r)).integers(0, 30, 20 + r), "v": np.arange(20 + r) + 100 * r} for r in range(w.size)]
    rights = [{"k": np.arange(r, 25, w.size), "v": np.arange(r, 25, w.size) * 0.5} for r in range(w.size)]
    got = hpcmr.join(w.comm, lefts[w.rank], rights[w.rank], on="k", how=how)
    found = [row for p in w.allgather(got) for row in zip(*(p[c].tolist() for c in got), strict=True)]
    left = [(int(k), int(v)) for p in lefts for k, v in zip(p["k"], p["v"], strict=True)]
    partners = {k: k * 0.5 for k in range(25)}
    pairs = [(k, v, partners[k]) for k, v in left if k in partners]
    alone = [(k, v, None) for k, v in left if k not in partners]
    spare = [(k, None, x) for k, x in partners.items() if k not in {k for k, _ in left}]
    expected: Any = {"inner": pairs, "left": pairs + alone, "outer": pairs + alone + spare, "anti": [(k, v) for k, v, _ in alone]}[how]
    assert list(got) == (["k", "v"] if how == "anti" else ["k", "v", "v_right"])
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    if how in ("inner", "anti"):
        assert found == expected       # in the order of the left rows


# -- a guest -----------------------------------------------------------------------------------------------------------


def test_the_duplicate_is_made_once_and_freed_with_the_communicator(world: World) -> None:
    if world.comm is None:
        pytest.skip("needs MPI")
    own = world.comm.Dup()
    hpcmr.shuffle(own, {"a": [1]}, dest=[0])
    inner = World.of(own)
    assert isinstance(inner, MpiWorld)
    assert inner.comm != own
    hpcmr.gather(own, {"a": [1]})
    assert World.of(own) is inner
    seen, handle = weakref.ref(inner), inner.comm
    del inner
    own.Free()
    assert seen() is None or not handle        # COMM_NULL is false
