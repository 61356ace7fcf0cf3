"""What a run has committed, in one sequence of slots: who may write, which generations there are, which outputs are due.

::

    journal/000001.json   claim        epoch 1 owns the run
            000002.json   collected    a generation that newer ones have replaced: its slot stays taken
            000003.json   generation   a checkpoint, with the names and digests of all its files
            000004.json   claim        epoch 2 owns the run, and continues 3
            000005.json   generation
            000006.json   publish      an output is complete in its staging folder: whoever finds this may rename it
            000007.json   end          done

An entry is written to a draft, synced, and published by `link` to the next free slot. A slot is taken once and for all: of two that
want it one wins, and the other one reads what is there before it tries the next. So nobody gets past a newer claim without having read it,
and an attempt that was superseded, however long it slept, can commit nothing: no generation, no output. No clock and no lock is needed.
Entries are in the form of `hpcmr.store.sealed`; a damaged one is left out, with a note, and the newest whole generation counts.
Neither NumPy nor MPI is needed. On one rank only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcmr.errors import StorageError, Superseded
from hpcmr.store import files, paths, sealed

FORMAT, VERSION = "hpcmr-journal", 1
KEYS = ("format", "version", "run", "slot", "kind", "epoch", "written", "body")
KINDS = ("claim", "generation", "collected", "condemned", "publish", "degraded", "end")
ENTRY_NBYTES_MAX = 256 << 20
"""A larger entry is refused. A generation needs about 300 bytes for each file."""
SAFE = "the checkpoints that were committed before are as they were"

Verify = Callable[["Entry"], str | None]
"""What is wrong with a generation; None: nothing."""


@dataclass(frozen=True)
class Entry:
    """One slot. `body` is what the writer gave to `Journal.append`; `written` the time in UTC."""

    slot: int
    kind: str
    epoch: int
    written: str
    body: dict[str, Any]


class Journal:
    """The journal of a run directory, as it was when it was read last; nothing is made before `claim`.

    Parameters
    ----------
    run_dir : Path

    Attributes
    ----------
    entries : list of Entry
        In order, without those that are damaged or do not count.
    notes : list of str
        What was wrong with those, and with generations that `newest_generation` passed over; for the log.
    run : str
        Names the run: drawn at its first claim, and written into every entry. Empty before.
    epoch : int
        Of this attempt; 0 before `claim` or `adopt`.
    continued : Entry or None
        The generation that this attempt continues.

    Notes
    -----
    Collective: no; on one rank. Safe to use from several threads. Methods raise `StorageError` where the file system fails.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)
        self.folder = paths.journal(self.run_dir)
        self.entries: list[Entry] = []
        self.notes: list[str] = []
        self.run = ""
        self.epoch = 0
        self.continued: Entry | None = None
        self._claim_slot = 0
        self._last = 0                       # the highest slot that is known to be taken
        self._unread: dict[int, str] = {}    # slots whose entries are damaged, and how
        self._bad: set[int] = set()          # generations that are not whole, or condemned
        self._condemned: set[int] = set()    # of these, what no later start takes either
        self._lost: str | None = None        # why this attempt may not commit any more
        self._lock = threading.RLock()
        self.refresh()

    # -- what is there ------------------------------------------------------------------------------------------------------------

    def refresh(self) -> list[Entry]:
        """Read the slots that were taken since; returns their entries."""
        with self._lock, files.storing(self.folder, "read", SAFE):
            found: list[tuple[Entry, str]] = []
            for slot in sorted(n for n in map(paths.slot_number, files.names_in(self.folder)) if n > self._last):
                self._read(slot, found)
            while self._read(self._last + 1, found):         # what a cached listing does not show yet
                continue
            return self._take(found)

    def _read(self, slot: int, found: list[tuple[Entry, str]]) -> bool:
        """Add what a slot holds to `found`; False: it is free."""
        path = self.folder / paths.slot_name(slot)
        try:
            found.append(_parsed(files.read_small(path, ENTRY_NBYTES_MAX), slot))
        except FileNotFoundError:
            return False
        except (OSError, sealed.Wrong) as wrong:
            self._leave_out(slot, f"is damaged ({wrong})")
        self._last = max(self._last, slot)
        return True

    def _leave_out(self, slot: int, why: str) -> None:
        self._unread[slot] = why
        self.notes.append(f"entry {str(self.folder / paths.slot_name(slot))!r} of the journal {why}; it is left out")

    def _take(self, found: list[tuple[Entry, str]]) -> list[Entry]:
        """Keep those that count: of this run, and of the epoch whose claim came last."""
        if not self.run and found:
            self.run = Counter(run for _, run in found).most_common(1)[0][0]
        before = len(self.entries)
        for entry, run in found:
            newest = max((e.epoch for e in self.entries[-1:]), default=0)
            if run != self.run:
                self._leave_out(entry.slot, f"belongs to another run ({run})")
            elif entry.epoch < newest and entry.kind != "collected":
                self._leave_out(entry.slot, f"was written by attempt {entry.epoch}, after attempt {newest} had taken over")
            else:
                self.entries.append(entry)
                self._heed(entry)
        return self.entries[before:]

    @property
    def damaged(self) -> dict[int, str]:
        """Slots whose entries are left out, with the reason, and those below the last one that are not there at all."""
        known = {e.slot for e in self.entries} | set(self._unread)
        return {**self._unread, **{n: "is missing" for n in range(1, self._last) if n not in known}}

    @property
    def owner(self) -> Entry | None:
        """The newest claim, with ``body["owner"]``; None: nobody has claimed this run."""
        return next((e for e in reversed(self.entries) if e.kind == "claim"), None)

    @property
    def ended(self) -> Entry | None:
        """The `end` of the newest attempt; None: it runs, or it died."""
        owner = self.owner
        return next((e for e in reversed(self.entries) if e.kind == "end" and owner is not None and e.epoch == owner.epoch), None)

    def generations(self) -> Iterator[Entry]:
        """The generations that are there, the newest first, without those that were found not to be whole."""
        return (e for e in reversed(list(self.entries)) if e.kind == "generation" and e.slot not in self._bad)

    def newest_generation(self, verify: Verify | None = None) -> Entry | None:
        """The newest whole generation, None if there is none; those that `verify` finds fault with are passed over, with a note."""
        for entry in self.generations():
            why = verify(entry) if verify is not None else None
            if why is None:
                return entry
            self._pass_over(entry.slot, why)
        return None

    def _pass_over(self, slot: int, why: str) -> None:
        self._bad.add(slot)
        self.notes.append(f"the checkpoint of journal entry {slot} is not whole ({why}); an older one is taken, or the job starts anew")

    # -- owning it ----------------------------------------------------------------------------------------------------------------

    def claim(self, owner: Mapping[str, Any], verify: Verify | None = None) -> int:
        """Make this the attempt that owns the run; returns its epoch. Whether an earlier owner is dead is for the caller to judge.

        Parameters
        ----------
        owner : mapping
            ``host``, ``pid``, ``boot``, ``start``, ``user``, ``slurm_job``, ``ranks``, ``nodes``, ...
        verify : callable, optional
            Of `newest_generation`, for `continued`.

        Raises
        ------
        Superseded
            Another attempt has claimed the run since this journal was read.
        """
        with self._lock:
            if self._lost is not None:
                raise Superseded(self._lost)
            self._make_folders()
            before, run = self.owner, self.run or secrets.token_hex(8)
            for pause_s in _pauses():
                self.continued = self.newest_generation(verify)
                # Each damaged entry may have been a claim: no epoch is used twice.
                epoch = max((e.epoch for e in self.entries), default=0) + 1 + len(self._unread)
                body = {"token": secrets.token_hex(8), "owner": dict(owner), "continues": self.continued.slot if self.continued else None}
                made = self._publish("claim", epoch, body, run)
                if made is not None:
                    self.run, self.epoch, self._claim_slot = run, epoch, made.slot
                    return epoch
                time.sleep(pause_s)
                self.refresh()
                now = self.owner
                if now is not None and now is not before:
                    raise self._superseded(now)
                run = self.run or run
            raise self._hidden()

    def adopt(self, epoch: int) -> None:
        """Go on as the attempt `epoch`, in another process of it. Raises `Superseded` if it does not own the run any more."""
        with self._lock:
            now = self.owner
            if now is None or now.epoch != epoch:
                raise self._superseded(now)
            self.epoch, self._claim_slot = epoch, now.slot

    def _make_folders(self) -> None:
        for folder in (self.run_dir, self.folder, *paths.run_folders(self.run_dir)):
            files.make_folder(folder, safe=SAFE)
        files.sync_folder(self.run_dir, SAFE)

    def _superseded(self, by: Entry | None) -> Superseded:
        who = "nobody that its journal knows" if by is None else f"attempt {by.epoch}, {owner_name(by.body.get('owner'))}, since {by.written}"
        self._lost = self._lost or (f"the run directory {str(self.run_dir)!r} belongs to {who}; this attempt was superseded and commits nothing: "
                                    "wait for the other one, or end it and start again")
        return Superseded(self._lost)

    # -- writing ------------------------------------------------------------------------------------------------------------------

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Commit an entry: durable, and visible as a whole, when this returns.

        Parameters
        ----------
        kind : {"generation", "publish", "degraded", "end", "condemned"}
        body : mapping
            JSON values: no NaN, no integer beyond 64 bits. Whatever stands under a key ``file`` anywhere in a generation and is a name
            of `paths.is_run_file` is one of its files: they live as long as the generation.

        Raises
        ------
        Superseded
            Another attempt has claimed the run: then, and ever after.
        """
        assert kind in KINDS and kind not in ("claim", "collected")
        with self._lock:
            self._check_owned()
            for pause_s in _pauses():
                made = self._publish(kind, self.epoch, body, self.run)
                if made is not None:
                    return made
                time.sleep(pause_s)
                self.check()
            raise self._hidden()

    def check(self) -> None:
        """Raise `Superseded` unless this attempt still owns the run, as far as the journal shows."""
        with self._lock:
            self._check_owned()
            self.refresh()
            now = self.owner
            if now is None or now.slot != self._claim_slot:
                raise self._superseded(now)
            damaged = [n for n in self._unread if n > self._claim_slot]
            if damaged:
                raise StorageError(f"journal entry {str(self.folder / paths.slot_name(damaged[0]))!r} was written since this attempt began and "
                                   f"cannot be read: whether another attempt has taken over cannot be told; {SAFE}; run `hpcmr verify "
                                   f"{self.run_dir}`, then start again")

    def _hidden(self) -> StorageError:
        return StorageError(f"the file system says that {str(self.folder / paths.slot_name(self._last + 1))!r} is there, and does not show it; "
                            f"nothing was committed, {SAFE}; start again")

    def _check_owned(self) -> None:
        if self._lost is not None:
            raise Superseded(self._lost)
        assert self.epoch, "claim the run first"

    def _publish(self, kind: str, epoch: int, body: Mapping[str, Any], run: str) -> Entry | None:
        """Put an entry into the next free slot as far as we know; None: it is taken."""
        entry = Entry(self._last + 1, kind, epoch, datetime.now(UTC).isoformat(timespec="seconds"), dict(body))
        with self._draft(entry, run) as draft:
            try:
                files.link(draft, self.folder / paths.slot_name(entry.slot))
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise StorageError(f"the file system of {str(self.run_dir)!r} has no hard links, which commits need so that two attempts do "
                                       "not both go on; choose a run directory on another file system (--run-dir)") from error
                raise
        files.sync_folder(self.folder, SAFE)
        self._last = entry.slot
        self.entries.append(entry)
        self._heed(entry)
        return entry

    def _heed(self, entry: Entry) -> None:
        if entry.kind == "condemned":
            self._condemned.add(int(entry.body["slot"]))
            self._bad.add(int(entry.body["slot"]))

    @contextlib.contextmanager
    def _draft(self, entry: Entry, run: str) -> Iterator[Path]:
        """An entry as a durable file, which is gone afterwards."""
        value = {"format": FORMAT, "version": VERSION, "run": run, "slot": entry.slot, "kind": entry.kind, "epoch": entry.epoch,
                 "written": entry.written, "body": entry.body}
        draft, content = self.folder / paths.slot_draft(secrets.token_hex(8)), sealed.render(value, KEYS)
        if len(content) > ENTRY_NBYTES_MAX:
            raise StorageError(f"an entry of the kind {entry.kind!r} would have {len(content):,} bytes, more than {ENTRY_NBYTES_MAX:,}; {SAFE}")
        try:
            with files.storing(self.folder / paths.slot_name(entry.slot), "write", SAFE):
                fd = files.create(draft)
                try:
                    files.write_all(fd, [content], 0)
                    files.sync(fd)
                finally:
                    os.close(fd)
                yield draft
        finally:
            files.remove_quietly(draft)

    def condemn(self, slot: int, why: str) -> None:
        """Commit that a generation was found damaged while it was in use: no later start takes it again."""
        self._pass_over(slot, why)
        self.append("condemned", {"slot": slot, "why": why})

    def condemn_file(self, file: str, why: str) -> None:
        """`condemn` the generations that name a file, in the run directory or in the staging folder of an output."""
        for entry in [e for e in self.generations() if file in values_of(e.body, "file")]:
            self.condemn(entry.slot, why)

    # -- what is needed no more -----------------------------------------------------------------------------------------------------

    def collect(self, keep: int = 2) -> int:
        """Remove generations but for the newest `keep` whole ones, and the files that only they name; returns the number of files.

        With 0, of a run that is done, nothing is kept.
        """
        with self._lock:
            self.check()
            whole = list(self.generations())
            if len(whole) < keep:
                return 0
            old = [e for e in self.entries if e.kind == "generation" and (not keep or (e.slot < whole[0].slot and e not in whole[:keep]))]
            if not old:
                return 0
            for entry in old:
                self._collect(entry)
            files.sync_folder(self.folder, SAFE)
            kept = {name for e in self.entries if e.kind == "generation" for name in files_of(e.body)}
            return self._remove({name for e in old for name in files_of(e.body)} - kept)

    def _collect(self, entry: Entry) -> None:
        stub = Entry(entry.slot, "collected", entry.epoch, entry.written, {})
        with self._draft(stub, self.run) as draft:
            files.rename(draft, self.folder / paths.slot_name(entry.slot))
        self.entries[self.entries.index(entry)] = stub

    def _remove(self, names: set[str]) -> int:
        with files.storing(self.run_dir, "remove old checkpoints of", SAFE):
            for name in sorted(names):
                files.unlink(self.run_dir / name)
        return len(names)

    def sweep(self) -> int:
        """Remove what dead attempts left: drafts, and files that no generation names. Returns their number.

        Right after `claim`, before anything is written: what is being written now is not named yet.
        """
        with self._lock:
            self.check()
            kept = {name for e in self.entries if e.kind == "generation" and e.slot not in self._condemned for name in files_of(e.body)}
            there = {f"{folder.name}/{n}" for folder in paths.run_folders(self.run_dir) for n in files.names_in(folder)}
            there = {n for n in there if paths.is_run_file(n.removesuffix(".tmp"))}          # what is not ours is not touched
            drafts = {f"{self.folder.name}/{n}" for n in files.names_in(self.folder) if paths.is_draft(n)}
            return self._remove((there - kept) | drafts)


def _pauses() -> Iterator[float]:
    """Others may take the slots that we try: at once, for as long as they do; a folder that shows old contents clears up in seconds."""
    return itertools.chain(itertools.repeat(0.0, 100), itertools.repeat(0.1, 100))


def values_of(body: Any, key: str) -> Iterator[str]:
    """The texts that stand under a key, anywhere in a body."""
    left = [body]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            if isinstance(value.get(key), str):
                yield value[key]
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def files_of(body: Any) -> set[str]:
    """Names of the files of a generation: what stands under ``file``, anywhere in its body."""
    return set(filter(paths.is_run_file, values_of(body, "file")))


def owner_name(owner: Any) -> str:
    """An owner in words; whatever the record holds."""
    told = owner if isinstance(owner, Mapping) else {}
    job = f" (Slurm job {str(told['slurm_job'])[:40]})" if told.get("slurm_job") else ""
    return f"process {str(told.get('pid', '?'))[:20]} of {str(told.get('user') or '?')[:60]} on {str(told.get('host') or '?')[:100]}{job}"


def _parsed(content: bytes, slot: int) -> tuple[Entry, str]:
    """An entry and the run that it belongs to. Raises `sealed.Wrong`."""
    value = sealed.parse(content, KEYS, ENTRY_NBYTES_MAX)
    if value["format"] != FORMAT or value["version"] != VERSION:
        raise sealed.Wrong(f"its format is {str(value['format'])[:40]!r} version {str(value['version'])[:20]}, not {FORMAT!r} version {VERSION}")
    if sealed.number(value["slot"], "its slot") != slot:
        raise sealed.Wrong(f"it belongs to slot {str(value['slot'])[:20]}")
    kind, epoch = sealed.text(value["kind"], "its kind", 40), sealed.number(value["epoch"], "its epoch", 10 ** 9)
    if kind not in KINDS or epoch < 1:
        raise sealed.Wrong(f"its kind is {kind!r}, of epoch {epoch}")
    body = sealed.mapping(value["body"], "its body")
    if kind == "condemned":
        sealed.number(body.get("slot"), "the slot that it condemns")
    return Entry(slot, kind, epoch, sealed.text(value["written"], "its time", 40), body), sealed.hexadecimal(value["run"], "its run", 16)
