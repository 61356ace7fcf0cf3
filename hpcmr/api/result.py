"""What `collect` and `head` give back: the rows in memory, column by column."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.schema import Schema

SHOWN_ROWS = 10


class Result:
    """Rows in memory, by column.

    ``result["n"]`` is a NumPy array ``(rows, *shape)`` of the column's type, masked where the column holds nulls; text is a list
    of str (undecodable bytes escaped as `surrogateescape` does), bytes a list of bytes, a list column a list of lists.
    ``len(result)`` is the number of rows; iterating gives the names of the columns, so ``dict(result)`` works.

    Attributes
    ----------
    columns : tuple of str
        Names, in order.
    schema : Schema
        Names and types.
    """

    __slots__ = ("_values", "batch", "schema")

    def __init__(self, batch: Batch, schema: Schema | None = None) -> None:
        self.batch = batch
        self.schema = schema or batch.schema
        self._values: dict[str, NDArray[Any] | list[Any]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return self.schema.names

    def keys(self) -> tuple[str, ...]:
        """Names of the columns, so that ``dict(result)`` works."""
        return self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.schema

    def __len__(self) -> int:
        return self.batch.nrows

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._column(self.schema[name].name)
        return self._values[name]

    def _column(self, name: str) -> NDArray[Any] | list[Any]:
        column = self.batch[name]
        if not isinstance(column, FixedColumn):
            return column.to_list()
        if column.valid is None:
            return column.values
        gaps = ~column.valid
        mask = np.broadcast_to(gaps.reshape(-1, *[1] * (column.values.ndim - 1)), column.values.shape)
        return np.ma.MaskedArray(column.values, mask)

    def rows(self) -> Iterator[Any]:
        """The rows as named tuples of Python values; nulls are None. Slow and convenient."""
        row = namedtuple("row", self.columns, rename=True)  # type: ignore[misc]
        lists = [self.batch[n].to_list() for n in self.columns]
        return map(row._make, zip(*lists, strict=True)) if lists else iter([row()] * len(self))

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame; columns of more than one dimension become objects. Needs pandas."""
        import pandas as pd

        return pd.DataFrame({n: self._flat(n) for n in self.columns})

    def _flat(self, name: str) -> Any:
        values = self[name]
        if isinstance(values, np.ma.MaskedArray):
            return self.batch[name].to_list()
        return list(values) if isinstance(values, np.ndarray) and values.ndim > 1 else values

    def __repr__(self) -> str:
        few = Result(self.batch.slice(0, SHOWN_ROWS), self.schema)
        lines = ["\t".join(f"{f.name}: {f.type}" for f in self.schema)]
        lines += ["\t".join(map(str, row)) for row in few.rows()]
        if len(self) > SHOWN_ROWS:
            lines.append(f"... {len(self):,} rows")
        return "\n".join(lines)
