"""Exchange: every row arrives once, in its place, for every column type, any limit and any imbalance."""

import numpy as np
import pytest

from hpcmr.comm.buffers import Buffers
from hpcmr.comm.exchange import Exchange, Stats, exchange
from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn, column_of
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import ConservationError, HpcmrError, MemoryTooSmall


def make_part(rank, rows, npartitions, seed, nulls=()):
    """Rows of one rank, all column kinds; every value tells where it came from. `nulls`: columns with a validity."""
    rng = np.random.default_rng((seed, rank))
    partition = np.sort(rng.integers(0, npartitions, rows))
    starts = np.searchsorted(partition, np.arange(npartitions + 1)).astype(np.int64)
    mark = [int(p) * 10**6 + rank * 10**4 + i for i, p in enumerate(partition)]
    valid = {n: rng.integers(0, 2, rows).astype(bool) for n in nulls}
    text = [("é" * (m % 4) + str(m)) * (m % 3) for m in mark]
    raw = [bytes([0xFF, 0]) * (m % 5) for m in mark]
    lists = [[f"{m}:{k}" for k in range(m % 4)] for m in mark]
    columns = {
        "mark": FixedColumn(np.array(mark, np.int64), valid.get("mark")),
        "flag": FixedColumn(np.array(mark, np.int64) % 2 == 0),
        "xyz": FixedColumn(np.array(mark, np.float32)[:, None] + np.array([0, 0.25, 0.5], np.float32)),
        "when": FixedColumn(np.array(mark, "datetime64[s]")),
        "tag": FixedColumn(np.array([str(m) for m in mark], "S12") if mark else np.zeros(0, "S12")),
        "text": BytesColumn.from_list(text, text=True),
        "raw": BytesColumn.from_list(raw, text=False),
        "words": column_of(lists)
        if any(lists)
        else ListColumn(np.zeros(rows, np.int64), np.zeros(rows, np.int64), BytesColumn.from_list([], text=True)),
    }
    columns["text"].valid = valid.get("text")
    columns["words"].valid = valid.get("words")
    return Partitioned(Batch(columns, rows), starts)


def repr_rows(batch):
    return [repr(r) for r in zip(*batch.to_pydict().values(), strict=True)]


def check(world, parts_of, bounds, **options):
    """Exchange, and compare with what all ranks' inputs say must come here."""
    part = parts_of(world.rank)
    got = exchange(world, part, bounds, **options)
    first, last = int(bounds[world.rank]), int(bounds[world.rank + 1])
    expected = []
    for source in range(world.size):
        sent = parts_of(source)
        a, b = int(sent.starts[first]), int(sent.starts[last])
        if b > a:
            expected.append((sent.batch.slice(a, b), sent.starts[first : last + 1] - sent.starts[first]))
    assert len(got) == len(expected)
    for piece, (batch, starts) in zip(got, expected, strict=True):
        assert piece.first == first
        assert piece.starts.tolist() == starts.tolist()
        assert piece.batch.schema == batch.schema
        assert repr_rows(piece.batch) == repr_rows(batch)
    return got


