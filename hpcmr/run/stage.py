"""Stages: the rows of a flow go through its steps into an operator, into a hold, or into the action's outlet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import partition_count
from hpcmr.data.schema import Schema
from hpcmr.errors import ConservationError
from hpcmr.ops.contract import KeyedOperator, Origin, Step
from hpcmr.ops.hold import Hold, Pinned
from hpcmr.ops.outlet import Outlet
from hpcmr.plan.fingerprint import digest_of
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext, Together
from hpcmr.run.drive import Drive, Tally
from hpcmr.run.feed import PART_BITS, Feed, HeldFeed, NoFeed, PartitionFeed, SomeFeed, owned
from hpcmr.run.flow import Flow
from hpcmr.run.generation import Record, runs_of, schema_json
from hpcmr.run.metrics import StageFigures
from hpcmr.run.prepare import Chain, Kernels, compile_all, infer_columns, sample_of
from hpcmr.run.progress import StageProgress
from hpcmr.run.rounds import Shuffle, cut_owners
from hpcmr.run.stored import Stored, stored_bounds
from hpcmr.run.through import through

if TYPE_CHECKING:
    from hpcmr.run.action import Action

Sink = Callable[[int, int, Batch], int]       # piece, row, batch -> how many rows these count as


class Stage:
    """What all stages have in common: a flow, its columns, and one pass or two over its pieces.

    Parameters
    ----------
    action : Action
    flow : Flow
    name : str
        What happens here, behind the labels of the flow.

    Attributes
    ----------
    number : int
        From 1, in the order in which stages run.
    tally : Tally
        Of the pass that gives the stage its result.
    section : Section or None
        Of the stage in the checkpoints of the job; None where there are none, or the stage cannot be continued.
    """

    def __init__(self, action: Action, flow: Flow, name: str) -> None:
        self.action, self.session, self.world, self.flow = action, action.session, action.world, flow
        self.number = action.join(self)
        self.name = " -> ".join((*flow.labels, name))
        self.feed: Feed = flow.feed
        self.steps: tuple[Step, ...] = flow.steps
        self.tally = Tally()
        self.seen: Tally | None = None          # of a first pass, where there are two
        self.figures = StageFigures(self.number, self.name, is_input=flow.feed.is_input)
        self.reader: Stage | None = None        # the stage that read what this one made
        self.operator: KeyedOperator | None = None
        self.shuffle: Shuffle | None = None     # the rounds of the operator
        self.ctx = RunContext(self.session, 1, action.attempt, action.provenance)
        self.section: Section | None = None
        self.base: list[int] = []               # on rank 0: `counts` of earlier attempts, as far as this one continues them
        self._amid = False
        self._pieces = self._numbers = 0
        self._began = time.monotonic()
        self._spilled = self.session.scratch.nbytes_written

    # -- the way in ------------------------------------------------------------------------------------------------

    def bind(self, operator: Any = None) -> Chain:
        """Columns of the steps, and of the operator behind them. Collective: yes."""
        with self.world.together("bind the columns"):
            chain = Chain(self.steps, self.flow.schema, operator, self.flow.bound)
        infer_columns(self.world, chain, self.feed)
        return chain

    def prepare(self, chain: Chain, sink: Any, ready: Callable[[Batch | None], None], sampled: bool = False) -> None:
        """Kernels, and the first memory. Collective: yes.

        Parameters
        ----------
        chain : Chain
            Complete.
        sink : KeyedOperator, Outlet or None
        ready : callable
            Opens the sink; given a sample of the rows where `sampled`.
        """
        self._notices(sink)
        kernels = Kernels(self.world, digest_of([(f.name, str(f.type)) for f in self.flow.schema], [s.fingerprint() for s in chain.steps],
                                                sink and sink.name, sink and sink.fingerprint()))
        things = [*chain.steps, *([sink] if sink is not None else [])]
        kernels.load(lambda: compile_all(things), "compile the steps of a stage", things)
        sample = sample_of(self.world, chain, self.feed) if sampled else None
        kernels.load(lambda: ready(sample), "open a stage")
        kernels.done()

    def _notices(self, sink: Any) -> None:
        for thing in (*self.steps, sink):
            notice = getattr(thing, "notice", None)
            if notice:
                self.ctx.log(notice, once=notice)

    # -- the way through -------------------------------------------------------------------------------------------

    def go(self, sink: Sink, tally: Tally, *, enough: Callable[[int], bool] | None = None, round_: Callable[[], None] | None = None,
           pressure: Callable[[], float] | None = None, whole_pieces: bool = False, ascending: bool = False, section: Section | None = None) -> None:
        """Put all pieces of the feed through the steps into `sink`, but for those that `section` has behind it. Collective: yes."""
        feed, cuts = self.feed, self.session.checkpoints
        late = {p for group in feed.late for p in group}
        done = section.record if section is not None else None
        left = done.left(feed.count) if done is not None else list(range(feed.count))
        some = bool(late) or len(left) < feed.count
        groups: list[Any] = [SomeFeed(feed, [p for p in left if p not in late]) if some else feed]
        self._watch = StageProgress(self.session, self.number, self.action.total, self.name, _weight(feed))
        self._pieces, self._numbers = feed.count, feed.count * (feed.count - 1) // 2
        for i, group in enumerate([None, *feed.late]):
            if group is not None:
                feed.settle(i - 1, Together(self.world))
                groups.append(SomeFeed(feed, list(group)))
            part = groups[-1]
            numbers = part.numbers if isinstance(part, SomeFeed) else None
            drive = Drive(self.world, part, self._worker(sink, tally, enough or _never, numbers, section), tally, round_=round_, pressure=pressure,
                          whole_pieces=whole_pieces, ascending=ascending, watch=self._watch.update, grace_s=self.session.grace_s,
                          last_words=self.session.last_words, cuts=cuts)
            self._between = drive.between
            with cuts.at_work(section) if cuts is not None else nullcontext():
                drive.run()
            del self._between           # it knows the stage, and the stage what lies in memory

    def _worker(self, sink: Sink, tally: Tally, enough: Callable[[int], bool], numbers: list[int] | None,
                section: Section | None) -> Callable[[int], None]:
        """``work(place)`` of `Drive`: one piece, batch by batch, through all steps into the sink."""
        feed, steps = self.feed, self.steps

        def work(place: int) -> None:
            piece = place if numbers is None else numbers[place]
            put_through(piece)
            if section is not None:
                section.ended.append(piece)

        def put_through(piece: int) -> None:
            if enough(piece):
                tally.skipped += 1
                return
            row = feed.row(piece)
            # A split of arrays may lie on two ranks; the upper part's rows come behind all that the steps make of the lower part's.
            rows = [row] * len(steps) + [row << PART_BITS if steps else row]
            if feed.dealt:
                tally.nbytes_in += int(feed.weights[piece])
            with closing(feed.read(piece)) as batches:      # type: ignore[type-var]
                for batch in batches:
                    tally.rows_in += batch.nrows
                    if not feed.dealt:
                        tally.nbytes_in += batch.nbytes
                    for made in through(steps, batch, piece, rows):
                        tally.rows_out += sink(piece, rows[-1], made)
                        rows[-1] += made.nrows
                        self._between()
                    self._between()
                    if enough(piece):
                        tally.skipped += 1
                        return

        return work

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def enter(self, key: str, amid: bool = True) -> Section | None:
        """Take the place `key` in the checkpoints of the job, where this stage can have one. The same on all ranks.

        Parameters
        ----------
        key : str
            Empty: it cannot.
        amid : bool
            Cuts in the middle of the stage tell of it, and it can be continued from there; else those at its end only.
        """
        cuts = self.session.checkpoints
        if cuts is None or not key:
            return None
        section = self.section = cuts.section(key)
        self._amid = amid
        if section.record is not None and not section.record.complete and not amid:
            section.restart()
        if section.record is not None and self.world.rank == 0:
            self.base = list(section.record.counts)
        section.behind = [s for thing in self.flow.behind for s in getattr(thing, "sections", ())]
        if section.record is not None:
            for thing in self.flow.behind:
                if hasattr(thing, "take_given"):
                    thing.take_given(section.record.given)
        return section

    def telling(self, section: Section | None) -> None:
        """From here on cuts may ask what there is to `tell`."""
        if section is not None and self._amid:
            section.tell, section.unwritten = self.tell, self.untold

    def tell(self) -> Fresh:
        """What a checkpoint is to know of this stage. Between rounds, and between pieces."""
        counts = self.counts()
        counts[4] = counts[3]           # a first pass is over, or was that of an earlier attempt
        given: dict[str, int] = {}
        for thing in self.flow.behind:
            given.update(thing.given() if hasattr(thing, "given") else {})
        fresh = Fresh(counts, given)
        self.tell_more(fresh)
        return fresh

    def tell_more(self, fresh: Fresh) -> None:
        """What this kind of stage has beside counts."""

    def untold(self) -> int:
        """Bytes that `tell` would give, about."""
        return 0

    def boundary(self) -> None:
        """All input is in, and nothing is merged yet. Collective: yes."""
        cuts, section = self.session.checkpoints, self.section
        if cuts is None:
            return
        if section is not None:
            section.complete = True
            section.tell, section.unwritten = self.tell, self.untold
        cuts.boundary()
        if section is not None and section.tell is not None:        # it was not due: what an earlier cut told stays
            section.complete, section.tell = False, None

    # -- the way out -----------------------------------------------------------------------------------------------

    def done(self, exchanged_nbytes: int = 0) -> None:
        """The flow has been read: write down what it took, and let go of what it was read from."""
        figures, tally, first = self.figures, self.tally, self.seen or self.tally
        figures.seconds, figures.work_s = time.monotonic() - self._began, tally.work_s + (self.seen.work_s if self.seen else 0)
        figures.rows_in, figures.nbytes_in, figures.rows_out, figures.nbytes_out = first.rows_in, first.nbytes_in, tally.rows_out, tally.nbytes_out
        figures.rounds, figures.exchanged_nbytes = tally.rounds, exchanged_nbytes
        figures.spilled_nbytes = self.session.scratch.nbytes_written - self._spilled
        figures.counters = dict(self.ctx.counters)
        self._watch.end()
        for thing in self.flow.behind:
            thing.taken_by(self)
        self.close()

    def close(self) -> None:
        """Done with the way in."""
        self.flow.feed.close()

    def release(self) -> None:
        """Done with what the stage made."""
        if self.shuffle is not None:
            self.shuffle.close()

    def counts(self) -> list[int]:
        """What must add up: pieces, the sum of their numbers, pieces skipped, rows to the sink, of a first pass too, and rows that the
        operator took in and gave out.
        """
        tally = self.tally
        seen = tally.rows_out if self.seen is None else self.seen.rows_out
        rows = [getattr(self.operator, "rows_in", tally.rows_out), getattr(self.operator, "rows_out", 0)]
        mine = [tally.pieces, tally.pieces_sum, tally.skipped, tally.rows_out, seen, *rows]
        return [a + b for a, b in zip(mine, self.base, strict=True)] if self.base else mine

    def check(self, sums: list[int], finished: bool) -> None:
        """Compare the sums of `counts` over all ranks. Collective: no, but all ranks find the same.

        Parameters
        ----------
        sums : list of int
        finished : bool
            Whether all that the operator made was read.

        Raises
        ------
        ConservationError
        """
        pieces, numbers, _, rows_out, seen, consumed, counted = sums
        if not self.feed.shared:       # a split of arrays may lie on two ranks
            self._same("pieces of input", self._pieces, pieces)
            self._same("the sum of their numbers", self._numbers, numbers)
        self._same("rows of the second pass", seen, rows_out)
        self._same("rows taken in by the operator", rows_out, consumed)
        check = getattr(self.operator, "check", None)
        if check is not None and finished:
            check(consumed, counted)

    def _same(self, what: str, expected: int, found: int) -> None:
        if expected != found:
            raise ConservationError(f"stage {self.number} ({self.name}): {what} should be {expected:,} and are {found:,}; "
                                    "this is a defect of hpcmr, please report it")


def _weight(feed: Feed) -> int:
    return int(feed.weights.sum()) if feed.dealt else feed.count


def _never(piece: int) -> bool:
    return False


class OutletStage(Stage):
    """The last stage: into the action's outlet."""

    def __init__(self, action: Action, flow: Flow, outlet: Outlet, key: str = "") -> None:
        super().__init__(action, flow, outlet.name)
        self.outlet = outlet
        self._key = key if hasattr(outlet, "sealed") and not flow.feed.late and not overlapping(self) else ""

    def run(self) -> None:
        """Collective: yes."""
        outlet = self.outlet
        chain = self.bind()
        self.ctx.partitions = self.feed.count
        self.prepare(chain, outlet, lambda _: outlet.open(self.ctx, chain.schema))
        section = self.enter(self._key)
        if section is not None and section.record is not None:
            self._restore(section, section.record)
        self.telling(section)
        self.go(self._sink, self.tally, enough=outlet.enough, ascending=outlet.ascending, section=section)
        self.done()

    def _restore(self, section: Section, record: Record) -> None:
        """Give the outlet what it took in earlier attempts: rows in ranges of pieces by bytes, the rest in turn. Collective: yes."""
        outlet: Any = self.outlet
        rank, size = self.world.rank, self.world.size
        with self.world.together("open a checkpoint"):
            found = section.files(record.pieces)
        bounds = stored_bounds(self.world, found, max(1, self.feed.count)).tolist()

        def rows() -> Iterator[tuple[int, Batch]]:
            stored = Stored(found, bounds[rank], bounds[rank + 1], self.ctx)
            try:
                for piece in range(bounds[rank], bounds[rank + 1]):
                    for part in stored.read(piece):
                        yield piece, owned(part.batch)
            finally:
                stored.close()

        with self.world.together("restore an outlet"):
            outlet.restore(record.told[rank::size], rows())

    def tell_more(self, fresh: Fresh) -> None:
        sealed = self.outlet.sealed()       # type: ignore[attr-defined]
        if sealed is not None:
            fresh.told, fresh.finish = sealed.told, sealed.finish
            fresh.pieces += [sealed.rows] if sealed.rows is not None else []

    def _sink(self, piece: int, row: int, batch: Batch) -> int:
        self.tally.nbytes_out += batch.nbytes
        self.outlet.take(piece, batch)
        return batch.nrows


