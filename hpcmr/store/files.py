"""Plain file calls that either do all they were asked to, or raise a `StorageError` that names the path and says what is safe.

Nothing here knows what is in a file. Files are made 0600 and folders 0700.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.errors import StorageError

Bytes = NDArray[np.uint8]
MOVE_NBYTES = 8 << 20
READ_NBYTES = 4 << 20
"""Bytes per read call: 350 MiB read into fresh memory at once took 0.40 s, in pieces of 1 to 8 MiB 0.10 s."""

_SAFE = "nothing was published, and an earlier output is as it was"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose an output path on another file system",
    errno.EDQUOT: "your quota is used up: free some space, or choose an output path on another file system",
    errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file this large",
    errno.EROFS: "the file system is read-only: choose another output path",
    errno.EACCES: "choose an output path that you may write to",
    errno.EPERM: "choose an output path that you may write to",
    errno.ENOENT: "a folder has vanished while it was in use",
    errno.EIO: "the device reported an error: look at the system's log before trying again",
}


def storage_error(error: OSError, path: Path | str, what: str = "write", safe: str = _SAFE) -> StorageError:
    """The `StorageError` that tells of `error`: what, where, what is safe, what to do."""
    advice = _ADVICE.get(error.errno or 0)
    return StorageError(f"cannot {what} {str(path)!r}: {error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'no number')}); {safe}"
                        + (f"; {advice}" if advice else ""))


@contextlib.contextmanager
def storing(path: Path | str, what: str = "write", safe: str = _SAFE) -> Iterator[None]:
    """Turn every `OSError` of the body into a `StorageError` about `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, what, safe) from error


def make_folder(path: Path) -> None:
    """Make a private folder (and its parents as the user's umask says) unless it is there. Several ranks may do so at once."""
    with storing(path, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def open_new(path: Path) -> int:
    """Descriptor of a new private file; that it exists already is an error."""
    with storing(path, "create"):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)


def write_at(fd: int, parts: Sequence[Any], offset: int, path: Path) -> None:
    """Write the byte buffers `parts` one after the other from `offset` on, however many calls the system makes of it."""
    left = [memoryview(p) for p in parts if len(p)]
    with storing(path):
        while left:
            done = os.pwritev(fd, left, offset) if len(left) > 1 else os.pwrite(fd, left[0], offset)
            if done <= 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            offset += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]


def read_at(fd: int, out: Bytes, offset: int) -> int:
    """Fill `out` from `offset` on; return the number of bytes got, which is smaller only at the end of the file."""
    view, got = memoryview(out.data), 0
    while got < len(view):
        n = os.preadv(fd, [view[got:got + READ_NBYTES]], offset + got)
        if n == 0:
            break
        got += n
    return got


def move_bytes(fd: int, source: int, target: int, nbytes: int, path: Path) -> None:
    """Copy a range of a file to another place of it; the two may overlap."""
    block = np.empty(min(nbytes, MOVE_NBYTES), np.uint8)
    starts = range(0, nbytes, MOVE_NBYTES)
    for start in starts if target < source else reversed(starts):
        part = block[:min(MOVE_NBYTES, nbytes - start)]
        with storing(path, "read back"):
            if read_at(fd, part, source + start) != len(part):
                raise OSError(errno.EIO, "the file is shorter than what was written to it")
        write_at(fd, [part], target + start, path)


def sync_file(fd: int, path: Path) -> None:
    with storing(path, "flush to disk"):
        os.fsync(fd)


def sync_folder(path: Path, safe: str = _SAFE) -> None:
    """Make the names in a folder durable; file systems that have no such thing (EINVAL) are let be."""
    with storing(path, "flush to disk", safe):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


def write_file(path: Path, content: bytes) -> None:
    """A small new file, complete and durable (its name is not: sync the folder)."""
    fd = open_new(path)
    try:
        write_at(fd, [content], 0, path)
        sync_file(fd, path)
    finally:
        os.close(fd)


def remove_quietly(path: Path) -> None:
    """Remove a file if that can be done; used where an error is already on its way."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def remove_folder_quietly(path: Path) -> None:
    """Remove a flat folder and the files in it as far as that can be done."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        remove_quietly(path / name)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def as_bytes(values: NDArray[Any]) -> Bytes:
    """The memory of an array as bytes; copied only if it is not contiguous."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8) if flat.size and flat.itemsize else np.zeros(0, np.uint8)


def remove_empty_folder_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)
