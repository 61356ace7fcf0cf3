"""Steps that have to see all rows before they are applied to any: row numbers, running values, samples of a given size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import Origin
from hpcmr.ops.hold import Hold
from hpcmr.run.feed import PART_BITS
from hpcmr.run.flow import Flow
from hpcmr.run.prepare import Chain
from hpcmr.run.stage import Stage, held_feed, settle

if TYPE_CHECKING:
    from hpcmr.run.action import Action


class SurveyStage(Stage):
    """The first of two passes: the rows are shown to a `SurveyStep`. They are read again where that is cheap, else kept on the ranks.

    Parameters
    ----------
    step : SurveyStep
        A copy, which may be bound.
    label : str
    """

    def __init__(self, action: Action, flow: Flow, step: Any, label: str) -> None:
        super().__init__(action, flow, f"{label}: first pass")
        self.step, self.label = step, label
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
        self.go(self._sink, self.tally)
        settle(self, step)
        return self._repeated(chain, schema) if self.hold is None else self._held(chain, schema, self.hold)

    def _sink(self, piece: int, row: int, batch: Batch) -> int:
        if self.hold is not None:
            self.hold.take(piece, row, batch)
        elif self.steps and self.feed.shared:
            # As the step will count when it is applied: `Stage` leaves room in front of the rows of the upper part of a split.
            first = self.feed.row(piece)
            row += first - (first << PART_BITS)
        self.step.observe(batch, Origin(piece, row))
        return batch.nrows

    def _repeated(self, chain: Chain, schema: Schema) -> Flow:
        flow = self.flow
        self.flow = replace(flow, behind=())        # the next stage reads it once more
        self.done()
        return replace(flow.then([self.step], [self.label]), bound=(len(chain.steps) + 1, schema))

    def _held(self, chain: Chain, schema: Schema, hold: Hold) -> Flow:
        with self.world.together("keep rows on the ranks"):
            hold.seal()
        pinned = self.flow.pinned_behind()
        feed = held_feed(self, hold, pinned, once=True)
        self.tally.nbytes_out = hold.nbytes
        self.done()
        return Flow(feed, chain.schema, (self.step,), (self.label,), (self,), pinned, self.flow.splits, (1, schema))

    def close(self) -> None:
        if not self._again:
            super().close()

    def release(self) -> None:
        if self.hold is not None:
            self.hold.close()

    def taken_by(self, stage: Stage) -> None:
        self.release()
