"""Looking into HDF5 files where a damaged one does no harm: in a process that may crash, go in circles, or run out of memory.

libhdf5 believes what a file says of itself. One flipped bit may send it into memory that is not its own, or round in circles for ever, and
on a rank that is the end of the job with nothing said. `turn_on`, which the command line calls and library calls do not, has rank 0 look
at files that it has not seen yet in a process of its own::

    rank 0                                          python -c ..., limited in memory, and in time for each file
    survey_files  -- what to look for (stdin) -->   child
                  <-- Surveyed of each file (stdout) --

It takes 0.15 s, once for each set of files, less where it was started before it is needed (`start_early`); what was found is used, so that
rank 0 reads no header twice and loads no HDF5. Where rows
are read through HDF5, a rank limits its own memory meanwhile (`bounded`): what is compressed may grow without end.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import mmap
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from hpcmr.errors import InputError
from hpcmr.io.files import FileInfo
from hpcmr.io.hdf5_layout import Surveyed

log = logging.getLogger("hpcmr")

FILE_LIMIT_S = 60
"""Looking into one file may take this long; a slow file system needs a part of it."""
NBYTES_MAX = 4 << 30
READ_NBYTES = 1 << 30
"""What reading a batch through HDF5 may take beside the chunks that it is told to keep."""
MESSAGE_NBYTES_MAX = 1 << 30
ENTRY = "import sys, json; sys.path[:], *limits = json.loads(sys.argv[1]); from hpcmr.io.hdf5_guard import child; child(*limits)"
UNPICKLED = {("builtins", "set"), ("builtins", "frozenset"), ("builtins", "complex"), ("builtins", "slice"), ("_codecs", "encode")}
"""What messages may be made of, beside classes of this package and of NumPy."""

Seen = tuple[str, int, int]
_seen: set[Seen] = set()
_state = {"on": False}


def turn_on() -> None:
    """From now on files are looked at in a process of their own, and HDF5 loads no plugin that the environment names."""
    _state["on"] = True
    # Read by HDF5 when it is loaded: no plugin is looked for. The package hdf5plugin registers its filters itself.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"


def is_on() -> bool:
    return _state["on"]


def survey_files(infos: Sequence[FileInfo], group: str, columns: Sequence[str] | None, attrs: Mapping[str, str],
                 follow: Sequence[str]) -> Iterator[Surveyed]:
    """What is in each of some files, one after the other. Raises `InputError`."""
    wanted = (group, columns, dict(attrs), list(follow))
    seen = {(info.path, info.nbytes, info.mtime_ns) for info in infos}
    if is_on() and not seen <= _seen and (process := _start()) is not None:
        yield from _guarded(process, infos, wanted)
        _seen.update(seen)
        return
    from hpcmr.io import hdf5_survey

    yield from hdf5_survey.survey_files(infos, *wanted)


class _Child:
    """The process, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process, self.errors = process, errors

    def ask(self, value: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):      # how it ended is told by its exit code
            _put(self.process.stdin, value)
            self.process.stdin.close()

    def answer(self) -> Any:
        """Its next word; None if it is gone."""
        assert self.process.stdout is not None
        return _got(self.process.stdout)

    def end(self) -> int:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.kill()
        self.errors.close()
        return self.process.wait()


_early: list[_Child] = []


def start_early() -> None:
    """Start a process that will be needed, and do not wait for it. It ends with this one."""
    if is_on() and not _early and (child := _launch()) is not None:
        _early.append(child)


def _start() -> _Child | None:
    """A process that is ready to look at files; None, and a line in the log, where none can be had."""
    started = _early.pop() if _early else _launch()
    if started is None or started.answer() == "ready":
        return started
    started.errors.seek(0)
    said = started.errors.read()[-300:].decode("utf-8", "replace").strip().rpartition("\n")[2]
    log.warning("HDF5 inputs are looked at without a guard, its process ended with code %d: %s", started.end(), said)
    return None


