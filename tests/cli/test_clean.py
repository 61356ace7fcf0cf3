"""``hpcmr clean``: what goes, what stays, and that nothing goes unasked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcmr.cli.main import main
from hpcmr.run.owner import this_owner
from hpcmr.store import paths
from hpcmr.store.journal import Journal
from tests.faults.jobs import STEPS, content, found_step, publish_next, put_piece, run_steps


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)


def clean(capfd: Any, *words: str, code: int = 0) -> str:
    assert main(["clean", *words]) == code
    out, err = capfd.readouterr()
    return str(out + err)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_nothing_to_do(capfd: Any) -> None:
    assert clean(capfd) == "nothing to remove\n"


def test_a_run_that_died_keeps_two_checkpoints(tmp_path: Path, capfd: Any) -> None:
    run_dir = tmp_path / "hpcmr-runs/job-1"
    run_steps(run_dir, until=3)
    put_piece(run_dir, 1, 4, 0)
    (run_dir / "journal" / paths.slot_draft("0" * 16)).write_bytes(b"half an entry")
    (run_dir / ".status.json.17-7f.tmp").write_bytes(b"{")
    (run_dir / "notes.txt").write_text("mine")
    before = everything(run_dir)
    said = clean(capfd)
    assert "3 paths" in said and "--yes removes" in said and everything(run_dir) == before
    assert "removed" in clean(capfd, "--yes")
    assert (run_dir / "notes.txt").exists() and len(list(Journal(run_dir).generations())) == 2
    assert not set(before) - set(everything(run_dir)) - {"pieces/e0001-000004-r00000-00.h5", ".status.json.17-7f.tmp",
                                                         "journal/.0000000000000000.tmp"}
    assert clean(capfd) == "nothing to remove\n"
    assert found_step(run_dir) == 3
    run_steps(run_dir)
    assert found_step(run_dir) == STEPS


def test_a_run_that_is_done_keeps_its_output(tmp_path: Path, capfd: Any) -> None:
    run_dir = tmp_path / "hpcmr-runs/job-1"
    run_steps(run_dir)
    publish_next(run_dir, run_dir / "output/out", 1)
    said = clean(capfd, str(run_dir), "--yes")
    assert "checkpoints of a run that is done" in said
    assert os.listdir(run_dir / "pieces") == [] and content(run_dir / "output/out") == 1
    ended = Journal(run_dir).ended
    assert ended is not None and ended.body["state"] == "done"
    assert main(["verify", str(run_dir)]) == 0
    assert clean(capfd, str(run_dir)).endswith("nothing to remove\n")


def test_a_run_that_lives_is_not_touched(tmp_path: Path, capfd: Any) -> None:
    run_dir = tmp_path / "run"
    run_steps(run_dir, until=2)
    Journal(run_dir).claim(this_owner())
    put_piece(run_dir, 2, 4, 0)
    before = everything(run_dir)
    said = clean(capfd, str(run_dir), "--yes")
    assert f"process {os.getpid()}" in said and "not touched" in said
    assert everything(run_dir) == before


def test_staging_folders_of_dead_attempts_go(tmp_path: Path, capfd: Any) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    publish_next(run_dir, out, 1)
    run = Journal(run_dir).run
    stale, foreign = (paths.staging(out, paths.attempt_name(name, 1, 7)) for name in (run, "f" * 16))
    for folder in (stale, foreign):
        folder.mkdir()
        (folder / "rank-00000-00000.h5").write_bytes(b"x" * 5000)
    assert stale.name in clean(capfd, str(run_dir), "--yes")
    assert not stale.exists() and foreign.exists() and content(out) == 1


def test_scratch_of_dead_processes_goes(tmp_path: Path, capfd: Any) -> None:
    home = paths.scratch_home(tmp_path / "scratch")
    folder = paths.scratch_run(home, "dead")
    folder.mkdir(parents=True)
    home.chmod(0o700)
    host = os.uname().nodename
    (folder / paths.OWNER).write_text(f'{{"host": "{host}", "boot": "another", "pid": 1, "start": 1}}')
    (folder / paths.spill_name(1)).write_bytes(bytes(3 << 20))
    assert "3 MiB would be removed" in clean(capfd)
    assert "3 MiB removed" in clean(capfd, "--yes")
    assert not home.exists()


@pytest.mark.parametrize("what", ["output", "nothing", "folder"])
def test_refused(what: str, tmp_path: Path, capfd: Any) -> None:
    publish_next(tmp_path / "run", tmp_path / "output", 1)
    (tmp_path / "folder").mkdir()
    assert what in clean(capfd, str(tmp_path / what), "--yes", code=2)
    assert content(tmp_path / "output") == 1
