"""One stage: its pieces go through the steps into an operator or into the action's outlet."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import partition_count
from hpcmr.data.schema import Schema
from hpcmr.errors import ConservationError
from hpcmr.ops.contract import Origin
from hpcmr.ops.outlet import Outlet
from hpcmr.plan.fingerprint import digest_of, inputs_digest
from hpcmr.plan.stages import StageSpec
from hpcmr.run.context import RunContext
from hpcmr.run.drive import Drive, Tally
from hpcmr.run.feed import Feed, OwnFeed, PartitionFeed, SplitFeed
from hpcmr.run.metrics import StageFigures
from hpcmr.run.prepare import Chain, Kernels, compile_all, infer_columns, sample_of
from hpcmr.run.progress import StageProgress
from hpcmr.run.rounds import Shuffle

if TYPE_CHECKING:
    from hpcmr.run.session import Session


PART_BITS = 16       # what a step may make of a row, on average over a split of arrays that lies on two ranks: 65,536 rows


class StageRun:
    """Runs one `StageSpec` on all ranks.

    Parameters
    ----------
    session : Session
    spec : StageSpec
        With steps and operator of its own (`hpcmr.plan.stages.stages` copies them).
    number : int
        From 1.
    name : str
    attempt : str
    provenance : dict
    """

    def __init__(self, session: Session, spec: StageSpec, number: int, name: str, attempt: str, provenance: dict[str, Any]) -> None:
        self.session, self.world, self.spec, self.number, self.name = session, session.world, spec, number, name
        self._attempt, self._provenance = attempt, provenance
        self.tally = Tally()
        self.figures = StageFigures(number, name)
        self.feed: Feed | None = None
        self._opened = False
        self._schema = Schema(())
        self.schema_out = Schema(())

    # -- the way in ------------------------------------------------------------------------------------------------

    def survey(self) -> Feed:
        """Find the input. Collective: yes."""
        source: Any = self.spec.source
        if getattr(source, "distributed", False):
            with self.world.together("look at the arrays"):
                self._schema, mine = source.survey_distributed(self.world.allgather)
            sums = self.world.allreduce(np.array([sum(s.nbytes for s in mine)], np.int64))
            last = self.world.allreduce(np.array([max((s.index for s in mine), default=-1)], np.int64), "max")
            return OwnFeed(source, mine, int(last[0]) + 1, int(sums[0]))
        self._schema, splits = self.world.on_root(source.survey)
        if self.world.rank == 0:
            self._provenance["inputs_digest"] = inputs_digest(splits)
        with self.world.together("open the input"):
            source.adopt(self._schema, splits)
        return SplitFeed(source, splits)

    def prepare(self, feed: Feed, schema: Schema | None, outlet: Outlet | None) -> None:
        """Columns, kernels, first memory. Collective: yes.

        Parameters
        ----------
        feed : Feed
        schema : Schema, optional
            What the stage before makes; None: that of the source.
        outlet : Outlet, optional
            Where the rows go if the stage has no operator.
        """
        spec, operator = self.spec, self.spec.operator
        self.feed = feed
        with self.world.together("bind the columns"):
            self._schema_in = self._schema if schema is None else schema
            self.chain = Chain(spec.steps, self._schema_in, operator)
        infer_columns(self.world, self.chain, feed)
        self.schema_out = self.chain.schema
        count = (spec.partitions or partition_count(feed.nbytes_total)) if operator else feed.count
        self.ctx = RunContext(self.session, count, self._attempt, self._provenance)
        self._notices()
        self.outlet = outlet
        kernels = Kernels(self.world, self._kernels_key())
        things = [*spec.steps, operator or outlet]
        kernels.load(lambda: compile_all(things), "compile the steps of a stage", things)
        sample = sample_of(self.world, self.chain, feed) if operator else None

        def ready() -> None:
            if operator:
                self._opened = True
                operator.open(self.ctx, sample)
            elif outlet:
                outlet.open(self.ctx, self.schema_out)

        kernels.load(ready, "open a stage")
        absorb = getattr(operator, "absorb", None)
        if absorb is not None and self.chain.steps and absorb(self.chain.steps[-1]):
            self.chain.steps = self.chain.steps[:-1]
        kernels.done()
        self.shuffle = Shuffle(self.world, operator, self.ctx) if operator else None

    def _kernels_key(self) -> str:
        """What decides which kernels are needed: columns, and what is done with them."""
        sink = self.spec.operator or self.outlet
        return digest_of([(f.name, str(f.type)) for f in self._schema_in], [s.fingerprint() for s in self.spec.steps], sink and sink.name,
                         self.spec.operator and self.spec.operator.fingerprint())

    def _notices(self) -> None:
        for thing in (*self.spec.steps, self.spec.operator):
            notice = getattr(thing, "notice", None)
            if notice:
                self.ctx.log(notice, once=notice)

    # -- the way through -------------------------------------------------------------------------------------------

    def run(self, watch: StageProgress) -> Feed | None:
        """Drive all pieces through; returns the partitions of the operator, None without one. Collective: yes."""
        began = time.monotonic()
        operator, session, feed = self.spec.operator, self.session, self.feed
        assert feed is not None
        self._drive = Drive(self.world, feed, self._work, self.tally, round_=self.shuffle.round if self.shuffle else None,
                            pressure=operator.pressure if operator else None, whole_pieces=getattr(operator, "whole_splits", False),
                            ascending=self.outlet is not None and operator is None and self.outlet.ascending, watch=watch.update,
                            grace_s=session.grace_s, last_words=session.last_words)
        self._drive.run()
        made = None
        if operator and self.shuffle:
            watch.note("exchanging")
            self.shuffle.round()
            self.tally.rounds += 1
            assert self.shuffle.bounds is not None
            first, stop = self.shuffle.bounds[self.world.rank:self.world.rank + 2].tolist()
            made = PartitionFeed(operator, first, stop, self.ctx.partitions, feed.nbytes_total)
        watch.end()
        self._measure(time.monotonic() - began)
        return made

    def _work(self, piece: int) -> None:
        """One piece, batch by batch, through all steps into the sink."""
        feed, tally, steps = self.feed, self.tally, self.chain.steps
        assert feed is not None
        if self._enough(piece):
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
                for i, step in enumerate(steps):
                    n = batch.nrows
                    if not n:
                        break
                    batch = step.apply(batch, Origin(piece, rows[i]))
                    rows[i] += n
                if batch.nrows:
                    self._sink(piece, batch, rows[-1])
                    rows[-1] += batch.nrows
                self._drive.between()
                if self._enough(piece):
                    tally.skipped += 1
                    return

    def _enough(self, piece: int) -> bool:
        return self.outlet is not None and self.outlet.enough(piece)

    def _sink(self, piece: int, batch: Batch, row: int) -> None:
        self.tally.rows_out += batch.nrows
        if self.spec.operator:
            rows = self.spec.operator.consume(batch, Origin(piece, row))
            self.tally.rows_out += 0 if rows is None else rows - batch.nrows
        elif self.outlet:
            self.tally.nbytes_out += batch.nbytes
            self.outlet.take(piece, batch)

    # -- the way out -----------------------------------------------------------------------------------------------

    def _measure(self, seconds: float) -> None:
        figures, tally = self.figures, self.tally
        figures.seconds, figures.work_s, figures.rows_in, figures.rows_out = seconds, tally.work_s, tally.rows_in, tally.rows_out
        figures.nbytes_in, figures.nbytes_out, figures.rounds = tally.nbytes_in, tally.nbytes_out, tally.rounds
        figures.exchanged_nbytes = self.shuffle.stats.nbytes_sent if self.shuffle else 0
        figures.counters = dict(self.ctx.counters)

    def counts(self) -> list[int]:
        """What must add up: pieces, the sum of their numbers, pieces skipped, rows to the sink, rows that the operator took in and gave out."""
        operator, tally = self.spec.operator, self.tally
        rows = [getattr(operator, "rows_in", tally.rows_out), getattr(operator, "rows_out", 0)]
        return [tally.pieces, tally.pieces_sum, tally.skipped, tally.rows_out, *rows]

    def check(self, sums: list[int], finished: bool) -> None:
        """Compare the sums of `counts` over all ranks. Collective: no, but all ranks find the same.

        Parameters
        ----------
        sums : list of int
        finished : bool
            Whether the next stage read all that the operator made.

        Raises
        ------
        ConservationError
        """
        pieces, numbers, _, rows_out, consumed, counted = sums
        feed = self.feed
        assert feed is not None
        n = feed.count
        if not isinstance(feed, OwnFeed):       # a split of arrays may lie on two ranks
            self._same("pieces of input", n, pieces)
            self._same("the sum of their numbers", n * (n - 1) // 2, numbers)
        self._same("rows taken in by the operator", rows_out, consumed)
        check = getattr(self.spec.operator, "check", None)
        if check is not None and finished:
            check(consumed, counted)

    def _same(self, what: str, expected: int, found: int) -> None:
        if expected != found:
            raise ConservationError(f"stage {self.number} ({self.name}): {what} should be {expected:,} and are {found:,}; "
                                    "this is a defect of hpcmr, please report it")

    def close(self) -> None:
        """Done with the way in."""
        if self.feed is not None:
            self.feed.close()
        elif self.spec.source is not None:
            self.spec.source.close()

    def release(self) -> None:
        """Done with what the operator made."""
        if self._opened and self.spec.operator:
            self._opened = False
            self.spec.operator.close()
