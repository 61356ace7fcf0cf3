"""Exit codes through the launcher, one message from all ranks, and what is on standard output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch import check, needs_launcher, run_job
from tests.support.mpirun import find_mpirun

TOML = '[input]\npaths = "in.txt"\n[map]\nfunction = "words"\n[reduce]\nfunction = "sum"\n[output]\npath = "out"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("a b a\n")
    (tmp_path / "job.toml").write_text(TOML)
    return tmp_path


@needs_launcher
@pytest.mark.parametrize("n", [0, 1, 3])
def test_usage_error_is_said_once(tmp_path: Path, n: int) -> None:
    done = check(run_job(["job", "--nonsense"], n=n, cwd=tmp_path), 2)
    assert done.stderr.count("--nonsense") == 1
    assert done.stdout == ""


@needs_launcher
def test_no_job_here(tmp_path: Path) -> None:
    done = check(run_job(["job"], n=2, cwd=tmp_path), 2)
    assert done.stderr.count("job.toml") == 1


@needs_launcher
def test_stdout_is_one_line_per_output(folder: Path) -> None:
    done = check(run_job(["job"], n=3, cwd=folder))
    path, rows = done.stdout.splitlines()[0].split("\t")
    assert (folder / path).samefile(folder / "out")
    assert rows == "2"
    assert len(done.stdout.splitlines()) == 1


@needs_launcher
def test_quiet_says_nothing(folder: Path) -> None:
    done = check(run_job(["job", "-q"], n=2, cwd=folder))
    assert done.stderr.strip() == ""


@needs_launcher
def test_the_same_command_again_is_done_already(folder: Path) -> None:
    check(run_job(["job"], n=2, cwd=folder))
    before = (folder / "out" / "manifest.json").stat().st_mtime_ns
    again = check(run_job(["job"], n=3, cwd=folder))
    assert again.stdout.endswith("\t2\n")
    assert (folder / "out" / "manifest.json").stat().st_mtime_ns == before


@needs_launcher
def test_output_of_something_else_is_refused_and_kept(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("precious")
    done = check(run_job(["job"], n=2, cwd=folder), 2)
    assert "out" in done.stderr
    assert (folder / "out" / "mine").read_text() == "precious"


@needs_launcher
def test_changed_input_is_refused_and_fresh_discards(folder: Path) -> None:
    check(run_job(["job"], n=2, cwd=folder))
    (folder / "in.txt").write_text("a b a c\n")
    check(run_job(["job"], n=2, cwd=folder), 2)
    done = check(run_job(["job", "--fresh"], n=2, cwd=folder))
    assert done.stdout.endswith("\t3\n")


@needs_launcher
def test_explain_runs_nothing(folder: Path) -> None:
    done = check(run_job(["job", "--explain"], n=2, cwd=folder))
    assert "words" in done.stdout + done.stderr
    assert not (folder / "out").exists()


@needs_launcher
def test_ranks_of_a_foreign_launcher_refuse(folder: Path) -> None:
    """What N copies of "rank 0 of 1" see: variables of another MPI's launcher."""
    import sys

    kind = find_mpirun(sys.executable)[1]
    hydra = {"PMI_SIZE": "3", "PMI_RANK": "0", "MPI_LOCALNRANKS": "3"}
    foreign = hydra if kind == "openmpi" else {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"}
    done = check(run_job(["job"], n=0, cwd=folder, env=foreign), 2)
    assert "rank 0 of 1" in done.stderr
    assert not (folder / "out").exists()


@needs_launcher
def test_launch_finds_the_launcher(folder: Path) -> None:
    done = check(run_job(["launch", "-n", "2", "job", "job.toml"], n=0, cwd=folder))
    assert done.stdout.endswith("\t2\n")
    done = check(run_job(["launch", "-n", "2", "job", "job.toml", "--nonsense"], n=0, cwd=folder), 2)
    assert done.stderr.count("unrecognized") <= 1


@needs_launcher
def test_actions_return_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import numpy as np, hpcmr as mr\n\n"
        "def job(ctx):\n"
        "    t = mr.from_arrays(ctx.comm, {'key': np.arange(10) % 3, 'value': np.arange(10) + 0.1 * ctx.rank})\n"
        "    r = t.group_by('key').agg(total=mr.sum('value')).collect()\n"
        "    assert len(r) == 3 and len(t.head(4)) == 4\n"
        "    assert t.select('value').reduce(max) == 9 + 0.1 * (ctx.size - 1)\n"
        "    assert (ctx.rank == 0) == (t.collect(root=0) is not None)\n")
    check(run_job(["job", "job.py"], n=3, cwd=tmp_path))
