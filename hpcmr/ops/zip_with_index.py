"""The number of each row in the order of the input: ``zip_with_index``."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.schema import INT64, ColumnType, Schema
from hpcmr.ops.ordered import Ordered


class ZipWithIndex(Ordered):
    """A further int64 column with the number of the row, from 0. A `SurveyStep`.

    Parameters
    ----------
    name : str
        Of the new column.
    """

    name = "zip_with_index"

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.new)

    def new_type(self, schema: Schema) -> ColumnType:
        return INT64

    def fresh(self) -> int:
        return 0

    def summed(self, summary: int, batch: Batch) -> int:
        return summary + batch.nrows

    def carried(self, summaries: list[int]) -> list[int]:
        return list(accumulate(summaries, initial=0))[:-1]

    def begin(self, carry: int | None) -> int:
        return carry or 0

    def advance(self, state: int, batch: Batch) -> tuple[FixedColumn, int]:
        stop = state + batch.nrows
        return FixedColumn(np.arange(state, stop, dtype=np.int64)), stop
