"""Stages: the rows of a flow go through its steps into an operator, into a hold, or into the action's outlet."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.errors import ConservationError
from hpcmr.ops.contract import KeyedOperator, Step
from hpcmr.plan.fingerprint import digest_of
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext, Together
from hpcmr.run.drive import Drive, Tally
from hpcmr.run.feed import PART_BITS, Feed, HeldFeed, SomeFeed
from hpcmr.run.flow import Flow
from hpcmr.run.generation import runs_of
from hpcmr.run.metrics import StageFigures
from hpcmr.run.prepare import Chain, Kernels, compile_all, infer_columns, sample_of
from hpcmr.run.progress import StageProgress
from hpcmr.run.rounds import Shuffle
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
        self.found: Batch | None = None         # what a first pass came to, for checkpoints
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
        if len(left) < feed.count:
            self.session.say(f"stage {self.number}, {self.name}: {feed.count - len(left):,} of {feed.count:,} pieces of input "
                             f"({1 - len(left) / feed.count:.0%}) are in the checkpoint, the rest is done now")
        if section is not None and self._amid and isinstance(feed, HeldFeed) and not feed.retains:
            feed.hold.retains = False       # what is read and dropped is in this stage's part of a checkpoint
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

    def enter(self, key: str, amid: bool = True, kept: bool = False) -> Section | None:
        """Take the place `key` in the checkpoints of the job, where this stage can have one. The same on all ranks.

        Parameters
        ----------
        key : str
            Empty: it cannot.
        amid : bool
            Cuts in the middle of the stage tell of it, and it can be continued from there; else those at its end only.
        kept : bool
            It is the place of a persisted table.
        """
        cuts = self.session.checkpoints
        if cuts is None or not key:
            return None
        section = self.section = cuts.section(key, kept)
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

    def keep_settled(self, operator: Any) -> None:
        """What the operator's first pass came to goes into the checkpoints, or the stage has no place there. The same on all ranks."""
        if self.section is not None:
            self.found = operator.settled()
            if self.found is None:
                self.section.restart()
                self.section = None

    def telling(self, section: Section | None) -> None:
        """From here on cuts may ask what there is to `tell`."""
        if section is not None and self._amid:
            section.tell, section.unwritten = self.tell, self.untold

    def tell(self) -> Fresh:
        """What a checkpoint is to know of this stage. Between rounds, and between pieces."""
        fresh = self.tell_counts()
        assert self.section is not None
        fresh.settled = None if self.section.settled else self.found
        self.tell_more(fresh)
        return fresh

    def tell_counts(self) -> Fresh:
        """The part of `tell` that all stages have."""
        counts = self.counts()
        counts[4] = counts[3]           # a first pass is over, or was that of an earlier attempt
        given: dict[str, int] = {}
        for thing in self.flow.behind:
            given.update(thing.given() if hasattr(thing, "given") else {})
        return Fresh(counts, given)

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


def settle(stage: Stage, *operators: Any) -> None:
    """Call `settle` of those that have one. Collective: yes."""
    for operator in operators:
        if hasattr(operator, "settle"):
            with stage.world.together(f"settle {operator.name}"):
                operator.settle(Together(stage.world))


def overlapping(stage: Stage) -> bool:
    """Whether parts of one piece lie on several ranks, so that no rank knows when it is in. Collective: yes, where checkpoints are made."""
    if stage.session.checkpoints is None or not stage.feed.shared:
        return False
    pieces = [p for mine in stage.world.allgather(runs_of(stage.feed.mine)) for p in mine]
    pieces.sort()
    return any(a[1] > b[0] for a, b in pairwise(pieces))
