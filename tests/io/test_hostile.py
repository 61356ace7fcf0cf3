"""HDF5 files that are damaged or were made to do harm: refused with a reason, in bounded memory and time."""

from __future__ import annotations

import ast
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from hpcmr.errors import DataError, InputError
from hpcmr.io import hdf5_guard
from hpcmr.io.hdf5 import Hdf5Source
from tests.io.test_hdf5 import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on the command line, with limits that a test can wait for."""
    monkeypatch.setenv("HDF5_PLUGIN_PRELOAD", "::")
    monkeypatch.setattr(hdf5_guard, "_seen", set())
    monkeypatch.setattr(hdf5_guard, "FILE_LIMIT_S", 1)
    monkeypatch.setattr(hdf5_guard, "READ_NBYTES", 256 << 20)
    hdf5_guard.turn_on()
    yield
    hdf5_guard._state["on"] = False


def refused(path: Path, *args: Any, match: str, kind: type[Exception] | tuple[type[Exception], ...] = InputError, **options: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(kind, match=match):
        read(Hdf5Source(path, *args, **options))
    assert time.perf_counter() - start < 5


def python(*args: str, **env: str) -> str:
    """What a process of its own says."""
    done = subprocess.run([sys.executable, *args], env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- files that lead to others ---------------------------------------------------------------------------------------------


def test_each_component_of_a_path_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "here").mkdir()
    with h5py.File(tmp_path / "away" / "secret.h5", "w") as file:
        file["a/b/x"] = [1, 2]
    with h5py.File(tmp_path / "here" / "m.h5", "w") as file:
        file["one"] = h5py.ExternalLink("../away/secret.h5", "/")
        file["two/a"] = h5py.ExternalLink("../away/secret.h5", "/a")
        file["three/a/b"] = h5py.ExternalLink("../away/secret.h5", "/a/b")
        file["four/x"] = h5py.ExternalLink("../away/secret.h5", "/a/b/x")
        file["five/x"] = h5py.SoftLink("/one/a/b/x")
    (tmp_path / "here" / "inside").symlink_to(tmp_path / "away")
    with h5py.File(tmp_path / "here" / "m.h5", "a") as file:
        file["six/x"] = h5py.ExternalLink("inside/secret.h5", "/a/b/x")
    for group in ("one/a/b", "two/a/b", "three/a/b", "four", "five", "six", "one/a/b/x", "five/x"):
        refused(tmp_path / "here" / "m.h5", group, match="secret.h5', outside the folder")
        assert read(Hdf5Source(tmp_path / "here" / "m.h5", group, follow=[tmp_path / "away"]))[2]["x"] == [1, 2]
        refused(tmp_path / "here" / "m.h5", group, match="outside the folder", follow=[tmp_path / "awa"])


def test_hdf5_itself_opens_no_source_outside(tmp_path: Path, guard: None) -> None:
    """The shape of a virtual data set without end makes HDF5 look for its sources: a pipe among them would keep it waiting."""
    (tmp_path / "here").mkdir()
    os.mkfifo(tmp_path / "f-0.h5")
    with h5py.File(tmp_path / "here" / "m.h5", "w") as file:
        plist, target = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((4,), (h5py.h5s.UNLIMITED,))
        target.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (4,), (4,))
        plist.set_virtual(target, b"../f-%b.h5", b"x", h5py.h5s.create_simple((4,)))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((0,), (h5py.h5s.UNLIMITED,)), plist)
    refused(tmp_path / "here" / "m.h5", match="f-0.h5', outside the folder")
    refused(tmp_path / "here" / "m.h5", "y", match=r"no group or data set 'y' in .*; its data sets are /x \(virtual\)")


def test_groups_that_hold_themselves(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/x"] = [1, 2]
        for i in range(40):
            file[f"g/again{i}"] = file["g"]
        file["g/root"] = file["/"]
    assert read(Hdf5Source(tmp_path / "a.h5", "g/root/g/again0/again1"))[2]["x"] == [1, 2]
    refused(tmp_path / "a.h5", "nothing", match="no group or data set 'nothing'")


# ---- plugins ---------------------------------------------------------------------------------------------------------------

LOADS = """
import sys, h5py
sys.modules["hdf5plugin"] = None
from hpcmr.io import hdf5_guard
from hpcmr.io.hdf5 import Hdf5Source
if sys.argv[2] == "guard":
    hdf5_guard.turn_on()
    hdf5_guard.is_on = lambda: False      # look in this process
