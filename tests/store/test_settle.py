"""An output is published by its intent in the journal and then a rename; stopped anywhere, the next start finds all or nothing, and finishes."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.errors import Refused, StorageError, Superseded
from hpcmr.ops.write import Write
from hpcmr.store import manifest, paths, publish
from hpcmr.store.journal import Journal
from hpcmr.store.publish import existing
from hpcmr.store.reader import StoredTable
from hpcmr.store.settle import settle
from hpcmr.store.writer import TableWriter
from tests.store.support import leftovers
from tests.support.stops import Stopped, every_stop


def table(number):
    return Batch.of({"a": np.arange(300) * number})


def claimed(run) -> Journal:
    made = Journal(run)
    made.claim({"host": "n17", "pid": 4711, "user": "ann"})
    made.sweep()
    return made


def write(folder, number, journal, *, replace=False, share=None):
    """As two ranks do it."""
    attempt = paths.attempt_name(journal.run, journal.epoch, "0123456789ab")
    writers, infos = [], []
    try:
        for rank in range(2):
            writers.append(TableWriter(folder, rank, table(number).schema, attempt=attempt, share=share))
            writers[-1].append(rank, table(number))
            infos += writers[-1].close()
        return publish.publish(folder, table(number).schema, infos, attempt=attempt, replace=replace, share=share, journal=journal)
    except Stopped:
        raise
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise


def content(folder) -> int:
    """Which output is there, whole; 0: none."""
    if existing(folder) is None:
        assert not folder.exists()
        return 0
    with StoredTable.open(folder) as found:
        found.verify()
        assert found.rows == 600
        return int(found["a"][1])


def intents(journal):
    return [e for e in journal.entries if e.kind == "publish"]


def test_stopped_anywhere_a_new_output_is_there_or_not_and_then_it_is(tmp_path):
    seen = []

    for run, where in every_stop(tmp_path, lambda run: claimed(run / "run"), lambda run, journal: write(run / "out", 1, journal)):
        journal = claimed(run / "run")
        told = []
        assert content(run / "out") in ((0, 1) if intents(journal) else (0,)), where
        was = content(run / "out")
        assert settle(journal, told.append) == len(told) == (1 if intents(journal) and not was else 0), where
        assert content(run / "out") == (1 if intents(journal) else 0), where
        assert settle(journal, told.append) == 0
        seen.append((bool(intents(journal)), was))
        if not content(run / "out"):
            write(run / "out", 1, journal)
        assert leftovers(run / "out") == ["run"], where
        assert content(run / "out") == 1
    assert {(False, 0), (True, 0), (True, 1)} == set(seen) and seen == sorted(seen)


def test_stopped_anywhere_a_replacement_is_finished(tmp_path):
    """Where the intent stands the new output takes its place at the next start; before, the earlier one is as it was."""
    def begin(run):
        journal = claimed(run / "run")
        write(run / "out", 1, journal)
        return claimed(run / "run")

    seen = []
    for run, where in every_stop(tmp_path, begin, lambda run, journal: write(run / "out", 2, journal, replace=True)):
        journal = claimed(run / "run")
        due, told = len(intents(journal)) == 2, []
        was = content(run / "out")
        assert was in ((0, 1, 2) if due else (1,)), where
        settle(journal, told.append)
        assert content(run / "out") == (2 if due else 1), where
        if due:
            assert leftovers(run / "out") == ["run"], where
        else:
            write(run / "out", 2, journal, replace=True)
            assert leftovers(run / "out") == ["run"], where
        seen.append(was)
    assert set(seen) == {0, 1, 2}        # it was stopped between the two renames as well


def test_stopped_while_settling_it_is_settled_by_the_next_start(tmp_path):
    def begin(run):
        journal = claimed(run / "run")
        write(run / "out", 1, journal)
        attempt = paths.attempt_name(journal.run, journal.epoch, "f" * 12)
        writer = TableWriter(run / "out", 0, table(2).schema, attempt=attempt)
        writer.append(0, table(2))
        writer.append(1, table(2))
        infos = writer.close()
        real = publish._appear
        publish._appear = lambda *args: (_ for _ in ()).throw(Stopped)
        clean, publish.remove_attempt = publish.remove_attempt, lambda *args: None
        try:
            publish.publish(run / "out", table(2).schema, infos, attempt=attempt, replace=True, journal=journal)
        except Stopped:
            pass
        finally:
            publish._appear, publish.remove_attempt = real, clean
        assert content(run / "out") == 1 and len(intents(journal)) == 2
        return claimed(run / "run")

    for run, where in every_stop(tmp_path, begin, lambda run, journal: settle(journal)):
        settle(claimed(run / "run"))
        assert content(run / "out") == 2, where
        assert leftovers(run / "out") == ["run"], where


def test_a_superseded_attempt_publishes_nothing(tmp_path):
    old = claimed(tmp_path / "run")
    claimed(tmp_path / "run")
    with pytest.raises(Superseded):
        write(tmp_path / "out", 1, old)
    assert leftovers(tmp_path / "out") == ["run"] and not (tmp_path / "out").exists()


def test_a_superseded_attempt_that_wakes_after_its_intent_changes_nothing(tmp_path, monkeypatch):
    """It had committed the output, slept, and another attempt has done what was due."""
    old, real = claimed(tmp_path / "run"), publish._appear
    write(tmp_path / "out", 1, old)
    later = []

    def sleep(*args):
        settle(claimed(tmp_path / "run"), later.append)
        real(*args)

    monkeypatch.setattr(publish, "_appear", sleep)
    with pytest.raises(StorageError, match="cannot publish"):
        write(tmp_path / "out", 2, old, replace=True)
    assert len(later) == 1 and content(tmp_path / "out") == 2 and leftovers(tmp_path / "out") == ["run"]


@pytest.mark.parametrize("damage", ["shard", "manifest", "foreign"])
def test_a_damaged_staging_folder_is_not_published(tmp_path, monkeypatch, damage):
    """And a replacement that had set the earlier output aside is undone."""
    journal = claimed(tmp_path / "run")
    write(tmp_path / "out", 1, journal)
    rename = os.rename

    def stop_between(a, b):
        if str(b).endswith("/out"):
            raise Stopped
        rename(a, b)

    monkeypatch.setattr(os, "rename", stop_between)
    monkeypatch.setattr(publish, "remove_attempt", lambda *args: None)
    with pytest.raises(Stopped):
        write(tmp_path / "out", 2, journal, replace=True)
    monkeypatch.undo()
    (staging,) = tmp_path.glob(".out.*.tmp")
    assert content(tmp_path / "out") == 0
    if damage == "shard":
        os.truncate(staging / "part-00001.h5", 100)
    elif damage == "manifest":
        (staging / "manifest.json").write_bytes(b"{}")
    else:
        (staging / "thesis.tex").touch()
    told = []
    assert settle(claimed(tmp_path / "run"), told.append) == 0
    assert content(tmp_path / "out") == 1 and "is back in its place" in told[0]


def test_what_else_is_there_is_not_touched(tmp_path, monkeypatch):
    journal = claimed(tmp_path / "run")
    monkeypatch.setattr(publish, "_appear", lambda *args: (_ for _ in ()).throw(Stopped))
    monkeypatch.setattr(publish, "remove_attempt", lambda *args: None)
    with pytest.raises(Stopped):
        write(tmp_path / "out", 1, journal)
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    told = []
    assert settle(claimed(tmp_path / "run"), told.append) == 0
    assert os.listdir(tmp_path / "out") == ["thesis.tex"] and "something else is there now" in told[0]


def test_intents_that_somebody_made_up(tmp_path):
    """They lead to outputs and the folders beside them, or nowhere."""
    journal = claimed(tmp_path / "run")
    write(tmp_path / "out", 1, journal)
    made = manifest.identity(existing(tmp_path / "out"))
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe/thesis.tex").touch()
    path = os.fsencode(tmp_path / "safe").hex()
    good = {"path": path, "attempt": "x", "identity": made, "replace": True}
    for change in ({"path": b"../x".hex()}, {"path": b"relative".hex()}, {"path": "zz"}, {"path": 5}, {"path": (b"/" + b"x" * 9000).hex()},
                   {"path": b"/".hex()}, {"path": b"/a/../etc".hex()}, {"attempt": "../../x"}, {"attempt": ""}, {"attempt": None}, {"identity": "x"},
                   {"path": b"/a\x00b".hex()}, {}):
        journal.append("publish", {**good, **change})
    for name in (".safe.x.tmp", ".safe.x.old"):
        (tmp_path / name).symlink_to(tmp_path / "out")
    assert settle(journal) == 0
    assert content(tmp_path / "out") == 1 and os.listdir(tmp_path / "safe") == ["thesis.tex"]


def test_shared_with_the_group_or_private(tmp_path):
    journal = claimed(tmp_path / "run")
    old = os.umask(0o077)
    try:
        write(tmp_path / "shared", 1, journal, share="group")
        write(tmp_path / "private", 1, journal)
    finally:
        os.umask(old)
    for name, folder, file in (("shared", 0o750, 0o640), ("private", 0o700, 0o600)):
        assert (tmp_path / name).stat().st_mode & 0o777 == folder
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / name).iterdir()} == {file}
    assert publish.closed_above(tmp_path / "run/output/x") == tmp_path / "run"


def test_staging_folders_that_a_checkpoint_names_stay(tmp_path):
    """And those of other runs and of later attempts."""
    old = claimed(tmp_path / "run")
    names = [paths.attempt_name(old.run, 1, "a" * 12), paths.attempt_name(old.run, 1, "b" * 12), paths.attempt_name(old.run, 9, "c" * 12),
             paths.attempt_name("f" * 16, 1, "d" * 12)]
    for name in names:
        paths.staging(tmp_path / "out", name).mkdir()
    old.append("generation", {"outlet": {"told": [{"attempt": names[1], "shards": []}]}})
    write(tmp_path / "out", 1, claimed(tmp_path / "run"))
    assert leftovers(tmp_path / "out") == sorted(["run", *(f".out.{n}.tmp" for n in names[1:])])


def test_staging_folders_of_dead_attempts_go_when_the_output_is_begun(tmp_path):
    old = claimed(tmp_path / "run")
    write(tmp_path / "other", 1, old)
    paths.staging(tmp_path / "out", paths.attempt_name(old.run, 1, "a" * 12)).mkdir()
    journal = claimed(tmp_path / "run")
    ctx = SimpleNamespace(rank=0, attempt=paths.attempt_name(old.run, 2, "b" * 12), journal=journal, take=lambda *a: None, give=lambda *a: None,
                          log=lambda *a: None)
    outlet = Write(tmp_path / "out")
    outlet.open(ctx, table(1).schema)
    assert leftovers(tmp_path / "out") == ["other", "run"]
    outlet.abandon()


def test_an_attempt_must_be_a_name(tmp_path):
    with pytest.raises(Refused, match="cannot name an attempt"):
        paths.staging(tmp_path / "out", "../x")
