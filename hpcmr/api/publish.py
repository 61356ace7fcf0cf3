"""Writing an output of a job: the same run finds what it has published, and touches nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcmr.data.source import Split
from hpcmr.errors import HpcmrError, Refused
from hpcmr.ops.hold import Kept
from hpcmr.ops.outlet import OutletContext
from hpcmr.ops.write import Write
from hpcmr.plan.fingerprint import inputs_digest
from hpcmr.plan.nodes import Node
from hpcmr.plan.stages import inputs_of
from hpcmr.run.attempt import published_before, published_here
from hpcmr.store.manifest import Manifest
from hpcmr.store.publish import check_free, existing


class Publish(Write):
    """`Write` for a job on the command line: what this very run (same job, code, inputs) has published counts as done.

    Parameters
    ----------
    folder : Path
    node : Node
        The plan; its input is looked at where an output with the right fingerprints is there already.
    fresh : bool
        Put the output in the place of one that is there.
    share : {"group"}, optional
        Who else may read it.
    """

    def __init__(self, folder: Path, node: Node, fresh: bool, share: str | None = None) -> None:
        super().__init__(folder, replace=fresh, share=share)
        self.node = node

    def begin(self, ctx: OutletContext) -> dict[str, Any] | None:
        """On rank 0: the result if it is there already; refuse what is in the way."""
        made = self._existing()
        if made is None:
            check_free(self.folder)
            return None
        before = ctx.journal is not None and published_before(ctx.journal, self.folder, made)
        if self.replace and not (before and self._same_plan(made, ctx.provenance)):
            return None
        here = ctx.journal is not None and published_here(ctx.journal, self.folder, made)
        why = self._difference(made, {**ctx.provenance, "committed": before or ctx.provenance.get("committed"), "here": here})
        if why is not None:
            raise Refused(f"the output {str(self.folder)!r} is there already, {why}; choose another path, remove it, or give --fresh to replace it")
        return {"path": str(self.folder), "rows": made.rows, "nbytes": made.nbytes, "shards": len(made.shards), "done": True}

    def _existing(self) -> Manifest | None:
        try:
            return existing(self.folder)
        except HpcmrError as error:
            raise Refused(f"the output {str(self.folder)!r} is in the way, and it is damaged: {error}; remove it, or choose another path") from error

    def _same_plan(self, made: Manifest, told: dict[str, Any]) -> bool:
        return made.writer.get("job") == told["job"] and made.writer.get("fingerprint") == told["fingerprint"]

    def _difference(self, made: Manifest, told: dict[str, Any]) -> str | None:
        """Why an output is not that of this run; None if it is."""
        if not self._same_plan(made, told):
            return f"written by {_job_of(made)} with another plan"
        if made.writer.get("code") != told["code"]:
            return "written by this job before its code was changed"
        if told.get("committed"):           # by this very run: its checkpoint says so
            return None
        splits: list[Split] = []
        for found in inputs_of(self.node):
            if found.splits is None if isinstance(found, Kept) else getattr(found.source, "distributed", False):
                return "and whether rows in memory are the same as then cannot be told"
            splits += found.splits or () if isinstance(found, Kept) else found.source.survey()[1]
        # Kept rows that were restored are cut otherwise than those that were read: of an output of this run, its journal tells.
        if not told.get("here") and made.writer.get("inputs_digest") != inputs_digest(list(dict.fromkeys(splits))):
            return "written by this job before its input was changed"
        return None


def _job_of(made: Manifest) -> str:
    name = made.writer.get("job")
    return f"the job {name!r}" if name else "another program"
