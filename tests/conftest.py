"""Fixtures of all tests, and what keeps a run on several ranks from hanging.

A test marked ``mpi`` runs on all ranks. After it they meet at a barrier of this file's own communicator. A rank that failed waits
there for the others; if they do not come, it prints its failure and aborts the run. A test that takes longer than its limit has the
stacks of all threads printed on every rank, then the run is aborted: a hang becomes a message.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TEST_LIMIT_S = float(os.environ.get("HPCMR_TEST_LIMIT_S", "90"))
BARRIER_LIMIT_S = float(os.environ.get("HPCMR_TEST_BARRIER_S", "45"))
SIZES = (1, 2, 3, 4, 7)

os.environ.setdefault("HPCMR_STALL_S", "60")

_comm: Any = None                     # duplicate of COMM_WORLD where a launcher started us
_stderr = sys.__stderr__
_quiet: io.StringIO | None = None     # what ranks other than 0 print; shown only if they fail


def _launched() -> bool:
    """Whether a launcher started this process, on one rank or on many."""
    return any(os.environ.get(name, "").isdigit() for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Last, so that the terminal reporter is there."""
    global _comm, _stderr, _quiet
    _stderr = os.fdopen(os.dup(2), "w")        # output is not captured yet
    from hypothesis import HealthCheck, settings

    # Ranks must draw the same examples, and share no database file.
    settings.register_profile("hpcmr", derandomize=True, database=None, deadline=None, max_examples=50, print_blob=False,
                              suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    settings.load_profile("hpcmr")
    if _launched() and (config.getoption("--with-mpi") or config.getoption("--only-mpi")):
        from mpi4py import MPI

        _comm = MPI.COMM_WORLD.Dup()
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if _comm.rank and reporter is not None:
            _quiet = io.StringIO()
            reporter._tw._file = _quiet


def pytest_unconfigure(config: pytest.Config) -> None:
    if _comm is None:
        return
    if _quiet is not None and getattr(config, "_hpcmr_failed", False):
        print(f"\n--- rank {_comm.rank} of {_comm.size}\n{_quiet.getvalue()}", file=_stderr, flush=True)
    _meet("the end of the run", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under a launcher only tests marked ``mpi`` stay: the others would run N times over the same files."""
    if _comm is None:
        return
    config.hook.pytest_deselected(items=[i for i in items if "mpi" not in i.keywords])
    items[:] = [i for i in items if "mpi" in i.keywords]


class _Watch:
    """Prints all stacks when a test is late, and a little later ends this rank, and by that the run."""

    def __init__(self, item: pytest.Item) -> None:
        self.what = item.nodeid
        # What starts processes of its own has limits there, and may start many.
        self.limit_s = TEST_LIMIT_S * (5 if "launcher" in item.keywords else 1)
        self.late = threading.Timer(self.limit_s + 5, self._end)
        self.late.daemon = True

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(self.limit_s, file=_stderr)
        self.late.start()

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.late.cancel()

    def _end(self) -> None:
        _end_run(f"{self.what} takes longer than {self.limit_s:g} s")


def _end_run(why: str) -> None:
    rank = "" if _comm is None else f"rank {_comm.rank}: "
    print(f"\n{rank}{why}; ending the run", file=_stderr, flush=True)
    if _quiet is not None:
        print(_quiet.getvalue()[-4000:], file=_stderr, flush=True)
    time.sleep(1)
    if _comm is not None:
        _comm.Abort(1)
    os._exit(1)


def _meet(where: str, failure: str | None) -> None:
    """Barrier that gives up: ranks leave it together, or the run ends with this rank's failure in its last words."""
    request = _comm.Ibarrier()
    end = time.monotonic() + BARRIER_LIMIT_S
    pause = 1e-5
    while not request.Test():
        if time.monotonic() > end:
            faulthandler.dump_traceback(file=_stderr)
            _end_run(f"the others did not come to {where} within {BARRIER_LIMIT_S:g} s" + (f"; here it had failed:\n{failure}" if failure else ""))
        time.sleep(pause)
        pause = min(pause * 2, 0.005)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        item._hpcmr_failure = report.longreprtext      # type: ignore[attr-defined]
        item.config._hpcmr_failed = True               # type: ignore[attr-defined]
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    with _Watch(item):
        result = yield
        if _comm is not None and "mpi" in item.keywords:
            _meet(f"the end of {item.nodeid}", getattr(item, "_hpcmr_failure", None))
        return result


@pytest.fixture(scope="session")
def world() -> Any:
    """`hpcmr.comm.world.World` of all ranks; the serial one where there is no launcher."""
    from hpcmr.comm.world import World

    return World.of()


@pytest.fixture(params=SIZES, ids=lambda n: f"{n}-ranks")
def subworld(request: pytest.FixtureRequest, world: Any) -> Any:
    """A `World` of the first 1, 2, 3, 4 and 7 ranks in turn; ranks outside skip the test and wait at its end."""
    n = request.param
    if n > world.size:
        pytest.skip(f"needs {n} ranks, this run has {world.size}")
    if n == world.size:
        return world
    from hpcmr.comm.world import World

    part = _comm.Split(0 if world.rank < n else 1, world.rank)
    if world.rank >= n:
        pytest.skip(f"this rank is not among the first {n}")
    return World.of(part)


@pytest.fixture
def mpi_tmp_path(world: Any, tmp_path: Path) -> Path:
    """One temporary folder for all ranks: that of rank 0."""
    return Path(world.bcast(str(tmp_path)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_rank() -> Iterator[None]:
    """Libraries that start a thread per core would slow down ranks that share the cores."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    yield