class HoldStage(Stage):
    """Rows are kept on the ranks that make them.

    Parameters
    ----------
    what : str
        What they are, for messages.
    """

    def __init__(self, action: Action, flow: Flow, name: str, what: str) -> None:
        super().__init__(action, flow, name)
        self.what = what
        self.hold: Hold | None = None

    def run(self, chain: Chain | None = None, once: bool = False, observe: Callable[[Batch, Origin], None] | None = None,
            dense: bool = False) -> Flow:
        """The kept rows as a flow. Collective: yes.

        Parameters
        ----------
        chain : Chain, optional
            The flow's steps, bound by somebody else.
        once : bool
            The rows will be read once.
        observe : callable, optional
            Sees each batch, too.
        dense : bool
            Number the rows of each piece from 0 without gaps. Else they keep the origins that `observe` saw.
        """
        chain = chain or self.bind()

        def ready(_: Batch | None) -> None:
            self.hold = Hold(self.ctx, self.what)

        self.prepare(chain, None, ready)
        hold = self.hold
        assert hold is not None

        def sink(piece: int, row: int, batch: Batch) -> int:
            hold.take(piece, row, batch)
            if observe is not None:
                observe(batch, Origin(piece, row))
            return batch.nrows

        self.go(sink, self.tally)
        with self.world.together("keep rows on the ranks"):
            hold.seal()
        if dense and self.feed.shared:
            number_rows(self, hold)
        self.tally.nbytes_out = hold.nbytes
        pinned = self.flow.pinned_behind()
        feed = held_feed(self, hold, pinned, once)
        self.done()
        return Flow(feed, chain.schema, (), (self.what,), (self,), pinned, self.flow.splits)

    def release(self) -> None:
        if self.hold is not None:
            self.hold.close()

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


