"""An output as an input: splits are ranges of its rows, cut from the data alone, not from the shards that hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.data.source import SPLIT_NBYTES, Split
from hpcmr.errors import DataError, InputError
from hpcmr.store import manifest
from hpcmr.store.publish import read_manifest
from hpcmr.store.reader import StoredTable


class StoredSource:
    """The rows of an output, in their order.

    Parameters
    ----------
    path : str or path
        The output's folder.
    columns : sequence of str, optional
        Columns to read; all of them if not given.
    """

    name = "stored"

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str] | None = None, *, split_nbytes: int = SPLIT_NBYTES) -> None:
        self.path = os.fspath(path)
        self.columns = None if columns is None else tuple(columns)
        self.split_nbytes = split_nbytes
        self._table: StoredTable | None = None
        self._opened = ""

    def fingerprint(self) -> tuple[Any, ...]:
        return ("stored", self.path, self.columns, self.split_nbytes)

    def survey(self) -> tuple[Schema, list[Split]]:
        """Check the output and cut splits of equal numbers of rows. Rank 0 only. Raises `InputError`."""
        with StoredTable.open(self.path) as table:
            schema = table.schema if self.columns is None else table.schema.select(self.columns)
            nbytes, rows = table.content_nbytes(schema.names), table.rows
            identity = manifest.identity(table.manifest)
        step = max(1, int(self.split_nbytes * rows / max(1, nbytes)))
        ranges = [(a, min(a + step, rows)) for a in range(0, rows, step)]
        return schema, [Split(i, nbytes * (b - a) // rows, f"{self.path}[{a}:{b}]", (identity, a, b)) for i, (a, b) in enumerate(ranges)]

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        """Nothing to keep: a split holds all that its reader needs."""

    def read(self, split: Split) -> Iterator[Batch]:
        """Batches of the rows of a split; each may be overwritten by the next. Raises `DataError` if the output has changed."""
        identity, start, stop = split.part
        yield from self._open(identity).batches(self.columns, start=start, stop=stop, reuse=True)

    def _open(self, identity: str) -> StoredTable:
        if self._table is None or self._opened != identity:
            self.close()
            try:
                made = read_manifest(Path(self.path))
            except InputError as error:
                raise DataError(f"{error} (it was there when the job began)") from None
            if manifest.identity(made) != identity:
                raise DataError(f"the output {self.path!r} was replaced while it was being read; run the job again")
            self._table, self._opened = StoredTable(Path(self.path), made), identity
        return self._table

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        self._table = None
