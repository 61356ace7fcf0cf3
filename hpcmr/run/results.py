"""Results of actions that are over, as a generation keeps them: a restart answers the action with what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.store import files, paths, typed
from hpcmr.store.pieces import PieceFile, write_pieces

TEXT_NBYTES = 16 << 10
"""A result whose text is longer lies in a file, so that generations stay small: each of them has all results."""


def keep_result(world: World, run_dir: Path, epoch: int, ordinal: int, value: Any, root: int) -> dict[str, Any] | None:
    """What stands for a result in a generation, as JSON values, on all ranks; None of a value that cannot be kept: the action runs again.

    Parameters
    ----------
    value : any
        On the rank `root`.

    Notes
    -----
    Collective: yes. What is large is written at once, since the user may change it. Cost: the bytes of the result, once.
    """
    kept: dict[str, Any] | None = None
    with world.together("keep a result"):
        if world.rank == root:
            kept = _write(run_dir, epoch, ordinal, value)
    found: dict[str, Any] | None = world.bcast(kept, root)
    return found


def _write(run_dir: Path, epoch: int, ordinal: int, value: Any) -> dict[str, Any] | None:
    parts: list[Batch] = []
    try:
        text = typed.to_text(typed.encode(value, parts))
    except typed.NoWord:
        return None
    if len(text) > TEXT_NBYTES:
        parts.append(Batch({"text": FixedColumn(np.frombuffer(text.encode(), np.uint8))}))
    infos = []
    for number, part in enumerate(parts):
        rows = Partitioned(part, np.array([0, part.nrows], np.int64))
        infos.append(write_pieces(run_dir, paths.result_file(epoch, ordinal, number), [rows]))
    if infos:
        files.sync_folder((run_dir / infos[0]["file"]).parent)
    return {"text": None if len(text) > TEXT_NBYTES else text, "parts": infos}


def result_of(world: World, run_dir: Path, kept: dict[str, Any], root: int, everywhere: bool) -> Any:
    """The result that `kept` stands for: on every rank, or on `root` and None elsewhere. Collective: yes. Raises `StorageError`."""
    value = None
    with world.together("read a result"):
        if world.rank == root:
            value = _read(run_dir, kept)
    return world.bcast(value, root) if everywhere else value


def _read(run_dir: Path, kept: dict[str, Any]) -> Any:
    def part(number: int) -> Batch:
        return PieceFile(run_dir, infos[number]).read(0, 1).batch

    try:
        text, infos = kept["text"], list(kept["parts"])
    except (KeyError, TypeError):
        raise StorageError(f"a checkpoint holds a result that this version of hpcmr cannot read: {str(kept)[:200]}; "
                           "start over with --fresh") from None
    if text is None:
        column = part(len(infos) - 1)["text"]
        assert isinstance(column, FixedColumn)
        text = column.values.tobytes().decode("ascii")
    return typed.decode(typed.from_text(text), part)
