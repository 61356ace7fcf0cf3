"""One action: from a plan to its result, stage by stage.

The plan is walked from its end: what a node needs is made first, as a `Flow`, and a node that is narrow only adds to it. A wide
node runs a stage, and its flow is then that of the partitions.
"""

from __future__ import annotations

import contextlib
import copy
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr._version import __version__
from hpcmr.errors import JobSpecError
from hpcmr.ops.outlet import Outlet
from hpcmr.plan.fingerprint import inputs_digest, plan_fingerprint
from hpcmr.plan.nodes import Keyed, Node, Pair, Persist, Read, Union, parents_of, walk
from hpcmr.plan.stages import Segment, segment, stage_count
from hpcmr.run.context import RunContext, Together
from hpcmr.run.ending import OutletStage
from hpcmr.run.feed import HeldFeed, OwnFeed, SplitFeed
from hpcmr.run.flow import Behind, Flow, joined
from hpcmr.run.holding import HoldStage, recall
from hpcmr.run.keyed import KeyedStage
from hpcmr.run.metrics import StageTotals, measured
from hpcmr.run.ordering import SurveyStage
from hpcmr.run.pairing import Pairing
from hpcmr.run.report import show_ranks
from hpcmr.run.results import keep_result, result_of
from hpcmr.run.stage import Stage
from hpcmr.run.uniting import unite
from hpcmr.store import paths

if TYPE_CHECKING:
    from hpcmr.run.checkpoint import Checkpointer
    from hpcmr.run.session import Session