class KeyedStage(Stage):
    """Into a keyed operator, in rounds, so that each partition ends at its owner.

    Parameters
    ----------
    partitions : int or None
        Their number, if somebody asked for one.
    key : str
        Place in the checkpoints of the job; empty: none.
    """

    def __init__(self, action: Action, flow: Flow, operator: KeyedOperator, partitions: int | None, label: str, key: str = "") -> None:
        super().__init__(action, flow, label)
        self._key = key
        self.operator = operator
        self._wish = partitions
        self._open = False
        self._kept: Hold | None = None
        self._made: PartitionFeed | None = None
        self._final: list[int] | None = None
        self._given = 0

    def run(self) -> Flow:
        """The partitions as a flow. Collective: yes."""
        operator: Any = self.operator
        nbytes_total = self.feed.nbytes_total
        chain = self._chain = self.bind(operator)
        pinned = self._reused(chain)
        self.ctx.partitions = pinned.count if pinned else self._wish or partition_count(nbytes_total)

        def ready(sample: Batch | None) -> None:
            self._open = True
            operator.open(self.ctx, sample)

        self.prepare(chain, operator, ready, sampled=True)
        bounds = pinned.bounds if pinned else None
        surveying = getattr(operator, "survey", False)
        section = self.enter(self._key, amid=not self.feed.late and not overlapping(self) and (not surveying or can_resettle(operator)))
        if surveying:
            bounds = self._settled(section, section.record) if section is not None and section.record is not None else self._survey(bounds)
        else:
            self._absorb()
        shuffle = self._begin(section, bounds)
        into_operator(self, operator, shuffle, section)
        if not surveying:
            settle(self, operator)
        last_round(self, shuffle)
        return self._flow(chain.schema, nbytes_total, self.flow.splits)

    def _begin(self, section: Section | None, bounds: Any) -> Shuffle:
        """The rounds, with what an earlier attempt received. Collective: yes."""
        assert self.operator is not None
        shuffle = self.shuffle = Shuffle(self.world, self.operator, self.ctx, bounds, section)
        if section is not None and section.record is not None:
            shuffle.restore(section)
        self.telling(section)
        return shuffle

    def _flow(self, schema: Schema, nbytes_total: int, splits: Any) -> Flow:
        operator, shuffle = self.operator, self.shuffle
        assert operator is not None and shuffle is not None and shuffle.bounds is not None
        self.done(shuffle.stats.nbytes_sent)
        made = self._made = PartitionFeed(operator, shuffle.bounds, self.world.rank, nbytes_total, shuffle.bring)
        return Flow(made, schema, (), (), (self,), partitions_of(operator, schema, shuffle.bounds), splits)

    @classmethod
    def restored(cls, action: Action, operator: KeyedOperator, label: str, key: str, splits: Any) -> Flow:
        """The partitions of a stage that an earlier attempt was through with: nothing below it runs. Collective: yes."""
        cuts = action.session.checkpoints
        assert cuts is not None
        record = cuts.record(key)
        assert record is not None
        feed = NoFeed(int(record.facts["nbytes_total"]))
        stage = cls(action, Flow(feed, record.schema("in"), (), (), (), None, splits), operator, None, label, key)
        return stage.again(record)

    def again(self, record: Record) -> Flow:
        """`run`, of a stage that is complete in a checkpoint. Collective: yes."""
        operator: Any = self.operator
        with self.world.together("bind the columns"):
            chain = self._chain = Chain((), self.flow.schema, operator)
            if not chain.complete:
                chain.fix(record.schema("out"))
        self.ctx.partitions = int(record.facts["partitions"])

        def ready(sample: Batch | None) -> None:
            self._open = True
            operator.open(self.ctx, None)

        self.prepare(chain, operator, ready)
        section = self.enter(self._key, amid=False)
        assert section is not None
        self._pieces, self._numbers = record.counts[:2]
        if getattr(operator, "survey", False):
            self._settled(section, record)
        shuffle = self._begin(section, None)
        self._watch = StageProgress(self.session, self.number, self.action.total, self.name, 1)
        shuffle.end()
        return self._flow(chain.schema, self.feed.nbytes_total, self.flow.splits)

    def _settled(self, section: Section, record: Record) -> Any:
        """What an earlier attempt found out in its first pass; returns owners, as `_survey` does. Collective: yes."""
        operator: Any = self.operator
        assert record.settled is not None
        with self.world.together(f"restore {operator.name}"):
            operator.resettle(section.files([record.settled])[0].read(0, 1).batch)
        return owners(self, [operator])

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def tell_more(self, fresh: Fresh) -> None:
        shuffle, section, operator = self.shuffle, self.section, self.operator
        assert shuffle is not None and shuffle.bounds is not None and section is not None
        shuffle.tell(fresh)
        if getattr(operator, "survey", False) and not section.settled:
            fresh.settled = operator.settled()      # type: ignore[union-attr]
        chain = self._chain
        section.facts = {"count": int(shuffle.bounds[-1]), "partitions": self.ctx.partitions, "nbytes_total": self.feed.nbytes_total}
        section.schemas = {"in": schema_json(chain.into_operator), "out": schema_json(chain.schema)}

    def untold(self) -> int:
        return self.shuffle.untold_nbytes if self.shuffle is not None else 0

    @property
    def sections(self) -> list[Section]:
        return [self.section] if self.section is not None else []

    def given(self) -> dict[str, int]:
        """Rows of the result that were counted when they were read: see `Record`."""
        assert self._made is not None
        return {self.section.key: self._made.given[0] + self._given} if self.section is not None else {}

    def take_given(self, given: dict[str, int]) -> None:
        """The same of earlier attempts."""
        if self.section is not None and self.world.rank == 0:
            self._given = given.get(self.section.key, 0)
            self.base = [*(self.base or [0] * 7)[:6], (self.base or [0] * 7)[6] + self._given]

    def _reused(self, chain: Chain) -> Pinned | None:
        """The partitions that rows lie in already, if they are those that the operator wants."""
        keys = getattr(self.operator, "keys", None)
        pinned = self.flow.pinned_behind()
        if pinned is None or keys is None or self._wish not in (None, pinned.count) or not getattr(self.operator, "partitioned_by", None):
            return None
        return pinned if pinned.fits(tuple(keys), chain.into_operator) else None

    def _absorb(self) -> None:
        absorb = getattr(self.operator, "absorb", None)
        if absorb is not None and self.steps and absorb(self.steps[-1]):
            self.steps = self.steps[:-1]

    def _survey(self, bounds: Any) -> Any:
        """The first of two passes; returns owners, if the operator can tell what they would get."""
        operator: Any = self.operator
        self.seen = Tally()
        self._kept = survey(self, operator)
        settle(self, operator)
        return owners(self, [operator]) if bounds is None else bounds

    def done(self, exchanged_nbytes: int = 0) -> None:
        super().done(exchanged_nbytes)
        if self._kept is not None:
            self._kept.close()

    def taken_by(self, stage: Stage) -> None:
        self.reader = stage
        assert self._made is not None
        self.figures.rows_out, self.figures.nbytes_out = self._made.rows, self._made.nbytes
        self._final = self.counts()
        self.release()

    def counts(self) -> list[int]:
        return self._final or super().counts()

    def release(self) -> None:
        super().release()
        if self._kept is not None:
            self._kept.close()
        if self._open and self.operator is not None:
            self._open = False
            self.operator.close()


