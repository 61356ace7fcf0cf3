"""Zero or more rows per row: ``flat_map``."""

from __future__ import annotations

from hpcmr.data.batch import Batch
from hpcmr.ops.contract import Origin
from hpcmr.ops.functions import flat_map_plain, map_batch
from hpcmr.ops.map import Map


class FlatMap(Map):
    """Each row becomes the rows that the function yields for it, in their order.

    Parameters
    ----------
    function : callable or UserFunction
        Plain: gets a row, returns or yields rows. Batch: gets columns, returns columns with any number of rows. Kernel: emits.
    out : dict of str to type, optional
        Columns that it returns; without it they are found on the first rows that yield any.
    """

    name = "flat_map"

    def _run(self, batch: Batch, origin: Origin) -> Batch | None:
        if self.function.kind == "plain":
            return flat_map_plain(self.function, batch, origin, self.schema)
        if self.function.kind == "batch":
            return map_batch(self.function, batch, origin, self.schema, same_rows=False)
        return super()._run(batch, origin)
