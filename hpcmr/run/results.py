"""Results of actions that are over, as a generation keeps them: a restart answers the action with what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError
from hpcmr.ops.hold import compact_copy
from hpcmr.store import files, paths, typed
from hpcmr.store.pieces import PieceFile, write_pieces

TEXT_NBYTES = 16 << 10
"""A result whose text is longer lies in a file, so that generations stay small: each of them has all results."""
COPY_SHARE = 4       # of the memory that is free, what a copy may take that waits for a checkpoint


class Waiting:
    """A large result that the next checkpoint writes: a copy, since the user may change his. On one rank.

    Raises
    ------
    MemoryTooSmall
        There is no room for the copy.
    """

    def __init__(self, run_dir: Path, epoch: int, ordinal: int, text: str, parts: list[Batch], memory: Any) -> None:
        nbytes = sum(p.nbytes for p in parts)
        memory.take(nbytes, "a result that waits for a checkpoint")
        self._memory, self._taken = memory, nbytes
        self._place = run_dir, epoch, ordinal
        self._text, self._parts = text, [compact_copy(p) for p in parts]
        self.written = False

    def write(self) -> dict[str, Any]:
        """Put it into files; returns what stands for it in a generation. In any thread. Raises `StorageError`."""
        found = _written(*self._place, self._text, self._parts)
        self._parts, self.written = [], True
        return found

    def give(self) -> None:
        """It was written, or is not needed any more: give the memory back. May be called twice."""
        self._memory.give(self._taken)
        self._taken, self._parts = 0, []


def keep_result(world: World, run_dir: Path, epoch: int, ordinal: int, value: Any, root: int, memory: Any = None) -> dict[str, Any] | Waiting | None:
    """What stands for a result in a generation, as JSON values, on all ranks; None of a value that cannot be kept: the action runs again.

    Parameters
    ----------
    value : any
        On the rank `root`.
    memory : MemoryBudget, optional
        What is large waits for the next checkpoint, if there is room for a copy. Else it is written at once.

    Notes
    -----
    Collective: yes. Where it waits, what stands for it is a `Waiting` on rank 0, and of no use on the others.
    """
    kept: dict[str, Any] | Waiting | None = None
    with world.together("keep a result"):
        if world.rank == root:
            kept = _kept(run_dir, epoch, ordinal, value, memory if root == 0 else None)
    told: dict[str, Any] | None = world.bcast({} if isinstance(kept, Waiting) else kept, root)
    return kept if isinstance(kept, Waiting) else told


def _kept(run_dir: Path, epoch: int, ordinal: int, value: Any, memory: Any) -> dict[str, Any] | Waiting | None:
    parts: list[Batch] = []
    try:
        text = typed.to_text(typed.encode(value, parts))
    except typed.NoWord:
        return None
    if parts and memory is not None and COPY_SHARE * sum(p.nbytes for p in parts) <= memory.available():
        return Waiting(run_dir, epoch, ordinal, text, parts, memory)
    return _written(run_dir, epoch, ordinal, text, parts)


def _written(run_dir: Path, epoch: int, ordinal: int, text: str, parts: list[Batch]) -> dict[str, Any]:
    if len(text) > TEXT_NBYTES:
        parts = [*parts, Batch({"text": FixedColumn(np.frombuffer(text.encode(), np.uint8))})]
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