def even_bounds(world, npartitions):
    return np.array([npartitions * r // world.size for r in range(world.size + 1)], np.int64)


@pytest.mark.mpi
@pytest.mark.parametrize("copy_self", [False, True], ids=["view", "copy"])
@pytest.mark.parametrize("round_nbytes", [64 << 20, 1000, 3], ids=["one-round", "rounds-of-1000", "rounds-of-3"])
def test_all_column_types(subworld, round_nbytes, copy_self):
    w = subworld
    check(w, lambda r: make_part(r, 40 + 13 * r, 16, seed=1), even_bounds(w, 16), round_nbytes=round_nbytes, copy_self=copy_self)


@pytest.mark.mpi
@pytest.mark.parametrize("rows", [0, 1])
def test_none_and_one_row(subworld, rows):
    w = subworld
    check(w, lambda r: make_part(r, rows, 4, seed=2), even_bounds(w, 4))


@pytest.mark.mpi
def test_one_row_on_one_rank_only(subworld):
    w = subworld
    check(w, lambda r: make_part(r, int(r == w.size - 1), 8, seed=3), even_bounds(w, 8))


@pytest.mark.mpi
def test_more_ranks_than_partitions(subworld):
    w = subworld
    check(w, lambda r: make_part(r, 5, 1, seed=4), np.array([0] * w.size + [1], np.int64))


@pytest.mark.mpi
@pytest.mark.parametrize("copy_self", [False, True])
def test_all_to_one(subworld, copy_self):
    w = subworld
    for owner in {0, w.size - 1}:
        bounds = np.array([0 if r <= owner else 8 for r in range(w.size + 1)], np.int64)
        check(w, lambda r: make_part(r, 50, 8, seed=5), bounds, round_nbytes=64, copy_self=copy_self)


@pytest.mark.mpi
@pytest.mark.parametrize("copy_self", [False, True])
def test_validity_on_some_ranks_arrives_on_all(subworld, copy_self):
    w = subworld
    last = w.size - 1
    got = check(
        w, lambda r: make_part(r, 30, 8, seed=6, nulls=("mark", "text", "words") if r == last else ()), even_bounds(w, 8), copy_self=copy_self
    )
    for piece in got:
        assert all((piece.batch[n].valid is not None) == (n in ("mark", "text", "words")) for n in piece.batch.names) or w.size == 1


@pytest.mark.mpi
@pytest.mark.parametrize("length", [255, 256, 65_536, 300_000])
def test_strings_longer_than_a_round(world, length):
    def part(rank):
        rows = [bytes([rank + 1]) * length, b"", b"\x00\xff"] if rank % 2 == 0 else [b"short"]
        return Partitioned(Batch({"s": BytesColumn.from_list(rows, text=False)}), np.array([0, *([len(rows)] * 3)], np.int64))

    check(world, part, np.array([0] + [3] * world.size, np.int64) if world.size > 1 else np.array([0, 3]), round_nbytes=1 << 14)


@pytest.mark.mpi
def test_strings_that_are_views_into_a_larger_buffer(world):
    data = np.frombuffer(b"..one.two..three.", np.uint8)
    spread = BytesColumn(np.array([2, 6, 11]), np.array([5, 9, 16]), data, text=True)
    rows = spread.take(np.array([0, 1, 2]))
    check(world, lambda r: Partitioned(Batch({"w": rows}), np.array([0, 1, 2, 2, 3], np.int64)), even_bounds(world, 4))


@pytest.mark.mpi
def test_no_columns_still_counts_rows(world):
    got = exchange(world, Partitioned(Batch({}, 4), np.array([0, 1, 4], np.int64)), even_bounds(world, 2))
    assert int(world.allreduce(np.array([sum(p.batch.nrows for p in got)]))[0]) == 4 * world.size


@pytest.mark.mpi
def test_pieces_share_one_receive_buffer_per_column(world):
    got = exchange(world, make_part(world.rank, 200, 16, seed=7), even_bounds(world, 16), copy_self=True)
    bases = {id(p.batch["mark"].values.base) for p in got}
    assert len(bases) == 1


@pytest.mark.mpi
def test_stats_count_rows_and_bytes(world):
    stats = Stats()
    n = 1000
    values = np.arange(n, dtype=np.int64)
    part = Partitioned(Batch({"v": FixedColumn(values)}), np.array([n * p // 8 for p in range(9)], np.int64))
    for _ in range(2):
        exchange(world, part, even_bounds(world, 8), round_nbytes=256, stats=stats)
    sums = world.allreduce(np.array([stats.rows_sent, stats.rows_received, stats.nbytes_sent, stats.nbytes_received]))
    if world.size > 1:
        assert sums[0] == sums[1] == 2 * n * world.size
        assert sums[2] == sums[3] >= 2 * 8 * n * (world.size - 1)
        assert stats.rounds >= 2


@pytest.mark.mpi
def test_ranks_that_exchange_different_columns_are_told(world):
    if world.size < 2:
        pytest.skip("needs two ranks")
    name = "a" if world.rank == 0 else "b"
    with pytest.raises(HpcmrError, match=r"different things: rank 0: 2 partitions of a: int64"):
        exchange(world, Partitioned(Batch({name: FixedColumn(np.arange(3))}), np.array([0, 1, 3])), even_bounds(world, 2))


@pytest.mark.mpi
def test_wrong_bounds_on_one_rank_are_an_error_on_all(world):
    if world.size < 2:
        pytest.skip("needs two ranks")
    bounds = even_bounds(world, 2)
    with pytest.raises(HpcmrError, match="owner bounds"):
        exchange(world, Partitioned(Batch({"a": FixedColumn(np.arange(3))}), np.array([0, 1, 3])), bounds[:-1] if world.rank == 1 else bounds)


@pytest.mark.mpi
def test_a_rank_without_memory_ends_the_exchange_everywhere(world):
    def take(nbytes):
        if world.rank == world.size - 1:
            raise MemoryTooSmall(f"no room for {nbytes} bytes")

    if world.size < 2:
        pytest.skip("needs two ranks")
    with pytest.raises(MemoryTooSmall, match="no room") as caught:
        exchange(world, make_part(world.rank, 20, 8, seed=8), even_bounds(world, 8), take=take)
    assert caught.value.rank == world.size - 1
    check(world, lambda r: make_part(r, 20, 8, seed=8), even_bounds(world, 8))  # and the next one works


@pytest.mark.mpi
def test_lost_rows_are_noticed(world, monkeypatch):
    if world.size < 2:
        pytest.skip("needs two ranks")
    from hpcmr.comm import exchange as module

    real = module.travel

    def lossy(w, streams, *rest):
        real(w, streams, *rest)
        if w.rank == 0:
            streams[0].recv[:8] = 255  # a count of rows that was changed on the way

    monkeypatch.setattr(module, "travel", lossy)
    with pytest.raises(ConservationError):
        exchange(world, make_part(world.rank, 50, 8, seed=9), even_bounds(world, 8))


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "int64", "complex128", "S3", "datetime64[ns]"])
@pytest.mark.parametrize("limit", [1, 64 << 20])
def test_exchange_object(world, dtype, limit):
    counts = np.array([(world.rank + d) % 3 for d in range(world.size)], np.int64)
    plan = Exchange(world, counts, round_nbytes=limit)
    assert plan.recvcounts.tolist() == [(s + world.rank) % 3 for s in range(world.size)]
    for shape in ((), (2, 3)):
        n = int(counts.sum())
        mine = (np.arange(n * int(np.prod(shape))) % 7 + world.rank).astype("i8").astype(dtype if dtype != "S3" else "S3").reshape((n, *shape))
        everyone = world.allgather((mine, counts))
        got = plan.execute(mine)
        expected = np.concatenate([a[c[: world.rank].sum() : c[: world.rank + 1].sum()] for a, c in everyone])
        assert got.dtype == mine.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()
        again = np.empty_like(got)
        assert plan.execute(mine, out=again) is again and again.tobytes() == expected.tobytes()
    assert plan.stats.rows_sent == 4 * plan.n_send


@pytest.mark.mpi
def test_exchange_object_checks_its_arguments(world):
    plan = Exchange(world, np.ones(world.size, np.int64))
    with pytest.raises(HpcmrError, match="planned for"):
        plan.execute(np.zeros(world.size + 1))
    with pytest.raises(HpcmrError, match="receive array"):
        plan.execute(np.zeros(world.size), out=np.zeros(world.size, np.int32))
    with pytest.raises(HpcmrError, match="send counts"):
        Exchange(world, np.full(world.size, -1))


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(25))
def test_fuzz(world, seed):
    # Not by hypothesis: it draws constants from the modules that a process has imported, and those differ between ranks.
    rng = np.random.default_rng(seed)
    n = 1 << int(rng.integers(0, 7))
    rows = rng.integers(0, 60, 7)
    cuts = np.sort(rng.integers(0, n + 1, world.size - 1))
    nulls = ("mark", "words") if seed % 2 else ()
    check(
        world,
        lambda r: make_part(r, int(rows[r % 7]), n, seed, nulls=nulls if r % 2 else ()),
        np.array([0, *cuts, n], np.int64),
        round_nbytes=int(rng.integers(1, 5000)),
        copy_self=bool(rng.integers(0, 2)),
    )


def test_buffers_are_used_again_once_nobody_looks():
    pool = Buffers(1 << 20)
    a = pool.take(1000, np.int64)
    where = a.ctypes.data
    view = a[10:20].view(np.uint8)
    b = pool.take(1000, np.int64)
    assert b.ctypes.data != where
    del a
    assert pool.take(1000, np.int64).ctypes.data != where  # the view still looks
    del view
    assert pool.take(500, np.float32, (2,)).ctypes.data == where
    assert pool.take(0).shape == (0,)
    big = pool.take(2 << 20)
    assert len(big) == 2 << 20 and pool.nbytes <= 1 << 20
    del b
    pool.clear()
    assert pool.nbytes == 0