class Action:
    """Runs a plan into an outlet. One object, one run.

    Attributes
    ----------
    fingerprint : str
    attempt : str
        A name for this run of it, the same on all ranks.
    provenance : dict
        For the manifest.
    total : int
        Stages, as far as it is known.
    totals : list of StageTotals
        On rank 0, after `run`.
    """

    def __init__(self, session: Session, number: int, plan: Node, outlet: Outlet) -> None:
        self.session, self.world, self.number, self.plan, self.outlet = session, session.world, number, plan, outlet
        self.totals: list[StageTotals] = []
        self.stages: list[Stage] = []
        self._owned: list[Behind] = []          # what must not outlive the action
        self._inputs: dict[int, Flow] = {}      # by the segment that reads them
        self._sources: list[Any] = []
        self.fingerprint, self.total = "", 0
        # The first collective call of an action is an `agree`: a rank that has failed since the last one joins here.
        with self.world.together(f"action {number}"):
            self.fingerprint = plan_fingerprint(plan, (outlet.name, outlet.fingerprint()))
            self._kept = [n.kept for n in walk(plan) if isinstance(n, Persist)]
            for kept in self._kept:
                kept.leave(self.world)
        self.attempt = self._compare()
        self.total = stage_count(plan)
        reads = [n.label for n in walk(plan) if isinstance(n, Read)]
        self.provenance: dict[str, Any] = {"job": session.name, "fingerprint": self.fingerprint, "inputs": reads, "hpcmr": __version__,
                                           "code": session.code}
        self._fills: dict[int, str] = {}        # places in the checkpoints of the job of the tables that are persisted here, by id of `Kept`
        self.known: dict[str, Any] | None = None        # what is recorded of this action, if it is over
        if session.checkpoints is not None:
            self._look_up(session.checkpoints)

    def _look_up(self, cuts: Checkpointer) -> None:
        """What earlier attempts have of this action, and of the tables that it persists. Collective: yes."""
        cuts.bury()
        self.known = cuts.begin_action(self.number, self.fingerprint, self._shown())
        for node in unfilled(self.plan):
            digest = plan_fingerprint(node.parent) if node.kept.parent is not None else node.kept.digest
            key = f"{self.number}.{digest}"
            while key in self._fills.values():      # the same rows, persisted twice
                key += "+"
            self._fills[id(node.kept)] = key
            if recall(self, node.kept, key, node.label):
                self.session.say(f"{node.label}: its rows are those of an earlier attempt", once=f"recall {key}")
            elif self.known is not None:
                node.kept.made = True           # and dropped since, or never asked for again

    def _shown(self) -> str:
        return " -> ".join([*(n.label for n in walk(self.plan)), self.outlet.name])

    def _compare(self) -> str:
        """Raise unless all ranks are about to do the same; returns a name for this attempt."""
        token = self._token()
        if self.world.size == 1:
            return token
        said = self.world.allgather((self.fingerprint, token, [k.filled for k in self._kept]))
        if len({f for f, _, _ in said}) > 1:
            raise JobSpecError(self._difference([f for f, _, _ in said]))
        for i, kept in enumerate(self._kept):
            if not all(filled[i] for _, _, filled in said):      # a rank has dropped its rows: then all make them again
                kept.drop()
        return said[0][1]

    def _token(self) -> str:
        """Drawn; on rank 0 of a run with the names of the run and of its attempt before it, so that a later one knows what was left."""
        drawn, attempt = uuid.uuid4().hex[:12], self.session.attempt
        return drawn if attempt is None or attempt.journal is None else paths.attempt_name(attempt.journal.run, attempt.epoch, drawn)

    def _difference(self, prints: list[str]) -> str:
        plans = self.world.allgather(self._shown())
        groups: dict[tuple[str, str], list[int]] = {}
        for rank, key in enumerate(zip(prints, plans, strict=True)):
            groups.setdefault(key, []).append(rank)
        lines = [f"  rank{'s' if len(r) > 1 else ''} {show_ranks(r)}: {plan} ({f[:8]})" for (f, plan), r in groups.items()]
        same = "; the operations look the same, so their functions, captured values or paths differ" if len(set(plans)) == 1 else ""
        head = f"ranks came to different plans in action {self.number}{same}; every rank must run the same job with the same values:"
        return "\n".join([head, *lines])

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """The result, on every rank or on the one that asked for it. Collective: yes."""
        ctx = RunContext(self.session, 1, self.attempt, self.provenance)
        cuts = self.session.checkpoints
        try:
            whole = segment(self.plan)
            if self.known is not None and cuts is not None and is_restartable(whole):
                if self.outlet.name != "write":
                    return self._answer(cuts, self.known)
                self.provenance["committed"] = True        # what it has published is looked at, its input is not
            self._claim(whole)
            done = self.world.on_root(lambda: self.outlet.begin(ctx))
            if done is not None:
                self._committed(whole, done)
                return done
            self._survey(whole)
            flow = self.flow(whole, "")
            if self.world.rank == 0 and flow.splits is not None:
                self.provenance["inputs_digest"] = inputs_digest(flow.splits)
            if self.outlet.ascending and not ends_late(flow):
                flow = HoldStage(self, flow, "keep", "the rows on the way to the output", self.key(whole, "", "keep")).run(once=True)
            OutletStage(self, flow, self.outlet, self.key(whole, "", "outlet")).run()
            result = self._result()
            self._committed(whole, result)
            return result
        except BaseException:
            self._give_up()
            raise
        finally:
            # Without cycles, what stages and operators hold is gone at once, and not some time later.
            for stage in self.stages:
                stage.reader = None
            self.stages, self._owned, self._sources, self._inputs, self._kept = [], [], [], {}, []

    def _answer(self, cuts: Checkpointer, known: dict[str, Any]) -> Any:
        """The result that an earlier attempt came to. Collective: yes."""
        self.session.say(f"action {self.number} ({self.outlet.name}) was done before", once=f"answered {self.number}")
        root = self.outlet.root or 0
        result = result_of(self.world, cuts.run_dir, known["result"], root, self.outlet.root is None)
        cuts.end_action(known["result"])
        return result

    def _committed(self, whole: Segment, result: Any) -> None:
        """The action is over: later attempts are answered with its result, unless it was made of rows that they cannot know. Collective: yes."""
        cuts = self.session.checkpoints
        if cuts is None:
            return
        kept = None
        if is_restartable(whole):
            kept = keep_result(self.world, cuts.run_dir, cuts.epoch, self.number, result, self.outlet.root or 0, self.session.memory)
        cuts.end_action(kept)

    def join(self, stage: Stage) -> int:
        """A stage begins; returns its number."""
        self.stages.append(stage)
        self.total = max(self.total, len(self.stages))
        return len(self.stages)

    def own(self, thing: Behind) -> None:
        """Something that must be released should the action fail."""
        self._owned.append(thing)

    def decide(self, what: str) -> None:
        """Write down, and say, what was decided from measured sizes."""
        self.session.decisions.append(what)
        self.session.say(what)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _claim(self, part: Segment) -> None:
        """One object reads one thing at a time: where a source is named twice, the second reads through a copy."""
        if part.source is not None:
            if any(part.source is s for s in self._sources):
                part.source = copy.copy(part.source)
            self._sources.append(part.source)
        for needed in part.inputs:
            self._claim(needed)

    def _survey(self, part: Segment) -> None:
        """Find all inputs before anything runs. Collective: yes."""
        if part.source is not None:
            self._inputs[id(part)] = read(self, part.source)
        for needed in part.inputs:
            self._survey(needed)

    def key(self, part: Segment, place: str, role: str) -> str:
        """Name of a stage in the checkpoints of the job, from its place in the plan; empty where it can have none."""
        return f"{place}:{role}" if self.session.checkpoints is not None and is_restartable(part) else ""

    def done_before(self, key: str) -> bool:
        """Whether an earlier attempt was through with the stage at `key`."""
        cuts = self.session.checkpoints
        record = cuts.record(key) if cuts is not None and key else None
        return record is not None and record.complete

    def splits(self, part: Segment) -> Any:
        """All inputs that go into a segment."""
        if isinstance(part.head, Persist) and part.head.kept.filled:
            return part.head.kept.splits
        return self._inputs[id(part)].splits if part.source is not None else joined(*(self.splits(p) for p in part.inputs))

    def flow(self, part: Segment, place: str) -> Flow:
        """The rows of a segment, as far as they can be had without asking for them; `place` is its path in the plan. Collective: yes."""
        before = len(part.labels) - len(part.steps)
        steps = list(zip(part.steps, part.labels[before:], self._survey_keys(part, place), strict=True))
        done = max((i for i, (_, _, key) in enumerate(steps) if self._held_before(key)), default=-1)
        if done >= 0:
            step, label, key = steps[done]
            flow = SurveyStage.restored(self, step, label, key, self.splits(part))
        else:
            flow = self._head(part, place).then((), part.labels[:before])
        for step, label, key in steps[done + 1:]:
            if getattr(step, "survey", False):
                flow = SurveyStage(self, flow, step, label, key).run()
            else:
                flow = flow.then([step], [label])
        return flow

    def _survey_keys(self, part: Segment, place: str) -> list[str]:
        """Places in the checkpoints of the job of steps that see all rows first; empty of others."""
        return [self.key(part, place, f"survey{i}") if getattr(step, "survey", False) else "" for i, step in enumerate(part.steps)]

    def _held_before(self, key: str) -> bool:
        """Whether an earlier attempt has kept the rows that a step had to see first."""
        cuts = self.session.checkpoints
        record = cuts.record(key) if cuts is not None and key else None
        return record is not None and record.complete and bool(record.facts.get("held"))

    def _head(self, part: Segment, place: str) -> Flow:
        head = part.head
        if isinstance(head, Read):
            return self._inputs[id(part)]
        if isinstance(head, Keyed):
            return self._keyed(head, part, place)
        if isinstance(head, Union):
            return unite(self.world, [self.flow(p, f"{place}.{i}") for i, p in enumerate(part.inputs)], head.label)
        if isinstance(head, Pair):
            return Pairing(self, copy.copy(head.operator), head.partitions, head.label).made(part, place)
        assert isinstance(head, Persist)
        return self._persisted(head, part, place)

    def _keyed(self, head: Keyed, part: Segment, place: str) -> Flow:
        key = self.key(part, place, "keyed")
        if self.done_before(key):
            return KeyedStage.restored(self, copy.copy(head.operator), head.label, key, self.splits(part))
        return KeyedStage(self, self.flow(part.inputs[0], f"{place}.0"), copy.copy(head.operator), head.partitions, head.label, key).run()

    def _persisted(self, head: Persist, part: Segment, place: str) -> Flow:
        kept = head.kept
        if not kept.filled:
            if not part.inputs:
                raise JobSpecError(f"the rows of {head.label} are gone, and cannot be made again: they are those of an iteration that is over")
            stage = HoldStage(self, self.flow(part.inputs[0], f"{place}.0"), head.label, "a persisted table", self._fills.get(id(kept), ""),
                              kept=True, again=is_restartable(part.inputs[0]))
            found = stage.run(dense=True)
            feed, hold = found.feed, stage.hold
            assert isinstance(feed, HeldFeed)
            kept.fill(hold, found.schema, feed.count, feed.mine, feed.nbytes_total, found.pinned, found.splits, self.world, stage.section)
            stage.hold = None
            if kept.commit and self.session.checkpoints is not None:
                self.session.checkpoints.boundary(force=True)
        assert kept.hold is not None
        feed = HeldFeed(kept.hold, kept.count, kept.mine, kept.nbytes_global, head.label)
        return Flow(feed, kept.schema, (), (head.label,), (), kept.pinned, kept.splits)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _result(self) -> Any:
        """Payloads of all ranks to one, which makes the result; nothing is published before all counts add up."""
        outlet, world = self.outlet, self.world
        root = outlet.root or 0
        if hasattr(outlet, "settle"):
            with world.together(f"settle {outlet.name}"):
                outlet.settle(Together(world))
        with world.together("close the outlet"):
            payload = outlet.local()
        if self.session.checkpoints is not None:
            self.session.checkpoints.wait_written()        # of what is being written, the staging folder of an output is about to be renamed
        self._conserve()
        payloads = world.gather(payload, root)
        del payload
        result = None
        with world.together("make the result"):
            if payloads is not None:
                result = outlet.combine(payloads)
        self._measure()
        return world.bcast(result, root) if outlet.root is None else result

    def _conserve(self) -> None:
        sums = self.world.allreduce(np.array([stage.counts() for stage in self.stages], np.int64)).tolist()
        skipped = {id(stage): mine[2] for stage, mine in zip(self.stages, sums, strict=True)}
        for stage, mine in zip(self.stages, sums, strict=True):
            # All that an operator made was read if the stage behind it skipped nothing.
            stage.check(mine, finished=stage.reader is not None and skipped[id(stage.reader)] == 0)

    def _measure(self) -> None:
        ranks = self.world.gather(measured([stage.figures for stage in self.stages]), 0)
        if ranks is not None:
            self.totals = [StageTotals.of([rank[i] for rank in ranks]) for i in range(len(self.stages))]

    def _give_up(self) -> None:
        """After an error: no temporary file stays, and memory is given back."""
        with contextlib.suppress(Exception):
            self.outlet.abandon()
        for source in self._sources:
            with contextlib.suppress(Exception):
                source.close()
        for release in [thing.release for thing in self.stages] + [thing.release for thing in self._owned]:
            with contextlib.suppress(Exception):
                release()