try:
    Hdf5Source(sys.argv[1]).survey()
except Exception as error:
    print(error)
try:
    h5py.File(sys.argv[1])["x"][:]
except OSError:
    pass
print("loaded" if "h5zstd" in open("/proc/self/maps").read() else "not loaded")
"""


def test_no_plugin_of_the_environment_is_loaded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(100), chunks=(10,), **hdf5plugin.Zstd())
    (tmp_path / "plugins").mkdir()
    shutil.copy(next(Path(hdf5plugin.PLUGIN_PATH).glob("*zstd*")), tmp_path / "plugins" / "libh5zstd.so")
    (tmp_path / "loads.py").write_text(LOADS)
    for how, then in (("guard", "not loaded"), ("plain", "loaded")):
        said = python(str(tmp_path / "loads.py"), str(tmp_path / "a.h5"), how, HDF5_PLUGIN_PATH=str(tmp_path / "plugins"))
        assert "filter 32015" in said and "pip install 'hpcmr[filters]'" in said and said.splitlines()[-1] == then


def test_filters_of_the_package_are_there_under_the_guard(tmp_path: Path, guard: None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(100), chunks=(10,), **hdf5plugin.LZ4())
        file.create_dataset("y", data=np.arange(100), chunks=(10,), compression="gzip", shuffle=True)
    rows = read(Hdf5Source(tmp_path / "a.h5"))[2]
    assert rows["x"] == rows["y"] == list(range(100))


# ---- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "options", "match"), [
    ((1 << 40,), {"chunks": (1 << 20,)}, "declares 1,099,511,627,776 rows of 8 bytes.*more than 1,000 times as much"),
    ((1 << 40,), {}, "declares 1,099,511,627,776 rows"),
    ((1 << 62,), {"chunks": (1 << 16,)}, "declares"),
    ((4, 1 << 40), {"chunks": (1, 1 << 16)}, "has rows of 8,796,093,022,208 bytes"),
    ((1 << 20, 1 << 20, 1 << 20), {"chunks": (1, 1, 1 << 16)}, "has rows of 8,796,093,022,208 bytes"),
    ((100,), {"chunks": (1 << 28,), "maxshape": (None,)}, "has chunks of 2,147,483,648 bytes"),
])
def test_shapes_that_cannot_be_meant(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], match: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", shape, "i8", **options)
    refused(tmp_path / "a.h5", match=match)


def test_sizes_that_can_be_meant(tmp_path: Path) -> None:
    """A data set that was written in part, and one that is compressed well."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (1 << 29,), "i8", chunks=(1 << 20,))
    assert sum(b - a for s in Hdf5Source(tmp_path / "a.h5").survey()[1] for _, a, b in s.part) == 1 << 29


def bomb(nbytes: int) -> bytes:
    """What gzip would make of so many zeros, put together from one piece again and again."""
    deflate = zlib.compressobj(9)
    head = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    piece = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return head + piece * (nbytes >> 20)


