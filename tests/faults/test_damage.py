"""Every kind of file is damaged in every way: it is found before anything of it is used, or what is read is right in spite of it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import HpcmrError
from hpcmr.run import identity as identities
from hpcmr.run.status import new_status, read_status, write_status
from hpcmr.run.verify import verify
from hpcmr.store import paths
from hpcmr.store.journal import Journal
from hpcmr.store.pieces import PieceFile, infos_in
from hpcmr.store.publish import read_manifest
from hpcmr.store.reader import StoredTable
from hpcmr.store.scratch import Scratch
from hpcmr.store.spill import Spool
from tests.faults.jobs import STEPS, found_step, plain, publish_next, rows_of, run_steps
from tests.support.damage import every

LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
SEED = int(os.environ.get("HPCMR_TEST_SEED", "1"))
FACTOR = 8 if LONG else 1
CASES: Counter[str] = Counter()
HARMLESS: Counter[str] = Counter()
"""Damages that change nothing that anybody uses: they are found by `hpcmr verify` alone."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: those to damage, and how they are used. `use` raises `HpcmrError`, or gives what a whole file gives."""

    files: Callable[[Path], list[Path]]
    use: Callable[[Path, Path], Any]
    count: int


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints, its identity and status, and an output."""
    folder = tmp_path_factory.mktemp("whole")
    run_steps(folder / "run", until=3)
    publish_next(folder / "run", folder / "out", 1)
    spec = folder / "job.py"
    spec.write_text("def job(ctx):\n    pass\n")
    made = identities.identity_of(spec, "job", {"n": 7, "input": "a.h5"}, [], "0123")
    identities.store_identity(folder / "run", made, spec, [])
    os.close(write_status(folder / "run", new_status(folder / "run", name="job", state="done", attempt=1)))
    return folder


def newest(run_dir: Path) -> Any:
    """The newest generation that the journal gives, and what is said of those that it does not."""
    journal = Journal(run_dir)
    found = journal.newest_generation()
    if journal.damaged:
        raise HpcmrError("; ".join(journal.notes))
    return None if found is None else (found.slot, found.body)


def read_pieces(run_dir: Path, path: Path) -> Any:
    """All rows of a file of pieces, whichever of its partitions are asked for first."""
    entry = next(iter(Journal(run_dir).generations()))
    info = next(i for i in infos_in(entry.body) if i["file"] == str(path.relative_to(run_dir)))
    piece = PieceFile(run_dir, info)
    return [plain(piece.read(p, p + 1).batch) for p in range(piece.first, piece.first + piece.count)]


def read_output(out: Path) -> Any:
    with StoredTable.open(out) as found:
        return found.read_batch(0, found.rows).to_pydict()


def named(folder: Path) -> list[Path]:
    """Files of the newest generation."""
    entry = next(iter(Journal(folder / "run").generations()))
    return [folder / "run" / i["file"] for i in infos_in(entry.body)]


KINDS = {
    "entries of the journal": Kind(lambda f: sorted((f / "run" / "journal").iterdir()), lambda f, p: newest(f / "run"), 110),
    "pieces": Kind(named, lambda f, p: read_pieces(f / "run", p), 110),
    "shards of an output": Kind(lambda f: sorted((f / "out").glob("part-*")), lambda f, p: read_output(f / "out"), 300),
    "the manifest": Kind(lambda f: [f / "out" / "manifest.json"], lambda f, p: read_manifest(f / "out"), 300),
    "the identity of a run": Kind(lambda f: [paths.identity(f / "run")], lambda f, p: identities.read_identity(f / "run"), 200),
    "the status of a run": Kind(lambda f: [paths.status(f / "run")], lambda f, p: read_status(f / "run"), 200),
}


@pytest.mark.parametrize("name", KINDS)
def test_damage(name: str, whole: Path, tmp_path: Path) -> None:
    kind, folder = KINDS[name], tmp_path / "copy"
    shutil.copytree(whole, folder)
    rng = np.random.default_rng(SEED)
    wrong = []
    for path in kind.files(folder):
        good, wanted = path.read_bytes(), kind.use(folder, path)
        for how, content in every(good, rng, kind.count * FACTOR):
            path.write_bytes(content)
            problem = told(name, lambda p=path: kind.use(folder, p), wanted)      # type: ignore[misc]
            wrong += [f"{path.name}: {how}: {problem}"] if problem else []
        path.write_bytes(good)
        assert kind.use(folder, path) == wanted
    assert not wrong, f"{len(wrong)} of {CASES[name]}:\n" + "\n".join(wrong[:20])


def told(name: str, use: Callable[[], Any], wanted: Any) -> str | None:
    """What is wrong with using a damaged file; None: an error named the damage, or all was right in spite of it."""
    CASES[name] += 1
    try:
        found = use()
    except HpcmrError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if name == "the status of a run":
        HARMLESS[name] += 1        # advice for people: nothing is decided by it
        return None if set(found) == set(wanted) else f"gave {found}"
    HARMLESS[name] += 1
    return None if found == wanted else "a wrong value"


def test_damage_of_spilled_rows(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    spool, rng = Spool(scratch), np.random.default_rng(SEED)
    batch = rows_of(1, 1)
    spool.append([Partitioned(batch, np.array([0, 20, 50, batch.nrows], np.int64), 4)])

    def use() -> list[Any]:
        return [plain(p.batch) for i in range(3) for p in spool.read(4 + i)]

    (path,) = scratch.folder().glob("*.h5")
    good, wanted, wrong = path.read_bytes(), use(), []
    for how, content in every(good, rng, 400 * FACTOR):
        path.write_bytes(content)
        problem = told("spilled rows", use, wanted)
        wrong += [f"{how}: {problem}"] if problem else []
    spool.close()
    scratch.close()
    assert not wrong, f"{len(wrong)} of {CASES['spilled rows']}:\n" + "\n".join(wrong[:20])


def swapped(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def replaced(how: str, path: Path, other: Path) -> None:
    """`path` is not what it was: it has the content of `other` (of another rank, or of an earlier time), is gone, empty, a folder, a link."""
    if how == "swapped":
        swapped(path, other)
        return
    content = other.read_bytes()
    path.unlink()
    if how == "a stale one":
        path.write_bytes(content)
    elif how == "empty":
        path.touch()
    elif how == "a folder":
        path.mkdir()
    elif how == "a link":
        path.symlink_to(other)
    elif how == "a pipe":
        os.mkfifo(path)


HOWS = ("swapped", "a stale one", "gone", "empty", "a folder", "a link", "a pipe")


@pytest.mark.parametrize("how", HOWS)
def test_other_files_in_their_place(how: str, whole: Path, tmp_path: Path) -> None:
    """Whole files where they do not belong: each file of a run and of its output, and all others of its kind."""
    for files in (named, lambda f: sorted((f / "run/journal").iterdir()), lambda f: sorted((f / "out").iterdir())):
        count = len(files(whole))
        for i in range(count):
            for j in {(i + 1) % count, (i + 3) % count} - {i}:
                folder = tmp_path / "copy"
                shutil.copytree(whole, folder)
                paths_there = files(folder)
                replaced(how, paths_there[i], paths_there[j])
                check_found(folder, f"{paths_there[i].name} is {how} ({paths_there[j].name})", whole)
                shutil.rmtree(folder)
                CASES["other files"] += 1


def check_found(folder: Path, how: str, whole: Path) -> None:
    """The output gives an error or its rows; the newest generation that is whole is right; `verify` finds the damage.

    Of the last entry of a journal nobody can tell that it is gone; what it said is then as if it had not been said.
    """
    try:
        assert read_output(folder / "out") == read_output(whole / "out"), f"{how}: other rows"
    except HpcmrError:
        pass
    assert found_step(folder / "run") in (0, 2, 3), how
    reports = [verify(folder / "run"), verify(folder / "out")]
    last = sorted((whole / "run/journal").iterdir())[-1].name
    assert not all(r["whole"] for r in reports) or how.startswith(f"{last} is gone"), f"{how}: not found"


@pytest.mark.parametrize("what", ["entry", "piece"])
def test_a_run_goes_on_from_the_older_checkpoint(what: str, whole: Path, tmp_path: Path) -> None:
    """A sample of damages, each followed by a run to the end: what it commits is what a run without faults commits."""
    rng, place = np.random.default_rng(SEED), tmp_path / "copy"
    for i in range(6 * FACTOR):
        shutil.copytree(whole / "run", place)
        newest_one, older = list(Journal(place).generations())[:2]
        old = {i["file"] for i in infos_in(older.body)}
        only = [p for p in (i["file"] for i in infos_in(newest_one.body)) if p not in old]
        path = place / (only[i % len(only)] if what == "piece" else f"journal/{paths.slot_name(newest_one.slot)}")
        choices = list(every(path.read_bytes(), rng, 60))
        path.write_bytes(choices[int(rng.integers(len(choices)))][1])
        assert found_step(place) == 2
        run_steps(place, deep=True)
        assert found_step(place) == STEPS
        shutil.rmtree(place)


def test_there_are_enough() -> None:
    """Cases of the tests above, and how many of them changed nothing that is used."""
    if set(CASES) >= {*KINDS, "spilled rows", "other files"}:
        print(dict(CASES), dict(HARMLESS))
        assert sum(CASES.values()) >= 3000, dict(CASES)
        assert not {"entries of the journal", "the manifest", "the identity of a run"} & set(HARMLESS), dict(HARMLESS)
