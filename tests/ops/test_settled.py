"""A run that continues: a fresh operator takes what others settled on another number of ranks, and state that they sealed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.ops import join_cuts
from hpcmr.ops.contract import Origin
from hpcmr.ops.join import Join
from hpcmr.ops.rank import Rank
from hpcmr.ops.repartition import Repartition
from hpcmr.ops.sample import SampleCount
from hpcmr.ops.scan import scan_of
from hpcmr.ops.settled import pack, unpack
from hpcmr.ops.sort import Sort
from hpcmr.ops.window import Lag, Lead, Window
from hpcmr.ops.zip_with_index import ZipWithIndex
from tests.support.pretend import Pretended, on_ranks
from tests.support.small_engine import Context

SPLITS = 6
ROWS = 240


class Ranked(Context):
    """With what the engine's context has beyond."""

    def __init__(self, rank: int, size: int, partitions: int = 8) -> None:
        super().__init__(partitions)
        self.rank, self.size = rank, size


def gathering(together: Pretended) -> Any:
    together.allgather_batch = lambda batch: Batch.concat(together.allgather(batch))      # type: ignore[attr-defined]
    return together


def split(number: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng([seed, number])
    valid = rng.random(ROWS) > 0.1
    words = [f"{'x' * 30}{k}" if k % 3 else f"{k}" for k in rng.integers(0, 20, ROWS)]
    keys = np.where(rng.random(ROWS) < 0.4, 7, rng.integers(0, 60, ROWS) + 20 * seed)
    return Batch({"k": FixedColumn(keys), "x": FixedColumn(rng.normal(size=ROWS) * 10.0 ** rng.integers(-9, 9, ROWS), valid),
                  "w": BytesColumn.from_list(words, True), "n": FixedColumn(np.arange(ROWS) + number * ROWS)})


def batches(number: int, seed: int = 0) -> list[tuple[Batch, Origin]]:
    whole = split(number, seed)
    return [(whole.slice(a, a + 100), Origin(number, a)) for a in range(0, ROWS, 100)]


def plain(found: list[Batch]) -> list[Any]:
    whole = Batch.concat([b for b in found if b.nrows])
    return [c.to_list() for c in whole.columns.values()]


def same_on_all(settled: list[Batch]) -> Batch:
    """Every rank tells the same, bit by bit."""
    def told(row: Batch) -> list[Any]:
        def flat(column: Column) -> Any:
            inner = column.compact()
            child = getattr(inner, "child", inner)
            return child.values.tobytes() if isinstance(child, FixedColumn) else child.to_list()

        return [(n, flat(c)) for n, c in row.columns.items()]

    assert all(told(s) == told(settled[0]) for s in settled)
    return settled[0]


def copied(part: Partitioned) -> Partitioned:
    return Partitioned(part.batch.take(np.arange(part.batch.nrows)).compact(), part.starts.copy(), part.first)


# ---- keyed operators -------------------------------------------------------------------------------------------------------


def begun(make: Callable[[], Any], ranks: int, taken: list[int]) -> tuple[Batch, list[Partitioned]]:
    """A run on so many ranks that looked at all splits, consumed those `taken`, and died."""
    def work(together: Pretended) -> Any:
        op, me = make(), gathering(together)
        op.bind(split(0).schema)
        op.open(Ranked(me.rank, me.size), None)
        for s in range(me.rank, SPLITS, me.size):
            for batch, origin in batches(s):
                op.observe(batch, origin)
        op.settle(me)
        for s in taken[me.rank::me.size]:
            for batch, origin in batches(s):
                op.consume(batch, origin)
        op.drain()
        return op.settled(), copied(op.seal())

    found = on_ranks(ranks, work)
    return same_on_all([s for s, _ in found]), [p for _, p in found]


def ended(make: Callable[[], Any], settled: Batch, parts: list[Partitioned], left: list[int]) -> list[Batch]:
    op = make()
    op.bind(split(0).schema)
    ctx = Ranked(0, 1)
    op.open(ctx, None)
    op.resettle(settled)
    assert op.weights().sum() > 0
    again = op.settled()
    assert same_on_all([settled, again]) is settled
    for s in left:
        for batch, origin in batches(s):
            op.consume(batch, origin)
    op.drain()
    for part in [*parts, copied(op.seal())]:
        op.merge(part)
    found = [op.finish(p) for p in range(parts[0].count)]
    op.close()
    assert ctx.taken == 0
    return found


@pytest.mark.parametrize("make", [lambda: Sort(["w", "x"], [True, False]), lambda: Sort(["x"]), lambda: Sort(["k"]), lambda: Repartition(8)],
                         ids=["sort-strings", "sort-floats", "sort-integers", "repartition"])
def test_a_keyed_operator_goes_on_on_another_number_of_ranks(make: Callable[[], Any]) -> None:
    settled, parts = begun(make, 1, list(range(SPLITS)))
    expected = plain(ended(make, settled, parts, []))
    for ranks, taken in ((3, [0, 2, 5]), (2, [])):
        settled, parts = begun(make, ranks, taken)
        assert plain(ended(make, settled, parts, [s for s in range(SPLITS) if s not in taken])) == expected


# ---- joins -----------------------------------------------------------------------------------------------------------------


def sides(op: Join) -> list[tuple[Any, int]]:
    return [(op.left, 0), (op.right, 1)]


def join_begun(make: Callable[[], Join], ranks: int, taken: list[int]) -> tuple[Batch, list[list[Partitioned]], bool]:
    def work(together: Pretended) -> Any:
        op, me = make(), gathering(together)
        op.bind(split(0).schema, split(0).schema)
        op.open(Ranked(me.rank, me.size), None)
        for side, seed in sides(op):
            for s in range(me.rank, SPLITS, me.size):
                for batch, origin in batches(s, seed):
                    side.observe(batch, origin)
        op.settle(me)
        for side, seed in sides(op):
            for s in taken[me.rank::me.size]:
                for batch, origin in batches(s, seed):
                    side.consume(batch, origin)
            side.drain()
        return op.settled(), [copied(side.seal()) for side, _ in sides(op)], op.cuts is not None

    found = on_ranks(ranks, work)
    return same_on_all([s for s, _, _ in found]), [p for _, p, _ in found], found[0][2]


def join_ended(make: Callable[[], Join], settled: Batch, parts: list[list[Partitioned]], left: list[int]) -> list[Batch]:
    op = make()
    op.bind(split(0).schema, split(0).schema)
    op.open(Ranked(0, 1), None)
    op.resettle(settled)
    count = parts[0][0].count
    assert len(op.left.weights()) == count
    for i, (side, seed) in enumerate(sides(op)):
        for s in left:
            for batch, origin in batches(s, seed):
                side.consume(batch, origin)
        side.drain()
        for part in [*(p[i] for p in parts), copied(side.seal())]:
            side.merge(part)
    found = [op.finish(p) for p in range(count)]
    op.close()
    return found


@pytest.mark.parametrize("how", ["inner", "outer", "anti"])
def test_a_join_goes_on_with_the_cuts_of_its_hot_keys(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are small, so that they, and the cuts, depend on the ranks; the rows do not."""
    monkeypatch.setattr(join_cuts, "SAMPLE_ROWS", 300)
    monkeypatch.setattr(join_cuts, "SAMPLE_ROWS_GLOBAL", 1200)

    def make() -> Join:
        return Join(("k",), ("k",), how, broadcast_nbytes=0)

    settled, parts, _ = join_begun(make, 1, list(range(SPLITS)))
    expected = plain(join_ended(make, settled, parts, []))
    plans = {unpack(settled)[0].tobytes()}
    for ranks, taken in ((3, [0, 2, 5]), (2, [4])):
        settled, parts, cut = join_begun(make, ranks, taken)
        plans.add(unpack(settled)[0].tobytes())
        assert cut
        assert plain(join_ended(make, settled, parts, [s for s in range(SPLITS) if s not in taken])) == expected
    assert len(plans) > 1, "another number of ranks cuts elsewhere"


# ---- steps -----------------------------------------------------------------------------------------------------------------


STEPS: dict[str, Callable[[], Any]] = {
    "zip_with_index": lambda: ZipWithIndex("i"), "sum": lambda: scan_of("x", "sum", "s"), "integers": lambda: scan_of("n", "sum", "s"),
    "max": lambda: scan_of("x", "max", "s"), "function": lambda: scan_of("k", lambda a, b: max(a, b), "s"), "rank": lambda: Rank(("w", "k"), "rank"),
    "lag": lambda: Lag("w", 300, "l"), "window": lambda: Window("x", "mean", 50, "m"), "sample": lambda: SampleCount(77, 3),
}


def settled_on(make: Callable[[], Any], ranks: int) -> Batch:
    def work(together: Pretended) -> Any:
        step = make()
        step.bind(split(0).schema)
        for s in range(together.rank, SPLITS, together.size):
            for batch, origin in batches(s):
                step.observe(batch, origin)
        step.settle(together)
        return step.settled()

    return same_on_all(on_ranks(ranks, work))


def applied(step: Any, order: list[int]) -> list[Batch]:
    found = {s: [step.apply(batch, origin) for batch, origin in batches(s)] for s in order}
    return [b for s in sorted(found) for b in found[s]]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_on_without_its_first_pass(name: str) -> None:
    make = STEPS[name]
    first = make()
    first.bind(split(0).schema)
    for s in range(SPLITS):
        for batch, origin in batches(s):
            first.observe(batch, origin)
    on_ranks(1, first.settle)
    expected = plain(applied(first, list(range(SPLITS))))
    assert same_on_all([settled_on(make, 3), first.settled()])
    step = make()
    step.bind(split(0).schema)
    step.resettle(settled_on(make, 3))
    assert plain(applied(step, [4, 1, 0, 5, 3, 2])) == expected


def test_a_lead_keeps_its_column_on_the_ranks() -> None:
    assert Lead("x", 3, "l").settled() is None


def test_what_is_no_settled_value_is_refused() -> None:
    assert unpack(pack({"a": np.arange(5000)}))["a"].tolist() == list(range(5000))
    for row in (Batch({}), Batch({"#value": BytesColumn.from_list(["{"], True)}), Batch({"#value": BytesColumn.from_list(['{"batch": 3}'], True)})):
        with pytest.raises(StorageError):
            unpack(row)["x"]
