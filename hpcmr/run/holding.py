"""Rows that are kept on the ranks: by a stage for a later one, or by a persisted table for later actions; and what checkpoints have of them.

A checkpoint has kept rows by piece. After a restart pieces are dealt in contiguous ranges, by bytes, and read from the run directory when
they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.source import Split
from hpcmr.ops.contract import Origin
from hpcmr.ops.hold import Hold, Kept, Pinned
from hpcmr.ops.settled import pack, unpack
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext
from hpcmr.run.feed import HeldFeed, NoFeed
from hpcmr.run.flow import Flow
from hpcmr.run.generation import Record, schema_json
from hpcmr.run.prepare import Chain
from hpcmr.run.progress import StageProgress
from hpcmr.run.stage import Stage, overlapping
from hpcmr.run.stored import Stored, stored_bounds
from hpcmr.store.typed import NoWord

if TYPE_CHECKING:
    from hpcmr.run.action import Action

ROWS, NBYTES = "#rows", "#nbytes"        # of a hold, in `Record.given`


class HoldStage(Stage):
    """Rows are kept on the ranks that make them.

    Parameters
    ----------
    what : str
        What they are, for messages.
    key : str
        Place in the checkpoints of the job; empty: none.
    kept : bool
        The rows are those of a persisted table, which outlives the action.
    again : bool
        Another attempt finds the same input.
    """

    def __init__(self, action: Action, flow: Flow, name: str, what: str, key: str = "", kept: bool = False, again: bool = True) -> None:
        super().__init__(action, flow, name)
        self.what = what
        self.hold: Hold | None = None
        self._key, self._persisted, self._again = key, kept, again

    def run(self, chain: Chain | None = None, once: bool = False, dense: bool = False) -> Flow:
        """The kept rows as a flow. Collective: yes.

        Parameters
        ----------
        chain : Chain, optional
            The flow's steps, bound by somebody else.
        once : bool
            The rows will be read once.
        dense : bool
            Number the rows of each piece from 0 without gaps. Else they keep the origins that they have behind the steps.
        """
        chain = chain or self.bind()

        def ready(_: Batch | None) -> None:
            self.hold = Hold(self.ctx, self.what)

        self.prepare(chain, None, ready)
        hold = self.hold
        assert hold is not None
        pinned = self.flow.pinned_behind()
        section = self.enter(self._key, amid=can_go_on(self) and self._again, kept=self._persisted)
        if section is not None:
            describe(section, self.feed.count, chain, pinned)
            attach(hold, section)
            if section.record is not None:
                restore(self, hold, section.record, pinned)
        self.telling(section)

        def sink(piece: int, row: int, batch: Batch) -> int:
            hold.take(piece, row, batch)
            return batch.nrows

        self.go(sink, self.tally, section=section)
        with self.world.together("keep rows on the ranks"):
            hold.seal()
        if dense and self.feed.shared:
            number_rows(self, hold)
        self.tally.nbytes_out = hold.nbytes
        feed = held_feed(self, hold, pinned, once)
        ended(self, hold, feed, pack_splits(self.flow.splits) if self._persisted else None)
        self.done()
        return Flow(feed, chain.schema, (), (self.what,), (self,), pinned, self.flow.splits)

    @classmethod
    def restored(cls, action: Action, name: str, what: str, key: str, splits: Any) -> Flow:
        """The rows, to be read once, of a stage that an earlier attempt was through with: nothing below it runs. Collective: yes."""
        record = complete_record(action, key)
        stage = cls(action, Flow(NoFeed(int(record.facts["nbytes_total"])), record.schema("rows"), splits=splits), name, what, key)
        stage.hold = Hold(stage.ctx, what)
        feed, pinned = taken_over(stage, stage.hold, key, record)
        stage.done()
        return Flow(feed, stage.flow.schema, (), (what,), (stage,), pinned, splits)

    def tell_more(self, fresh: Fresh) -> None:
        assert self.hold is not None
        tell_hold(self.hold, fresh)

    def untold(self) -> int:
        return self.hold.untold_nbytes if self.hold is not None else 0

    @property
    def sections(self) -> list[Section]:
        return [self.section] if self.section is not None else []

    def release(self) -> None:
        if self.hold is not None:
            self.hold.close()
            if self.section is not None:
                self.section.tell = None

    def taken_by(self, stage: Stage) -> None:
        self.release()


def number_rows(stage: Stage, hold: Hold) -> None:
    """Where parts of a piece lie on several ranks: the rows of each begin where those of the part before it end. Collective: yes."""
    mine = [(piece, hold.row(piece), hold.nrows(piece), stage.world.rank) for piece in hold.pieces]
    ends: dict[int, int] = {}
    for piece, _, nrows, rank in sorted(part for parts in stage.world.allgather(mine) for part in parts):
        if rank == stage.world.rank:
            hold.number(piece, ends.get(piece, 0))
        ends[piece] = ends.get(piece, 0) + nrows


def held_feed(stage: Stage, hold: Hold, pinned: Pinned | None, once: bool) -> HeldFeed:
    """What a stage put into `hold`, as a feed. Its pieces are those of the stage's feed. Collective: yes."""
    sums = stage.world.allreduce(np.array([hold.nbytes], np.int64))
    mine = hold.pieces
    if pinned is not None:        # partitions belong to somebody whether they have rows or not
        mine = list(range(int(pinned.bounds[stage.world.rank]), int(pinned.bounds[stage.world.rank + 1])))
    return HeldFeed(hold, stage.feed.count, mine, int(sums[0]), stage.name, once)


