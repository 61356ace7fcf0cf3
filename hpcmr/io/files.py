"""From what a user names (files, folders, globs) to an ordered list of files with their sizes.

Only rank 0 comes here; the result is broadcast, so that all ranks see one listing, however the folder changes meanwhile.
Knows names and sizes only: what is inside the files is the format's business.
"""

from __future__ import annotations

import difflib
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from hpcmr.errors import InputError

PathLike = str | os.PathLike[str]

FOLDER_SUFFIXES = {"hdf5": (".h5", ".hdf5", ".hdf", ".he5", ".h5py", ".nc", ".nc4")}
"""Suffixes that are taken from a folder, by kind of input; a kind that is not here takes every file that is not hidden."""

_PLAIN = stat.S_IFREG | stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_PLAIN_MASK = 0o170000 | _PLAIN
"""Mode bits of a regular file that everybody may read: it is not asked about again, with 100,000 files that is a fifth of the time."""


class FileInfo(NamedTuple):
    """One file as the survey saw it: a different size or time later means that it was changed meanwhile."""

    path: str
    nbytes: int
    mtime_ns: int


def find_files(paths: PathLike | Sequence[PathLike], kind: str = "text") -> list[FileInfo]:
    """The files that `paths` stand for, in the order in which they are read.

    Parameters
    ----------
    paths : str, path or sequence of these
        Files, folders (searched with all folders below them) and globs (``*``, ``?``, ``[abc]``, ``**``). A name that exists is
        taken as it is even if it looks like a glob. ``~`` is the home folder.
    kind : str
        Kind of input, ``"text"`` or ``"hdf5"``: named in messages, and it chooses which files of a folder count.

    Returns
    -------
    list of FileInfo
        What a folder or a glob stands for is sorted by the bytes of the path; a list keeps its order, and a file that it names
        twice is there twice. Hidden files (``.name``) are left out unless they are named.

    Raises
    ------
    InputError
        Something named matches no file, is missing, is no regular file, or may not be read.

    Notes
    -----
    Collective: no. Cost: one ``stat`` and one ``access`` per file.
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not named:
        raise InputError(f"no {kind} input: the list of paths is empty")
    found: list[FileInfo] = []
    for item in named:
        found.extend(_expand(os.path.expanduser(os.fsdecode(item)), kind))
    return found


def _expand(path: str, kind: str) -> list[FileInfo]:
    if not path:
        raise InputError(f"no {kind} input: one of the paths is an empty string")
    try:
        info = os.stat(path)
    except OSError as error:
        if glob.has_magic(path) and isinstance(error, FileNotFoundError | NotADirectoryError):
            return _of_glob(path, kind)
        raise InputError(_missing(path, kind, error)) from None
    if stat.S_ISDIR(info.st_mode):
        return _of_folder(path, kind)
    return [_checked(path, info)]


def _of_glob(pattern: str, kind: str) -> list[FileInfo]:
    found = []
    for path in glob.iglob(pattern, recursive=True):
        try:
            info = os.stat(path)
        except OSError as error:
            raise InputError(_missing(path, kind, error)) from None
        if not stat.S_ISDIR(info.st_mode):
            found.append(_checked(path, info))
    if not found:
        raise InputError(f"no {kind} input matches {pattern!r} (looked in {os.path.abspath(_fixed_part(pattern))!r}); "
                         "a glob knows *, ?, [abc] and **, quote it so that the shell leaves it alone")
    return _in_order(found)


def _of_folder(folder: str, kind: str) -> list[FileInfo]:
    suffixes = FOLDER_SUFFIXES.get(kind)
    found = []
    for entry in _walk(folder, kind):
        if suffixes is not None and not entry.name.lower().endswith(suffixes):
            continue
        try:
            info = entry.stat()
        except OSError as error:
            raise InputError(_missing(entry.path, kind, error)) from None
        if info.st_mode & _PLAIN_MASK == _PLAIN:
            found.append(FileInfo(entry.path, info.st_size, info.st_mtime_ns))
        elif stat.S_ISREG(info.st_mode):
            found.append(_checked(entry.path, info))
    if not found:
        wanted = f" named {', '.join('*' + s for s in suffixes)}" if suffixes else ""
        raise InputError(f"no {kind} input: the folder {os.path.abspath(folder)!r} and those below it hold no file{wanted}")
    return _in_order(found)


def _walk(folder: str, kind: str) -> Iterator[os.DirEntry[str]]:
    """Entries below `folder` that are no folders and not hidden, in any order. A link to a folder is followed, never in a circle."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while waiting:
        here, above = waiting.pop()
        try:
            entries = os.scandir(here)
        except OSError as error:
            raise InputError(f"the folder {here!r} cannot be listed: {error.strerror}") from None
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield entry
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real not in above:
                    waiting.append((entry.path, (*above, real)))


def _checked(path: str, info: os.stat_result) -> FileInfo:
    if info.st_mode & _PLAIN_MASK == _PLAIN:
        return FileInfo(path, info.st_size, info.st_mtime_ns)
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path!r} is not a regular file; inputs are read in pieces and in any order, copy a pipe or device to a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path!r} may not be read by this user (mode {stat.filemode(info.st_mode)}, owner {info.st_uid})")
    return FileInfo(path, info.st_size, info.st_mtime_ns)


def _in_order(found: list[FileInfo]) -> list[FileInfo]:
    """Sorted by the bytes of the path; plain names are so without being encoded."""
    plain = all(info.path.isascii() for info in found)
    return sorted(found, key=itemgetter(0) if plain else lambda info: os.fsencode(info.path))


def _fixed_part(pattern: str) -> str:
    """The folder above the first component that holds a wildcard."""
    head = pattern
    while glob.has_magic(head):
        head = os.path.dirname(head)
    return head or "."


def _missing(path: str, kind: str, error: OSError) -> str:
    """Why there is no file of this name, with the nearest name in the same folder."""
    if os.path.islink(path):
        return f"{path!r} is a link to {os.readlink(path)!r}, which cannot be reached: {error.strerror}"
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{path!r} cannot be read: {error.strerror}"
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"no {kind} input {path!r}: there is no folder {os.path.abspath(folder)!r}"
    try:
        near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder)[:10000], n=1)
    except OSError:
        near = []
    hint = f" (did you mean {os.path.join(os.path.dirname(path), near[0])!r}?)" if near else ""
    return f"no {kind} input {path!r}: there is no such file in {os.path.abspath(folder)!r}{hint}"
