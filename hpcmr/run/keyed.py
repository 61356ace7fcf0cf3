"""The stage of a keyed operator: rows go into it, in rounds to the owners of their partitions, and come out by partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import partition_count
from hpcmr.data.schema import Schema
from hpcmr.ops.contract import KeyedOperator, Origin
from hpcmr.ops.hold import Hold, Pinned
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.drive import Tally
from hpcmr.run.feed import NoFeed, PartitionFeed
from hpcmr.run.flow import Flow
from hpcmr.run.generation import Record, schema_json
from hpcmr.run.holding import held_feed
from hpcmr.run.memory import show_nbytes
from hpcmr.run.prepare import Chain
from hpcmr.run.progress import StageProgress
from hpcmr.run.rounds import Shuffle, cut_owners
from hpcmr.run.stage import Stage, overlapping, settle

if TYPE_CHECKING:
    from hpcmr.run.action import Action


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
        section = self.enter(self._key if not surveying or can_resettle(operator) else "", amid=not self.feed.late and not overlapping(self))
        if not surveying:
            self._absorb()
        elif section is not None and section.record is not None:
            bounds = self._settled(section, section.record)
        else:
            bounds = self._survey(bounds)
            self.keep_settled(operator)
        shuffle = self._begin(self.section, bounds)
        if surveying and self.session.checkpoints is not None:
            self.session.checkpoints.boundary()         # between the passes
        into_operator(self, operator, shuffle, self.section)
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
        action.session.say(f"stage {stage.number}, {label}: all of its input is in the checkpoint, {show_nbytes(record.nbytes)}; "
                           "nothing below it runs")
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
        shuffle, section = self.shuffle, self.section
        assert shuffle is not None and section is not None
        shuffle.tell(fresh)
        chain = self._chain
        section.facts = {"partitions": self.ctx.partitions, "nbytes_total": self.feed.nbytes_total}
        if shuffle.bounds is not None:          # else it is before the first round
            section.facts["count"] = int(shuffle.bounds[-1])
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
        self._final = [*self.counts()[:6], self.counts()[6] - self._made.unread[0]]
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


def owners(stage: Stage, operators: list[Any]) -> Any:
    """Owner bounds from the bytes that the operators expect; None if they cannot tell. Collective: yes."""
    found = [o.weights() for o in operators if hasattr(o, "weights")]
    known = [w for w in found if w is not None]
    return cut_owners(stage.world, sum(known[1:], known[0])) if known else None


def can_resettle(operator: Any) -> bool:
    """Whether a checkpoint can keep what the operator's first pass came to."""
    return hasattr(operator, "settled") and hasattr(operator, "resettle")


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