# -- what a checkpoint has of a hold ---------------------------------------------------------------------------------------------


def can_go_on(stage: Stage) -> bool:
    """Whether a stage that keeps rows can be continued in its middle. Collective: yes, where checkpoints are made."""
    return not stage.feed.late and not overlapping(stage)


def describe(section: Section, count: int, chain: Chain, pinned: Pinned | None) -> None:
    """What a later attempt must know of kept rows."""
    section.facts = {"count": count, "pinned": None if pinned is None else {"keys": list(pinned.keys), "types": list(pinned.types)}}
    section.schemas = {"rows": schema_json(chain.schema)}


def attach(hold: Hold, section: Section) -> None:
    """Rows stay until a checkpoint has them, or a stage that can be continued has taken them."""
    hold.retains, hold.waits = True, section.wait


def tell_hold(hold: Hold, fresh: Fresh) -> None:
    """Give a checkpoint what none has of a hold."""
    memory, away = hold.tell()
    fresh.pieces += memory
    fresh.copies += away
    fresh.given.update({ROWS: hold.rows, NBYTES: hold.nbytes})


def ended(stage: Stage, hold: Hold, feed: HeldFeed, settled: Batch | None) -> None:
    """All rows have come: from now on a checkpoint takes them as they are. Collective: yes."""
    cuts, section = stage.session.checkpoints, stage.section
    if cuts is None:
        return
    if section is not None:
        section.facts["nbytes_total"] = feed.nbytes_total
        first = stage.tell_counts()
        section.complete = True
        section.tell, section.unwritten = partial(_tell_ended, hold, section, first, settled), lambda: hold.untold_nbytes
    cuts.boundary()


def _tell_ended(hold: Hold, section: Section, first: Fresh, settled: Batch | None) -> Fresh:
    fresh = Fresh(first.counts, first.given)
    fresh.settled = None if section.settled else settled
    tell_hold(hold, fresh)
    return fresh


def complete_record(action: Action, key: str) -> Record:
    cuts = action.session.checkpoints
    assert cuts is not None
    record = cuts.record(key)
    assert record is not None and record.complete
    return record


def restore(stage: Stage, hold: Hold, record: Record, pinned: Pinned | None) -> NDArray[np.int64]:
    """Take over the kept rows of an earlier attempt; returns who has which pieces. Collective: yes."""
    section, world = stage.section, stage.world
    assert section is not None
    bounds = pinned.bounds if pinned is not None else None
    return _restored(hold, section, record, world, stage.ctx, bounds)


