"""All rows, brought together by key and sorted within: what ranks within groups are counted along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.ops.apply_groups import ApplyGroups
from hpcmr.ops.functions import Columns, batch_function


class SortedGroups(ApplyGroups):
    """The rows in key order within partitions, those of a key in the order of some columns, then of the input. A `KeyedOperator`.

    Parameters
    ----------
    keys, order_by : tuple of str
    descending : bool or sequence of bool
    """

    name = "sorted groups"

    def __init__(self, keys: tuple[str, ...], order_by: tuple[str, ...] = (), descending: Any = False) -> None:
        super().__init__(keys, batch_function(_same), order_by, descending, blocks=True)

    def bind(self, schema: Schema) -> Schema:
        super().bind(schema)
        return schema

    def out_schema(self) -> Schema:
        return self.schema

    def _results(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch.select(self.schema.names)


def _same(columns: Columns) -> Columns:
    return columns
