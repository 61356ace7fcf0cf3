"""Rows kept by piece, what checkpoints are given of them, and what is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.ops import hold as module
from hpcmr.ops.hold import Hold
from tests.support.small_engine import Context


class Scratch:
    """A spool that knows what lies in it."""

    def __init__(self) -> None:
        self.rows: dict[int, Batch] = {}
        self.next = 0

    def put(self, batch: Batch) -> int:
        self.next += 1
        self.rows[self.next] = batch
        return self.next

    def get(self, handle: int) -> Batch:
        return self.rows[handle]

    def drop(self, handle: int) -> None:
        del self.rows[handle]


class Spooled(Context):
    def __init__(self) -> None:
        super().__init__()
        self.spool = Scratch()


class Files:
    """Pieces as a run directory gives them back: file by file."""

    def __init__(self, parts: list[Partitioned]) -> None:
        self.parts = parts

    def read(self, piece: int) -> Iterator[Partitioned]:
        for part in self.parts:
            if part.covers(piece) and part.part(piece).nrows:
                yield Partitioned(part.part(piece), np.array([0, part.part(piece).nrows]), piece)

    def close(self) -> None: ...


def batch(piece: int, i: int) -> Batch:
    return Batch({"x": FixedColumn(np.full(50, piece * 100 + i)), "w": BytesColumn.from_list([f"{piece} {i}"] * 50, True)})


def plain(hold: Hold, piece: int) -> list[Any]:
    rows = list(hold.read(piece))
    return [c.to_list() for c in Batch.concat(rows).columns.values()] if rows else []


def files_of(told: list[Any]) -> list[Partitioned]:
    """As the engine writes them: what is in memory, then what is copied."""
    memory, away = [p for t in told for p in t[0]], [c for t in told for c in t[1]]
    return [*memory, *(p for c in away for p in c())]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_NBYTES", 1000)


@pytest.mark.parametrize("spilled", [0, 3, 1000])
def test_what_is_told_is_all_that_was_kept(small_blocks: None, spilled: int) -> None:
    """Also where some blocks of a piece went to scratch and later ones did not."""
    ctx: Any = Spooled()
    hold = Hold(ctx, "rows")
    told = []
    for piece in (7, 2, 9000):
        for i in range(5):
            hold.take(piece, 0, batch(piece, i))
            if i == spilled % 5:
                hold.spill(spilled)
        if piece == 2:
            told.append(hold.tell())
    told.append(hold.tell())
    assert hold.tell() == ([], []) and hold.untold_nbytes == 0
    assert (any(t[1] for t in told)) == (spilled > 0)
    again = Hold(ctx, "rows")
    again.restore(Files(files_of(told)), dict.fromkeys((2, 7, 9000), 250))
    assert again.pieces == [2, 7, 9000] and again.nrows(7) == 250
    for piece in (2, 7, 9000):
        assert plain(again, piece) == plain(hold, piece) and len(plain(hold, piece)[0]) == 250
    assert again.tell() == ([], []), "what lies in the run directory is not given again"
    for one in (hold, again):
        one.close()
    assert ctx.taken == 0 and not ctx.spool.rows


def test_rows_of_far_pieces_and_many_bytes_lie_in_several_files(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx: Any = Spooled()
    hold = Hold(ctx, "rows")
    for piece in (1, 2, 100_000):
        hold.take(piece, 0, batch(piece, 0))
    memory, _ = hold.tell()
    assert [(p.first, p.count) for p in memory] == [(1, 2), (1, 2), (100_000, 1)]
    monkeypatch.setattr(module, "FILE_NBYTES", 1500)
    other = Hold(ctx, "rows")
    for piece in (1, 2, 3):
        other.take(piece, 0, batch(piece, 0))
    assert len({(p.first, p.count) for p in other.tell()[0]}) == 3


def test_dropped_rows_stay_until_they_are_told_where_they_must(small_blocks: None) -> None:
    ctx: Any = Spooled()
    hold = Hold(ctx, "rows")
    hold.retains = True
    for piece in (1, 2):
        hold.take(piece, 0, batch(piece, 0))
    hold.spill(1)
    hold.seal()
    hold.drop(2)
    hold.drop(1)
    told = [hold.tell()]
    assert sorted(p.part(q).nrows for p in files_of(told) for q in range(p.first, p.first + p.count)) == [50, 50]
    assert hold.tell() == ([], []) and not hold.pieces and ctx.taken == 0 and not ctx.spool.rows
    hold.close()


def test_rows_that_are_dropped_are_not_told(small_blocks: None) -> None:
    ctx: Any = Spooled()
    hold = Hold(ctx, "rows")
    for piece in (1, 2):
        hold.take(piece, 0, batch(piece, 0))
    hold.seal()
    hold.drop(1)
    assert [p.first for p in hold.tell()[0]] == [2]
    hold.close()
    assert ctx.taken == 0


def test_scratch_is_not_removed_while_a_checkpoint_copies_from_it(small_blocks: None) -> None:
    ctx: Any = Spooled()
    hold = Hold(ctx, "rows")
    waited = []
    hold.waits = lambda: waited.append(len(ctx.spool.rows))
    for piece in (1, 2):
        hold.take(piece, 0, batch(piece, 0))
    hold.seal()
    hold.spill(10 ** 9)
    hold.tell()
    hold.drop(1)
    assert waited == [2]
    hold.close()
    assert waited == [2] and not ctx.spool.rows