def survey(stage: Stage, operator: Any) -> Hold | None:
    """All rows of a stage once past `operator.observe`. Collective: yes.

    They are read again where that is cheap. Else they are kept, and the stage's feed and steps are then those of the kept rows.
    """
    assert stage.seen is not None
    hold = None if stage.flow.repeatable else Hold(stage.ctx, f"the input of {operator.name}")

    def sink(piece: int, row: int, batch: Batch) -> int:
        operator.observe(batch, Origin(piece, row))
        if hold is not None:
            hold.take(piece, row, batch)
        return batch.nrows

    try:
        stage.go(sink, stage.seen)
        if hold is None:
            return None
        with stage.world.together("keep rows on the ranks"):
            hold.seal()
    except BaseException:
        if hold is not None:
            hold.close()
        raise
    stage.feed = held_feed(stage, hold, None, once=True)
    stage.steps = ()
    return hold


def settle(stage: Stage, *operators: Any) -> None:
    """Call `settle` of those that have one. Collective: yes."""
    for operator in operators:
        if hasattr(operator, "settle"):
            with stage.world.together(f"settle {operator.name}"):
                operator.settle(Together(stage.world))


def owners(stage: Stage, operators: list[Any]) -> Any:
    """Owner bounds from the bytes that the operators expect; None if they cannot tell. Collective: yes."""
    found = [o.weights() for o in operators if hasattr(o, "weights")]
    known = [w for w in found if w is not None]
    return cut_owners(stage.world, sum(known[1:], known[0])) if known else None


