"""The command line: what it loads, who speaks, which code it exits with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcmr.cli import main as cli
from tests.support.launch import check, needs_launcher, run_job

HEAVY = ("numpy", "h5py", "numba", "mpi4py", "mpi4py.MPI")


def loaded_by(program: str) -> set[str]:
    told = subprocess.run([sys.executable, "-c", f"import sys\n{program}\nprint('|', *sys.modules)"], capture_output=True, text=True, check=True)
    return set(told.stdout.rpartition("|")[2].split())


@pytest.mark.parametrize("words", [["--help"], ["job", "--help"], ["--version"], ["job", "--no-such-option"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    program = f"from hpcmr.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass"
    found = loaded_by(program)
    assert "hpcmr.cli.job" in found
    assert not found & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import hpcmr; hpcmr.__version__; dir(hpcmr)") & set(HEAVY)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["job", "--help"]):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 0
        told = capsys.readouterr()
        assert "examples:" in told.out
        assert not told.err


@pytest.mark.parametrize(("words", "said"), [
    ([], "COMMAND"), (["jbo"], "invalid choice: 'jbo'"),
    (["job", "--memmory", "1"], "unrecognized arguments"), (["job", "a.toml", "b.toml"], "unrecognized"),
    (["job", "-q", "-v"], "not allowed with"),
])
def test_usage_errors_exit_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "--help" in told.err
    assert not told.out


def test_other_ranks_are_silent_and_leave_later(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    slept: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    for words, code in ((["job", "--wrong"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == code
    assert capsys.readouterr() == ("", "")
    assert slept == [cli.SILENT_RANK_DELAY_S]


def test_what_a_command_refuses_is_said_with_its_code(tmp_path: Path) -> None:
    done = check(run_job(["job"], n=0, cwd=tmp_path), 2)
    assert done.stdout == ""
    assert "neither ./job.toml nor ./job.py" in done.stderr
    assert "Traceback" not in done.stderr


@needs_launcher
@pytest.mark.launcher
def test_usage_errors_under_a_launcher_are_said_once(tmp_path: Path) -> None:
    done = check(run_job(["job", "--wrong"], n=3, cwd=tmp_path), 2)
    assert done.stderr.count("unrecognized arguments: --wrong") == 1


@needs_launcher
@pytest.mark.launcher
def test_refusals_under_a_launcher_are_said_once(tmp_path: Path) -> None:
    done = check(run_job(["job", "none.toml"], n=3, cwd=tmp_path), 2)
    assert done.stderr.count("there is no such job file") == 1
