"""Opening HDF5 files and finding objects in them, link by link, so that no file pulls in another one unasked.

HDF5 itself follows external links silently, to any file of the machine, and gives fill values where a source of a virtual data set is
missing. Here a path is walked component by component; another file must lie in the folder of the file that names it, below it, or in a
folder that the user listed with ``follow=``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import h5py
from h5py import h5d, h5g, h5l, h5o

from hpcmr.errors import InputError
from hpcmr.io.hdf5_layout import FileRef

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LINKS_MAX = 32
"""Links that may follow one another: a circle ends here."""
OPEN_MAX = 64
"""Files that are open at a time."""
LISTED_MAX = 12
"""Data sets that a message names."""


class Opened(NamedTuple):
    """A file that is open. `path` is as it was named, `folder` where its links start from."""

    path: str
    folder: str
    file: h5py.File
    ref: FileRef


class Place(NamedTuple):
    """A group or data set that was found, and its path in the file in which it lies."""

    opened: Opened
    id: Any
    name: str

    @property
    def is_group(self) -> bool:
        return isinstance(self.id, h5g.GroupID)

    def __str__(self) -> str:
        return f"{self.name!r} of {self.opened.path!r}"


class Missing(Exception):
    """There is no object of a name; the text is its path."""


class Links:
    """Files that are open, and where links may lead.

    Parameters
    ----------
    follow : iterable of str
        Folders that files may refer to, beside their own.
    """

    def __init__(self, follow: Iterable[str] = ()) -> None:
        self.follow = [os.path.realpath(os.path.expanduser(f)) for f in follow]
        self._open: dict[str, Opened] = {}

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].file.close()

    def open(self, path: str) -> Opened:
        """The file of this path, read-only and without a lock. Raises `InputError`."""
        if path in self._open:
            self._open[path] = opened = self._open.pop(path)
            return opened
        file, info = open_file(path)
        opened = Opened(path, os.path.dirname(os.path.realpath(path)), file, FileRef(path, info.st_size, info.st_mtime_ns))
        self._open[path] = opened
        return opened

    def trim(self) -> None:
        """Close the files that were used longest ago; between two inputs, when nothing in them is in use."""
        while len(self._open) > OPEN_MAX:
            self._open.pop(next(iter(self._open))).file.close()

    def beside(self, opened: Opened, name: str, why: str) -> Opened:
        """The file that `opened` calls `name`, open; `why` says where, for messages. Raises `InputError`."""
        return opened if name in ("", ".") else self.open(self.locate(opened, name, why))

    def locate(self, opened: Opened, name: str, why: str) -> str:
        """Path of the file that `opened` calls `name`: there, and where it may lie. Raises `InputError`."""
        first, found = self._allowed(opened, name, why)
        if not found:
            raise InputError(f"{why} leads to {first!r}, and there is no such file; put it there, its rows would be missing")
        return first

    def _allowed(self, opened: Opened, name: str, why: str) -> tuple[str, bool]:
        """Where `name` leads to, and whether there is a regular file; `InputError` if it leads outside."""
        if "\0" in name:
            raise InputError(f"{why} leads to {name!r}, which is no name of a file")
        tried = [os.path.join(opened.folder, name)]
        named_folder = os.path.dirname(os.path.abspath(opened.path))
        if named_folder != opened.folder:
            tried.append(os.path.join(named_folder, name))
        if os.path.isabs(name):
            tried.append(os.path.join(opened.folder, os.path.basename(name)))     # as HDF5 does for a file that was moved with its master
        found = next((os.path.normpath(p) for p in tried if os.path.isfile(p)), None)
        allowed = [opened.folder, os.path.realpath(named_folder), *self.follow]
        first = found or os.path.normpath(tried[0])
        if not any(_is_below(os.path.realpath(first), folder) for folder in allowed):
            raise InputError(f"{why} leads to {first!r}, outside the folder {opened.folder!r}; "
                             f"if that is meant, allow it with follow=[{os.path.dirname(os.path.realpath(first))!r}]")
        return first, found is not None

    def find(self, opened: Opened, path: str, depth: int = 0) -> Place:
        """The object that `path`, from the root of the file, stands for. Raises `Missing`, and `InputError` for links that lead nowhere."""
        parts = deque(_parts(path.encode("utf-8", "surrogateescape")))
        return self._walk(Place(opened, opened.file["/"].id, "/"), parts, depth)

    def child(self, group: Place, name: str) -> Place:
        """The object that the link `name` of a group stands for."""
        return self._walk(group, deque([name.encode("utf-8", "surrogateescape")]), 0)

    def _walk(self, at: Place, parts: deque[bytes], depth: int) -> Place:
        """Each link moves on by one component, and only soft and external ones put new components in: at most `LINKS_MAX` of them."""
        while parts:
            part = parts.popleft()
            shown = f"{at.name.rstrip('/')}/{part.decode('utf-8', 'surrogateescape')}"
            if not at.is_group:
                raise InputError(f"{at} is a data set, not a group: there is no {shown!r} in it")
            if not at.id.links.exists(part):
                raise Missing(shown)
            kind = at.id.links.get_info(part).type
            if kind == h5l.TYPE_HARD:
                at = Place(at.opened, h5o.open(at.id, part), shown)
                self._check_sources(at)
                continue
            if kind not in (h5l.TYPE_SOFT, h5l.TYPE_EXTERNAL):
                raise InputError(f"{shown!r} of {at.opened.path!r} is a link of a kind that hpcmr does not follow")
            depth += 1
            link = f"the link {shown!r} of {at.opened.path!r}"
            if depth > LINKS_MAX:
                raise InputError(f"{link} is one of more than {LINKS_MAX} links that lead to one another, perhaps in a circle")
            at = self._follow(at, part, kind, link, depth)
        return at

    def _check_sources(self, place: Place) -> None:
        """HDF5 opens the sources of a virtual data set without end when it is asked for its shape: they may lie nowhere else either."""
        if not is_virtual(place.id):
            return
        plist = place.id.get_create_plist()
        names = {os.fsdecode(plist.get_virtual_filename(i)) for i in range(plist.get_virtual_count())}
        for name in sorted(names - {"", "."}):
            self._allowed(place.opened, numbered(name, 0), f"the virtual data set {place}")

    def _follow(self, at: Place, part: bytes, kind: int, link: str, depth: int) -> Place:
        value = at.id.links.get_val(part)
        opened, start = at.opened, at
        if kind == h5l.TYPE_EXTERNAL:
            opened = self.beside(at.opened, os.fsdecode(value[0]), link)
            value = value[1]
        if kind == h5l.TYPE_EXTERNAL or value.startswith(b"/"):
            start = Place(opened, opened.file["/"].id, "/")
        try:
            return self._walk(start, deque(_parts(value)), depth)
        except Missing as error:
            raise InputError(f"{link} leads to {str(error)!r}, which is not in {opened.path!r}; its rows would be missing") from None


def is_virtual(item: Any) -> bool:
    return isinstance(item, h5d.DatasetID) and bool(item.get_create_plist().get_layout() == h5d.VIRTUAL)


def numbered(pattern: str, block: int) -> str:
    """The name that a virtual data set means for its block of this number: ``%b`` stands for it, ``%%`` for a percent sign."""
    return re.sub(r"%[%b]", lambda m: "%" if m[0] == "%%" else str(block), pattern)


def _parts(path: bytes) -> list[bytes]:
    return [p for p in path.split(b"/") if p not in (b"", b".")]


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def open_file(path: str) -> tuple[h5py.File, os.stat_result]:
    """An HDF5 file, or an `InputError` that says what is wrong with it."""
    try:
        info = os.stat(path)
        with open(path, "rb") as plain:
            head = plain.read(8)
            is_hdf5 = head == SIGNATURE or _has_late_signature(plain, info.st_size)
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from None
    if info.st_size == 0:
        raise InputError(f"{path!r} is empty (0 bytes), not an HDF5 file; was it being written, or was the disk full?")
    if not is_hdf5:
        raise InputError(f"{path!r} is not an HDF5 file: it begins with {head!r}; for text use read_text, or format = \"text\" in a job file")
    try:
        return h5py.File(path, "r", locking=False), info
    except OSError as error:
        reason = str(error)
    if "truncated" in reason or "eof" in reason.lower():
        stored = re.search(r"stored_eof = (\d+)", reason)
        size = f", its header says {int(stored[1]):,}" if stored else ""
        raise InputError(f"{path!r} is truncated: it has {info.st_size:,} bytes{size}; copy or write it again")
    hint = "; it is being written, or its writer died: see h5clear" if "already open for" in reason else "; it is damaged, copy or write it again"
    raise InputError(f"{path!r} cannot be opened as HDF5: {reason}{hint}")


def _has_late_signature(plain: Any, size: int) -> bool:
    """Whether a user block of 512, 1024, ... bytes stands before the signature."""
    at = 512
    while at + 8 <= size:
        plain.seek(at)
        if plain.read(8) == SIGNATURE:
            return True
        at *= 2
    return False


def data_sets(opened: Opened) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Paths and shapes (None: virtual) of the data sets of a file, without following a link to another place."""
    waiting = [("", opened.file["/"].id)]
    seen = 0
    while waiting:
        base, group = waiting.pop(0)
        for name in group:
            seen += 1
            if seen > 10_000:
                return
            if group.links.get_info(name).type != h5l.TYPE_HARD:
                continue
            path = f"{base}/{name.decode('utf-8', 'surrogateescape')}"
            item = h5o.open(group, name)
            if isinstance(item, h5g.GroupID) and base.count("/") < 20:
                waiting.append((path, item))
            elif isinstance(item, h5d.DatasetID):
                yield path, (None if is_virtual(item) else item.shape or ())


def not_found(opened: Opened, path: str) -> InputError:
    """What to say where there is no `path`: the data sets that there are, and the nearest name."""
    found = list(data_sets(opened))
    shown = [f"{p} {'(virtual)' if s is None else 'x'.join(map(str, s)) or '(no rows)'}" for p, s in found[:LISTED_MAX]]
    more = f" and {len(found) - LISTED_MAX:,} more" if len(found) > LISTED_MAX else ""
    groups = {p.rpartition("/")[0] or "/" for p, _ in found}
    names = {p.lower(): p for p in [*(p for p, _ in found), *sorted(groups)]}
    near = [names[n] for n in difflib.get_close_matches(f"/{path.strip('/')}".lower(), list(names), n=1)]
    there = f"its data sets are {', '.join(shown)}{more}" if found else "it holds no data set"
    return InputError(f"there is no group or data set {path!r} in {opened.path!r}; {there}" + (f" (did you mean {near[0]!r}?)" if near else ""))
