"""One sequence of slots: who owns a run, what it has committed, and that nobody else commits."""

import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import StorageError, Superseded
from hpcmr.store import files, journal, paths, sealed
from hpcmr.store.journal import KEYS, Journal, files_of
from hpcmr.store.pieces import fault_of, sync_names, write_pieces
from tests.support.stops import every_stop

OWNER = {"host": "n17", "pid": 4711, "boot": "b", "start": 1, "user": "ann", "slurm_job": "1234", "ranks": 4, "nodes": 1}


def claimed(run_dir, **owner) -> Journal:
    made = Journal(run_dir)
    made.claim({**OWNER, **owner})
    return made


def piece(run_dir, epoch, number):
    rows = Batch.of({"k": np.arange(number, number + 50)})
    info = write_pieces(run_dir, paths.piece_file(epoch, number, 0, 0), [Partitioned(rows, np.array([0, 20, 50]))])
    sync_names(run_dir)
    return info


def generation(made: Journal, number: int, earlier=()) -> dict:
    """Commit a generation of one new file and of earlier ones."""
    info = piece(made.run_dir, made.epoch, number)
    made.append("generation", {"number": number, "records": {".0": {"pieces": [*earlier, info]}}})
    return info


def kinds(made):
    return [e.kind for e in made.entries]


def names(run_dir, folder="pieces"):
    return sorted(os.listdir(run_dir / folder))


def whole(run_dir):
    return lambda entry: fault_of(run_dir, entry.body, deep=True)


