"""Ranks that kill themselves where a test wants them to; imported by the job of a test, and by nothing else.

``DEATHS`` in the environment lists who dies where: ``reading:0``, ``exchange@3:1+2`` (ranks 1 and 2, each when it is there for the third
time), ``time@0.31:2`` (0.31 s after `arm`). Ranks are those of the launcher. The signal is SIGKILL: nothing of the process gets to say
goodbye. ``DEATHS_LOG`` names a file that gets a line with the time for each death, and for the first work of each rank after one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

ME = int(os.environ.get("OMPI_COMM_WORLD_RANK", "-1"))
_due: dict[str, int] = {}
_count: dict[str, int] = {}
_idle = [False]


def die() -> None:
    _note("died")
    os.kill(os.getpid(), signal.SIGKILL)


def here(place: str) -> None:
    """This rank is at `place`, and dies if that is what it was told."""
    _count[place] = _count.get(place, 0) + 1
    if _due.get(place) == _count[place]:
        die()
    if place == "reading" and _idle[0]:
        _idle[0] = False
        _note("works")


def arm() -> None:
    """Read `DEATHS`, and look at the places that it names; once in a process."""
    words = os.environ.get("DEATHS", "").split()
    for word in words:
        place, _, ranks = word.partition(":")
        name, _, when = place.partition("@")
        if ME not in map(int, ranks.split("+")):
            continue
        if name == "time":
            killer = threading.Timer(float(when), die)
            killer.daemon = True
            killer.start()
        else:
            _due[name] = int(when or 1)
    if words:
        _patch()


def _note(what: str) -> None:
    path = os.environ.get("DEATHS_LOG")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{time.time():.6f} {what} {ME}\n".encode())
        os.close(fd)


def _patch() -> None:
    from hpcmr.comm import recovery
    from hpcmr.comm.mpi_world import MpiWorld
    from hpcmr.run.checkpoint import Checkpointer
    from hpcmr.run.session import Session
    from hpcmr.run.shelf import Shelf
    from hpcmr.store import publish, writer

    _wrap(MpiWorld, "testsome", "exchange", lambda args: "exchange" in args)
    _wrap(Shelf, "end", "merge")
    _wrap(Checkpointer, "_write", "checkpoint")
    _wrap(writer.TableWriter, "close", "output")
    _wrap(publish, "_appear", "publish")
    _wrap(recovery, "_shrink", "shrink")
    _wrap(recovery, "_world_over", "new-world")
    _wrap(Session, "report", "tell")
    recover = recovery.recover

    def recovered(*args: Any) -> Any:
        _idle[0] = True
        return recover(*args)

    recovery.recover = recovered


def _wrap(owner: Any, name: str, place: str, applies: Callable[[tuple[Any, ...]], bool] = lambda args: True) -> None:
    """`owner.name` is `place` from here on."""
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if applies(args):
            here(place)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)