def test_a_chunk_that_grows_without_end(tmp_path: Path, guard: None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", (1000,), "i8", chunks=(1000,), compression="gzip")
        made.id.write_direct_chunk((0,), bomb(2 << 30))
    refused(tmp_path / "a.h5", match="'/x' of .* cannot be read from row 0 on", kind=DataError)
    assert peak_nbytes() < 2 << 30


def test_many_strings_that_are_one(tmp_path: Path, guard: None) -> None:
    """Each row refers to the same 8 MiB: 8 GiB from a file of 8 MiB."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("x", (1000,), h5py.string_dtype())
        made[0] = "a" * (8 << 20)
        at = made.id.get_offset()
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    raw[at:at + 16000] = raw[at:at + 16] * 1000
    (tmp_path / "a.h5").write_bytes(raw)
    refused(tmp_path / "a.h5", match="memory", kind=DataError)
    assert peak_nbytes() < 2 << 30


def peak_nbytes() -> int:
    """Most memory that this process has had."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) << 10


# ---- damage ----------------------------------------------------------------------------------------------------------------


def make(path: Path) -> bytearray:
    """A file of old format with what is hard to read: lists of strings in a global heap, chunks, links."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("g/x", data=np.arange(50))
        made.attrs["units"], made.attrs["list"] = "kpc", ["a", "bb", "ccc"]
        file.create_dataset("g/y", data=np.arange(50.0), chunks=(7,), compression="gzip")
        file.create_dataset("g/s", data=[f"s{i}" for i in range(50)], dtype=h5py.string_dtype())
        file["g/l"] = h5py.SoftLink("/g/x")
    return bytearray(path.read_bytes())


def test_a_header_that_keeps_hdf5_busy_for_ever(tmp_path: Path, guard: None) -> None:
    """One bit: the last string of the global heap has 18 bytes instead of 2, and libhdf5 2.0 never finds the end of the heap."""
    raw = make(tmp_path / "good.h5")
    raw[raw.index(b"s0\0\0") - 8] ^= 16
    (tmp_path / "bad.h5").write_bytes(raw)
    if in_a_child(tmp_path / "bad.h5") == "looped":
        refused(tmp_path / "bad.h5", "g", match="bad.h5' is damaged, or was made to do harm: HDF5 was busy with its headers for more than 1 s")
    else:
        refused(tmp_path / "bad.h5", "g", match="bad.h5' is damaged", kind=(InputError, DataError))
    assert read(Hdf5Source(tmp_path / "good.h5", "g", ["x"]))[2]["x"] == list(range(50))


def in_a_child(path: Path) -> str:
    """How a survey and reading without guard end, in a copy of this process that is ended after half a second."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        code = 9
        try:
            read(Hdf5Source(path, "g"))
            code = 0
        except (InputError, DataError):
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "read", 1: "refused", -14: "looped"}.get(code, f"code {code}")


def test_flipped_bits_are_errors_of_ours_or_stay_in_the_guard(tmp_path: Path) -> None:
    raw = make(tmp_path / "good.h5")
    rng = np.random.default_rng(7)
    places = rng.permutation(np.flatnonzero(np.frombuffer(raw, np.uint8)))[:90]
    seen: Counter[str] = Counter()
    for pos in places.tolist():
        flipped = bytearray(raw)
        flipped[pos] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad.h5").write_bytes(flipped)
        seen[in_a_child(tmp_path / "bad.h5")] += 1
    print(seen)
    assert seen["refused"] > 20 and seen["read"] > 20
    # Python's other errors have code 9; a signal is what the guard is for.
    assert not seen["code 9"], seen


@pytest.mark.parametrize(("does", "match"), [
    ("os.kill(os.getpid(), 11)", r"a.h5' is damaged, or was made to do harm: HDF5 crashed \(SIGSEGV\) while it read its headers"),
    ("os.abort()", r"HDF5 crashed \(SIGABRT\)"), ("os._exit(3)", "ended with code 3"), ("bytearray(1 << 33)", "MemoryError"),
])
def test_a_process_that_ends_otherwise(tmp_path: Path, guard: None, monkeypatch: pytest.MonkeyPatch, does: str, match: str) -> None:
    make(tmp_path / "a.h5")
    does = f"import os, hpcmr.io.hdf5_links as links; links.open_file = lambda path: {does}; "
    monkeypatch.setattr(hdf5_guard, "ENTRY", does + hdf5_guard.ENTRY)
    refused(tmp_path / "a.h5", "g", match=match)


