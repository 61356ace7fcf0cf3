"""Storage fails at every place where something is written, in every way: a named error, what was there is whole, and again it works."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hpcmr.errors import HpcmrError, StorageError
from hpcmr.store import files, layout, segment, shard
from hpcmr.store.scratch import Scratch
from hpcmr.store.spill import Spool
from tests.faults.jobs import content, found_step, parts_of, run_steps, stray, write
from tests.support.io_errors import ERRORS, FULL, PASSING, REMOVING, SHORT, Failing, Fault, faults, sites_of

CASES: Counter[str] = Counter()


@dataclass(frozen=True)
class Work:
    """`before` makes what is there already, `work` (of an attempt) is what fails, `state` tells what is found: 2 what it made.

    `leftovers` must be none after an error, `strays` after the next start.
    """

    before: Callable[[Path], None]
    work: Callable[[Path, str], None]
    state: Callable[[Path], int]
    leftovers: Callable[[Path], list[str]]
    strays: Callable[[Path], list[str]]


def temporary(folder: Path) -> list[str]:
    """Files and folders that are nobody's any more."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith((".tmp", ".old")))


def output(folder: Path) -> int:
    """Which output is there; an earlier one may also lie where the message says it does."""
    aside = [p for p in folder.glob(".out.*.old") if (p / "manifest.json").exists()]
    return content(folder / "out") or sum(map(content, aside))


def checkpoint(folder: Path) -> int:
    """1: two checkpoints as before, 2: a third one."""
    return max(0, found_step(folder / "run") - 1)


def first_checkpoint(folder: Path) -> int:
    return 2 * found_step(folder / "run")


WORKS = {
    "output": Work(lambda folder: None, lambda folder, attempt: write(folder / "out", 2, attempt), output, temporary, temporary),
    "replaced output": Work(lambda folder: write(folder / "out", 1), lambda folder, attempt: write(folder / "out", 2, attempt, replace=True),
                            output, temporary, temporary),
    "first checkpoint": Work(lambda folder: None, lambda folder, attempt: run_steps(folder / "run", until=1), first_checkpoint, temporary,
                             lambda folder: stray(folder / "run")),
    "checkpoint": Work(lambda folder: run_steps(folder / "run", until=2), lambda folder, attempt: run_steps(folder / "run", until=3), checkpoint,
                       temporary, lambda folder: stray(folder / "run")),
}


CAME_BACK: set[Path] = set()


def spill(folder: Path, attempt: str) -> None:
    """Rows go to scratch and come back."""
    CAME_BACK.discard(folder)
    scratch = Scratch(folder)
    spool = Spool(scratch)
    try:
        parts = [replace(parts_of(1, rank)[0], first=0) for rank in range(2)]
        for part in parts:
            spool.append([part])
        for i in range(3):
            assert sum(p.batch.nrows for p in spool.read(i)) == sum(int(p.starts[i + 1] - p.starts[i]) for p in parts)
        CAME_BACK.add(folder)
    finally:
        spool.close()
        scratch.close()


def scratch_left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


WORKS["spill"] = Work(lambda folder: None, spill, lambda folder: 2 * (folder in CAME_BACK), scratch_left, lambda folder: [])
QUICK = ("replaced output", "checkpoint", "spill")
LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
LAYOUTS: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another at once, the disk is not waited for, and HDF5 lays out each kind of file once."""
    def lay_out(schema: Any, arrays: Any) -> Any:
        key = (str(schema), str([(spec.name, count) for spec, count in arrays]))
        if key not in LAYOUTS:
            LAYOUTS[key] = layout.lay_out(schema, arrays)
        return LAYOUTS[key]

    monkeypatch.setattr(segment, "lay_out", lay_out)
    monkeypatch.setattr(shard, "lay_out", lay_out)
    monkeypatch.setattr(files, "PAUSES_S", (0.0,) * len(files.PAUSES_S))
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def failed(work: Work, folder: Path, fault: Fault) -> None:
    """One case: what is there after the fault, and after a clean try."""
    CAME_BACK.clear()
    watch, before = Failing(folder, fault), work.state(folder)
    error: HpcmrError | None = None
    try:
        with watch:
            work.work(folder, "first")
    except HpcmrError as caught:
        error = caught
    assert watch.happened, "the call was not made this time"
    found = work.state(folder)
    if (fault.error in PASSING and not fault.lasting) or fault.error == SHORT or error is None:
        assert error is None, f"not tried again: {error}"
        assert found == 2, "no error, and no result"
    else:
        assert isinstance(error, StorageError), f"{type(error).__name__}: {error}"
        assert str(folder) in str(error) and fault.error in str(error) and ";" in str(error), f"the error does not say where, or what: {error}"
        assert found in (before, 2), "what was there is gone"
    # What cannot be removed while nothing can be removed is left to the next start.
    clean = fault.site[0] not in REMOVING and (not fault.lasting or (fault.error in FULL and fault.site[0] != "rename"))
    assert not clean or work.leftovers(folder) == []
    if found != 2:
        work.work(folder, "second")
        assert work.state(folder) == 2
        assert not clean or work.strays(folder) == []


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", WORKS if LONG else QUICK)
def test_every_call_fails(name: str, error: str, tmp_path: Path) -> None:
    work, before = WORKS[name], tmp_path / "before"
    before.mkdir()
    work.before(before)
    folder = tmp_path / "work"
    shutil.copytree(before, folder)
    sites = sites_of(folder, lambda: work.work(folder, "first"))
    wrong = []
    for fault in faults(sites, [error], every=LONG):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        try:
            failed(work, folder, fault)
        except Exception as problem:
            wrong.append(f"{fault}: {type(problem).__name__}: {problem}")
        CASES[name] += 1
    assert not wrong, f"{len(wrong)} of {CASES[name]}:\n" + "\n".join(wrong)


def test_there_are_enough() -> None:
    """Cases of the tests above; they are counted, so that a site that is lost is noticed."""
    if set(CASES) >= set(QUICK):
        assert sum(CASES.values()) >= 900, dict(CASES)
