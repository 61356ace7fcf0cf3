"""A process that stops dead between two file operations, whatever it would have cleaned up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = ("open", "write", "pwrite", "pwritev", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "chmod", "fchmod")


class Stopped(BaseException):
    """The process is no more."""


class Stop:
    """From the `at`-th operation on, none is done; None: all are, and counted."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count, self.last = at, 0, ""
        self._patches = [mock.patch.object(os, name, self._watched(name, getattr(os, name))) for name in CALLS]

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            if self.at is not None and self.count >= self.at:
                raise Stopped
            self.count, self.last = self.count + 1, f"{name} {args[0]}"
            return real(*args, **options)

        return call

    def __enter__(self) -> Stop:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for patch in self._patches:
            patch.stop()
        return kind is Stopped


def every_stop(folder: Path, begin: Callable[[Path], Any], work: Callable[[Path, Any], None]) -> Iterator[tuple[Path, str]]:
    """A new folder for each operation of `work`, left as it is when the process stops before it; and where nothing stops it.

    `begin` prepares a folder, undisturbed; what it returns is given to `work`.
    """
    at = 0
    while True:
        place = folder / str(at)
        place.mkdir()
        given = begin(place)
        with Stop(at) as stop:
            work(place, given)
        yield place, f"stopped after {stop.count} operations, the last one {stop.last}"
        if stop.count < at:
            return
        at += 1