def _restored(hold: Hold, section: Section, record: Record, world: Any, ctx: RunContext, bounds: Any) -> NDArray[np.int64]:
    with world.together("open a checkpoint"):
        files = section.files(record.pieces)
    if bounds is None:
        bounds = stored_bounds(world, files, max(1, int(record.facts["count"])))
    first, stop = bounds[world.rank:world.rank + 2].tolist()
    stored = Stored(files, first, stop, ctx)
    counts = np.zeros(stop - first, np.int64)
    for f in stored.files:
        a, b = max(first, f.first), min(stop, f.first + f.count)
        counts[a - first:b - first] += f.counts(a, b)
    pieces = np.flatnonzero(counts)
    hold.restore(stored, dict(zip((pieces + first).tolist(), counts[pieces].tolist(), strict=True)))
    if world.rank == 0:                # sums over ranks are those of all rows
        hold.rows += record.given.get(ROWS, 0)
        hold.nbytes += record.given.get(NBYTES, 0)
    return bounds       # type: ignore[no-any-return]


def taken_over(stage: Stage, hold: Hold, key: str, record: Record) -> tuple[HeldFeed, Pinned | None]:
    """All kept rows of a stage that an earlier attempt was through with. Collective: yes."""
    section = stage.enter(key, amid=False)
    assert section is not None
    section.facts, section.schemas = record.facts, record.schemas
    stage._pieces, stage._numbers = record.counts[:2]
    stage._watch = StageProgress(stage.session, stage.number, stage.action.total, stage.name, 1)
    bounds = restore(stage, hold, record, None)
    return _feed_of(hold, record, stage.name, bounds, stage.world.rank, True)


def _feed_of(hold: Hold, record: Record, name: str, bounds: NDArray[np.int64], rank: int, once: bool) -> tuple[HeldFeed, Pinned | None]:
    told, pinned, mine = record.facts["pinned"], None, hold.pieces
    if told is not None:
        pinned = Pinned(tuple(told["keys"]), tuple(told["types"]), bounds)
        mine = list(range(int(bounds[rank]), int(bounds[rank + 1])))
    return HeldFeed(hold, int(record.facts["count"]), mine, int(record.facts["nbytes_total"]), name, once), pinned


# -- persisted tables ------------------------------------------------------------------------------------------------------------


def recall(action: Action, kept: Kept, key: str, label: str) -> bool:
    """Fill a persisted table with the rows that a checkpoint has of it; False if it has none, or not all. Collective: yes."""
    cuts = action.session.checkpoints
    assert cuts is not None
    record = cuts.kept_record(key)
    if record is None or not record.complete or record.settled is None:
        return False
    section, world = cuts.section(key, kept=True), action.world
    ctx = RunContext(action.session, 1, action.attempt, action.provenance)
    hold = Hold(ctx, "a persisted table")
    with world.together("open a checkpoint"):
        splits = unpack_splits(section.files([record.settled])[0].read(0, 1).batch)
    bounds = _restored(hold, section, record, world, ctx, None)
    feed, pinned = _feed_of(hold, record, label, bounds, world.rank, False)
    kept.fill(hold, record.schema("rows"), feed.count, feed.mine, feed.nbytes_total, pinned, splits, world, section)
    return True


def pack_splits(splits: tuple[Split, ...] | None) -> Batch:
    """Inputs as a checkpoint keeps them, for the provenance of what is made of kept rows."""
    try:
        return pack(None if splits is None else [(s.index, s.nbytes, s.where, _plain(s.part)) for s in splits])
    except NoWord:
        return pack(None)


def unpack_splits(row: Batch) -> tuple[Split, ...] | None:
    found = unpack(row)
    return None if found is None else tuple(Split(index, nbytes, where, part) for index, nbytes, where, part in found)


def _plain(value: Any) -> Any:
    """Named tuples as tuples, which compare and are digested as these."""
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return [_plain(v) for v in value] if isinstance(value, list) else value


Observe = Callable[[Batch, Origin], None]


def observe_again(hold: Hold, observe: Observe) -> None:
    """Show all rows that were taken over to a step whose first pass is not known."""
    for piece in hold.pieces:
        row = hold.row(piece)
        for batch in hold.read(piece):
            observe(batch, Origin(piece, row))
            row += batch.nrows
