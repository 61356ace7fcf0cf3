"""What a first pass over the rows was settled to, as one row: the form in which a checkpoint keeps it (`Surveying.settled`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column, ListColumn
from hpcmr.errors import StorageError
from hpcmr.store import typed

TREE = "#value"


def pack(value: Any) -> Batch:
    """Plain values, arrays and batches as a batch of one row. Raises `hpcmr.store.typed.NoWord` for others."""
    parts: list[Batch] = []
    text = typed.to_text(typed.encode(value, parts))
    columns: dict[str, Column] = {TREE: BytesColumn.from_list([text], True)}
    for i, part in enumerate(parts):
        for name, column in part.columns.items():
            columns[f"{i}:{name}"] = ListColumn(np.zeros(1, np.int64), np.array([part.nrows], np.int64), column)
    return Batch(columns, 1)


def unpack(row: Batch) -> Any:
    """Inverse of `pack`. Raises `StorageError`."""
    def part(number: int) -> Batch:
        columns: dict[str, Column] = {}
        for name, column in row.columns.items():
            head, _, tail = name.partition(":")
            if name != TREE and int(head) == number and isinstance(column, ListColumn):
                columns[tail] = column.compact().child
        if not columns:
            raise ValueError(f"part {number} is missing")
        return Batch(columns)

    if TREE not in row.columns or row.nrows != 1:
        raise StorageError("what a first pass found is not in a checkpoint where it should be; start over with --fresh")
    return typed.decode(typed.from_text(row[TREE].to_list()[0]), part)
