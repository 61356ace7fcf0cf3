"""Checkpoints of a job: what is due, what has not been written, the thread that writes, and the commit.

A checkpoint is made in three steps, of which only the first and the last stop the ranks, and for a moment:

- *cut*: all ranks are between two pieces of input and nothing is on its way (`hpcmr.run.drive`). Each stage tells what it has that no
  earlier generation holds. These are arrays that nobody changes any more, so that nothing is copied;
- *write*: a thread on each rank writes and digests them, while the ranks go on;
- *commit*: when a tick tells that all ranks have written, rank 0 publishes the generation by one entry of the journal.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.errors import Refused, Stopped, StorageError
from hpcmr.run.generation import FORM, News, Record, add_news, runs_of
from hpcmr.run.memory import show_nbytes
from hpcmr.run.policy import Pace
from hpcmr.run.progress import show_seconds
from hpcmr.run.results import Waiting
from hpcmr.store import files, paths
from hpcmr.store.pieces import PieceFile, fault_of, infos_in, sync_names, write_pieces

if TYPE_CHECKING:
    from hpcmr.run.session import Session

PLAN_CHARACTERS = 400       # of the operations of an action, what is recorded for messages
Finish = Callable[[], None]


class Fresh:
    """What one stage has on this rank that no earlier generation holds.

    Attributes
    ----------
    pieces : list of Partitioned
        In memory; they are not changed before they are written.
    copies : list of callable
        Each gives further ones, which lie on scratch, in parts of a bounded size.
    settled : Batch or None
        What a first pass came to. The same on all ranks; rank 0 writes it.
    told : dict or None
        Of an outlet.
    finish : callable or None
        What makes `told` hold; called by the thread that writes.
    counts, given
        As in `Record`, on this rank.
    """

    def __init__(self, counts: Sequence[int] = (), given: dict[str, int] | None = None) -> None:
        self.pieces: list[Partitioned] = []
        self.copies: list[Callable[[], Iterator[Partitioned]]] = []
        self.settled: Batch | None = None
        self.told: dict[str, Any] | None = None
        self.finish: Finish | None = None
        self.counts = list(counts)
        self.given = dict(given or {})


class Section:
    """One stage, or one persisted table, in the checkpoints of a job.

    Parameters
    ----------
    checkpoints : Checkpointer
    key : str
    record : Record or None
        What an earlier attempt left.
    kept : bool
        A persisted table, which outlives the action.

    Attributes
    ----------
    tell : callable or None
        ``tell() -> Fresh``, called at a cut; None: there is nothing new any more, or not yet.
    unwritten : callable or None
        Bytes that `tell` would give, about.
    complete : bool
        All input is in.
    settled : bool
        What a first pass came to is written, or being written.
    behind : list of Section
        Stages that this one reads from. Once a generation holds all of this one's state, they are needed no more.
    facts, schemas
        As in `Record`.
    dead : bool
        On this rank nobody needs the persisted table any more.
    """

    def __init__(self, checkpoints: Checkpointer, key: str, record: Record | None, kept: bool = False) -> None:
        self.checkpoints, self.key, self.record, self.kept = checkpoints, key, record, kept
        self.tell: Callable[[], Fresh] | None = None
        self.unwritten: Callable[[], int] | None = None
        self.complete = record is not None and record.complete
        self.settled = record is not None and record.settled is not None
        self.dead = False
        self.behind: list[Section] = []
        self.facts: dict[str, Any] = {}
        self.schemas: dict[str, list[dict[str, Any]]] = {}
        self.ended: list[int] = []          # pieces of input that this rank has ended since the last cut

    def restart(self) -> None:
        """What an earlier attempt left cannot be used: this stage begins anew. The same on all ranks."""
        self.record = None
        self.complete = self.settled = False
        self.checkpoints.forget(self)

    def files(self, infos: Sequence[dict[str, Any]]) -> list[PieceFile]:
        """Files of a record, opened when they are read."""
        return [PieceFile(self.checkpoints.run_dir, info) for info in infos]

    @property
    def writing(self) -> bool:
        """Whether the thread still reads what a cut gave it."""
        return self.checkpoints.writing

    def wait(self) -> None:
        """Until it does not."""
        self.checkpoints.wait_written()


class Checkpointer:
    """The checkpoints of one session.

    Parameters
    ----------
    session : Session
    run_dir : Path
    journal : Journal or None
        On rank 0, claimed; None on the others.
    pace : Pace
        The rule for when.
    noticed : callable, optional
        Whether this rank was told that the job must stop.

    Attributes
    ----------
    pending : int
        The generation that is being written; 0: none.
    committed : int
        Generations that this session has committed.
    blocked_s, writing_s : float
        Seconds that this rank waited for checkpoints, and that its thread has written.
    finished : dict of int to dict
        By ordinal: actions that are over, with their results.

    Notes
    -----
    Collective: yes. No thread is started and no file made before the first cut.
    """

    def __init__(self, session: Session, run_dir: Path, journal: Any, pace: Pace, noticed: Callable[[], bool] | None = None) -> None:
        self.session, self.world, self.run_dir, self.journal, self.pace = session, session.world, Path(run_dir), journal, pace
        self.noticed: Callable[[], bool] = noticed or (lambda: False)
        self.pending = self.committed = 0
        self.blocked_s = self.writing_s = self._blocked_before_s = 0.0
        self.finished: dict[int, dict[str, Any]] = {}
        self.started_from = 0               # slot of the generation that this session continues
        self._kept: dict[str, Record] = {}
        self._kept_before: dict[str, Record] = {}   # as restored, on all ranks
        self._records: dict[str, Record] = {}       # of the running action: as restored, and on rank 0 as committed last
        self._action: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None
        self._sections: list[Section] = []
        self._active: Section | None = None
        self._changed = False               # an action ended, or a table was dropped, since the last cut
        self._cut: dict[str, Any] = {}
        self._dropped: list[str] = []       # keys of persisted tables that are gone since the last cut
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[tuple[list[News], float]] | None = None
        self._names: list[str] = []         # files of the pending generation
        self._closing = False
        self._since = time.monotonic()
        self._waiting: list[Waiting] = []   # results that no checkpoint has
        self._number, self.epoch = self._load()

    # -- what an earlier attempt left -------------------------------------------------------------------------------

    def _load(self) -> tuple[int, int]:
        """Take over the newest generation; returns the number of the newest slot of the journal, and the epoch. Collective: yes."""
        def read() -> tuple[int, int, int, Any]:
            entry = self.journal.newest_generation(lambda e: fault_of(self.run_dir, e.body))
            last = max((e.slot for e in self.journal.entries), default=0)
            return last, self.journal.epoch, entry.slot if entry else 0, entry.body if entry else None

        last, epoch, self.started_from, body = self.world.on_root(read)
        while (why := self._fault(body)) is not None:
            self.world.on_root(lambda: self._pass_over(why))
            last, epoch, self.started_from, body = self.world.on_root(read)
        if body is not None:
            if body.get("form") != FORM:
                raise Refused(f"the checkpoints in {str(self.run_dir)!r} have form {body.get('form')!r}, this version of hpcmr reads {FORM}; "
                              "start over with --fresh, or use the version that wrote them")
            self.finished = {int(a["ordinal"]): a for a in body["finished"]}
            self._kept = {key: Record.from_json(r) for key, r in body["kept"].items()}
            self._kept_before = dict(self._kept)
            self._restored = body["action"]
        return last, epoch

    def _fault(self, body: Any) -> str | None:
        """What is wrong with the files of a generation, of which each rank reads a share: now, while older ones are still there."""
        infos = sorted(infos_in(body), key=lambda i: str(i["file"]))
        faults = self.world.allgather(fault_of(self.run_dir, infos[self.world.rank::self.world.size], deep=True)) if infos else []
        return next((f for f in faults if f is not None), None)

    def _pass_over(self, why: str) -> None:
        self.session.say(f"a checkpoint is not whole: {why.partition(';')[0]}; an older one is taken, or the job begins anew")
        self.journal.condemn(self.started_from, why)

    def begin_action(self, ordinal: int, fingerprint: str, plan: str) -> dict[str, Any] | None:
        """An action begins; returns what is recorded of it if it is over. Collective: no, the same on all ranks.

        Raises
        ------
        Refused
            What was recorded at its place is another action.
        """
        self._action = {"ordinal": ordinal, "fingerprint": fingerprint, "plan": plan[:PLAN_CHARACTERS]}
        self._records, self._sections = {}, [s for s in self._sections if s.kept]
        over, found = self.finished.get(ordinal), self._restored
        for recorded in (over, found):
            if recorded is not None and int(recorded["ordinal"]) == ordinal:
                self._check(recorded)
        if over is not None or found is None or int(found["ordinal"]) != ordinal:
            return over
        self._records = {key: Record.from_json(r) for key, r in found["records"].items()}
        self._restored = None
        return None

    def _check(self, recorded: dict[str, Any]) -> None:
        """Raise `Refused` unless the running action is the one that was recorded at its place."""
        action = self._action
        assert action is not None
        if action["fingerprint"] != recorded["fingerprint"]:
            was, now = (f"{a.get('plan', '')} ({a['fingerprint'][:8]})" for a in (recorded, action))
            same = recorded.get("plan") == action["plan"]
            why = "; the operations look the same, so their functions, captured values or paths differ" if same else ""
            raise Refused(f"action {action['ordinal']} of the job is not the one that the checkpoint in {str(self.run_dir)!r} was made of{why}:\n"
                          f"  then: {was}\n  now:  {now}\nthe job, or a value that it depends on, has changed; --fresh starts over")

    def section(self, key: str, kept: bool = False) -> Section:
        """The section of a stage that begins, with what an earlier attempt left of it."""
        found = (self._kept_before if kept else self._records).get(key)
        made = Section(self, key, found, kept)
        self._sections = [*(s for s in self._sections if s.key != key or s.kept != kept), made]
        return made

    def record(self, key: str) -> Record | None:
        """What an earlier attempt left of a stage of this action; None: nothing."""
        return self._records.get(key)

    def kept_record(self, key: str) -> Record | None:
        """What an earlier attempt left of a persisted table; None: nothing."""
        return self._kept_before.get(key)

    def bury(self) -> None:
        """Leave out persisted tables that are not needed any more: some rank has dropped them. Collective: yes."""
        kept = [s for s in self._sections if s.kept]
        if kept:
            dead = self.world.allreduce(np.array([s.dead for s in kept], np.int64), "max").tolist()
            for section in [s for s, gone in zip(kept, dead, strict=True) if gone]:
                self.drop(section)

    def forget(self, section: Section) -> None:
        """Leave a section's record out of all later generations."""
        for store in (self._kept, self._kept_before) if section.kept else (self._records,):
            store.pop(section.key, None)

    def drop(self, section: Section) -> None:
        """A persisted table is gone. The same on all ranks."""
        self._sections = [s for s in self._sections if s is not section]
        self._dropped.append(section.key)
        self._changed = True

    def end_action(self, result: dict[str, Any] | Waiting | None) -> None:
        """The action is over; `result` is what answers it after a restart (None: it runs again then). Collective: yes."""
        assert self._action is not None
        if result is not None:
            self.finished[self._action["ordinal"]] = {**self._action, "result": result}
            self._waiting += [result] if isinstance(result, Waiting) else []
        self._action, self._records, self._sections = None, {}, [s for s in self._sections if s.kept]
        self._active = None
        self._changed = True
        self.boundary()

    # -- when ---------------------------------------------------------------------------------------------------------

    def vote(self) -> bool:
        """See `hpcmr.run.drive.Cuts`: rank 0 has the clock."""
        if self.world.rank or self.pending or self._active is None or self._active.tell is None or self.pace.off:
            return False
        since = time.monotonic() - self._since
        # Bytes are counted only where they may decide: a tick costs microseconds.
        return since >= self.pace.interval_s(0) and self.pace.due(since, self._unwritten())

    def _unwritten(self) -> int:
        """Bytes that all ranks would write, guessed from this one."""
        return self.world.size * sum(s.unwritten() for s in self._sections if s.tell is not None and s.unwritten is not None)

    def written(self) -> int:
        return self.pending if self.pending and not self.writing else 0

    @property
    def writing(self) -> bool:
        return self._job is not None and not self._job.done()

    @contextlib.contextmanager
    def at_work(self, section: Section | None) -> Iterator[None]:
        """A pass over pieces whose cuts tell of `section`."""
        self._active = section
        try:
            yield
        finally:
            self._active = None

    def boundary(self, force: bool = False) -> None:
        """A stage or an action has ended, and nothing is on its way: commit, cut or stop, whatever is due. Collective: yes.

        Parameters
        ----------
        force : bool
            The user wants a checkpoint here: it is committed when this returns.
        """
        since = time.monotonic() - self._since
        news = self._changed or any(s.tell is not None for s in self._sections)
        due = self.world.rank == 0 and news and (force or (not self.pace.off and self.pace.due_at_boundary(since, self._unwritten())))
        words = np.array([due, self.noticed(), self.pending != 0 and self.writing], np.int64)
        due, stop, writing = self.world.allreduce(words, "max").tolist()
        if self.pending and (force or not writing or due or stop):
            self._finish()
        if due or stop:
            self.cut(bool(stop))
            if force and not stop:
                self._finish()

    # -- cut, write, commit ---------------------------------------------------------------------------------------------

    def cut(self, stop: bool) -> None:
        began = time.monotonic()
        if self.pending:                # a notice came while one was being written
            self._finish()
        tasks: list[tuple[Section, Fresh]] = []
        with self.world.together("cut for a checkpoint"):       # an outlet writes what it holds, which may fail on one rank
            tasks = [(s, s.tell()) for s in self._sections if s.tell is not None]
        heads = []
        for section, fresh in tasks:
            # As it is now: while the thread writes, the stage goes on, and perhaps to its end.
            heads.append((News(section.key, section.complete, runs_of(section.ended), [], None, None, dict(section.facts), dict(section.schemas),
                               fresh.counts, fresh.given), fresh))
            section.ended = []
            section.settled = section.settled or fresh.settled is not None
        # The records are those of this action, also where the commit comes after its end.
        self._cut = {"finished": [self.finished[n] for n in sorted(self.finished)], "action": self._action, "records": self._records,
                     "over": self._over([s for s, _ in tasks]), "dropped": self._dropped, "kept": {s.key for s in self._sections if s.kept}}
        self._dropped = []
        for section, _ in tasks:
            if section.complete:
                section.tell = None
        self._changed = False
        self._number += 1
        self.pending = self._number
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hpcmr-checkpoint")
        self._names = []
        self._job = self._pool.submit(self._write, self.pending, heads)
        self._since = began
        self.blocked_s += time.monotonic() - began
        if stop:
            self._finish()
            raise Stopped(f"told to stop: a checkpoint is committed in {str(self.run_dir)!r}; start the same job again to go on from there")

    def _over(self, sections: list[Section]) -> list[str]:
        """Keys of stages that are needed no more once the state of `sections` is written."""
        gone: list[Section] = []
        left = [b for s in sections if s.complete for b in s.behind]
        while left:
            section = left.pop()
            if section not in gone and not section.kept:
                gone.append(section)
                left += section.behind
        self._sections = [s for s in self._sections if s not in gone]
        return [s.key for s in gone]

    def _write(self, number: int, heads: list[tuple[News, Fresh]]) -> tuple[list[News], float]:
        """In the thread: all files of this rank, durable. Their names are kept, to be removed if this comes to nothing."""
        began = time.monotonic()
        for action in self._cut["finished"]:
            if isinstance(action["result"], Waiting):
                action["result"] = action["result"].write()
        out = []
        for head, fresh in heads:
            pieces = [self._file(number, group) for group in grouped(fresh.pieces)]
            for copy in fresh.copies:
                pieces += [self._file(number, [part]) for part in copy()]
            settled = None
            if fresh.settled is not None and self.world.rank == 0:
                settled = self._file(number, [Partitioned(fresh.settled, np.array([0, fresh.settled.nrows], np.int64))])
            if fresh.finish is not None:
                fresh.finish()
            out.append(replace(head, pieces=pieces, settled=settled, told=fresh.told))
            fresh.pieces, fresh.copies = [], []
        if self._names:
            sync_names(self.run_dir)
        return out, time.monotonic() - began

    def _file(self, number: int, pieces: list[Partitioned]) -> dict[str, Any]:
        if self._closing:
            raise StorageError("nobody wants this checkpoint any more")
        name = paths.piece_file(self.epoch, number, self.world.rank, len(self._names))
        self._names.append(name)
        return write_pieces(self.run_dir, name, pieces)

    def wait_written(self) -> None:
        """Until the thread is through with what the last cut gave it. Errors are told at the commit."""
        began = time.monotonic()
        if self._job is not None:
            with contextlib.suppress(Exception):
                self._job.result()
        self.blocked_s += time.monotonic() - began

    def _finish(self) -> None:
        """Wait until all have written, and commit."""
        self.wait_written()
        self.commit()

    def commit(self) -> None:
        began = time.monotonic()
        world, news, seconds = self.world, list[News](), 0.0
        with world.together("write a checkpoint"):
            assert self._job is not None
            news, seconds = self._job.result()
        gathered = world.gather((news, seconds, self.blocked_s - self._blocked_before_s), 0)
        with world.together("commit a checkpoint"):
            if gathered is not None:
                self._publish([n for n, _, _ in gathered], max(s for _, s, _ in gathered), max(b for _, _, b in gathered))
        self.pending, self._job, self._names = 0, None, []
        self._let_go([w for w in self._waiting if w.written])
        self.committed += 1
        self.writing_s += seconds
        self.blocked_s += time.monotonic() - began
        self._blocked_before_s = self.blocked_s

    def _let_go(self, results: list[Waiting]) -> None:
        for result in results:
            result.give()
        self._waiting = [w for w in self._waiting if w not in results]

    def _publish(self, by_rank: list[list[News]], seconds: float, blocked_s: float) -> None:
        """On rank 0: the generation, and older ones away."""
        cut = self._cut
        for parts in zip(*by_rank, strict=True):
            store = self._kept if parts[0].key in cut["kept"] else cut["records"]
            store[parts[0].key] = add_news(store.get(parts[0].key, Record()), list(parts))
        for store, gone in ((cut["records"], cut["over"]), (self._kept, cut["dropped"])):
            for key in gone:
                store.pop(key, None)
        action = None if cut["action"] is None else {**cut["action"], "records": {k: r.to_json() for k, r in cut["records"].items()}}
        body = {"form": FORM, "finished": cut["finished"], "kept": {k: r.to_json() for k, r in self._kept.items()}, "action": action}
        entry = self.journal.append("generation", body)
        self.journal.collect()
        written = [p for news in by_rank for n in news for p in n.pieces]
        nbytes = sum(int(p["nbytes"]) for p in written)
        self.pace.measured(seconds + blocked_s, nbytes)
        self.session.log.debug("checkpoint %d: %s in %d files, written in %s", entry.slot, show_nbytes(nbytes), len(written), show_seconds(seconds))
        attempt = self.session.attempt
        if attempt is not None and attempt.status is not None:
            attempt.status.update(now=True, checkpoint={"generation": entry.slot, "committed_at": time.time(), "age_s": 0.0, "nbytes": nbytes,
                                                        "seconds": seconds})

    # -- the end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """No further checkpoint: what is being written is waited for and, as nothing names it, removed. Never raises; may be called twice."""
        self._closing = True            # not longer than the file that is being written
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            if self.world.rank == 0:
                self.session.log.debug("%d checkpoints; rank 0 has written for %s, and waited for them for %s", self.committed,
                                       show_seconds(self.writing_s), show_seconds(self.blocked_s))
        for name in self._names:
            files.remove_quietly(self.run_dir / name)
        self._pool, self._job, self._names, self.pending = None, None, [], 0


def grouped(pieces: Sequence[Partitioned]) -> list[list[Partitioned]]:
    """Pieces that can lie in one file: of the same columns, and of the same partitions."""
    out: dict[Any, list[Partitioned]] = {}
    for piece in pieces:
        if piece.batch.nrows:
            out.setdefault((piece.batch.schema, piece.first, piece.count), []).append(piece)
    return list(out.values())
