"""Storage that fails: chosen calls of `os` below a folder raise an error, or write less than they were asked to.

A *site* is a call of the system together with the lines of hpcmr that led to it. First the sites of some code are counted, then each
is failed in turn::

    sites = sites_of(folder, work)
    for fault in faults(sites):
        with Failing(folder, fault):
            work()
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = ("open", "write", "pwrite", "pwritev", "ftruncate", "fsync", "rename", "replace", "link", "mkdir", "unlink", "remove", "rmdir", "utime")
REMOVING = ("unlink", "remove", "rmdir", "utime")
WRITING = ("write", "pwrite", "pwritev")
SHORT = "short write"
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "ENOENT", SHORT, "EINTR")
FULL = ("ENOSPC", "EDQUOT")
"""Keep nothing from being removed."""
PASSING = ("ESTALE", "EINTR", SHORT)
"""Gone when they happen once: the call is made again."""
FRAMES = 4

Site = tuple[Any, ...]


@dataclass(frozen=True)
class Fault:
    """The `nth` call at `site` fails with `error`, and all writing calls after it where it is `lasting`."""

    site: Site
    nth: int
    error: str
    lasting: bool

    def __str__(self) -> str:
        where = " < ".join(f"{Path(f).stem}:{n}" for f, n in self.site[1:])
        return f"{self.error}{', lasting,' if self.lasting else ''} at call {self.nth} of {self.site[0]} ({where})"


class _Watch:
    """Stands before the calls of `os` that change something below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.counts: dict[Site, int] = {}
        self._fds: set[int] = set()
        self._lock = threading.RLock()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Any:
        real_close = os.close
        for name in CALLS:
            self._patches.enter_context(mock.patch.object(os, name, self._wrapped(name, getattr(os, name))))
        self._patches.enter_context(mock.patch.object(os, "close", lambda fd: (self._fds.discard(fd), real_close(fd))[1]))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                if not self._concerns(name, *args):
                    return real(*args, **options)
                site = (name, *_lines())
                self.counts[site] = self.counts.get(site, 0) + 1
                made = self.meet(site, name, real, args, options)
                if name == "open":
                    self._fds.add(made)
                return made

        return call

    def _concerns(self, name: str, first: Any, *rest: Any) -> bool:
        if isinstance(first, int):
            return first in self._fds
        if name == "open" and not rest[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            return False
        return os.fspath(first).startswith(self.folder)

    def meet(self, site: Site, name: str, real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return real(*args, **options)


def _lines() -> tuple[tuple[str, int], ...]:
    """Lines of hpcmr that led here, the innermost first."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < FRAMES:
        name = frame.f_code.co_filename
        if f"{os.sep}hpcmr{os.sep}" in name and frame.f_code.co_name != "retried":
            found.append((name, frame.f_lineno))
        frame = frame.f_back      # type: ignore[assignment]
    return tuple(found)


class Failing(_Watch):
    """Makes one fault happen; `happened` counts how often."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        super().__init__(folder)
        self.fault, self.happened = fault, 0

    def meet(self, site: Site, name: str, real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        fault = self.fault
        now = site == fault.site and self.counts[site] == fault.nth
        later = fault.lasting and self.happened > 0 and (name not in REMOVING or fault.error not in FULL)
        if not now and not later:
            return real(*args, **options)
        if fault.error == SHORT:
            if name not in WRITING:
                return real(*args, **options)
            self.happened += 1
            return _short(real, args)
        self.happened += 1
        code = getattr(errno, fault.error)
        raise OSError(code, os.strerror(code), *(a for a in args[:1] if isinstance(a, str | os.PathLike)))


def _short(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """About half of what was to be written, one byte at least."""
    fd, data, *rest = args
    if isinstance(data, list | tuple):
        data = [data[0]] if len(data) > 1 else [memoryview(data[0])[:max(1, len(data[0]) // 2)]]
        return real(fd, data, *rest)
    return real(fd, memoryview(data)[:max(1, len(data) // 2)], *rest)


def sites_of(folder: Path, work: Callable[[], Any]) -> dict[Site, int]:
    """How often `work` calls the system at each site."""
    with _Watch(folder) as watch:
        work()
    return dict(watch.counts)


def faults(sites: dict[Site, int], errors: Sequence[str] = ERRORS, every: bool = True) -> Iterator[Fault]:
    """Each error, once and lasting, at the first and at the last call of each site; short writes only where something is written.

    Without `every`: once at the last call, lasting from the first one on.
    """
    for site, count in sites.items():
        for error in errors:
            if error == SHORT and site[0] not in WRITING:
                continue
            if every:
                yield from (Fault(site, nth, error, lasting) for nth in sorted({1, count}) for lasting in (False, True))
            else:
                yield Fault(site, count, error, False)
                yield Fault(site, 1, error, True)
