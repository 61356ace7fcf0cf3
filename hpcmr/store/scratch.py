"""Node-local scratch: a folder for each process that spills, gone after the run, and after a crash with the next start.

::

    $TMPDIR/hpcmr-1000/              one for each user, mode 0700
        run-5b1f09c2.../             one for each process that spills
            owner                    who: host, boot, pid, start time; locked as long as the process lives
            spill-000000.h5

Whoever starts removes the folders whose owner is dead. The lock tells, which the kernel gives back however a process ends, also
in another container of the same node; where the file system has no locks, the process id and its start time do. What another host
left on a file system that several share is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpcmr.errors import StorageError
from hpcmr.store import files, paths

SLURM_PLACES = ("SLURM_TMPDIR", "SLURM_JOB_TMPDIR", "SLURM_JOB_TMP")
"""Where sites put the path of a job's own folder on a node; none of them is set everywhere."""
ABANDONED_S = 3600
"""A folder without an owner is being made, or was left half made by a process that died: after this time it is the latter."""
TRIES = 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ADVICE = {errno.ENOSPC: "free some space there, give --scratch a folder on a larger disk, or --memory more",
           errno.EDQUOT: "your quota is used up: give --scratch a folder on another file system, or --memory more",
           errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file this large: give --scratch another folder, or --memory more",
           errno.EIO: "the device reported an error: give --scratch a folder on another disk"}