def test_a_run_from_claim_to_end(tmp_path):
    run = tmp_path / "deep" / "run"
    assert Journal(run).entries == [] and not run.exists()
    made = claimed(run)
    assert made.epoch == 1 and made.continued is None and made.owner.body["owner"] == OWNER
    info = generation(made, 1)
    made.append("end", {"state": "checkpointed", "reason": "SIGUSR1"})
    again = Journal(run)
    assert again.entries == made.entries and again.run == made.run and again.notes == []
    assert again.ended.body["state"] == "checkpointed"
    assert again.claim(OWNER, whole(run)) == 2
    assert again.continued.body["records"][".0"]["pieces"] == [info] and again.owner.body["continues"] == again.continued.slot == 2
    assert again.ended is None
    for path in [run, *run.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert names(run, "journal") == [f"{n:06d}.json" for n in (1, 2, 3, 4)]


def test_neither_numpy_nor_mpi_is_loaded(tmp_path):
    claimed(tmp_path)
    code = f"import sys; from hpcmr.store.journal import Journal; assert Journal({str(tmp_path)!r}).owner; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "h5py", "mpi4py"} & set(loaded)


# -- fencing ------------------------------------------------------------------------------------------------------------------------


def test_a_superseded_attempt_commits_nothing(tmp_path):
    old = claimed(tmp_path)
    generation(old, 1)
    new = claimed(tmp_path, pid=99)
    for _ in range(2):
        with pytest.raises(Superseded, match=r"belongs to attempt 2, process 99 of ann on n17 \(Slurm job 1234\), since 20.*superseded"):
            old.append("publish", {"path": "/out"})
    for call in (old.collect, old.sweep, old.check, lambda: old.claim(OWNER), lambda: old.condemn(2, "it was seen")):
        with pytest.raises(Superseded):
            call()
    new.append("end", {"state": "done"})
    assert kinds(Journal(tmp_path)) == ["claim", "generation", "claim", "end"]
    with pytest.raises(Superseded):
        Journal(tmp_path).adopt(1)
    other = Journal(tmp_path)
    other.adopt(2)
    other.append("degraded", {"ranks": [0]})
    assert Journal(tmp_path).entries[-1].epoch == 2


def test_of_many_that_claim_at_once_one_owns_the_run(tmp_path):
    for trial in range(10):
        run, won, lost = tmp_path / str(trial), [], []
        start = threading.Barrier(4)

        def work(pid, run=run, start=start, won=won, lost=lost):
            made = Journal(run)
            start.wait()
            try:
                made.claim({**OWNER, "pid": pid})
                won.append(pid)
            except Superseded as error:
                lost.append(str(error))

        in_threads([lambda pid=pid: work(pid) for pid in (501, 502, 503, 504)])
        assert len(won) == 1 and len(lost) == 3
        assert all(f"attempt 1, process {won[0]}" in text for text in lost)
        assert kinds(Journal(run)) == ["claim"] and names(run, "journal") == ["000001.json"]


def in_threads(works):
    threads = [threading.Thread(target=w) for w in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def test_of_many_that_append_each_gets_a_slot_of_its_own(tmp_path):
    claimed(tmp_path)
    made = [Journal(tmp_path) for _ in range(3)]
    for one in made:
        one.adopt(1)
    in_threads([lambda who=who: [made[who % 3].append("degraded", {"who": who, "n": n}) for n in range(8)] for who in range(6)])
    found = Journal(tmp_path)
    assert [e.slot for e in found.entries] == list(range(1, 50))
    for who in range(6):
        assert [e.body["n"] for e in found.entries[1:] if e.body["who"] == who] == list(range(8))


COMMITS = """
import sys, os
from hpcmr.errors import Superseded
from hpcmr.store.journal import Journal
run, who, claims = sys.argv[1], int(sys.argv[2]), 0
while not os.path.exists(run + "/go"): pass
while claims < 8:
    try:
        made = Journal(run)
        made.claim({"pid": who})
        claims += 1
        for n in range(20):
            made.append("degraded", {"who": who})
    except Superseded:
        continue
"""


def test_processes_that_supersede_each_other(tmp_path):
    """Between two claims all that was committed is of the first one's epoch, and of the process that claimed it."""
    children = [subprocess.Popen([sys.executable, "-c", COMMITS, str(tmp_path), str(n)]) for n in range(3)]
    (tmp_path / "go").touch()
    assert [c.wait(60) for c in children] == [0, 0, 0]
    made = Journal(tmp_path)
    assert made.notes == []
    claims = [e for e in made.entries if e.kind == "claim"]
    assert [e.epoch for e in claims] == list(range(1, 25))
    owner = None
    for entry in made.entries:
        owner = entry if entry.kind == "claim" else owner
        assert entry.epoch == owner.epoch and (entry is owner or entry.body["who"] == owner.body["owner"]["pid"])


# -- damage -------------------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_an_entry_is_noticed(tmp_path):
    made = claimed(tmp_path)
    first = generation(made, 1)
    generation(made, 2, [first])
    path = tmp_path / "journal" / "000003.json"
    raw, rng = path.read_bytes(), np.random.default_rng(1)
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        found = Journal(tmp_path)
        assert found.newest_generation().body["number"] == 1 and list(found.damaged) == [3]
        assert found.notes == [f"entry {str(path)!r} of the journal {found.damaged[3]}; it is left out"]
    for cut in range(0, len(raw), 7):
        path.write_bytes(raw[:cut])
        assert Journal(tmp_path).newest_generation().body["number"] == 1
    other = claimed(tmp_path / "other")
    for n in (1, 2):
        other.append("generation", {"number": 70 + n})
    for stale in (tmp_path / "journal/000002.json", tmp_path / "other/journal/000003.json"):      # another slot's, another run's
        path.write_bytes(stale.read_bytes())
        assert Journal(tmp_path).newest_generation().body["number"] == 1


def test_an_attempt_that_cannot_tell_stops_and_the_next_epoch_is_new(tmp_path):
    """A damaged entry may have been a claim: it is nobody's epoch, and whoever was there before does not go on."""
    old = claimed(tmp_path)
    claimed(tmp_path)
    (tmp_path / "journal/000002.json").write_bytes(b"zzz")
    with pytest.raises(StorageError, match=r"whether another attempt has taken over cannot be told.*hpcmr verify"):
        old.append("generation", {})
    assert Journal(tmp_path).claim(OWNER) == 3


def entry_of(**changes) -> bytes:
    value = {"format": "hpcmr-journal", "version": 1, "run": "0" * 16, "slot": 1, "kind": "claim", "epoch": 1, "written": "now", "body": {}}
    return sealed.render({**value, **changes}, KEYS)


DEEP = entry_of(body=1).replace(b'"body": 1', b'"body": ' + b"[" * 200_000 + b"]" * 200_000)


@pytest.mark.parametrize("content", [
    entry_of(format="other"), entry_of(version=2), entry_of(version="1"), entry_of(run="../../../../etc/x"), entry_of(run=None), entry_of(slot=2),
    entry_of(slot=True), entry_of(kind="collected2"), entry_of(kind=["claim"]), entry_of(epoch=0), entry_of(epoch=-1), entry_of(epoch=10 ** 30),
    entry_of(epoch=1.5), entry_of(written="x" * 100), entry_of(body=[]), entry_of(body=None), entry_of(kind="condemned", body={"slot": "all"}),
    entry_of(body={"a": 10 ** 40}), DEEP, b"", b"{}", b"\x00" * 1000, entry_of().replace(b"\n", b"\n\n"),
    entry_of(body={"a": 1}).replace(b'"a"', b'"\xff"'),
], ids=range(24))
def test_entries_that_somebody_made_up(tmp_path, content):
    """Each with a digest that fits."""
    head, mark, tail = content.rpartition(b'"digest"')
    if mark and len(tail) == 48 and b"\n\n" not in content:
        content = head + b'"digest": "xxh3-128:' + journal.sealed.xxhash.xxh3_128_hexdigest(head).encode() + b'"\n}\n'
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/000001.json").write_bytes(content)
    made = Journal(tmp_path)
    assert made.entries == [] and list(made.damaged) == [1] and len(made.notes[0]) < 1000
    assert made.claim(OWNER) == 2


def test_what_is_no_file(tmp_path, monkeypatch):
    folder = tmp_path / "journal"
    folder.mkdir()
    os.mkfifo(folder / "000001.json")
    (folder / "000002.json").symlink_to("/etc/passwd")
    (folder / "000003.json").mkdir()
    (folder / "000004.json").write_bytes(entry_of(slot=4, body={"a": "x" * 2000}))
    (folder / "0000005.json").write_bytes(b"no slot")
    monkeypatch.setattr(journal, "ENTRY_NBYTES_MAX", 1000)
    made = Journal(tmp_path)
    assert sorted(made.damaged) == [1, 2, 3, 4]
    assert made.claim(OWNER) == 5 and made.owner.slot == 5
    with pytest.raises(StorageError, match=r"an entry of the kind 'generation' would have 3,.* bytes, more than 1,000"):
        made.append("generation", {"a": "x" * 3000})


def test_a_damaged_generation_is_passed_over(tmp_path):
    made = claimed(tmp_path)
    infos = [generation(made, n) for n in (1, 2, 3)]
    path = tmp_path / infos[2]["file"]
    path.write_bytes(path.read_bytes()[:-1])
    again = Journal(tmp_path)
    again.claim(OWNER, whole(tmp_path))
    assert again.continued.body["number"] == 2
    assert "the checkpoint of journal entry 4 is not whole" in again.notes[0] and str(path) in again.notes[0]
    again.condemn(3, "bytes were wrong while it ran")
    later = Journal(tmp_path)
    later.claim(OWNER, whole(tmp_path))
    assert later.continued.body["number"] == 1
    later.condemn_file(infos[1]["file"], "nobody names it but what is condemned")
    assert kinds(later).count("condemned") == 1
    assert later.sweep() == 1 and (tmp_path / infos[2]["file"]).exists()       # condemned: gone; only not whole: perhaps it is the disk
    later.condemn_file(infos[0]["file"], "bytes were wrong as well")
    assert Journal(tmp_path).newest_generation(whole(tmp_path)) is None


# -- what is needed no more ---------------------------------------------------------------------------------------------------------


def test_two_whole_generations_are_kept_with_all_that_they_name(tmp_path):
    made = claimed(tmp_path)
    infos = []
    for n in range(1, 6):
        infos.append(generation(made, n, [infos[0]] if infos else []))
        made.collect()
        assert [e.body["number"] for e in made.generations()] == list(range(n, max(0, n - 2), -1))
    named = sorted(os.path.basename(i["file"]) for i in (infos[0], infos[3], infos[4]))
    assert names(tmp_path) == named
    assert kinds(Journal(tmp_path)) == ["claim", *["collected"] * 3, "generation", "generation"]
    assert made.collect() == 0


def test_what_dead_attempts_left_is_swept_and_nothing_else(tmp_path):
    made = claimed(tmp_path)
    info = generation(made, 1)
    piece(tmp_path, 1, 2)
    for name in ("pieces/e0001-000003-r00000-00.h5.tmp", "journal/.0123456789abcdef.tmp", "results/e0001-a00001-00.h5"):
        (tmp_path / name).touch()
    (tmp_path / "pieces/mine.txt").touch()
    (tmp_path / "pieces/folder.h5").mkdir()
    new = claimed(tmp_path)
    assert new.sweep() == 4
    assert names(tmp_path) == sorted([os.path.basename(info["file"]), "mine.txt", "folder.h5"])
    assert names(tmp_path, "results") == []


def test_files_of_a_generation():
    body = {"a": [{"file": "pieces/e0001-000001-r00000-00.h5"}, {"file": "results/e0001-a00001-00.h5"}], "file": "pieces/../../etc/passwd",
            "b": {"file": "rank-00000-00000.h5"}, "c": {"file": 5}, "d": {"file": "/etc/passwd"}, "e": {"file": "pieces/e0001-000001-r00000-00.h5\n"}}
    assert files_of(body) == {"pieces/e0001-000001-r00000-00.h5", "results/e0001-a00001-00.h5"}


def test_stopped_anywhere_the_next_start_goes_on(tmp_path):
    """Between any two file operations of claim, commit and collection: the generation before or the new one, whole; nothing stays behind."""
    def begin(run):
        made = claimed(run)
        return [generation(made, n) for n in (1, 2)]

    def work(run, infos):
        made = claimed(run)
        made.sweep()
        generation(made, 3, infos[1:])
        made.collect()
        made.append("end", {"state": "done"})

    seen = []
    for run, where in every_stop(tmp_path, begin, work):
        made = claimed(run)
        made.sweep()
        assert made.notes == [], where
        kept = [e.body["number"] for e in made.generations()]
        assert kept[:2] in ([2, 1], [3, 2]), where
        assert all(fault_of(run, e.body, deep=True) is None for e in list(made.generations())[:2]), where
        named = {f for e in made.generations() for f in files_of(e.body)}
        assert {f"pieces/{n}" for n in names(run)} == named, where
        assert not [n for n in names(run, "journal") if not paths.slot_number(n)], where
        seen.append(kept[0])
    assert seen.count(2) > 10 and seen.count(3) > 10 and seen == sorted(seen)


# -- file systems -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EINTR])
def test_what_passes_by_itself_is_tried_again(tmp_path, monkeypatch, no_pause, number):
    """Each call fails once before it is done, and once more with its answer lost, where that can be told."""
    real = {name: getattr(os, name) for name in ("open", "pwrite", "fsync", "link", "rename", "unlink", "mkdir", "listdir", "read")}
    failed = set()

    def failing(name):
        def call(*args, **options):
            key = (name, *args[:1])
            if key not in failed:
                failed.add(key)
                if name in ("link", "rename", "unlink"):
                    real[name](*args, **options)
                raise OSError(number, os.strerror(number))
            return real[name](*args, **options)
        return call

    for name in real:
        monkeypatch.setattr(os, name, failing(name))
    made = claimed(tmp_path / "run")
    for n in (1, 2, 3):
        made.append("generation", {"number": n})
    made.collect()
    assert kinds(Journal(tmp_path / "run")) == ["claim", "collected", "generation", "generation"]
    assert len(no_pause) > 10 and {n for n, *_ in failed} == set(real)


def test_what_does_not_pass_is_told(tmp_path, monkeypatch, no_pause):
    made = claimed(tmp_path)

    def stale(*args):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "link", stale)
    with pytest.raises(StorageError, match=r"cannot write '.*000002.json': Stale file handle \(ESTALE\); the checkpoints that were committed before"):
        made.append("generation", {})
    assert no_pause == list(files.PAUSES_S)
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    with pytest.raises(StorageError, match=r"has no hard links.*--run-dir"):
        made.append("generation", {})
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(FileExistsError(errno.EEXIST, "there")))
    with pytest.raises(StorageError, match=r"says that '.*000002.json' is there, and does not show it"):
        made.append("generation", {})
    monkeypatch.undo()
    assert names(tmp_path, "journal") == ["000001.json"]
    made.append("generation", {})
    assert json.loads((tmp_path / "journal/000002.json").read_text())["kind"] == "generation"
