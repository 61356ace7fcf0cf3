"""What outlets give to a checkpoint at cuts, and take from it: the result is that of a run without either, whoever gets what."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.errors import DamagedCheckpoint, StorageError
from hpcmr.ops.collect import Collect
from hpcmr.ops.head import Head
from hpcmr.ops.histogram import Extent, Histogram
from hpcmr.ops.outlet import Sealed
from hpcmr.ops.quantile import ApproxQuantile, ExactQuantile
from hpcmr.ops.reduce import Reduce
from hpcmr.ops.write import Write
from hpcmr.store.digest import digest
from hpcmr.store.reader import StoredTable
from tests.support.small_engine import Context

PIECES = 7
ROWS = 400


class Alone:
    """`Collective` of one rank."""

    rank, size = 0, 1

    def allgather(self, obj: Any) -> list[Any]:
        return [obj]

    def allreduce(self, array: Any, op: str = "sum") -> Any:
        return array.copy()

    def allgather_batch(self, batch: Batch) -> Batch:
        return batch

    def exscan(self, array: Any) -> Any:
        return np.zeros_like(array)


def piece_of(piece: int) -> Batch:
    rng = np.random.default_rng(piece)
    values = np.where(rng.random(ROWS) < 0.1, 1e300, rng.normal(size=ROWS) * 10.0 ** rng.integers(-12, 12, ROWS))
    words = BytesColumn.from_list([f"w{i % 17}" if i % 5 else None for i in range(ROWS)], True)
    return Batch({"x": FixedColumn(values), "w": words, "n": FixedColumn(rng.integers(0, 50, ROWS), rng.random(ROWS) > 0.1)})


def rows_of(parts: list[Sealed]) -> Iterator[tuple[int, Batch]]:
    """As the engine gives them back: by piece, those of one piece in the order in which they were sealed."""
    found = [(p, s.rows.part(p)) for s in parts if s.rows is not None for p in range(s.rows.first, s.rows.first + s.rows.count)]
    yield from sorted(((p, b) for p, b in found if b.nrows), key=lambda f: f[0])


def take(outlet: Any, pieces: list[int]) -> None:
    for piece in pieces:
        batch = piece_of(piece)
        for a in range(0, ROWS, 150):
            if not outlet.enough(piece):
                outlet.take(piece, batch.slice(a, a + 150))


def opened(make: Callable[[], Any], attempt: str, rank: int = 0) -> Any:
    outlet = make()
    ctx: Any = Context()
    ctx.rank, ctx.size, ctx.attempt, ctx.provenance = rank, 2, attempt, {}
    outlet.open(ctx, piece_of(0).schema)
    return outlet


def held(outlet: Any) -> Sealed | None:
    """What a cut finds, when the thread is through with it."""
    sealed: Sealed | None = outlet.sealed()
    if sealed is not None and sealed.finish is not None:
        sealed.finish()
    return sealed


def result(outlets: list[Any]) -> Any:
    together: Any = Alone()
    for outlet in outlets:
        if hasattr(outlet, "settle"):
            outlet.settle(together)
    return outlets[0].combine([o.local() for o in outlets])


def plain(value: Any) -> Any:
    if isinstance(value, Batch):
        return [c.to_list() for c in value.columns.values()]
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value.tobytes() if isinstance(value, np.ndarray | np.generic) else value


OUTLETS: dict[str, Callable[[], Any]] = {
    "collect": lambda: Collect(), "head": lambda: Head(ROWS + 30), "reduce": lambda: Reduce(lambda a, b: (a[0] + b[0], b[1], b[2])),
    "extent": lambda: Extent(("x", "n")), "quantile": lambda: ExactQuantile("x", [0.1, 0.5]), "approx": lambda: ApproxQuantile("x", [0.1, 0.5]),
    "histogram": lambda: Histogram(["x", "n"], 5, [(-3, 3), (0, 50)]), "weights": lambda: Histogram("n", 4, (0, 50), weights="x"),
}


@pytest.mark.parametrize("name", OUTLETS)
def test_a_run_that_continues_has_the_same_result(name: str) -> None:
    """Two ranks took pieces with a cut after each, and a third run has what they sealed on one rank, and the rest. Quantiles settle on one."""
    make = OUTLETS[name]
    whole = opened(make, "one")
    take(whole, list(range(PIECES)))
    expected = plain(result([whole]))
    parts: list[Sealed] = []
    for mine in ([1], [0, 3]):
        outlet = opened(make, "one")
        for piece in mine:
            take(outlet, [piece])
            parts += [s for s in [outlet.sealed()] if s is not None]
        assert outlet.sealed() is None
        take(outlet, [5])                    # is lost
    outlet = opened(make, "two")
    outlet.restore([s.told for s in parts if s.told], rows_of(parts))
    assert outlet.sealed() is None
    take(outlet, [2, 4])
    parts += [s for s in [outlet.sealed()] if s is not None]
    take(outlet, [5, 6])
    assert plain(result([outlet])) == expected
    again = opened(make, "three")
    again.restore([s.told for s in parts if s.told], rows_of(parts))
    take(again, [5, 6])
    assert plain(result([again])) == expected


@pytest.mark.parametrize("name", ["collect", "reduce", "weights", "histogram", "approx"])
def test_cuts_leave_no_trace_in_the_run_that_makes_them(name: str) -> None:
    whole, cut = opened(OUTLETS[name], "one"), opened(OUTLETS[name], "one")
    take(whole, list(range(PIECES)))
    for piece in range(PIECES):
        take(cut, [piece])
        cut.sealed()
    assert plain(result([cut])) == plain(result([whole]))


def test_values_on_scratch_are_sealed_too() -> None:
    outlet = opened(lambda: ExactQuantile("x", [0.5]), "one")
    values = np.random.default_rng(1).normal(size=600_000)
    outlet.reserve = 1 << 62
    for i, piece in enumerate(np.array_split(values, 4)):
        outlet.take(i, Batch({"x": FixedColumn(piece)}))
    outlet._put_away(1)
    sealed = outlet.sealed()
    assert sealed is not None and sealed.rows is not None
    again = opened(lambda: ExactQuantile("x", [0.5]), "two")
    again.restore([], rows_of([sealed]))
    assert plain(result([again])) == plain(np.array([np.median(values)]))


# ---- shards ----------------------------------------------------------------------------------------------------------------


def first_attempt(folder: Path, attempt: str = "run-e0001-a00001") -> list[Sealed]:
    parts: list[Sealed] = []
    for rank, mine in enumerate([[0, 3], [1]]):
        outlet = opened(lambda: Write(folder), attempt, rank)
        for piece in mine:
            take(outlet, [piece])
            sealed = outlet.sealed()
            assert sealed is not None and sealed.finish is not None and sealed.rows is None
            sealed.finish()
            parts.append(sealed)
        take(outlet, [5])
        outlet.abandon()
    return parts


def expected(tmp_path: Path) -> str:
    outlet = opened(lambda: Write(tmp_path / "expected"), "x")
    take(outlet, list(range(PIECES)))
    result([outlet])
    with StoredTable.open(tmp_path / "expected") as table:
        return digest(table)


def continued(folder: Path, parts: list[Sealed], attempt: str = "run-e0002-a00001") -> list[Any]:
    """On three ranks: one told to two of them, the rest to the last."""
    outlets = [opened(lambda: Write(folder), attempt, rank) for rank in range(3)]
    for outlet, told in zip(outlets, [parts[:1], [], parts[1:]], strict=True):
        outlet.restore([s.told for s in told], iter(()))
    for outlet, mine in zip(outlets, [[2, 6], [4], [5]], strict=True):
        take(outlet, mine)
    return outlets


def test_shards_of_an_earlier_attempt_are_taken_over(tmp_path: Path) -> None:
    parts = first_attempt(tmp_path / "out")
    made = result(continued(tmp_path / "out", parts))
    assert made["rows"] == PIECES * ROWS
    with StoredTable.open(tmp_path / "out") as table:
        table.verify()
        assert digest(table) == expected(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expected", "out"], "nothing stays of the attempts"


def test_what_a_checkpoint_names_survives_an_error_and_a_third_attempt(tmp_path: Path) -> None:
    parts = first_attempt(tmp_path / "out")
    outlets = continued(tmp_path / "out", parts)
    more = [s for s in (o.sealed() for o in outlets) if s is not None]
    for sealed in more:
        assert sealed.finish is not None
        sealed.finish()
    assert sum(len(s.told["shards"]) for s in more) == 3, "what was taken over is not told again"
    for outlet in outlets:
        outlet.abandon()
    last = opened(lambda: Write(tmp_path / "out"), "run-e0003-a00001")
    last.restore([s.told for s in [*more, *parts]], iter(()))
    result([last])
    with StoredTable.open(tmp_path / "out") as table:
        assert digest(table) == expected(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expected", "out"]


def test_a_publication_that_fails_leaves_the_shards_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    outlets = [opened(lambda: Write(tmp_path / "out"), "run-e0001-a00001")]
    take(outlets[0], list(range(PIECES)))
    parts = [held(outlets[0])]
    with pytest.raises(Exception, match="is a file"):
        result(outlets)
    outlets[0].abandon()
    (tmp_path / "out").unlink()
    again = opened(lambda: Write(tmp_path / "out"), "run-e0002-a00001")
    again.restore([s.told for s in parts], iter(()))
    result([again])
    with StoredTable.open(tmp_path / "out") as table:
        assert digest(table) == expected(tmp_path)


def test_a_staging_folder_that_was_complete_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last unlink and the rename that publishes: the shards have the names of the output."""
    from hpcmr.store import publish

    parts = first_attempt(tmp_path / "out")
    outlets = continued(tmp_path / "out", parts)
    parts += [s for s in (held(o) for o in outlets) if s is not None]
    stop = KeyboardInterrupt()
    monkeypatch.setattr(publish, "_appear", lambda *args: (_ for _ in ()).throw(stop))
    monkeypatch.setattr(publish, "_take_back", lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        result(outlets)
    monkeypatch.undo()
    last = opened(lambda: Write(tmp_path / "out"), "run-e0003-a00001")
    last.restore([s.told for s in parts], iter(()))
    result([last])
    with StoredTable.open(tmp_path / "out") as table:
        assert digest(table) == expected(tmp_path)


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_found_before_it_is_taken_over(tmp_path: Path, how: str) -> None:
    parts = first_attempt(tmp_path / "out")
    path = next(itertools.chain.from_iterable(sorted(p.glob("rank-00000*")) for p in tmp_path.glob(".out*")))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.unlink()
    if how != "gone":
        path.write_bytes(bytes(raw) if how == "flip" else bytes(raw[:-9]))
    outlet = opened(lambda: Write(tmp_path / "out"), "run-e0002-a00001")
    with pytest.raises(DamagedCheckpoint, match="start the job again"):
        outlet.restore([s.told for s in parts], iter(()))


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    parts = first_attempt(tmp_path / "out")
    told = {**parts[0].told, "shards": [{**parts[0].told["shards"][0], "file": "../out"}]}
    outlet = opened(lambda: Write(tmp_path / "out"), "run-e0002-a00001")
    with pytest.raises(StorageError, match="no name of a shard"):
        outlet.restore([told], iter(()))