def choose(option: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """Where scratch lies, and who says so: ``--scratch``, Slurm's folder of the job, ``$TMPDIR``, the system's temporary folder."""
    env = os.environ if env is None else env
    if option:
        return Path(option).absolute(), "--scratch"
    for name in (*SLURM_PLACES, "TMPDIR"):
        if env.get(name) and Path(env[name]).is_dir():
            return Path(env[name]).absolute(), f"${name}"
    return Path(tempfile.gettempdir()).absolute(), "the system's temporary folder"


@contextlib.contextmanager
def spilling(path: Path, what: str = "write", but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Turn every `OSError` of the body into a `StorageError` that names the file, what is left of the disk, and what to do.

    Errors of the kind `but` pass.
    """
    try:
        yield
    except but:
        raise
    except OSError as error:
        code = error.errno or 0
        advice = _ADVICE.get(code, "give --scratch a folder on another file system")
        raise StorageError(f"cannot {what} scratch {str(path)!r}: {error.strerror or error} ({errno.errorcode.get(code, 'no number')})"
                           f"{_left(path)}; {advice}") from error


def _left(path: Path) -> str:
    try:
        info = os.statvfs(path.parent)
    except OSError:
        return ""
    return f"; {info.f_bavail * info.f_frsize / 2**20:,.0f} MiB of {info.f_blocks * info.f_frsize / 2**20:,.0f} MiB are free"


class Scratch:
    """The scratch of one process.

    Parameters
    ----------
    option : path, optional
        ``--scratch``.

    Attributes
    ----------
    base : Path
    why : str
        Who chose it.
    files : int
        Files that lie in the folder now, counted by those who make and remove them.
    nbytes_written, nbytes_read : int
        Of all files so far.

    Notes
    -----
    Nothing is made before `folder` is called. Collective: no.
    """

    def __init__(self, option: str | os.PathLike[str] | None = None) -> None:
        self.base, self.why = choose(option)
        self._end: weakref.finalize[[Path, int], Scratch] | None = None
        self._folder: Path | None = None
        self._number = 0
        self.files = self.nbytes_written = self.nbytes_read = 0

    def next_number(self) -> int:
        """A number that no other file of this process has."""
        self._number += 1
        return self._number

    def tidy(self) -> None:
        """Remove the folder if no file lies in it."""
        if self.files == 0:
            self.close()

    def folder(self) -> Path:
        """This process's folder, made when it is first asked for. Raises `StorageError`."""
        if self._folder is None:
            self._folder, fd = self._made()
            self._end = weakref.finalize(self, _remove, self._folder, fd)
        return self._folder

    def _made(self) -> tuple[Path, int]:
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError):       # another process was the last one and took the user's folder away
                return _make(_home(self.base, make=True))
        with spilling(paths.scratch_home(self.base), "make the folder of"):
            return _make(_home(self.base, make=True))

    def close(self) -> None:
        """Remove the folder and all in it. Never raises."""
        if self._end is not None:
            self._end()
        self._folder = self._end = None

    def sweep(self) -> int:
        """Remove what dead processes of this user left; returns the number of folders. Never raises."""
        dead = self.dead()
        for folder in dead:
            shutil.rmtree(folder, ignore_errors=True)
        if dead:
            files.remove_empty_folder_quietly(dead[0].parent)
        return len(dead)

    def dead(self) -> list[Path]:
        """Folders that dead processes of this user left. Never raises."""
        try:
            home = _home(self.base, make=False)
            return [home / n for n in sorted(os.listdir(home)) if _is_dead(home / n)]
        except (OSError, StorageError):
            return []


def _home(base: Path, make: bool) -> Path:
    """The user's folder, private and a folder indeed: in a place where everybody writes, somebody else may have made it."""
    home = paths.scratch_home(base)
    with spilling(home, "make the folder of"):
        if make:
            base.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                files.retried(os.mkdir, home, 0o700)
        info = os.lstat(home)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise StorageError(f"scratch {str(home)!r} is not a private folder of yours; remove it, or give --scratch another folder")
    return home


def _make(home: Path) -> tuple[Path, int]:
    """A new folder with its owner's mark, and the descriptor that holds the lock. It gets its name when it has both.

    Raises `FileNotFoundError` if `home` is not there any more.
    """
    token = uuid.uuid4().hex[:16]
    rough, folder, fd = home / f".{token}", paths.scratch_run(home, token), -1
    try:
        with spilling(folder, "make the folder of", but=FileNotFoundError), contextlib.suppress(FileExistsError):
            files.retried(os.mkdir, rough, 0o700)
        with spilling(folder, "make the folder of"):
            fd = files.create(rough / paths.OWNER)
            files.write_all(fd, [json.dumps(_owner()).encode()], 0)
            with contextlib.suppress(OSError):       # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.rename(rough, folder)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        shutil.rmtree(rough, ignore_errors=True)
        files.remove_empty_folder_quietly(home)
        raise
    return folder, fd


def _remove(folder: Path, fd: int) -> None:
    if _owns(folder):       # a child of a fork must not take it away
        shutil.rmtree(folder, ignore_errors=True)
        files.remove_empty_folder_quietly(folder.parent)
    with contextlib.suppress(OSError):
        os.close(fd)


def _owns(folder: Path) -> bool:
    mark = _mark(folder)
    return mark is not None and mark.get("pid") == os.getpid()


def _owner() -> dict[str, str | int]:
    pid = os.getpid()
    return {"host": os.uname().nodename, "boot": _boot(), "pid": pid, "start": _start(pid)}


def _mark(folder: Path) -> dict[str, str | int] | None:
    try:
        found = json.loads((folder / paths.OWNER).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _start(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_dead(folder: Path) -> bool:
    """Whether nobody will use a folder any more."""
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(info.st_mode):
        return False
    mark = _mark(folder) if not folder.name.startswith(".") else None
    if mark is None:
        return time.time() - info.st_mtime > ABANDONED_S
    if mark.get("boot") != _boot():
        return mark.get("host") == os.uname().nodename
    return not _lives(folder, mark)


def _lives(folder: Path, mark: Mapping[str, str | int]) -> bool:
    try:
        fd = os.open(folder / paths.OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True       # somebody else is removing it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return bool(mark.get("start")) and _start(int(mark.get("pid", 0))) == mark.get("start")
    finally:
        os.close(fd)
    return False