def can_resettle(operator: Any) -> bool:
    """Whether a checkpoint can keep what the operator's first pass came to."""
    return hasattr(operator, "settled") and hasattr(operator, "resettle")


def overlapping(stage: Stage) -> bool:
    """Whether parts of one piece lie on several ranks, so that no rank knows when it is in. Collective: yes, where checkpoints are made."""
    if stage.session.checkpoints is None or not stage.feed.shared:
        return False
    pieces = [p for mine in stage.world.allgather(runs_of(stage.feed.mine)) for p in mine]
    pieces.sort()
    return any(a[1] > b[0] for a, b in pairwise(pieces))


def into_operator(stage: Stage, operator: Any, shuffle: Shuffle, section: Section | None = None) -> None:
    """All pieces of a stage into a keyed operator, with rounds of the exchange when it wants them. Collective: yes."""

    def sink(piece: int, row: int, batch: Batch) -> int:
        rows = operator.consume(batch, Origin(piece, row))
        return batch.nrows if rows is None else int(rows)

    stage.go(sink, stage.tally, round_=shuffle.round, pressure=shuffle.pressure, whole_pieces=getattr(operator, "whole_splits", False),
             section=section)


def last_round(stage: Stage, shuffle: Shuffle) -> None:
    """What is left in the operator goes to the owners. Collective: yes."""
    stage._watch.note("exchanging")
    shuffle.round(last=True)
    stage.tally.rounds += 1
    stage.boundary()
    shuffle.end()


def partitions_of(operator: Any, schema: Schema, bounds: Any) -> Pinned | None:
    """The partitions of an operator's result, if they are those of a hash that others use too."""
    keys = getattr(operator, "partitioned_by", None)
    if not keys or any(k not in schema for k in keys):
        return None
    return Pinned(tuple(keys), tuple(str(schema[k].type) for k in keys), bounds)
