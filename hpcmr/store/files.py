"""Plain file calls that either do all they were asked to, or raise a `StorageError` that names the path and says what is safe.

Nothing here knows what is in a file. Files are made 0600 and folders 0700. Whatever the store does to a file or a folder, it does
through this module, and each call of the system is one of `os`, looked up when it is made: tests record and fail them there.
NumPy is loaded by those who move arrays only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcmr.errors import StorageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

T = TypeVar("T")
TRANSIENT = (errno.ESTALE, errno.EINTR)
"""Errors of network file systems, and of signals, after which the same call often goes through."""
PAUSES_S = (0.01, 0.05, 0.25, 1.0, 2.0)
PARTS_MAX = 512
"""Buffers in one call; the system takes 1,024."""
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


# -- calls of the system: `OSError` as it comes, but for what passes by itself ----------------------------------------------------


def retried(call: Callable[..., T], *args: Any) -> T:
    """``call(*args)``, again after a while where it fails in a way that passes by itself: `TRANSIENT`."""
    for pause_s in PAUSES_S:
        try:
            return call(*args)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause_s)
    return call(*args)


def create(path: Path, mode: int = 0o600) -> int:
    """Descriptor of a new file; that it exists already is an error. A mode other than 0600 holds whatever the umask is."""
    fd = retried(os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if mode != 0o600:
        os.fchmod(fd, mode)
    return fd


def open_read(path: Path) -> int:
    """Descriptor of a plain file to read; what is a link, a pipe, a folder or a device is an error."""
    fd = retried(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file")
    return fd


def read_small(path: Path, nbytes_max: int) -> bytes:
    """The content of a plain file; of a larger one, `nbytes_max` + 1 bytes."""
    fd = open_read(path)
    try:
        parts, left = [], nbytes_max + 1
        while left and (part := retried(os.read, fd, min(left, READ_NBYTES))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def write_all(fd: int, parts: Sequence[Any], offset: int) -> None:
    """Write the byte buffers `parts` one after the other from `offset` on, however many calls the system makes of it."""
    left = [memoryview(p) for p in parts if len(p)]
    while left:
        done = retried(os.pwritev, fd, left[:PARTS_MAX], offset) if len(left) > 1 else retried(os.pwrite, fd, left[0], offset)
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
        n = retried(os.preadv, fd, [view[got:got + READ_NBYTES]], offset + got)
        if n == 0:
            break
        got += n
    return got


def rename(source: Path, target: Path) -> None:
    """Rename; where the answer of a first try was lost, what it did counts."""
    about = os.lstat(source)
    try:
        retried(os.rename, source, target)
    except FileNotFoundError:
        if not _is(target, about):
            raise


def link(source: Path, target: Path) -> None:
    """Give a file a second name. `FileExistsError`: the name is taken, by somebody else (not by a first try whose answer was lost)."""
    try:
        retried(os.link, source, target)
    except FileExistsError:
        if not _is(target, os.lstat(source)):
            raise


def _is(path: Path, about: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), about)
    except OSError:
        return False


def unlink(path: Path) -> None:
    """Remove a file; that it is gone is no error."""
    with contextlib.suppress(FileNotFoundError):
        retried(os.unlink, path)


def rmdir(path: Path) -> None:
    """Remove an empty folder; that it is gone is no error."""
    with contextlib.suppress(FileNotFoundError):
        retried(os.rmdir, path)


def truncate(fd: int, nbytes: int) -> None:
    retried(os.ftruncate, fd, nbytes)


def sync(fd: int) -> None:
    retried(os.fsync, fd)


def names_in(path: Path) -> list[str]:
    """Names in a folder, in order; of one that is not there none."""
    try:
        return sorted(retried(os.listdir, path))
    except FileNotFoundError:
        return []


# -- the same, with errors that tell a user what to do ------------------------------------------------------------------------------


def make_folder(path: Path, mode: int = 0o700, safe: str = _SAFE) -> None:
    """Make a private folder (and its parents as the user's umask says) unless it is there. Several ranks may do so at once."""
    with storing(path, "make the folder", safe):
        for above in [p for p in reversed(path.parents) if not p.exists()]:
            _make_one(above, 0o777)
        _make_one(path, mode)


def _make_one(path: Path, mode: int) -> None:
    """Make a folder, with a name that lasts."""
    try:
        retried(os.mkdir, path, mode)
    except FileExistsError:
        if path.is_dir():
            return
        raise
    sync_folder(path.parent)


def open_new(path: Path, mode: int = 0o600) -> int:
    """Descriptor of a new private file; that it exists already is an error."""
    with storing(path, "create"):
        return create(path, mode)


def write_at(fd: int, parts: Sequence[Any], offset: int, path: Path) -> None:
    """`write_all` of a file at `path`."""
    with storing(path):
        write_all(fd, parts, offset)


def move_bytes(fd: int, source: int, target: int, nbytes: int, path: Path) -> None:
    """Copy a range of a file to another place of it; the two may overlap."""
    import numpy as np

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
        sync(fd)


def sync_folder(path: Path, safe: str = _SAFE) -> None:
    """Make the names in a folder durable; file systems that have no such thing (EINVAL) are let be."""
    with storing(path, "flush to disk", safe):
        fd = retried(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """A small new file, complete and durable (its name is not: sync the folder)."""
    fd = open_new(path, mode)
    try:
        write_at(fd, [content], 0, path)
        sync_file(fd, path)
    finally:
        os.close(fd)


def remove_quietly(path: Path) -> None:
    """Remove a file if that can be done; used where an error is already on its way."""
    with contextlib.suppress(OSError):
        unlink(path)


def remove_folder_quietly(path: Path) -> None:
    """Remove a flat folder and the files in it as far as that can be done."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        remove_quietly(path / name)
    with contextlib.suppress(OSError):
        rmdir(path)


def as_bytes(values: NDArray[Any]) -> Bytes:
    """The memory of an array as bytes; copied only if it is not contiguous."""
    import numpy as np

    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8) if flat.size and flat.itemsize else np.zeros(0, np.uint8)


def remove_empty_folder_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        rmdir(path)
