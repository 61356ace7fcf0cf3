"""Small things to store, and what is found of them afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.store import paths
from hpcmr.store.publish import publish, remove_attempt
from hpcmr.store.reader import StoredTable
from hpcmr.store.writer import TableWriter

RANKS = 2


def table(number: int, rows: int = 300) -> Batch:
    return Batch.of({"a": np.arange(rows) * number, "s": [f"value {i * number}" for i in range(rows)]})


def write(folder: Path, number: int, attempt: str = "", *, replace: bool = False) -> None:
    """An output of some ranks, as they do it: on an error everything of the attempt goes."""
    infos, attempt, writers = [], attempt or f"attempt{number}", []
    try:
        for rank in range(RANKS):
            writers.append(TableWriter(folder, rank, table(number).schema, attempt=attempt, shard_nbytes=4000))
            writers[-1].append(rank, table(number))
            infos += writers[-1].close()
        publish(folder, table(number).schema, infos, attempt=attempt, replace=replace)
    except BaseException:
        for writer in writers:
            writer.abandon()
        remove_attempt(folder, attempt)
        raise


def content(folder: Path) -> int:
    """The number of the output that is at `folder`, 0 if there is none; every byte of it is compared."""
    if not (folder / paths.MANIFEST).exists():
        assert not folder.exists(), f"{folder} holds {os.listdir(folder)}"
        return 0
    with StoredTable.open(folder) as found:
        found.verify()
        number = int(found["a"][1])
        assert found.read_batch(0, found.rows).to_pydict() == Batch.concat([table(number)] * RANKS).to_pydict()
        return number