def unfilled(node: Node) -> list[Persist]:
    """Persisted tables of a plan whose rows it makes, each once: those that are kept already hide what is below them."""
    found: list[Persist] = []
    todo, seen = [node], set[int]()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Persist):
            if item.kept.filled:
                continue
            found += [item] if all(p.kept is not item.kept for p in found) else []
        todo += reversed(parents_of(item))
    return found


def read(action: Action, source: Any) -> Flow:
    """The rows of an input. Collective: yes."""
    world = action.world
    if getattr(source, "distributed", False):
        with world.together("look at the arrays"):
            schema, mine = source.survey_distributed(world.allgather)
        sums = world.allreduce(np.array([sum(s.nbytes for s in mine)], np.int64))
        last = world.allreduce(np.array([max((s.index for s in mine), default=-1)], np.int64), "max")
        return Flow(OwnFeed(source, mine, int(last[0]) + 1, int(sums[0])), schema, splits=None)
    schema, splits = world.on_root(lambda: surveyed(action, source))
    with world.together("open the input"):
        source.adopt(schema, splits)
    return Flow(SplitFeed(source, splits), schema, splits=tuple(splits))


def is_restartable(part: Segment) -> bool:
    """Whether another attempt finds the same input: files do, arrays of the caller's do not, kept rows do that a checkpoint has."""
    if part.source is not None:
        return not getattr(part.source, "distributed", False)
    if isinstance(part.head, Persist) and part.head.kept.filled:
        return getattr(part.head.kept, "section", None) is not None
    return all(is_restartable(p) for p in part.inputs)


def surveyed(action: Action, source: Any) -> Any:
    """What an input is; on the command line it is written down for a later start. Rank 0 only."""
    found = source.survey()
    if action.session.attempt is not None:
        action.session.attempt.surveyed(source)
    return found


def ends_late(flow: Flow) -> bool:
    """Whether pieces that must wait for others, if there are any, are the last ones in their order."""
    late = [p for group in flow.feed.late for p in group]
    return late == list(range(flow.feed.count - len(late), flow.feed.count))
