"""What a run is: found again, told apart from any other, and every difference named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcmr.errors import Refused
from hpcmr.io.hdf5 import Hdf5Source
from hpcmr.io.text import TextSource
from hpcmr.plan.fingerprint import code_files
from hpcmr.plan.imports import imports_of
from hpcmr.run import identity as identities
from hpcmr.run.identity import changed_inputs, differences, identity_of, read_identity, refusal, remember_input, sample_digest, store_identity
from hpcmr.store import paths


def nothing() -> None:
    """The run is ours."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("")
    (tmp_path / "lib" / "deep.py").write_text("from . import sister\n")
    (tmp_path / "lib" / "sister.py").write_text("X = 1\n")
    (tmp_path / "late.py").write_text("import job\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "job.py").write_text("import os, lib.deep\n\ndef job(ctx):\n    import late\n")
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "job.py"


def made(job: Path, code: str = "c0de", **values: Any) -> identities.Identity:
    return identity_of(job, "job", {"a": {"b": 1}, **values}, code_files(job), code)


def test_all_that_is_imported_counts(job: Path) -> None:
    assert {p.name for p in code_files(job)} >= {"job.py", "deep.py", "sister.py", "late.py", "__init__.py"}
    assert "other.py" not in {p.name for p in imports_of([job])}


def test_it_is_kept_with_a_copy(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert read_identity(run) is None
    before = made(job, when=float("nan"), what="jöb", many=list(range(3)))
    store_identity(run, before, job, code_files(job))
    found = read_identity(run)
    assert found is not None
    assert differences(found, made(job, when=float("nan"), what="jöb", many=list(range(3)))) == []
    assert (run / "spec" / "job.py").read_bytes() == job.read_bytes()
    assert (run / "spec" / "lib" / "sister.py").read_text() == "X = 1\n"
    assert {p.stat().st_mode & 0o777 for p in (run / "spec").rglob("*") if p.is_file()} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in (run / "spec").rglob("*") if p.is_dir()} == {0o700}
    assert os.listdir(run) == ["spec"], "temporary files are left"


CHANGES: dict[str, Any] = {
    "a key": (lambda job: made(job, a={"b": 2}), "job: a.b was 1, is 2"),
    "a key more": (lambda job: made(job, c=[1]), "job: c was not set, is [1]"),
    "a key less": (lambda job: identity_of(job, "job", {}, code_files(job), "c0de"), "job: a.b was 1, is not set"),
    "its type": (lambda job: made(job, a={"b": True}), "job: a.b was 1, is True"),
    "its type again": (lambda job: made(job, a={"b": "1"}), "job: a.b was 1, is '1'"),
    "the name": (lambda job: {**made(job), "name": "x"}, "job: it was 'job'"),
    "a module": (lambda job: (job.parent / "lib" / "sister.py").write_text("X = 2\n") and made(job), "code: lib/sister.py was changed"),
    "a module more": (lambda job: (job.parent / "late.py").write_text("import other\n") and made(job), "code: other.py is new"),
    "the file": (lambda job: job.write_text(job.read_text() + "#") and made(job), "code: job.py was changed"),
    "captured values": (lambda job: made(job, "other"), "code: values that the functions captured"),
    "the format": (lambda job: {**made(job), "version": 9}, "format: the run directory has version 1"),
    "Python": (lambda job: {**made(job), "python": "3.99"}, "code: Python was"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named(job: Path, tmp_path: Path, name: str) -> None:
    store_identity(tmp_path / "run", made(job), job, code_files(job))
    before = read_identity(tmp_path / "run")
    assert before is not None
    change, says = CHANGES[name]
    told = differences(before, change(job))
    assert any(line.startswith(says) for line in told), told
    text = refusal(tmp_path / "run", told, "which is done")
    assert says in text
    assert "--fresh" in text


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw.replace(b'"job"', b'"jab"'), lambda raw: b"", lambda raw: b"{" * 9000])
def test_a_damaged_identity_is_refused(job: Path, tmp_path: Path, damage: Any) -> None:
    store_identity(tmp_path / "run", made(job), job, code_files(job))
    path = paths.identity(tmp_path / "run")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Refused, match="--fresh starts over"):
        read_identity(tmp_path / "run")


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "n\n\xe4\udcff.txt"):
        (tmp_path / "texts" / name).write_bytes(b"a line\n" * 9)
    (tmp_path / "run").mkdir(mode=0o700)
    remember_input(tmp_path / "run", TextSource(str(tmp_path / "texts")), nothing)
    assert changed_inputs(tmp_path / "run") == []
    return tmp_path / "texts"


def same_size_and_time(folder: Path) -> None:
    about = (folder / "b.txt").stat()
    (folder / "b.txt").write_bytes(b"b line\n" * 9)
    os.utime(folder / "b.txt", ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize(("change", "says"), [
    (lambda folder: (folder / "c.txt").write_text("new"), "c.txt is new"),
    (lambda folder: (folder / "a.txt").unlink(), "a.txt is gone"),
    (lambda folder: (folder / "a.txt").write_text("longer" * 99), "a.txt had 63 bytes, has 594"),
    (lambda folder: os.utime(folder / "a.txt", (1, 1)), "a.txt was written anew"),
    (same_size_and_time, "b.txt has the same size and time, and other content"),
    (lambda folder: [p.unlink() for p in folder.iterdir()], "hold no file"),
])
def test_a_changed_input_is_named(texts: Path, change: Any, says: str) -> None:
    change(texts)
    told = changed_inputs(texts.parent / "run")
    assert any(says in line for line in told), told


def test_the_newest_survey_counts(texts: Path) -> None:
    (texts / "a.txt").write_text("longer")
    remember_input(texts.parent / "run", TextSource(str(texts)), nothing)
    assert changed_inputs(texts.parent / "run") == []
    assert len(os.listdir(paths.spec_folder(texts.parent / "run") / "inputs")) == 1


def test_whoever_was_superseded_writes_nothing(texts: Path) -> None:
    def lost() -> None:
        raise Refused("superseded")

    (texts / "a.txt").write_text("longer")
    with pytest.raises(Refused):
        remember_input(texts.parent / "run", TextSource(str(texts)), lost)
    assert "a.txt" in changed_inputs(texts.parent / "run")[0]


def test_many_files_cost_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files are sampled follows from their number; what was not got to in time is not asked for later."""
    (tmp_path / "many").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    for i in range(500):
        (tmp_path / "many" / f"{i:04d}.h5").write_bytes(bytes(100))
    read: list[str] = []
    monkeypatch.setattr(identities, "sample_digest", lambda path, nbytes: read.append(path) or sample_digest(path, nbytes))
    remember_input(tmp_path / "run", Hdf5Source(str(tmp_path / "many")), nothing)
    assert len(read) == len(set(read)) == identities.SAMPLED_FILES
    assert read[0].endswith("0000.h5") and read[-1].endswith("0499.h5")
    first, read[:] = list(read), []
    assert changed_inputs(tmp_path / "run") == []
    assert read == first
    monkeypatch.setattr(identities, "SAMPLED_S", 0.0)
    (tmp_path / "many" / "0000.h5").write_bytes(bytes(101))
    read.clear()
    remember_input(tmp_path / "run", Hdf5Source(str(tmp_path / "many")), nothing)
    assert len(read) == 1


def test_a_sample_sees_the_ends_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(3 << 20)
    seen = set()
    for at in (None, 0, len(content) - 1, len(content) // 2):
        if at is not None:
            content[at] ^= 1
        path.write_bytes(content)
        seen.add(sample_digest(str(path), len(content)))
    assert len(seen) >= 3