def test_where_no_process_can_be_had(tmp_path: Path, guard: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "a.h5")
    monkeypatch.setattr(hdf5_guard, "ENTRY", "raise SystemExit('nothing works here')")
    assert read(Hdf5Source(tmp_path / "a.h5", "g", ["x"]))[2]["x"] == list(range(50))
    assert "looked at without a guard" in caplog.text and "nothing works here" in caplog.text


def test_the_guard_is_asked_once_and_tells_what_a_survey_tells(tmp_path: Path, guard: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.h5")
    make(tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["g"].attrs["z"] = [1.5, 2.5]
    there = Hdf5Source([tmp_path / "b.h5"], "g", attrs={"z": "/g@z"}).survey()
    started: list[Any] = []
    start = hdf5_guard._start
    monkeypatch.setattr(hdf5_guard, "_start", lambda: started.append(1) or start())
    for _ in range(3):
        assert repr(Hdf5Source([tmp_path / "b.h5"], "g", attrs={"z": "/g@z"}).survey()) == repr(there)
    assert started == [1] or not started
    with pytest.raises(InputError, match="no column 'q'"):
        Hdf5Source([tmp_path / "a.h5", tmp_path / "b.h5"], "g", ["q"]).survey()


def test_library_calls_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.h5")
    monkeypatch.setattr(hdf5_guard, "_start", lambda: pytest.fail("a process in a program that is not ours"))
    assert not hdf5_guard.is_on()
    Hdf5Source(tmp_path / "a.h5", "g").survey()


def test_what_a_misled_process_answers_is_not_run() -> None:
    import io
    import pickle

    for value in (os.system, subprocess.Popen, eval, np.load, hdf5_guard.child):
        raw = pickle.dumps(value)
        with pytest.raises(pickle.UnpicklingError, match="is not expected"):
            hdf5_guard._got(io.BytesIO(struct.pack("<Q", len(raw)) + raw))


# ---- pickle ----------------------------------------------------------------------------------------------------------------

PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}
MAY = {"hpcmr/comm/world.py", "hpcmr/comm/mpi_world.py", "hpcmr/comm/collective.py", "hpcmr/io/hdf5_guard.py"}
"""Messages between ranks, and between a rank and its guard: nothing of it is a file."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_no_source_reads_a_pickle_from_a_file() -> None:
    sources = [p for folder in ("hpcmr", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))]
    assert len(sources) > 100
    for path in sources:
        tree, name = ast.parse(path.read_bytes()), str(path.relative_to(ROOT))
        assert name in MAY or not PICKLERS & set(imports(tree)), f"{name} imports {PICKLERS & set(imports(tree))}"
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            allowed = [k for k in node.keywords if k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)]
            assert not allowed, f"{name}:{node.lineno}: allow_pickle"
            assert called not in ("pickle.load", "np.load", "numpy.load", "np.memmap.load", "pandas.read_pickle"), f"{name}:{node.lineno}: {called}"


WATCHED = """
import sys, traceback
seen = set()
def hook(event, args):
    if event == "pickle.find_class":
        callers = [f.filename for f in traceback.extract_stack() if not f.filename.endswith(("pickle.py", "<string>"))]
        seen.add(callers[-1])
sys.addaudithook(hook)
from hpcmr.cli.main import main
code = main(["job", *sys.argv[1:]])
print(code, *sorted(seen), sep="\\n")
"""


def test_no_job_reads_a_pickle_from_a_file(tmp_path: Path) -> None:
    """Python tells whenever a pickle names a class: in a job, that is what ranks say to one another, the guard, and Numba's cache of code."""
    make(tmp_path / "a.h5")
    (tmp_path / "j.toml").write_text('[input]\npaths="a.h5"\ngroup="g"\n[map]\nfunction="columns"\nkey="s"\nvalue="x"\n[reduce]\nfunction="sum"\n')
    for again in ((), ("--fresh",)):
        said = python("-c", WATCHED, str(tmp_path / "j.toml"), "--run-dir", str(tmp_path / "run"), *again).splitlines()
        assert "0" in said
        for caller in said[said.index("0") + 1:]:
            assert caller.endswith(tuple(f"/{name}" for name in MAY)) or "/numba/" in caller, caller
