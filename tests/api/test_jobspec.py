"""Finding the job, loading the user's code, naming the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmr.api.jobspec import default_run_dir, find_spec, load_function, load_job
from hpcmr.errors import JobSpecError


@pytest.fixture(autouse=True)
def _unspoilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules and paths that a test's job brings along are forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_job_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match=r"neither \./job.toml nor \./job.py"):
        find_spec(None)
    (tmp_path / "job.py").touch()
    assert find_spec(None) == Path("job.py")
    (tmp_path / "job.toml").touch()
    assert find_spec(None) == Path("job.toml")


def test_what_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "data.h5").touch()
    with pytest.raises(JobSpecError, match=r"a \.toml job file or a \.py file"):
        find_spec("data.h5")
    with pytest.raises(JobSpecError, match="no such job file"):
        find_spec("none.toml")


def test_the_same_command_finds_its_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = default_run_dir(Path("job.py"), "job", ["a=1", "b=2"])
    assert one == default_run_dir(tmp_path / "job.py", "job", ["b=2", "a=1"])
    assert one.parent == Path("hpcmr-runs")
    assert one.name.startswith("job-")
    assert one != default_run_dir(Path("job.py"), "job", ["a=1"])
    assert one != default_run_dir(Path("other.py"), "job", ["a=1", "b=2"])


def test_load_a_job(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_job.py").write_text("X = 7\n")
    (tmp_path / "my_job.py").write_text("import neighbour_of_job\ndef job(ctx): return neighbour_of_job.X\n")
    assert load_job(Path("my_job.py"))(None) == 7


def test_a_job_named_like_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def job(ctx): return 1\n")
    assert load_job(Path("json.py"))(None) == 1
    import json

    assert json.dumps(1) == "1"


def test_no_job_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "nothing_here.py").write_text("def run(ctx): ...\n")
    with pytest.raises(JobSpecError, match=r"defines no function job\(ctx\)"):
        load_job(Path("nothing_here.py"))


def test_errors_of_the_module_pass(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_job(Path("breaks.py"))


def test_functions_of_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "my_functions.py").write_text("def f(x): return x\nN = 1\n")
    one = load_function("my_functions.py:f", tmp_path)
    assert one(3) == 3
    assert load_function("my_functions:f", tmp_path) is one
    assert load_function("os.path:join", tmp_path)("a", "b") == "a/b"
    for name, said in (("my_functions.py:g", "there are f"), ("none.py:f", "no file"), ("no_such_module:f", "no module 'no_such_module'"),
                       ("my_functions.py:N", "not a function"), ("my_functions.py:", "names no function")):
        with pytest.raises(JobSpecError, match=said):
            load_function(name, tmp_path)