def _launch() -> _Child | None:
    """The process, before it is ready."""
    setting = json.dumps([sys.path, FILE_LIMIT_S, NBYTES_MAX])
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    errors = tempfile.TemporaryFile()
    try:
        # A session of its own: signals that the launcher sends to all of the rank's group are not for it.
        process = subprocess.Popen([sys.executable, "-c", ENTRY, setting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                   env=environment, start_new_session=True)
    except (OSError, ValueError) as error:
        errors.close()
        log.warning("HDF5 inputs are looked at without a guard, no process can be started: %s", error)
        return None
    return _Child(process, errors)


def _guarded(started: _Child, infos: Sequence[FileInfo], wanted: tuple[Any, ...]) -> Iterator[Surveyed]:
    try:
        started.ask((infos, wanted))
        for info in infos:
            answer = started.answer()
            if isinstance(answer, BaseException):
                raise answer
            if not isinstance(answer, Surveyed):
                raise _ended(info, started.process.wait())
            yield answer
    finally:
        started.end()


def _ended(info: FileInfo, code: int) -> InputError:
    """Why there is no answer about a file."""
    if code == -signal.SIGALRM:
        how = f"HDF5 was busy with its headers for more than {FILE_LIMIT_S} s"
    elif code < 0:
        how = f"HDF5 crashed ({_signal(-code)}) while it read its headers"
    else:
        how = f"the process that read its headers ended with code {code}"
    return InputError(f"{info.path!r} is damaged, or was made to do harm: {how}; copy or write it again")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- in the process --------------------------------------------------------------------------------------------------------


def child(limit_s: int, limit_nbytes: int) -> None:
    """Look at files and tell what is in them. Runs in the process that `survey_files` starts; ends with it."""
    out, requests = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)       # nothing but answers may come out there
    signal.signal(signal.SIGALRM, signal.SIG_DFL)       # ends it inside of HDF5 as well
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):     # notices are for the ranks; this process ends with its rank
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(limit_s)
    _limit(limit_nbytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from hpcmr.io.hdf5_survey import survey_files as look

    _put(out, "ready")
    signal.alarm(0)
    request = _got(requests)
    if request is None:             # nobody needs it, or nobody is left
        os._exit(0)
    signal.alarm(limit_s)
    infos, wanted = request
    try:
        for found in look(infos, *wanted):
            signal.alarm(limit_s)
            _put(out, found)
    except BaseException as error:
        _put(out, error if isinstance(error, InputError) else InputError(f"the HDF5 inputs cannot be looked at: {type(error).__name__}: {error}"))
    os._exit(0)


def _limit(nbytes: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    least = min(n for n in (nbytes, soft, hard) if n != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


# ---- messages between the two ----------------------------------------------------------------------------------------------


class _Reader(pickle.Unpickler):
    """Makes nothing but plain values, arrays, and this package's layouts and errors: what a misled process could ask for is not done."""

    def find_class(self, module: str, name: str) -> Any:
        ours = module in ("hpcmr.io.hdf5_layout", "hpcmr.data.schema", "hpcmr.errors", "hpcmr.io.files")
        arrays = module.split(".")[0] == "numpy" and name in ("dtype", "ndarray", "_reconstruct", "_frombuffer", "scalar")
        if ours or arrays or (module, name) in UNPICKLED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected")


def _put(stream: IO[bytes], value: Any) -> None:
    raw = pickle.dumps(value, protocol=4)
    stream.write(struct.pack("<Q", len(raw)) + raw)
    stream.flush()


def _got(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    nbytes = struct.unpack("<Q", head)[0] if len(head) == 8 else MESSAGE_NBYTES_MAX
    raw = stream.read(nbytes) if nbytes < MESSAGE_NBYTES_MAX else b""
    return _Reader(io.BytesIO(raw)).load() if raw and len(raw) == nbytes else None


# ---- on every rank ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded(nbytes: int) -> Iterator[None]:
    """Within, this process may take so many bytes more than it has, and `READ_NBYTES`; where the guard is off, any number."""
    if not is_on():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        has = int(file.read().split()[0]) * mmap.PAGESIZE
    _limit(has + nbytes + READ_NBYTES)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
