"""One attempt at a run: it finds out whether there is anything to do, claims the run, and says how it ended. On the command line only.

::

    begin:  the run directory is free       -> claim, epoch 1
            ... of a run that was left      -> claim, the next epoch; the newest whole generation is continued
            ... of one that is done         -> say so, nothing is done
            ... of another job, code, input -> refused, with what differs
            ... of an attempt that lives    -> refused, with its owner
    end:    an `end` in the journal, and the last word in status.json

Rank 0 holds the journal, ``status.json`` and the log; the others know the epoch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.errors import EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, DamagedCheckpoint, HpcmrError, InputError, Refused, StorageError, Superseded
from hpcmr.run import identity as identities
from hpcmr.run.owner import life_of, show_owner, this_owner
from hpcmr.run.progress import show_seconds
from hpcmr.run.report import error_report
from hpcmr.run.status import StatusWriter, new_status, read_status
from hpcmr.store import files, manifest, paths
from hpcmr.store.journal import Entry, Journal
from hpcmr.store.manifest import Manifest
from hpcmr.store.publish import discard, existing
from hpcmr.store.settle import settle

if TYPE_CHECKING:
    from hpcmr.comm.world import World
    from hpcmr.run.session import Session

LOG_FORM = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True)
class Job:
    """What is to be run, as far as it makes up the identity of the run: see `hpcmr.run.identity.identity_of`."""

    spec: Path
    name: str
    values: Mapping[str, Any]
    modules: tuple[Path, ...]
    code: str


class Attempt:
    """This attempt, seen from one rank.

    Parameters
    ----------
    run_dir : Path
    epoch : int
    rank : int
    journal : Journal or None
        On rank 0.
    status : StatusWriter or None
        On rank 0.

    Attributes
    ----------
    since : int
        Slots of the journal before this one belong to a run that ``--fresh`` has discarded.
    """

    def __init__(self, run_dir: Path, epoch: int, rank: int, journal: Journal | None = None, status: StatusWriter | None = None,
                 since: int = 0) -> None:
        self.run_dir, self.epoch, self.rank, self.journal, self.status, self.since = run_dir, epoch, rank, journal, status, since
        self._log: logging.Handler | None = _log_file(run_dir, epoch, rank) if journal is not None else None
        self._ended = False

    # -- while it runs ---------------------------------------------------------------------------------------------

    def surveyed(self, source: Any) -> None:
        """On rank 0: an input was surveyed; what it is is written down."""
        assert self.journal is not None
        identities.remember_input(self.run_dir, source, self.journal.check)

    def note(self, text: str) -> None:
        """Into this rank's log, whatever else is said where. Never raises."""
        with contextlib.suppress(OSError):
            fd = open_log(self.run_dir, self.epoch, self.rank)
            with os.fdopen(fd, "a") as file:
                file.write(text.rstrip("\n") + "\n")

    def stands(self) -> bool:
        """Whether there is a checkpoint that a later start can go on from. On any rank; reads the journal."""
        with contextlib.suppress(StorageError, OSError):
            return (self.journal or Journal(self.run_dir)).newest_generation() is not None
        return False

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, error: BaseException | None, outputs: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write down how this attempt ended: in the journal and in ``status.json``. On rank 0, and on a rank that ends the job alone.

        Never raises: what ends is said already. Again: nothing.
        """
        if self._ended:
            return
        self._ended = True
        state, code, reason = verdict(error)
        if error is not None:
            self.note(error_report(error, command=state))
        if isinstance(error, Superseded):
            self.drop()
            return
        with contextlib.suppress(OSError, StorageError):       # a full disk keeps nobody from ending
            try:
                journal = self.journal or self._adopted()
                if isinstance(error, DamagedCheckpoint):
                    journal.condemn_file(error.file, error.message)
                made = [_output(o, state == "done") for o in outputs]
                journal.append("end", {"state": state, "reason": reason, "exit_code": code, "outputs": made})
            except Superseded:
                self.drop()
                return
        shown = [{"name": Path(o["path"]).name, "path": os.path.abspath(o["path"]), "rows": o["rows"]} for o in outputs]
        status = self.status or self._status_of_another()
        if status is not None:
            told = {"stage": None} if state == "done" else {}
            status.close(state=state, reason=reason, exit_code=code, outputs=shown, eta_s=None, rates=None, **told)
        self._close_log()

    def _adopted(self) -> Journal:
        journal = Journal(self.run_dir)
        journal.adopt(self.epoch)
        return journal

    def _status_of_another(self) -> StatusWriter | None:
        """Rank 0 cannot speak: somebody has to say it."""
        with contextlib.suppress(InputError, OSError):
            found = read_status(self.run_dir)
            if found is not None and found["attempt"] == self.epoch:
                return StatusWriter(self.run_dir, found, beat_s=0)
        return None

    def drop(self) -> None:
        """This attempt is over without a word: another one of the same job goes on."""
        if self.status is not None:
            self.status.drop()
        self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            logging.getLogger("hpcmr").removeHandler(self._log)
            self._log.close()
            self._log = None


def verdict(error: BaseException | None) -> tuple[str, int, str | None]:
    """State, exit code and reason of an attempt that ended with `error`."""
    if error is None:
        return "done", EXIT_DONE, None
    if isinstance(error, KeyboardInterrupt):
        return "cancelled", 130, "interrupted"
    code = error.exit_code if isinstance(error, HpcmrError) else EXIT_FAILED
    text = error.message if isinstance(error, HpcmrError) else f"{type(error).__name__}: {error}"
    return "checkpointed" if code == EXIT_RESUMABLE else "failed", code, text[:2000]


def _output(output: Mapping[str, Any], done: bool) -> dict[str, Any]:
    """An output as the journal remembers it: a later start finds out whether it is still the one."""
    path = Path(os.path.abspath(output["path"]))
    found = None
    if done:
        with contextlib.suppress(HpcmrError, OSError):
            made = existing(path)
            found = None if made is None else manifest.identity(made)
    return {"path": os.fsencode(path).hex(), "rows": int(output["rows"]), "identity": found}


# -- the beginning -----------------------------------------------------------------------------------------------------


def begin(session: Session, job: Job) -> bool:
    """Claim the run for this attempt, which is then ``session.attempt``; False: it is done already, and there is nothing to do.

    Raises
    ------
    Refused
        Another attempt lives, or the run is that of another job, of other code or inputs, or of another format.
    StorageError

    Notes
    -----
    Collective: yes. Rank 0 says what is continued. Where the owner is on another machine this may take `hpcmr.run.owner.SILENT_S`.
    """
    held: list[Attempt] = []

    def on_root() -> tuple[int, int, list[dict[str, Any]]]:
        started = _Start(session, job)
        found = started.run()
        if isinstance(found, Attempt):
            held.append(found)
            return found.epoch, found.since, []
        return 0, 0, found

    epoch, since, outputs = session.world.on_root(on_root)
    assert session.run_dir is not None
    if not epoch:
        session.outputs += outputs
        return False
    session.attempt = held[0] if held else Attempt(session.run_dir, epoch, session.world.rank, since=since)
    return True


def go_on(session: Session, before: Attempt | None, name: str, spec: Path) -> bool:
    """The next attempt on the ranks that live, after others have died: whoever is rank 0 now claims the run, which is this job's already.

    A claim of its own, so that of two lots of ranks that take each other for dead only one can commit, and so that no file gets a name
    that a rank which died may have used.

    Parameters
    ----------
    session : Session
    before : Attempt or None
        The attempt that ended by the deaths; None where this rank did not come to hear of any.
    name, spec
        As in `Job`.

    Returns
    -------
    bool
        False: nobody has died, or nobody had claimed the run before; then `begin`.

    Notes
    -----
    Collective: yes.
    """
    watch = session.world.watch
    if watch is None or not watch.deaths:
        return False
    assert session.run_dir is not None
    run_dir, world = session.run_dir, session.world
    earlier = int(world.allreduce(np.array([before.epoch if before is not None else 0], np.int64), "max")[0])
    if not earlier:
        return False
    held: list[Attempt] = []

    def on_root() -> int:
        journal = before.journal if before is not None and before.journal is not None else Journal(run_dir)
        journal.refresh()
        last = journal.owner
        ours = last is not None and _lineage(last) == watch.lineage        # a rank 0 that claimed it and died before anybody knew
        journal.adopt(last.epoch if ours and last is not None else earlier)
        epoch = journal.claim({**this_owner(world.size, world.node_count), "fresh": False, "lineage": watch.lineage})
        redone = _redone(journal, last.written if last is not None else "", max(d.at for d in watch.deaths))
        session.say(f"redone is {redone}")
        journal.sweep()
        settle(journal, session.say)
        journal.append("degraded", {"ranks": [{"rank": d.member.rank, "node": d.member.node, "pid": d.member.pid, "at": d.at} for d in watch.deaths],
                                    "left": world.size, "redone": redone, "lineage": watch.lineage})
        if before is not None:
            before.drop()
        told = _first_status(session, name, spec, epoch)
        with contextlib.suppress(InputError):
            told = {**(read_status(run_dir) or told), **_place(world), "attempt": epoch}
        told["reason"] = "degraded: " + "; ".join(map(str, watch.deaths))
        held.append(Attempt(run_dir, epoch, 0, journal, StatusWriter(run_dir, told), _since(journal)))
        return epoch

    epoch = world.on_root(on_root)
    session.attempt = held[0] if held else Attempt(run_dir, epoch, world.rank, since=before.since if before is not None else 0)
    return True


def _redone(journal: Journal, began: str, died: float) -> str:
    """What is lost by deaths at the time `died`, in an attempt that `began`: all since its newest checkpoint."""
    found = journal.continued
    since = max(began, found.written) if found is not None else began
    lost = ""
    with contextlib.suppress(ValueError):
        lost = f", {show_seconds(max(0.0, died - datetime.fromisoformat(since).timestamp()))} of work"
    if found is None:
        return f"everything{lost}: no checkpoint had been committed"
    over = len(found.body.get("finished", ()))
    before = f"; {over} action{'s were' if over > 1 else ' was'} finished by then" if over else ""
    return f"what was done since checkpoint {found.slot}{lost}{before}"


def redone(attempt: Attempt) -> list[str]:
    """What was redone after each death of a rank of this job; on rank 0."""
    with contextlib.suppress(HpcmrError):
        journal = attempt.journal or Journal(attempt.run_dir)
        mine = next((_lineage(e) for e in reversed(journal.entries) if e.kind == "claim"), "")
        return [str(e.body.get("redone", "")) for e in journal.entries if e.kind == "degraded" and mine and e.body.get("lineage") == mine]
    return []


def published_before(journal: Journal, folder: Path, made: Manifest) -> bool:
    """Whether an output was published by this job before ranks of it died: rows in memory that it was made of cannot be asked any more."""
    lineage = next((_lineage(e) for e in reversed(journal.entries) if e.kind == "claim"), "")
    epochs = {e.epoch for e in journal.entries if e.kind == "claim" and lineage and _lineage(e) == lineage} - {journal.epoch}
    path = os.fsencode(os.path.abspath(folder)).hex()
    return any(e.kind == "publish" and e.epoch in epochs and e.body.get("path") == path and e.body.get("identity") == manifest.identity(made)
               for e in journal.entries)


def published_here(journal: Journal, folder: Path, made: Manifest) -> bool:
    """Whether an attempt at this run has published an output. What it was made of has not changed since: a start looks at that before."""
    path = os.fsencode(os.path.abspath(folder)).hex()
    return any(e.kind == "publish" and e.slot > _since(journal) and e.body.get("path") == path and e.body.get("identity") == manifest.identity(made)
               for e in journal.entries)


def _lineage(claim: Entry) -> str:
    """Of which job that survives deaths a claim is; empty: of none."""
    owner = claim.body.get("owner")
    return str(owner.get("lineage") or "") if isinstance(owner, Mapping) else ""


def _lineage_of(world: World) -> str:
    return world.watch.lineage if world.watch is not None else ""


class _Start:
    """What rank 0 does at the beginning."""

    def __init__(self, session: Session, job: Job) -> None:
        assert session.run_dir is not None
        self.session, self.job, self.run_dir, self.say = session, job, session.run_dir, session.say
        self.journal = Journal(session.run_dir)
        self._dead = ""

    def run(self) -> Attempt | list[dict[str, Any]]:
        """The attempt, or the outputs of a run that is done."""
        self._check_folder()
        for note in self.journal.notes:
            self.say(note)
        stopped = self._check_owner()
        job = self.job
        now = identities.identity_of(job.spec, job.name, job.values, job.modules, job.code)
        if self.session.fresh:
            return self._claim(now, fresh=True)
        before = identities.read_identity(self.run_dir)
        if before is None:
            return self._claim(now, fresh=True)
        changed = identities.differences(before, now)
        if before["version"] == now["version"]:
            changed += identities.changed_inputs(self.run_dir)
        if changed and self._has_something():
            raise Refused(identities.refusal(self.run_dir, changed, self._state()))
        if changed:
            self.say(f"{_shown(self.run_dir)}: {'; '.join(changed[:3])}; nothing had been committed there, the job begins anew")
            return self._claim(now, fresh=True)
        ended = self.journal.ended
        if ended is not None and ended.body.get("state") == "done":
            outputs = self._outputs(ended)
            if outputs is not None:
                self.say(f"the run in {_shown(self.run_dir)} is done already (attempt {ended.epoch}, {ended.written}); --fresh runs it anew")
                return outputs
        return self._claim(now, stopped=stopped)

    def _check_folder(self) -> None:
        """Others must not be able to put files where we read them."""
        try:
            about = os.stat(self.run_dir)
        except FileNotFoundError:
            self._make()
            return
        except OSError as error:
            raise Refused(f"the run directory {str(self.run_dir)!r} cannot be used: {error.strerror}; choose another with --run-dir") from None
        if about.st_uid != os.geteuid() or about.st_mode & 0o002:
            whose = f"belongs to user {about.st_uid}" if about.st_uid != os.geteuid() else "may be written to by everybody"
            raise Refused(f"the run directory {str(self.run_dir)!r} {whose}: checkpoints are read from there; "
                          "choose another with --run-dir, or change its owner and mode (0700)")

    def _make(self) -> None:
        with files.storing(self.run_dir, "make the run directory", "nothing was done"):
            for folder in reversed([self.run_dir, *self.run_dir.parents]):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)

    def _check_owner(self) -> str | None:
        """Raise `Refused` if another attempt lives; returns what is to be said of one that is stopped."""
        claim = self.journal.owner
        if claim is None or self.journal.ended is not None:
            return None
        if _lineage(claim) and _lineage(claim) == _lineage_of(self.session.world):
            self._dead = "its rank 0 died"
            return None
        owner = claim.body.get("owner")
        life = life_of(owner if isinstance(owner, Mapping) else {}, self.run_dir, self.say)
        who = f"attempt {claim.epoch}, {show_owner(owner if isinstance(owner, Mapping) else {})}"
        if life.alive and not life.stopped:
            raise Refused(f"the run in {str(self.run_dir)!r} belongs to {who}, since {claim.written}: {life.why}; "
                          "wait for it, end it, or choose another --run-dir")
        self._dead = f"{who}: {life.why}"
        return f"{who}: {life.why}; it is superseded, and can commit nothing any more" if life.stopped else None

    def _current(self) -> list[Entry]:
        since = _since(self.journal)
        return [e for e in self.journal.entries if e.slot >= since]

    def _has_something(self) -> bool:
        """Whether there is anything that a changed job could be mixed with."""
        ended = self.journal.ended
        done = ended is not None and ended.body.get("state") == "done"
        return done or any(e.kind in ("generation", "publish") for e in self._current())

    def _state(self) -> str:
        ended = self.journal.ended
        if ended is not None and ended.body.get("state") == "done":
            return "which is done"
        found = self.journal.newest_generation()
        return f"which has a checkpoint of {found.written}" if found is not None else "which has published outputs"

    def _outputs(self, ended: Entry) -> list[dict[str, Any]] | None:
        """The outputs of a run that is done; None if one of them is not there any more."""
        out = []
        for told in ended.body.get("outputs", ()):
            path = Path(os.fsdecode(bytes.fromhex(told["path"])))
            try:
                made = existing(path)
            except HpcmrError as error:
                raise Refused(f"the output {str(path)!r} of the run in {str(self.run_dir)!r} is damaged: {error}; "
                              "remove it to have it made again, or give --fresh") from error
            if made is None or told["identity"] != manifest.identity(made):
                self.say(f"the output {_shown(path)} {'is gone' if made is None else 'was replaced'} since the run was done")
                return None
            out.append({"path": str(path), "rows": made.rows, "nbytes": made.nbytes, "shards": len(made.shards), "done": True})
        return out

    def _claim(self, identity: identities.Identity, fresh: bool = False, stopped: str | None = None) -> Attempt:
        """Own the run. `fresh`: nothing of what there is counts any more."""
        session, journal, world = self.session, self.journal, self.session.world
        before = journal.ended or journal.owner
        epoch = journal.claim({**this_owner(world.size, world.node_count), "fresh": fresh, "lineage": _lineage_of(world)})
        settle(journal, self.say)
        if fresh:
            self._discard()
            identities.store_identity(self.run_dir, identity, self.job.spec, self.job.modules)
        journal.sweep()
        for folder in (paths.logs(self.run_dir), self.run_dir / "output"):
            files.make_folder(folder)
        for name in files.names_in(paths.logs(self.run_dir)):
            if name.startswith("."):        # a roll that nobody calls any more
                shutil.rmtree(paths.logs(self.run_dir) / name, ignore_errors=True)
        first = _first_status(session, self.job.name, self.job.spec, epoch)
        status = StatusWriter(self.run_dir, first if journal.continued is not None else {**first, "checkpoint": None})
        attempt = Attempt(self.run_dir, epoch, 0, journal, status, _since(journal))
        if stopped:
            self.say(stopped)
        if before is not None and not fresh:
            self._tell(before)
        return attempt

    def _discard(self) -> None:
        """``--fresh``: condemn what is there. The journal stays: it is what keeps earlier attempts from committing."""
        journal = self.journal
        for entry in list(journal.generations()):
            journal.condemn(entry.slot, "the run was started over")
        journal.continued = None
        journal.notes.clear()
        folder = self.run_dir / "output"
        for name in files.names_in(folder):
            with contextlib.suppress(Refused):
                discard(folder / name)

    def _tell(self, before: Entry) -> None:
        """What is continued, and why the last attempt ended."""
        if before.kind == "end":
            reason = str(before.body.get("reason") or "").partition("\n")[0][:200]
            state = before.body.get("state")
            why = f"attempt {before.epoch} was told to stop" if state == "checkpointed" else f"attempt {before.epoch} ended {state}: {reason}"
        else:
            why = self._dead
        found = self.journal.continued
        where = f"from the checkpoint of {found.written}" if found is not None else "from the beginning: no checkpoint had been committed"
        self.say(f"continuing the run in {_shown(self.run_dir)} as attempt {self.journal.epoch}, {where}; {why}")


def _since(journal: Journal) -> int:
    """The slot of the claim that started the run over last."""
    return max((e.slot for e in journal.entries if e.kind == "claim" and isinstance(e.body.get("owner"), Mapping) and e.body["owner"].get("fresh")),
               default=0)


def _first_status(session: Session, name: str, spec: Path, epoch: int) -> dict[str, Any]:
    assert session.run_dir is not None
    before: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        before = read_status(session.run_dir) or {}
    mine = os.environ.get("SLURM_JOB_ID")
    jobs = [j for j in before.get("slurm_jobs", []) if j != mine] + ([mine] if mine else [])
    return new_status(session.run_dir, name=name, spec=str(spec.absolute()), state="running", attempt=epoch, began_at=time.time(),
                      slurm_jobs=jobs, checkpoint=before.get("checkpoint"), **_place(session.world))


def _place(world: World) -> dict[str, Any]:
    """Where rank 0 runs."""
    owner = this_owner()
    return {**{k: owner[k] for k in ("pid", "host", "boot", "start")}, "ranks": world.size, "nodes": world.node_count}


# -- logs --------------------------------------------------------------------------------------------------------------


def open_log(run_dir: Path, epoch: int, rank: int) -> int:
    """Descriptor of a rank's log, to write at its end."""
    path = paths.logs(run_dir) / paths.log_name(epoch, rank)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _log_file(run_dir: Path, epoch: int, rank: int) -> logging.Handler | None:
    """All that rank 0 says goes to its log as well; a disk that is full makes it fall silent."""
    try:
        handler = logging.StreamHandler(os.fdopen(open_log(run_dir, epoch, rank), "a"))
    except OSError:
        return None
    handler.handleError = lambda record: None     # type: ignore[method-assign]
    handler.setFormatter(logging.Formatter(LOG_FORM))
    logging.getLogger("hpcmr").addHandler(handler)
    return handler


def _shown(path: Path) -> str:
    here = os.path.relpath(path)
    return repr(str(path) if here.startswith("..") else here)
