"""Rows without repeats: ``distinct``."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.keyed_rows import Index, KeyedRows


class Distinct(KeyedRows):
    """The first row, by origin, of all that agree in the key columns, with all its columns. A `KeyedOperator`.

    Parameters
    ----------
    columns : tuple of str
        Columns that are compared; none: all of the row.
    """

    name = "distinct"
    combines = "any"

    def __init__(self, columns: tuple[str, ...] = ()) -> None:
        self.columns = tuple(columns)
        self.keys = self.columns
        self.held = 0

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.columns)

    def bind(self, schema: Schema) -> Schema:
        self.keys = self.columns or schema.names
        self.bind_rows(schema)
        return schema

    def out_schema(self) -> Schema:
        return self.schema

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        return rows.take(np.sort(order[starts[:-1]]))

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        return rows.take(order[starts[:-1]]).select(self.schema.names)
