"""The exchange through node leaders, on nodes that are pretended: the same rows, and few messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hpcmr.comm.exchange import Exchange, Stats, exchange
from hpcmr.comm.leaders import worth_leaders
from hpcmr.comm.mpi_world import MpiWorld
from hpcmr.comm.rows import exchange_rows
from hpcmr.comm.travel import Stream, travel
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned

NODES: dict[str, Callable[[int], int]] = {"blocks of two": lambda r: r // 2, "in turn": lambda r: r % 2, "uneven": lambda r: int(r > 0)}


@pytest.fixture(params=list(NODES))
def pretended(request: pytest.FixtureRequest, world: World) -> Iterator[MpiWorld]:
    """All ranks, on pretended nodes, through leaders."""
    if world.size < 2:
        pytest.skip("needs two ranks")
    made = MpiWorld(world.comm, node=NODES[request.param](world.rank), leaders=True)
    if made.node_count < 2:
        made.free()
        pytest.skip("all ranks lie on one pretended node")
    yield made
    made.free()


def test_the_rule() -> None:
    """What decides is pinned: ranks, nodes, bytes."""
    small = 1 << 10
    assert not worth_leaders(64, 1, 0)                                   # one node
    assert worth_leaders(64, 2, 64 * 64 * small)
    assert not worth_leaders(63, 2, 0)                                   # few ranks
    assert worth_leaders(4096, 64, 4096 * 4096 * (16 << 10))
    assert not worth_leaders(4096, 64, 4096 * 4096 * (16 << 10) + 1)     # many bytes for each pair
    assert worth_leaders(64, 16, 0)
    assert not worth_leaders(64, 17, 0)                                  # fewer than four ranks on a node


def part_of(rank: int, rows: int) -> Partitioned:
    rng = np.random.default_rng((11, rank))
    partition = np.sort(rng.integers(0, 16, rows))
    mark = rank * 10**4 + np.arange(rows)
    batch = Batch.of({"mark": mark, "xyz": rng.random((rows, 3)), "text": [f"{m}" * int(m % 4) for m in mark] or np.zeros(rows, "S1")})
    return Partitioned(batch, np.searchsorted(partition, np.arange(17)).astype(np.int64))


def shown(pieces: list[Partitioned]) -> list[str]:
    return [repr((p.first, p.starts.tolist(), p.batch.to_pydict())) for p in pieces]


@pytest.mark.mpi
@pytest.mark.parametrize("round_nbytes", [64 << 20, 300])
def test_the_same_pieces_as_without_leaders(world: World, pretended: MpiWorld, round_nbytes: int) -> None:
    assert int(pretended.allreduce(np.array([pretended.node_rank == 0], np.int64))[0]) == pretended.node_count
    part = part_of(world.rank, 20 + 17 * world.rank)
    bounds = np.array([16 * r // world.size for r in range(world.size + 1)], np.int64)
    to_one = np.array([0] * world.size + [16], np.int64)
    for owners in (bounds, to_one):
        for copy_self in (False, True):
            expected, got = ([*exchange(w, part, owners, round_nbytes, copy_self=copy_self)] for w in (world, pretended))
            assert shown(got) == shown(expected)


@pytest.mark.mpi
def test_rows_shuffled_through_leaders(world: World, pretended: MpiWorld) -> None:
    class Plenty:
        def take(self, nbytes: int, what: str) -> None:
            pass

        def available(self) -> int:
            return 1 << 40

    rows = Batch.of({"a": np.arange(100) + world.rank, "s": [str(i) * (i % 3) for i in range(100)]})
    dest = (np.arange(100) * 7 % world.size).astype(np.uint16)
    expected = exchange_rows(world, rows, dest, Plenty())
    got = exchange_rows(pretended, rows, dest, Plenty(), block_nbytes=300, round_nbytes=100)
    assert repr(got.to_pydict()) == repr(expected.to_pydict())


@pytest.mark.mpi
def test_messages_between_nodes_not_between_ranks(pretended: MpiWorld) -> None:
    w = pretended
    stats = Stats()
    plan = np.full(w.size, 5, np.int64)
    streams = []
    for k in range(3):
        send = np.arange(5 * w.size, dtype=np.uint8) + np.uint8(k + w.rank)
        streams.append(Stream("s", send, plan, np.zeros(5 * w.size, np.uint8), plan))
    travel(w, streams, 1 << 20, stats, "test")
    for k, s in enumerate(streams):
        mine = slice(5 * w.rank, 5 * w.rank + 5)
        assert s.recv.tolist() == [int(v) for r in range(w.size) for v in (np.arange(5 * w.size, dtype=np.uint8) + np.uint8(k + r))[mine]]
    messages = int(w.allreduce(np.array([stats.messages], np.int64))[0])
    assert messages == 2 * w.node_count * (w.node_count - 1)         # each counted where it is sent and where it comes
    assert stats.nbytes_sent == stats.nbytes_received == 3 * 5 * (w.size - 1)


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(4))
def test_any_counts_in_small_turns(pretended: MpiWorld, seed: int) -> None:
    w = pretended
    rng = np.random.default_rng(seed)
    for width in (1, 13):
        counts = rng.choice([0, 0, 1, 5, 60], (w.size, w.size))
        values = [[rng.integers(0, 256, (int(n), width), dtype=np.uint8) for n in row] for row in counts]
        plan = Exchange(w, counts[w.rank], round_nbytes=int(rng.integers(20, 400)))
        got = plan.execute(np.concatenate(values[w.rank]))
        assert (got == np.concatenate([values[s][w.rank] for s in range(w.size)])).all()


@pytest.mark.mpi
def test_ranks_that_cannot_share_memory_send_for_themselves(pretended: MpiWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    w = pretended

    def refused() -> None:
        raise MemoryError("no shared memory")

    if w.node_of[w.rank] == w.node_of[-1]:       # MPI tells all ranks of a node alike
        monkeypatch.setattr(w, "node_window", refused)
    for _ in range(2):
        plan = Exchange(w, np.ones(w.size, np.int64))
        assert plan.execute(np.full(w.size, w.rank)).tolist() == list(range(w.size))
        assert int(w.allreduce(np.array([plan.stats.messages], np.int64))[0]) == 2 * w.size * (w.size - 1)
    assert w.leaders is False


@pytest.mark.mpi
def test_the_rule_is_asked_where_nothing_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.comm is None or world.size < 2:
        pytest.skip("needs two ranks")
    from hpcmr.comm import leaders

    asked, taken = [], []
    real = leaders.travel_through_leaders

    def rule(size: int, nodes: int, nbytes: int) -> bool:
        asked.append((size, nodes, nbytes))
        return nbytes < 100

    monkeypatch.setattr(leaders, "worth_leaders", rule)
    monkeypatch.setattr(leaders, "travel_through_leaders", lambda *args: taken.append(real(*args)))
    w = MpiWorld(world.comm, node=world.rank)
    for n in (1, 1000):        # through leaders, then not
        plan = Exchange(w, np.eye(w.size, k=1, dtype=np.int64)[w.rank] * n)
        plan.execute(np.zeros(plan.n_send, np.uint8))
        assert int(w.allreduce(np.array([plan.stats.messages], np.int64))[0]) == 2 * (w.size - 1)
        assert (len(taken) > 0) == (n == 1)
        taken.clear()
        assert asked[-1] == (w.size, w.size, n * (w.size - 1))
    w.free()
