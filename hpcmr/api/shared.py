"""What `Table.broadcast` gives: a small table as arrays that are the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hpcmr.api.result import Result
from hpcmr.data.batch import Batch


class Shared(Mapping[str, Any]):
    """Columns by name, read-only: ``shared["x"]``. ``len(shared)`` is the number of columns, ``shared.rows`` that of rows."""

    def __init__(self, batch: Batch) -> None:
        found = Result(batch)
        self.rows = batch.nrows
        self._columns = {name: _locked(found[name]) for name in found.columns}

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            raise KeyError(f"there is no column {name!r}; the columns are {', '.join(map(repr, self._columns))}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"<Shared: {self.rows:,} rows of {', '.join(self._columns)}>"

    def fingerprint(self) -> tuple[Any, ...]:
        """What counts of it where a function of the user's captured it."""
        return ("shared", self._columns)


def _locked(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        values = values.view()
        values.flags.writeable = False
    return values
