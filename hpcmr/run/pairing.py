"""Two flows into one: a join, the way that the measured size of its right side decides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.gather import allgather_batch
from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import partition_count
from hpcmr.data.schema import Schema
from hpcmr.errors import HpcmrError
from hpcmr.ops.contract import Origin, PairOperator
from hpcmr.ops.hold import Hold, Pinned, real_nbytes
from hpcmr.plan.stages import Segment
from hpcmr.run.context import RunContext
from hpcmr.run.drive import Tally
from hpcmr.run.feed import HeldFeed, PartitionFeed, TailFeed, UnionFeed
from hpcmr.run.flow import Flow, joined
from hpcmr.run.keyed import into_operator, last_round, owners, partitions_of, survey
from hpcmr.run.prepare import Chain, infer_columns
from hpcmr.run.rounds import Shuffle
from hpcmr.run.stage import HoldStage, Stage, settle

if TYPE_CHECKING:
    from hpcmr.run.action import Action

WAYS = ("broadcast", "shuffle")


class Pairing:
    """Runs a `Pair`.

    Parameters
    ----------
    action : Action
    operator : PairOperator
        A copy, which may be bound.
    partitions : int or None
        Their number, if somebody asked for one.
    label : str
    """

    def __init__(self, action: Action, operator: PairOperator, partitions: int | None, label: str) -> None:
        self.action, self.world, self.operator, self.label = action, action.world, operator, label
        self._wish = partitions

    def made(self, part: Segment, place: str) -> Flow:
        """The result as a flow; what an earlier attempt has of it is not made again. Collective: yes."""
        right = self.action.flow(part.inputs[1], f"{place}.1")
        return self.run(self.action.flow(part.inputs[0], f"{place}.0"), right)

    def run(self, left: Flow, right: Flow) -> Flow:
        """The result as a flow. Collective: yes."""
        operator = self.operator
        left_chain, right_chain = self._bound(left), self._bound(right)
        with self.world.together("bind the columns"):
            schema = operator.bind(left_chain.schema, right_chain.schema)
        kept = self._held(right, right_chain)
        assert isinstance(kept.feed, HeldFeed)
        hold = kept.feed.hold
        sums = self.world.allreduce(np.array([hold.nbytes, hold.rows], np.int64)).tolist()
        with self.world.together("choose the way of a join"):
            way, reason = operator.choose(*sums)
            if way not in WAYS:
                raise HpcmrError(f"{operator.name} chose {way!r}; there are {' and '.join(WAYS)}")
        self.action.decide(f"{self.label}: {way}, {reason}")
        if way == "broadcast":
            self.action.total -= 2
            return self._broadcast(left, left_chain, kept)
        return self._shuffle(left, left_chain, kept, schema, sums[0])

    def _bound(self, flow: Flow) -> Chain:
        with self.world.together("bind the columns"):
            chain = Chain(flow.steps, flow.schema, None, flow.bound)
        infer_columns(self.world, chain, flow.feed)
        return chain

    def _held(self, flow: Flow, chain: Chain) -> Flow:
        """The rows of the right side, kept on the ranks that made them."""
        if isinstance(flow.feed, HeldFeed) and flow.feed.again and not flow.steps:
            return flow
        stage = HoldStage(self.action, flow, f"keep for {self.label}", f"the right side of {self.operator.name}")
        return stage.run(chain, once=True)

    # -- the right side everywhere ---------------------------------------------------------------------------------

    def _broadcast(self, left: Flow, chain: Chain, kept: Flow) -> Flow:
        everywhere = Everywhere(self.action, kept)
        with self.world.together("open a join"):
            step = self.operator.probe(everywhere.rows)
        made = replace(left.then([step], [self.label]), bound=(len(left.steps), chain.schema), behind=(*left.behind, everywhere),
                       splits=joined(left.splits, kept.splits))
        tail = getattr(step, "tail", None)
        if tail is None:
            return made
        with self.world.together("bind the columns"):
            whole = Chain(made.steps, made.schema, None, made.bound)
        last: Any = TailFeed(tail, len(left.feed.late))
        feed = UnionFeed([(left.feed, whole), (last, Chain((), whole.schema))], self.world.rank, self.world.size)
        return replace(made, feed=feed, schema=whole.schema, steps=(), bound=None, pinned=None)

    # -- both sides to the owners of their keys --------------------------------------------------------------------

    def _shuffle(self, left: Flow, chain: Chain, kept: Flow, schema: Schema, right_nbytes: int) -> Flow:
        operator: Any = self.operator
        nbytes_total = left.feed.nbytes_total + right_nbytes
        first = SideStage(self.action, left, operator.left, f"{self.label}, left rows")
        pinned = self._reused(left, chain.schema, kept)
        first.ctx.partitions = pinned.count if pinned else self._wish or partition_count(nbytes_total)
        opened = Opened(operator, first)

        def ready(sample: Batch | None) -> None:
            opened.is_open = True
            operator.open(first.ctx, sample)

        first.prepare(chain, operator, ready, sampled=True)
        bounds: NDArray[np.int64] | None = pinned.bounds if pinned else None
        held = None
        if getattr(operator, "survey", False):
            held = self._survey(first, kept)
            settle(first, operator)
            bounds = owners(first, [operator.left, operator.right]) if bounds is None else bounds
        else:
            settle(first, operator)
        bounds = first.run(bounds)
        if held is not None:
            held.close()
        second = SideStage(self.action, kept, operator.right, f"{self.label}, right rows")
        second.ctx = first.ctx
        second.prepare(Chain((), kept.schema), None, lambda _: None)
        second.run(bounds)
        opened.feed = PartitionFeed(operator, bounds, self.world.rank, nbytes_total, opened.bring)
        opened.stages = [first, second]
        return Flow(opened.feed, schema, (), (), (opened,), partitions_of(operator, schema, bounds), joined(left.splits, kept.splits))

    def _survey(self, first: SideStage, kept: Flow) -> Hold | None:
        """Both sides past their `observe`."""
        operator: Any = self.operator
        assert isinstance(kept.feed, HeldFeed)
        with self.world.together(f"look at the right side of {operator.name}"):
            for piece in kept.feed.mine:
                row = kept.feed.row(piece)
                for batch in kept.feed.peek(piece):
                    operator.right.observe(batch, Origin(piece, row))
                    row += batch.nrows
        first.seen = Tally()
        return survey(first, operator.left)

    def _reused(self, left: Flow, schema: Schema, kept: Flow) -> Pinned | None:
        """Partitions that rows of one side lie in already, if they are those of the join."""
        operator: Any = self.operator
        if not getattr(operator, "partitioned_by", None):
            return None
        sides = [(left.pinned_behind(), operator.left.keys, schema), (kept.pinned, operator.right.keys, kept.schema)]
        if len({tuple(str(s[k].type) for k in keys) for _, keys, s in sides}) > 1:
            return None
        for pinned, keys, s in sides:
            if pinned is not None and self._wish in (None, pinned.count) and pinned.fits(tuple(keys), s):
                return pinned
        return None


class Everywhere:
    """All rows that a hold keeps, in the order of their origin, in the memory of every rank. Collective: yes."""

    def __init__(self, action: Action, kept: Flow) -> None:
        assert isinstance(kept.feed, HeldFeed)
        hold = kept.feed.hold
        action.own(self)
        self._ctx = RunContext(action.session, 1, action.attempt, action.provenance)
        self._taken = 0
        with action.world.together("put rows on every rank"):
            blocks = [b for piece in kept.feed.mine for b in hold.read(piece)]
            mine = Batch.concat(blocks) if blocks else Batch.empty(kept.schema)
        parts = action.world.allgather([(piece, hold.row(piece), hold.nrows(piece)) for piece in kept.feed.mine])
        total = int(action.world.allreduce(np.array([real_nbytes(mine)], np.int64))[0])
        with action.world.together("put rows on every rank"):
            self._ctx.take(total, "the right side of a join, on every rank,")
            self._taken = total
        self.rows = in_order(allgather_batch(action.world, mine), parts)
        for thing in kept.behind:
            thing.release()

    def taken_by(self, stage: Stage) -> None:
        self.release()

    def release(self) -> None:
        self.rows = Batch({})
        self._ctx.give(self._taken)
        self._taken = 0


def in_order(gathered: Batch, parts: list[list[tuple[int, int, int]]]) -> Batch:
    """Rows in the order of their pieces, from rows in the order of ranks; `parts` are piece, first row and rows, by rank."""
    flat = [part for mine in parts for part in mine]
    if flat == sorted(flat):
        return gathered
    ends = np.cumsum([n for _, _, n in flat])
    places = sorted(range(len(flat)), key=lambda i: flat[i])
    rows = np.concatenate([np.arange(int(ends[i]) - flat[i][2], int(ends[i])) for i in places]).astype(np.int64)
    return gathered.take(rows).compact()


class SideStage(Stage):
    """One side of a join into its operator."""

    def __init__(self, action: Action, flow: Flow, side: Any, label: str) -> None:
        super().__init__(action, flow, label)
        self.operator = side
        self.final: list[int] | None = None

    def run(self, bounds: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Returns who owns what. Collective: yes."""
        assert self.operator is not None
        shuffle = self.shuffle = Shuffle(self.world, self.operator, self.ctx, bounds)
        into_operator(self, self.operator, shuffle)
        last_round(self, shuffle)
        self.done(shuffle.stats.nbytes_sent)
        assert shuffle.bounds is not None
        return shuffle.bounds

    def counts(self) -> list[int]:
        return self.final or super().counts()


class Opened:
    """The state of a pair operator, until its result has been read."""

    def __init__(self, operator: PairOperator, stage: Stage) -> None:
        self._operator = operator
        self.is_open = False
        self.stages: list[SideStage] = []
        self.feed: PartitionFeed | None = None
        stage.action.own(self)

    def bring(self, partition: int) -> None:
        """Merge what of a partition lies on scratch, of both sides."""
        for side in self.stages:
            assert side.shuffle is not None
            side.shuffle.bring(partition)

    def taken_by(self, stage: Stage) -> None:
        for side in self.stages:
            side.reader, side.final = stage, side.counts()
        if self.feed is not None:
            self.stages[-1].figures.rows_out, self.stages[-1].figures.nbytes_out = self.feed.rows, self.feed.nbytes
        self.release()

    def release(self) -> None:
        for side in self.stages:
            side.release()
        if self.is_open:
            self.is_open = False
            self._operator.close()
