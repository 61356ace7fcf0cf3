"""Whatever goes wrong: one clear message with what, where and what to do, the right exit code, no output, no temporary file.

Each case runs on three ranks through the launcher of the MPI at hand.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support import data
from tests.support.launch import needs_launcher, run_job

TABLE = "import hpcmr as mr\n\ndef job(ctx):\n    t = mr.read_hdf5(ctx.params['input'], '/events')\n    {}\n"
TEXT = "import hpcmr as mr\n\ndef job(ctx):\n    t = mr.read_text(ctx.params['input'])\n    {}\n"
SUM = "t.group_by('key').agg(mr.sum('value')).write_hdf5(ctx.output('out'))"
WRITE = ".write_hdf5(ctx.output('out'))"


@dataclass(frozen=True)
class Case:
    """What to make in an empty folder, the job, and what must be said."""

    name: str
    job: str
    make: Callable[[Path], None]
    code: int
    said: tuple[str, ...]
    settings: tuple[str, ...] = ("input=in.h5",)
    options: tuple[str, ...] = ()


def nothing(folder: Path) -> None:
    """No input at all."""


def columns(**arrays: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with h5py.File(folder / "in.h5", "w") as file:
            for name, values in arrays.items():
                file[f"events/{name}"] = values
    return make


EVENTS = columns(key=np.arange(1000) % 7, value=np.arange(1000) * 0.1)


def text(folder: Path) -> None:
    (folder / "in.txt").write_text("".join(f"line {i}\n" for i in range(1000)))


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "in.h5").write_bytes(content) and None


def truncated(folder: Path) -> None:
    data.write_events(folder / "in.h5", n=20_000)
    whole = (folder / "in.h5").read_bytes()
    (folder / "in.h5").write_bytes(whole[:len(whole) // 2])


def dangling(folder: Path) -> None:
    (folder / "in.h5").symlink_to(folder / "gone.h5")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "in.h5")


def two_schemas(folder: Path) -> None:
    EVENTS(folder)
    (folder / "in.h5").rename(folder / "a.h5")
    columns(key=np.arange(10), value=np.arange(10))(folder)
    (folder / "in.h5").rename(folder / "b.h5")


def map_text(function: str) -> str:
    return TEXT.format(f"t.map(f){WRITE}") + function


CASES = [
    Case("no-input", TABLE.format(SUM), nothing, 2, ("nothing*.h5",), ("input=nothing*.h5",)),
    Case("missing-file", TABLE.format(SUM), nothing, 2, ("in.h5",)),
    Case("dangling-link", TABLE.format(SUM), dangling, 2, ("in.h5",)),
    Case("pipe", TABLE.format(SUM), pipe, 2, ("in.h5", "regular file")),
    Case("empty-file", TABLE.format(SUM), raw(b""), 2, ("in.h5", "empty")),
    Case("not-hdf5", TABLE.format(SUM), raw(b"no HDF5 file\n" * 100), 2, ("in.h5", "HDF5")),
    Case("truncated", TABLE.format(SUM), truncated, 2, ("in.h5", "truncated")),
    Case("missing-group", TABLE.format(SUM).replace("/events", "/particles"), EVENTS, 2, ("in.h5", "particles", "events")),
    Case("missing-data-set", TABLE.format(SUM).replace("'/events'", "'/events', columns=['key', 'vaule']"), EVENTS, 2, ("in.h5", "vaule", "value")),
    Case("unequal-length", TABLE.format(SUM), columns(key=np.arange(10), value=np.arange(9.0)), 2, ("in.h5", "10", "9")),
    Case("unequal-schema", TABLE.format(SUM), two_schemas, 2, ("a.h5", "b.h5", "value"), ("input=*.h5",)),
    Case("unknown-column", TABLE.format(SUM.replace("'value'", "'valeu'")), EVENTS, 2, ("valeu", "value")),
    Case("unsupported-dtype", TABLE.format(SUM), columns(key=np.arange(4), value=np.zeros(4, np.longdouble)), 2, ("value", "float128")),
    Case("key-of-two-types",
         TEXT.format(f"t.map(f).group_by('key').agg(mr.count()){WRITE}") + "def f(line):\n    return (1 if line < 'line 5' else 'x', 1)\n",
         text, 1, ("in.txt", "f"), ("input=in.txt",)),
    Case("raises", map_text("def f(line):\n    if line == 'line 700':\n        raise ValueError('I do not like it')\n    return line\n"),
         text, 1, ("I do not like it", "ValueError", "in.txt", "700", "job.py"), ("input=in.txt",)),
    Case("wrong-number-of-rows", TABLE.format(f"t.map(f){WRITE}") + "@mr.batch\ndef f(cols):\n    return {'x': cols['key'][1:]}\n",
         EVENTS, 1, ("f", "rows")),
    Case("wrong-shape", TABLE.format(f"t.filter(f){WRITE}") + "@mr.batch\ndef f(cols):\n    return cols['key'][:, None] > 1\n",
         EVENTS, 1, ("f", "shape")),
    Case("kernel-does-not-compile",
         TABLE.format(f"t.flat_map(f){WRITE}") + "@mr.kernel(out={'x': 'int64'})\ndef f(row, emit):\n    emit(open('x').read())\n",
         EVENTS, 2, ("job.py", "line 8", "plain Python")),
    Case("memory-too-small", TABLE.format(SUM), EVENTS, 2, ("memory",), options=("--memory", "1KB")),
    Case("output-below-a-file", TABLE.format(SUM), EVENTS, 2, ("in.h5/out",), ("input=in.h5", "output.out=in.h5/out")),
    Case("no-job-function", "x = 1\n", nothing, 2, ("job.py", "job(ctx)")),
    Case("syntax-error", "def job(ctx)\n    pass\n", nothing, 1, ("SyntaxError", "job.py")),
    Case("missing-parameter", TABLE.format(SUM), nothing, 2, ("--set input",), ()),
    Case("two-outputs-one-path", TABLE.format(SUM + "; t.write_hdf5(ctx.output('other'))"), EVENTS, 2, ("'out'", "'other'"),
         ("input=in.h5", "output.path=x")),
]

TOML = '[input]\npaths = "in.txt"\n[map]\nfunction = "words"\n[reduce]\nfunction = "sum"\n[output]\npath = "out"\n'
TOML_CASES = [
    ("no-toml", TOML + "path = \n", ("job.toml:9", "TOML")),
    ("unknown-key", TOML.replace("paths", "pahts"), ("job.toml:2", "pahts", "paths")),
    ("unknown-table", TOML.replace("[reduce]", "[redcue]"), ("job.toml:5", "redcue", "reduce")),
    ("wrong-type", TOML.replace('"words"', "3"), ("job.toml:4", "function")),
    ("missing-key", TOML.replace('function = "sum"', ""), ("job.toml:5", "function")),
    ("unknown-mapper", TOML.replace('"words"', '"wrods"'), ("job.toml:4", "wrods", "words")),
    ("missing-function", TOML.replace('"words"', '"mine.py:f"'), ("mine.py",)),
]


def expect(folder: Path, args: list[str], code: int, said: tuple[str, ...], n: int = 3) -> str:
    """Run, and check exit code, message, and that nothing is left."""
    before = {p for p in folder.rglob("*") if "hpcmr-runs" not in p.parts}
    done = run_job(args, n=n, cwd=folder, timeout_s=60)
    assert done.returncode == code, f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    lines = done.stderr.splitlines()
    text = done.stderr
    for words in said:
        assert words in text, f"{words!r} is not said:\n{text}"
    spoken = [line for line in lines if line.startswith("hpcmr job: ") or line.startswith("hpcmr: ")]
    assert len(spoken) <= 1, f"said more than once:\n{text}"
    if code == 2:
        assert "Traceback" not in text, text
    assert text.count("Traceback (most recent call last)") <= 1, f"more than one traceback:\n{text}"
    left = {p for p in folder.rglob("*") if "hpcmr-runs" not in p.parts and "__pycache__" not in p.parts} - before
    assert not left, f"left behind: {left}"
    assert not [p for p in folder.rglob("hpcmr-runs/**/*") if p.suffix in (".h5", ".tmp") or p.name == "manifest.json"]
    assert not done.stdout.strip(), done.stdout
    return text


@needs_launcher
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_error(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path)
    (tmp_path / "job.py").write_text(case.job)
    pairs = [word for s in case.settings for word in ("--set", s)]
    expect(tmp_path, ["job", "job.py", *pairs, *case.options], case.code, case.said)


@needs_launcher
@pytest.mark.parametrize(("name", "toml", "said"), TOML_CASES, ids=[c[0] for c in TOML_CASES])
def test_error_in_job_file(name: str, toml: str, said: tuple[str, ...], tmp_path: Path) -> None:
    text(tmp_path)
    (tmp_path / "job.toml").write_text(toml)
    expect(tmp_path, ["job", "job.toml"], 2, said, n=2)


@needs_launcher
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    EVENTS(tmp_path)
    (tmp_path / "in.h5").chmod(0)
    (tmp_path / "job.py").write_text(TABLE.format(SUM))
    expect(tmp_path, ["job", "job.py", "--set", "input=in.h5"], 2, ("in.h5", "ermission"))


@needs_launcher
def test_error_without_a_launcher(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(TABLE.format(SUM))
    expect(tmp_path, ["job", "job.py", "--set", "input=in.h5"], 2, ("in.h5",), n=0)


@needs_launcher
def test_one_rank_of_many_splits_fails(tmp_path: Path) -> None:
    """A file of several splits, and one row that the function does not take: all ranks end, with one report that names the split."""
    values = np.ones(8_000_000)
    values[5_000_000] = -1.0
    columns(key=np.zeros(len(values), np.int64), value=values)(tmp_path)
    function = "@mr.batch\ndef f(cols):\n    if (cols['value'] < 0).any():\n        raise ValueError('below zero')\n    return {'x': cols['value']}\n"
    (tmp_path / "job.py").write_text(TABLE.format(f"t.map(f){WRITE}") + function)
    began = time.monotonic()
    said = expect(tmp_path, ["job", "job.py", "--set", "input=in.h5"], 1, ("ValueError: below zero", "in.h5", "job.py", "f"))
    assert "rank" in said
    assert time.monotonic() - began < 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@needs_launcher
@pytest.mark.disk_full
def test_disk_full_while_writing(tmp_path: Path, small_disk: Path) -> None:
    columns(key=np.arange(1_000_000), value=np.arange(1e6))(tmp_path)
    (tmp_path / "job.py").write_text(TABLE.format(SUM))
    done = run_job(["job", "job.py", "--set", "input=in.h5", "--set", f"output.out={small_disk}/out"], n=3, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "No space left" in done.stderr
    assert str(small_disk) in done.stderr
    assert not list(small_disk.iterdir()), "temporary files are left"


@needs_launcher
@pytest.mark.disk_full
def test_output_on_a_read_only_disk(tmp_path: Path, small_disk: Path) -> None:
    EVENTS(tmp_path)
    (tmp_path / "job.py").write_text(TABLE.format(SUM))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    expect(tmp_path, ["job", "job.py", "--set", "input=in.h5", "--set", f"output.out={small_disk}/out"], 2, (str(small_disk), "ead-only"))


@needs_launcher
def test_text_that_is_no_text_is_data(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xff\xfe a\0b\n\n\r\nno end")
    (tmp_path / "job.toml").write_text(TOML)
    done = run_job(["job", "job.toml"], n=3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = run_job(["cat", "out", "--format", "jsonl"], n=0, cwd=tmp_path).stdout
    assert r'"\udcff\udcfe"' in rows
    assert len(rows.splitlines()) == 4
