"""The last stage of an action: into its outlet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.ops.outlet import Outlet
from hpcmr.run.checkpoint import Fresh, Section
from hpcmr.run.feed import owned
from hpcmr.run.flow import Flow
from hpcmr.run.generation import Record
from hpcmr.run.stage import Stage, overlapping
from hpcmr.run.stored import Stored, stored_bounds

if TYPE_CHECKING:
    from hpcmr.run.action import Action


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
