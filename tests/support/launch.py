"""Run hpcmr as a user does, in processes of its own, from a test that is no rank itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import mpirun

ROOT = Path(__file__).resolve().parents[2]


def has_launcher() -> bool:
    """Whether there is an mpirun for the interpreter that runs the tests."""
    try:
        mpirun.find_mpirun(sys.executable)
    except FileNotFoundError:
        return False
    return True


def needs_launcher(test: Any) -> Any:
    """Mark a test, or all of a class, as one that starts mpirun; it is skipped where there is none."""
    return pytest.mark.launcher(pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")(test))


def run_ranks(args: Sequence[str | os.PathLike[str]], n: int = 3, timeout_s: float = 60, cwd: Path | None = None,
              env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python args...`` on `n` ranks; `n` = 0 means without a launcher.

    Output is taken from files, not from pipes: a process that outlives its launcher cannot keep us waiting. When `timeout_s` passes, the
    stacks of all ranks are printed and the test fails.
    """
    words = [os.fspath(a) for a in args]
    line, extra = mpirun.command(sys.executable, n, words) if n else ([sys.executable, *words], {})
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = mpirun.clean_env({**extra, "HPCMR_STALL_S": str(timeout_s), **(env or {})})
    environment["PYTHONPATH"] = os.pathsep.join([str(mpirun.SITE), paths])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=environment)
        late = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = True
            mpirun.print_stacks(process.pid)
        finally:
            if process.poll() is None:
                mpirun.end(process)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            with contextlib.suppress(UnicodeDecodeError):
                texts.append(stream.read())
    if late:
        pytest.fail(f"{' '.join(line)} did not end within {timeout_s:g} s\n--- stdout\n{texts[0]}\n--- stderr\n{texts[1]}", pytrace=False)
    return subprocess.CompletedProcess(line, process.returncode, *texts)


def run_job(args: Sequence[str | os.PathLike[str]], n: int = 3, timeout_s: float = 60, cwd: Path | None = None,
            env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m hpcmr args...`` on `n` ranks of the interpreter and the MPI that run the tests; `n` = 0: without a launcher."""
    return run_ranks(["-m", "hpcmr", *args], n, timeout_s, cwd, env)


def check(done: subprocess.CompletedProcess[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """`done`, after asserting its exit code with all of its output in the message."""
    assert done.returncode == code, f"exit code {done.returncode}, not {code}: {' '.join(map(str, done.args))}\n{done.stdout}\n{done.stderr}"
    return done
