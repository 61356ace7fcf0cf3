"""One action: from a plan to its result, stage by stage."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr._version import __version__
from hpcmr.data.schema import Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.outlet import Outlet
from hpcmr.plan.fingerprint import digest_of
from hpcmr.plan.nodes import Node
from hpcmr.plan.stages import StageSpec, stages
from hpcmr.run.context import RunContext
from hpcmr.run.feed import Feed
from hpcmr.run.metrics import StageTotals, link
from hpcmr.run.progress import StageProgress
from hpcmr.run.report import show_ranks
from hpcmr.run.stage import StageRun

if TYPE_CHECKING:
    from hpcmr.run.session import Session


def specs_fingerprint(specs: list[StageSpec], outlet: tuple[Any, ...]) -> str:
    """Digest of the stages of a plan and of what becomes of their rows: the same as `hpcmr.plan.fingerprint.plan_fingerprint` of the plan."""
    items: list[tuple[Any, ...]] = []
    for spec in specs:
        if spec.source is not None:
            items.append(("read", spec.source.name, spec.source.fingerprint()))
        items += [("apply", step.name, step.fingerprint()) for step in spec.steps]
        if spec.operator is not None:
            items.append(("keyed", spec.operator.name, spec.operator.fingerprint(), spec.partitions))
    return digest_of(items, outlet)


class Action:
    """Runs a plan into an outlet. One object, one run.

    Attributes
    ----------
    fingerprint : str
    totals : list of StageTotals
        On rank 0, after `run`.
    """

    def __init__(self, session: Session, number: int, plan: Node | list[StageSpec], outlet: Outlet) -> None:
        self.session, self.world, self.number, self.outlet = session, session.world, number, outlet
        self.totals: list[StageTotals] = []
        self.fingerprint = ""
        # The first collective call of an action is an `agree`: a rank that has failed since the last one joins here.
        with self.world.together(f"action {number}"):
            self.specs = stages(plan) if isinstance(plan, Node) else plan
            self.fingerprint = specs_fingerprint(self.specs, (outlet.name, outlet.fingerprint()))
        self._attempt = self._compare()

    def _compare(self) -> str:
        """Raise unless all ranks are about to do the same; returns a name for this attempt."""
        token = uuid.uuid4().hex[:12]
        if self.world.size == 1:
            return token
        said = self.world.allgather((self.fingerprint, token))
        if len({f for f, _ in said}) > 1:
            raise JobSpecError(self._difference([f for f, _ in said]))
        return said[0][1]

    def _difference(self, prints: list[str]) -> str:
        plans = self.world.allgather(" -> ".join([*(label for s in self.specs for label in s.labels), self.outlet.name]))
        groups: dict[tuple[str, str], list[int]] = {}
        for rank, key in enumerate(zip(prints, plans, strict=True)):
            groups.setdefault(key, []).append(rank)
        lines = [f"  rank{'s' if len(r) > 1 else ''} {show_ranks(r)}: {plan} ({f[:8]})" for (f, plan), r in groups.items()]
        same = "; the operations look the same, so their functions, captured values or paths differ" if len(set(plans)) == 1 else ""
        head = f"ranks came to different plans in action {self.number}{same}; every rank must run the same job with the same values:"
        return "\n".join([head, *lines])

    def _name(self, spec: StageSpec) -> str:
        return " -> ".join(spec.labels if spec.operator else (*spec.labels, self.outlet.name))

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """The result, on every rank or on the one that asked for it. Collective: yes."""
        provenance = {"job": self.session.name, "fingerprint": self.fingerprint, "inputs": [self.specs[0].labels[0]], "hpcmr": __version__,
                      "code": self.session.code}
        self._runs = [StageRun(self.session, spec, i + 1, self._name(spec), self._attempt, provenance) for i, spec in enumerate(self.specs)]
        ctx = RunContext(self.session, 1, self._attempt, provenance)
        try:
            done = self.world.on_root(lambda: self.outlet.begin(ctx))
            if done is not None:
                return done
            self._stages()
            return self._result()
        except BaseException:
            self._give_up()
            raise

    def _stages(self) -> None:
        feed: Feed | None = None
        schema: Schema | None = None
        counts: list[list[int]] = []
        for run in self._runs:
            feed = run.survey() if feed is None else feed
            run.prepare(feed, schema, self.outlet if run is self._runs[-1] else None)
            title = f"stage {run.number} of {len(self._runs)}, {run.name}"
            total = int(feed.weights.sum()) if feed.dealt else feed.count
            feed, schema = run.run(StageProgress(self.session.progress, title, total)), run.schema_out
            if run.number > 1:
                before = self._runs[run.number - 2]
                counts.append(before.counts())
                before.release()
            run.close()
        counts.append(self._runs[-1].counts())
        self._counts = counts

    def _result(self) -> Any:
        """Payloads of all ranks to one, which makes the result; nothing is published before all counts add up."""
        outlet, world = self.outlet, self.world
        root = outlet.root or 0
        with world.together("close the outlet"):
            payload = outlet.local()
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
        sums = self.world.allreduce(np.array(self._counts, np.int64)).tolist()
        for run, mine, following in zip(self._runs, sums, [*sums[1:], None], strict=True):
            # All that an operator made was read if the stage behind it skipped nothing.
            run.check(mine, finished=following is not None and following[2] == 0)

    def _measure(self) -> None:
        ranks = self.world.gather(link([run.figures for run in self._runs]), 0)
        if ranks is not None:
            self.totals = [StageTotals.of([rank[i] for rank in ranks]) for i in range(len(self._runs))]

    def _give_up(self) -> None:
        """After an error: no temporary file stays, and memory is given back."""
        with contextlib.suppress(Exception):
            self.outlet.abandon()
        for run in self._runs:
            for end in (run.close, run.release):
                with contextlib.suppress(Exception):
                    end()
