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
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.context import RunContext
from hpcmr.run.drive import Tally
from hpcmr.run.feed import HeldFeed, NoFeed, PartitionFeed, TailFeed, UnionFeed
from hpcmr.run.flow import Flow, joined
from hpcmr.run.generation import Record, schema_json
from hpcmr.run.holding import HoldStage
from hpcmr.run.keyed import can_resettle, into_operator, last_round, owners, partitions_of, survey
from hpcmr.run.prepare import Chain, infer_columns
from hpcmr.run.progress import StageProgress
from hpcmr.run.rounds import Shuffle
from hpcmr.run.stage import Stage, overlapping, settle
from hpcmr.store.pieces import PieceFile

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
        self._keys = ["", ""]       # places of the two sides in the checkpoints of the job
        self._hold_key = ""         # the same of the right rows on the ranks that made them

    def made(self, part: Segment, place: str) -> Flow:
        """The result as a flow; what an earlier attempt has of it is not made again. Collective: yes.

        Parameters
        ----------
        part : Segment
            Whose head is the `Pair`.
        place : str
            Its path in the plan.
        """
        action = self.action
        self._keys = [action.key(part, place, role) for role in ("left", "right")]
        done = [action.done_before(key) for key in self._keys]
        if done[0]:
            # Left rows came before right ones: that they are in settles how the join is made.
            action.decide(f"{self.label}: goes on from a checkpoint")
            right = None if done[1] else self._right(part, place)
            return self._restored(right, [action.splits(p) for p in part.inputs])
        right = self._right(part, place)
        return self.run(action.flow(part.inputs[0], f"{place}.0"), right)

    def _right(self, part: Segment, place: str) -> Flow:
        """The right rows; on the ranks already, where an earlier attempt has kept all of them. Collective: yes."""
        action, needed = self.action, part.inputs[1]
        self._hold_key = action.key(needed, f"{place}.1", "hold")
        if not action.done_before(self._hold_key):
            return action.flow(needed, f"{place}.1")
        return HoldStage.restored(action, *self._hold_names(), self._hold_key, action.splits(needed))

    def _hold_names(self) -> tuple[str, str]:
        return f"keep for {self.label}", f"the right side of {self.operator.name}"

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
        return self._shuffle(left, left_chain, kept, schema, left.feed.nbytes_total + sums[0])

    def _bound(self, flow: Flow) -> Chain:
        with self.world.together("bind the columns"):
            chain = Chain(flow.steps, flow.schema, None, flow.bound)
        infer_columns(self.world, chain, flow.feed)
        return chain

    def _held(self, flow: Flow, chain: Chain) -> Flow:
        """The rows of the right side, kept on the ranks that made them."""
        if isinstance(flow.feed, HeldFeed) and (flow.feed.again or self.action.done_before(self._hold_key)) and not flow.steps:
            return flow
        return HoldStage(self.action, flow, *self._hold_names(), self._hold_key).run(chain, once=True)

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

    def _shuffle(self, left: Flow, chain: Chain, kept: Flow, schema: Schema, nbytes_total: int) -> Flow:
        operator: Any = self.operator
        first = SideStage(self.action, left, operator.left, chain, f"{self.label}, left rows", nbytes_total)
        pinned = self._reused(left, chain.schema, kept)
        first.ctx.partitions = pinned.count if pinned else self._wish or partition_count(nbytes_total)
        opened = Opened(operator, first)

        def ready(sample: Batch | None) -> None:
            opened.is_open = True
            operator.open(first.ctx, sample)

        first.prepare(chain, operator, ready, sampled=True)
        bounds: NDArray[np.int64] | None = pinned.bounds if pinned else None
        surveying = getattr(operator, "survey", False)
        section = first.enter(self._keys[0] if not surveying or can_resettle(operator) else "", not first.feed.late and not overlapping(first))
        held = None
        if not surveying:
            settle(first, operator)
        elif section is not None and section.record is not None:
            bounds = self._settled(first, section.record)
        else:
            held = self._survey(first, kept)
            settle(first, operator)
            bounds = owners(first, [operator.left, operator.right]) if bounds is None else bounds
            first.keep_settled(operator)
        self._keys[1] = self._keys[1] if first.section is not None else ""
        bounds = first.run(bounds)
        if held is not None:
            held.close()
        return self._second(first, opened, kept, schema, bounds, joined(left.splits, kept.splits))

    def _second(self, first: SideStage, opened: Opened, kept: Flow | None, schema: Schema, bounds: NDArray[np.int64], splits: Any) -> Flow:
        """The right rows, and the result; `kept` is None where an earlier attempt was through with them."""
        operator: Any = self.operator
        record = self._record(1)
        if kept is None:
            assert record is not None
            kept = Flow(NoFeed(0), record.schema("in"))
        second = SideStage(self.action, kept, operator.right, Chain((), kept.schema), f"{self.label}, right rows", 0)
        second.ctx = first.ctx
        if record is not None and record.complete:
            second.again(self._keys[1], record, bounds)
        else:
            second.prepare(Chain((), kept.schema), None, lambda _: None)
            second.enter(self._keys[1], not overlapping(second))
            second.run(bounds)
        opened.feed = PartitionFeed(operator, bounds, self.world.rank, first.nbytes_total, opened.bring, (operator.left, operator.right))
        opened.stages = [first, second]
        return Flow(opened.feed, schema, (), (), (opened,), partitions_of(operator, schema, bounds), splits)

    # -- from a checkpoint -----------------------------------------------------------------------------------------

    def _record(self, side: int) -> Record | None:
        cuts = self.action.session.checkpoints
        return cuts.record(self._keys[side]) if cuts is not None and self._keys[side] else None

    def _restored(self, right: Flow | None, splits: list[Any]) -> Flow:
        """All left rows are in, and perhaps the right ones. Collective: yes."""
        operator: Any = self.operator
        record = self._record(0)
        assert record is not None
        chain = None if right is None else self._bound(right)
        with self.world.together("bind the columns"):
            other = self._record(1)
            schema = operator.bind(record.schema("in"), chain.schema if chain is not None else other.schema("in"))     # type: ignore[union-attr]
        kept = None if right is None or chain is None else self._held(right, chain)
        flow = Flow(NoFeed(0), record.schema("in"))
        first = SideStage(self.action, flow, operator.left, Chain((), flow.schema), f"{self.label}, left rows", int(record.facts["nbytes_total"]))
        first.ctx.partitions = int(record.facts["partitions"])
        opened = Opened(operator, first)

        def ready(_: Batch | None) -> None:
            opened.is_open = True
            operator.open(first.ctx, None)

        first.prepare(first.chain, operator, ready)
        bounds = None
        if record.settled is not None:
            bounds = self._settled(first, record)
        else:
            settle(first, operator)
        bounds = first.again(self._keys[0], record, bounds)
        return self._second(first, opened, kept, schema, bounds, joined(*splits))

    def _settled(self, first: SideStage, record: Record) -> Any:
        """What the first pass of an earlier attempt came to; returns owners. Collective: yes."""
        operator: Any = self.operator
        assert record.settled is not None
        with self.world.together(f"restore {operator.name}"):
            operator.resettle(PieceFile(self.action.session.checkpoints.run_dir, record.settled).read(0, 1).batch)     # type: ignore[union-attr]
        return owners(first, [operator.left, operator.right])

    # -- the first pass --------------------------------------------------------------------------------------------

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
        self._behind: tuple[Any, ...] = ()
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
        self._behind = kept.behind
        # Where there are checkpoints, these rows stay on their ranks for one: what is on every rank is made of them after a restart.
        if not any(s.tell is not None for s in self.sections):
            self._let_go()

    @property
    def sections(self) -> list[Section]:
        return [s for thing in self._behind for s in getattr(thing, "sections", ())]

    def _let_go(self) -> None:
        for thing in self._behind:
            thing.release()

    def taken_by(self, stage: Stage) -> None:
        self.release()

    def release(self) -> None:
        self._let_go()
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
    """One side of a join into its operator.

    Parameters
    ----------
    side : KeyedOperator
    chain : Chain
        Of the flow's steps.
    label : str
    nbytes_total : int
        Of both sides.
    """

    def __init__(self, action: Action, flow: Flow, side: Any, chain: Chain, label: str, nbytes_total: int) -> None:
        super().__init__(action, flow, label)
        self.operator = side
        self.chain = chain
        self.nbytes_total = nbytes_total
        self.final: list[int] | None = None
        self.given = 0                  # of earlier attempts: rows that were counted when results were read

    def run(self, bounds: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Returns who owns what. Collective: yes."""
        assert self.operator is not None
        section = self.section
        shuffle = self.shuffle = Shuffle(self.world, self.operator, self.ctx, bounds, section)
        if section is not None and section.record is not None:
            shuffle.restore(section)
        self.telling(section)
        into_operator(self, self.operator, shuffle, section)
        last_round(self, shuffle)
        return self._over(shuffle)

    def again(self, key: str, record: Record, bounds: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """`run`, of a side that is complete in a checkpoint. Collective: yes."""
        assert self.operator is not None
        section = self.enter(key, amid=False)
        assert section is not None
        self._pieces, self._numbers = record.counts[:2]
        shuffle = self.shuffle = Shuffle(self.world, self.operator, self.ctx, bounds, section)
        shuffle.restore(section)
        self._watch = StageProgress(self.session, self.number, self.action.total, self.name, 1)
        shuffle.end()
        return self._over(shuffle)

    def _over(self, shuffle: Shuffle) -> NDArray[np.int64]:
        self.done(shuffle.stats.nbytes_sent)
        assert shuffle.bounds is not None
        return shuffle.bounds

    def tell_more(self, fresh: Fresh) -> None:
        shuffle, section = self.shuffle, self.section
        assert shuffle is not None and shuffle.bounds is not None and section is not None
        shuffle.tell(fresh)
        section.facts = {"count": int(shuffle.bounds[-1]), "partitions": self.ctx.partitions, "nbytes_total": self.nbytes_total}
        section.schemas = {"in": schema_json(self.chain.schema)}

    def untold(self) -> int:
        return self.shuffle.untold_nbytes if self.shuffle is not None else 0

    def take_given(self, given: int) -> None:
        self.given = given
        self.base = [*(self.base or [0] * 7)[:6], (self.base or [0] * 7)[6] + given]

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

    @property
    def sections(self) -> list[Section]:
        return [side.section for side in self.stages if side.section is not None]

    def given(self) -> dict[str, int]:
        """By key of a side: rows that were counted when the result was read; see `Record`."""
        assert self.feed is not None
        return {side.section.key: n + side.given for side, n in zip(self.stages, self.feed.given, strict=True) if side.section is not None}

    def take_given(self, given: dict[str, int]) -> None:
        """The same of earlier attempts."""
        for side in self.stages:
            if side.section is not None and side.world.rank == 0:
                side.take_given(given.get(side.section.key, 0))

    def taken_by(self, stage: Stage) -> None:
        unread = self.feed.unread if self.feed is not None else [0, 0]
        for side, n in zip(self.stages, unread, strict=False):
            side.reader, side.final = stage, [*side.counts()[:6], side.counts()[6] - n]
        if self.feed is not None:
            self.stages[-1].figures.rows_out, self.stages[-1].figures.nbytes_out = self.feed.rows, self.feed.nbytes
        self.release()

    def release(self) -> None:
        for side in self.stages:
            side.release()
        if self.is_open:
            self.is_open = False
            self._operator.close()
