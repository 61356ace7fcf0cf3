"""Steps that have to see all rows before they are applied to any: row numbers, running values, samples of a given size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import Origin
from hpcmr.ops.hold import Hold
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.feed import PART_BITS, HeldFeed, NoFeed
from hpcmr.run.flow import Flow
from hpcmr.run.generation import Record
from hpcmr.run.holding import attach, can_go_on, complete_record, describe, held_feed, observe_again, restore, taken_over, tell_hold
from hpcmr.run.prepare import Chain
from hpcmr.run.progress import StageProgress
from hpcmr.run.stage import Stage, settle

if TYPE_CHECKING:
    from hpcmr.run.action import Action


class SurveyStage(Stage):
    """The first of two passes: the rows are shown to a `SurveyStep`. They are read again where that is cheap, else kept on the ranks.

    Parameters
    ----------
    step : SurveyStep
        A copy, which may be bound.
    label : str
    key : str
        Place in the checkpoints of the job; empty: none.
    """

    def __init__(self, action: Action, flow: Flow, step: Any, label: str, key: str = "") -> None:
        super().__init__(action, flow, f"{label}: first pass")
        self.step, self.label, self._key = step, label, key
        self.hold: Hold | None = None
        self._again = flow.repeatable and not getattr(step, "holds", False)

    def run(self) -> Flow:
        """The rows, with the step to go through. Collective: yes."""
        step = self.step
        chain = self.bind()
        with self.world.together("bind the columns"):
            schema = step.bind(chain.schema)

        def ready(_: Batch | None) -> None:
            if not self._again:
                self.hold = Hold(self.ctx, f"the input of {step.name}")

        self.prepare(chain, step, ready)
        hold = self.hold
        section = self.enter(self._key, amid=hold is not None and can_go_on(self))
        record = section.record if section is not None else None
        if section is not None:
            describe(section, self.feed.count, chain, self.flow.pinned_behind())
            section.facts["held"] = hold is not None
        if hold is not None and section is not None:
            attach(hold, section)
        if record is not None and record.complete:
            self._skip(record)
        else:
            if hold is not None and record is not None:
                restore(self, hold, record, self.flow.pinned_behind())
                with self.world.together(f"look again at the input of {step.name}"):
                    observe_again(hold, step.observe)
            self.telling(section)
            self.go(self._sink, self.tally, section=section)
            settle(self, step)
        return self._repeated(chain, schema) if hold is None else self._held(chain, schema, hold)

    def _skip(self, record: Record) -> None:
        """An earlier attempt was through with the first pass over rows that can be read again."""
        self._pieces, self._numbers = record.counts[:2]
        self._watch = StageProgress(self.session, self.number, self.action.total, self.name, 1)
        self._settled(record)

    def _settled(self, record: Record) -> None:
        """Collective: yes."""
        section, step = self.section, self.step
        assert section is not None
        if record.settled is not None:
            with self.world.together(f"restore {step.name}"):
                step.resettle(section.files([record.settled])[0].read(0, 1).batch)
            return
        assert self.hold is not None
        with self.world.together(f"look again at the input of {step.name}"):
            observe_again(self.hold, step.observe)
        settle(self, step)

    @classmethod
    def restored(cls, action: Action, step: Any, label: str, key: str, splits: Any) -> Flow:
        """The kept rows, with the step, of a stage that an earlier attempt was through with: nothing below it runs. Collective: yes."""
        record = complete_record(action, key)
        flow = Flow(NoFeed(int(record.facts["nbytes_total"])), record.schema("rows"), splits=splits)
        stage = cls(action, flow, step, label, key)
        stage.hold = Hold(stage.ctx, f"the input of {step.name}")
        with stage.world.together("bind the columns"):
            schema = step.bind(flow.schema)
        stage.prepare(Chain((), flow.schema), step, lambda _: None)
        feed, pinned = taken_over(stage, stage.hold, key, record)
        feed.retains = record.settled is None
        stage._settled(record)
        stage.done()
        return Flow(feed, flow.schema, (step,), (label,), (stage,), pinned, splits, (1, schema))

    def _sink(self, piece: int, row: int, batch: Batch) -> int:
        if self.hold is not None:
            self.hold.take(piece, row, batch)
        elif self.steps and self.feed.shared:
            # As the step will count when it is applied: `Stage` leaves room in front of the rows of the upper part of a split.
            first = self.feed.row(piece)
            row += first - (first << PART_BITS)
        self.step.observe(batch, Origin(piece, row))
        return batch.nrows

    # -- the second pass ---------------------------------------------------------------------------------------------

    def _repeated(self, chain: Chain, schema: Schema) -> Flow:
        flow = self.flow
        self.flow = replace(flow, behind=())        # the next stage reads it once more
        self._ended(flow.feed.nbytes_total)
        self.done()
        return replace(flow.then([self.step], [self.label]), bound=(len(chain.steps) + 1, schema))

    def _held(self, chain: Chain, schema: Schema, hold: Hold) -> Flow:
        with self.world.together("keep rows on the ranks"):
            hold.seal()
        pinned = self.flow.pinned_behind()
        feed: HeldFeed = held_feed(self, hold, pinned, once=True)
        feed.retains = not hasattr(self.step, "settled") or self.step.settled() is None
        self.tally.nbytes_out = hold.nbytes
        self._ended(feed.nbytes_total)
        self.done()
        return Flow(feed, chain.schema, (self.step,), (self.label,), (self,), pinned, self.flow.splits, (1, schema))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _ended(self, nbytes_total: int) -> None:
        """All rows have been seen. Collective: yes."""
        cuts, section = self.session.checkpoints, self.section
        if cuts is None:
            return
        if section is not None and not section.complete:
            settled = self.step.settled() if hasattr(self.step, "settled") else None
            if self.hold is not None or settled is not None:
                section.facts["nbytes_total"] = nbytes_total
                section.complete = True
                section.tell, section.unwritten = partial(self._tell_ended, self.tell_counts(), settled), self.untold
        cuts.boundary()

    def _tell_ended(self, first: Fresh, settled: Batch | None) -> Fresh:
        fresh = Fresh(first.counts, first.given)
        fresh.settled = settled
        self.tell_more(fresh)
        return fresh

    def tell_more(self, fresh: Fresh) -> None:
        if self.hold is not None:
            tell_hold(self.hold, fresh)

    def untold(self) -> int:
        return self.hold.untold_nbytes if self.hold is not None else 0

    @property
    def sections(self) -> list[Section]:
        return [self.section] if self.section is not None and not self._again else []

    def close(self) -> None:
        if not self._again:
            super().close()

    def release(self) -> None:
        if self.hold is not None:
            self.hold.close()
            if self.section is not None:
                self.section.tell = None

    def taken_by(self, stage: Stage) -> None:
        self.release()
