"""Small things to store, and what is found of them afterwards."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.store import paths
from hpcmr.store.journal import Entry, Journal
from hpcmr.store.pieces import PieceFile, fault_of, sync_names, write_pieces
from hpcmr.store.publish import publish, remove_attempt
from hpcmr.store.reader import StoredTable
from hpcmr.store.settle import settle
from hpcmr.store.writer import TableWriter

RANKS = 3


def table(number: int, rank: int = 0, rows: int = 300) -> Batch:
    return Batch.of({"a": np.arange(rows) * number, "s": [f"value {i * number} of {rank}" for i in range(rows)]})


def write(folder: Path, number: int, attempt: str = "", *, replace: bool = False, journal: Journal | None = None) -> None:
    """An output of some ranks, as they do it: on an error everything of the attempt goes."""
    infos, attempt, writers = [], attempt or f"attempt{number}", []
    try:
        for rank in range(RANKS):
            writers.append(TableWriter(folder, rank, table(number).schema, attempt=attempt, shard_nbytes=4000))
            writers[-1].append(rank, table(number, rank))
            infos += writers[-1].close()
        publish(folder, table(number).schema, infos, attempt=attempt, replace=replace, journal=journal)
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
        assert found.read_batch(0, found.rows).to_pydict() == Batch.concat([table(number, rank) for rank in range(RANKS)]).to_pydict()
        return number


# -- a run that commits checkpoints ---------------------------------------------------------------------------------------------------


STEPS = 6
"""Generations that a whole run commits; from the fourth on, the pieces of the first three are named no more."""


def rows_of(step: int, rank: int) -> Batch:
    """What one rank adds to one generation: numbers, texts and lists, some of them null."""
    rng = np.random.default_rng([step, rank])
    n = int(rng.integers(60, 120))
    words = [None if x % 7 == 0 else "w" * (x % 30) for x in rng.integers(0, 1000, n).tolist()]
    return Batch.of({"x": rng.normal(size=n), "n": rng.integers(0, 99, (n, 2)), "s": words, "l": [[int(i)] * (i % 3) for i in range(n)]})


@functools.cache
def parts_of(step: int, rank: int) -> list[Partitioned]:
    batch = rows_of(step, rank)
    cuts = [0, batch.nrows // 3, batch.nrows // 2, batch.nrows]
    return [Partitioned(batch, np.array(cuts, np.int64), 3 * rank)]


@functools.cache
def wanted_rows(step: int, rank: int) -> list[Any]:
    return plain(rows_of(step, rank))


def plain(batch: Batch) -> list[Any]:
    """The rows as bytes."""
    out: list[Any] = [batch["x"].values.tobytes(), batch["n"].values.tobytes()]      # type: ignore[union-attr]
    for name in ("s", "l"):
        column: Any = batch[name].compact()
        child = column.data if name == "s" else column.child.values
        out += [(column.ends - column.starts[0]).tobytes(), child.tobytes(), None if column.valid is None else column.valid.tobytes()]
    return out


def pieces_of(step: int) -> list[int]:
    """Steps whose pieces a generation holds."""
    return list(range(1 if step <= 3 else 4, step + 1))


def put_piece(run_dir: Path, epoch: int, step: int, rank: int) -> dict[str, Any]:
    return write_pieces(run_dir, paths.piece_file(epoch, step, rank, 0), parts_of(step, rank))


def generation_fault(run_dir: Path, deep: bool = False) -> Callable[[Entry], str | None]:
    return lambda entry: fault_of(run_dir, entry.body, deep)


def found_step(run_dir: Path, deep: bool = True) -> int:
    """The step of the newest whole generation, 0 if there is none; it must hold what a run without faults has at that step."""
    journal = Journal(run_dir)
    found = journal.newest_generation(generation_fault(run_dir, deep))
    if found is None:
        return 0
    step = int(found.body["step"])
    wanted = [(s, rank) for s in pieces_of(step) for rank in range(RANKS)]
    assert len(found.body["pieces"]) == len(wanted)
    for info, (s, rank) in zip(found.body["pieces"], wanted, strict=True):
        piece = PieceFile(run_dir, info)
        assert plain(piece.read(3 * rank, 3 * rank + 3).batch) == wanted_rows(s, rank)
    return step


Together = Callable[..., list[Any]]


def one_by_one(*works: Callable[[], Any]) -> list[Any]:
    return [work() for work in works]


def run_steps(run_dir: Path, mark: Callable[[str], None] = lambda text: None, until: int = STEPS, together: Together = one_by_one,
              deep: bool = False) -> None:
    """A run from where it was left to its end: an attempt that claims it, and commits a generation for each step.

    Ranks write their pieces at the same time, through `together`.
    """
    journal = Journal(run_dir)
    epoch = journal.claim({"host": "n1", "pid": 1}, generation_fault(run_dir, deep))
    journal.sweep()
    held = list(journal.continued.body["pieces"]) if journal.continued else []
    for step in range(int(journal.continued.body["step"]) + 1 if journal.continued else 1, until + 1):
        writes = [functools.partial(put_piece, run_dir, epoch, step, rank) for rank in range(RANKS)]
        held = held[RANKS * 3:] if step == 4 else held
        held = held + together(*writes)
        sync_names(run_dir)
        journal.append("generation", {"step": step, "pieces": held})
        mark(str(step))
        journal.collect(keep=2)
    if until == STEPS:
        journal.append("end", {"state": "done", "reason": ""})


def publish_next(run_dir: Path, out: Path, until: int, mark: Callable[[str], None] = lambda text: None) -> None:
    """Attempts that publish an output and then newer ones in its place, up to number `until`; finishes what an earlier one had begun."""
    while True:
        journal = Journal(run_dir)
        epoch = journal.claim({"host": "n1", "pid": 1}, generation_fault(run_dir))
        settle(journal)
        journal.sweep()
        number = content(out)
        if number == until:
            journal.append("end", {"state": "done", "reason": ""})
            return
        write(out, number + 1, paths.attempt_name(journal.run, epoch, 1), replace=number > 0, journal=journal)
        mark(str(number + 1))


def stray(run_dir: Path) -> list[str]:
    """Files of a run that nothing names."""
    journal = Journal(run_dir)
    named = {i["file"] for e in journal.entries if e.kind == "generation" for i in e.body["pieces"]}
    named |= {f"journal/{paths.slot_name(e.slot)}" for e in journal.entries}
    return sorted({str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file()} - named)
