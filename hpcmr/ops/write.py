"""Rows to a published output: ``write_hdf5``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.outlet import OutletContext, Sealed

if TYPE_CHECKING:
    from hpcmr.store.manifest import Manifest
    from hpcmr.store.writer import ShardInfo, TableWriter


class Write:
    """The rows of all pieces, in order, as an output folder that appears at once. An `Outlet`.

    Parameters
    ----------
    folder : Path
    replace : bool
        Put it in the place of an earlier output; otherwise one that is there is refused before any work.
    share : {"group"}, optional
        Who else may read it; None: nobody.

    Notes
    -----
    The result is ``{"path", "rows", "nbytes", "shards"}``. Each rank writes its own shards; rank 0 publishes them.
    """

    name = "write"
    root: int | None = None
    ascending = True        # a shard's rows lie in the order in which they came

    def __init__(self, folder: Path, replace: bool = False, share: str | None = None) -> None:
        self.folder = Path(folder)
        self.replace = replace
        self.share = share
        self.writer: TableWriter | None = None
        self.ctx: OutletContext | None = None
        self.held = 0

    def fingerprint(self) -> tuple[Any, ...]:
        """The path counts: the same rows written elsewhere are another output."""
        return (self.name, str(self.folder))

    def begin(self, ctx: OutletContext) -> Any:
        from hpcmr.store.publish import check_free

        if not self.replace:
            check_free(self.folder)

    def open(self, ctx: OutletContext, schema: Schema) -> None:
        from hpcmr.store.publish import closed_above, sweep_beside
        from hpcmr.store.writer import TableWriter

        if ctx.journal is not None:
            sweep_beside(self.folder, ctx.journal, ctx.journal.epoch - 1)
        closed = closed_above(self.folder) if self.share and ctx.rank == 0 else None
        if closed is not None:
            ctx.log(f"the output {str(self.folder)!r} is shared with the group, which cannot enter {str(closed)!r}: choose a path elsewhere")
        self.ctx, self.schema = ctx, schema
        self.writer = TableWriter(self.folder, ctx.rank, schema, attempt=ctx.attempt, share=self.share)
        ctx.take(self.writer.memory_nbytes, "the buffers of the output's columns")
        self.held = self.writer.memory_nbytes

    def take(self, piece: int, batch: Batch) -> None:
        assert self.writer is not None
        self.writer.append(piece, batch)

    def enough(self, piece: int) -> bool:
        return False

    def sealed(self) -> Sealed | None:
        """The shards that were finished since the last cut; the one at hand ends here."""
        assert self.writer is not None and self.ctx is not None
        infos, durable = self.writer.cut()
        return Sealed({"attempt": self.ctx.attempt, "shards": infos}, None, durable) if infos else None

    def restore(self, told: list[dict[str, Any]], rows: Iterable[tuple[int, Batch]]) -> None:
        assert self.writer is not None
        for one in told:
            self.writer.adopt(one["shards"], one["attempt"])

    def local(self) -> list[ShardInfo]:
        assert self.writer is not None
        infos = self.writer.close()
        self._give()
        return infos

    def combine(self, payloads: list[list[ShardInfo]]) -> dict[str, Any]:
        from hpcmr.store.publish import publish

        assert self.ctx is not None
        told = self.ctx.provenance
        provenance = {"writer": {k: v for k, v in told.items() if k != "inputs"}, "inputs": told.get("inputs", [])}
        infos = [i for p in payloads for i in p]
        made: Manifest = publish(self.folder, self.schema, infos, provenance, attempt=self.ctx.attempt, replace=self.replace,
                                 share=self.share, journal=self.ctx.journal)
        return {"path": str(self.folder), "rows": made.rows, "nbytes": made.nbytes, "shards": len(made.shards)}

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.abandon()
        self._give()

    def _give(self) -> None:
        if self.ctx is not None and self.held:
            self.ctx.give(self.held)
        self.held = 0
