"""One rank's way through the pieces of a stage, in step with the others only at ticks.

A rank works through its queue. Now and then, between pieces, it posts how it stands and promises which pieces it keeps until the
tick is through; the rest is on offer. When all have posted, every rank finds the same answer in the same table:

- somebody has an error: all of them agree on it and raise it;
- somebody wants an exchange: all do a round;
- somebody votes for a checkpoint, or was told to stop: all end their piece, do a round, and the job is *cut* there (`Cuts`);
- all have written what a checkpoint needs: they commit it;
- nothing is left anywhere: the stage's input has ended;
- else what is on offer is dealt again, by the pure function of `hpcmr.run.deal`.

Why all ranks leave together: each acts on the table of a tick only, each tick is taken by all, and after a table that tells of an
error, a round, a cut or the end, the next collective call of every rank is an `agree`. A rank that failed meanwhile joins that one. A
rank that owes a round or a cut, because it is in the middle of a piece, posts no tick until it has paid: the others may be there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.collective import to_shared
from hpcmr.comm.pulse import PULSE
from hpcmr.comm.tick import Tick
from hpcmr.comm.waiting import Backoff
from hpcmr.comm.world import World
from hpcmr.errors import HpcmrError, RankDied
from hpcmr.run.deal import Queues, deal, promise, redeal
from hpcmr.run.feed import Feed

ERROR, WANTS, DONE, KEPT, LEFT, WEIGHT, WORK_US, ROWS, NBYTES, PIECES, VOTE, WRITTEN, NOTICE = range(13)
WIDTH = 13

TICK_MIN_S = 0.02       # no tick sooner than this after the last one, while there is work
TICK_MAX_S = 0.5        # a rank posts in the middle of a piece once the last tick is this old
ROUND_NBYTES_MIN = 32 << 20   # what an operator under lasting pressure takes in between two rounds

Table = NDArray[np.int64]


class Everywhere(Exception):
    """Carries an error that all ranks raise at this point."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Joined(Exception):
    """Another rank has an error; this one has none."""


class Cuts(Protocol):
    """Who wants to know when all ranks are between two pieces, and nothing is on its way: see `hpcmr.run.checkpoint`.

    Attributes
    ----------
    pending : int
        The checkpoint that is being written, the same on all ranks; 0: none.
    blocked_s : float
        Seconds that this rank has waited for checkpoints.
    """

    pending: int
    blocked_s: float

    def vote(self) -> bool:
        """Whether this rank wants a cut."""

    def written(self) -> int:
        """The newest checkpoint of which this rank has written its share."""

    def noticed(self) -> bool:
        """Whether this rank was told that the job must stop."""

    def cut(self, stop: bool) -> None:
        """All ranks are between two pieces, and all state is at its owner. `stop`: somebody was told to. Collective: yes."""

    def commit(self) -> None:
        """All ranks have written the pending checkpoint. Collective: yes."""


class Tally:
    """What this rank did in a stage."""

    __slots__ = ("nbytes_in", "nbytes_out", "pieces", "pieces_sum", "rounds", "rows_in", "rows_out", "skipped", "weight", "work_s")

    def __init__(self) -> None:
        self.pieces = self.pieces_sum = self.rows_in = self.rows_out = self.nbytes_in = self.nbytes_out = self.weight = self.rounds = self.skipped = 0
        self.work_s = 0.0


class Drive:
    """Drives the pieces of a feed through `work` on all ranks.

    Parameters
    ----------
    world : World
    feed : Feed
    work : callable
        ``work(piece)`` does one piece; it calls `between` after each batch.
    tally : Tally
        Counted here: pieces, weight and seconds; by `work`: rows and bytes.
    round_ : callable, optional
        A collective round of an exchange, which begins with an `agree`.
    pressure : callable, optional
        Whether the operator wants a round.
    whole_pieces : bool
        Rounds come between pieces only.
    ascending : bool
        A rank never gets a piece before one that it has begun.
    watch : callable, optional
        Gets the table of every tick, for progress.
    grace_s : float, optional
        How long a rank that failed waits for the others before `last_words`; None: as long as any wait.
    last_words : callable, optional
        Says the error and ends the job; for the command line.
    cuts : Cuts, optional
        Where the job may be cut for a checkpoint.
    """

    def __init__(self, world: World, feed: Feed, work: Callable[[int], None], tally: Tally, *, round_: Callable[[], None] | None = None,
                 pressure: Callable[[], float] | None = None, whole_pieces: bool = False, ascending: bool = False,
                 watch: Callable[[Table], None] | None = None, grace_s: float | None = None,
                 last_words: Callable[[BaseException], None] | None = None, cuts: Cuts | None = None) -> None:
        self.world, self.feed, self.tally, self._cuts = world, feed, tally, cuts
        self._work, self._round, self._pressure, self._watch = work, round_, pressure, watch
        self._whole, self._grace_s, self._last_words = whole_pieces, grace_s, last_words
        self._numbers: list[int] | None = getattr(feed, "numbers", None)
        self._tick = Tick(world, WIDTH)
        self._queues: Queues = deal(feed.weights, world.size) if feed.dealt else []
        self._mine: list[int] = self._queues[world.rank] if feed.dealt else list(feed.mine)
        self._floors = [-1] * world.size if ascending else None
        self._begun = 0             # pieces at the head of `_mine` that were begun
        self._kept = len(self._mine)
        self._asking = False        # this rank wants a round and begins nothing before it
        self._owed = False          # a round or a cut was decided in the middle of a piece that must be ended before
        self._cutting = self._stopping = False      # what is owed is a cut; after it the job ends
        self._stuck = False         # pressure did not go away by the last round
        self._fed = 0               # tally's nbytes_in at the last round
        self._ended = False
        self._posted_s = self._last_s = time.monotonic()
        self._tick_s = 0.0
        self._idle_s = 0.0

    def run(self) -> None:
        """Return when no rank has anything left; raise the same error on all ranks if one has any. Collective: yes."""
        try:
            while not self._ended:
                if self._begun < self._limit():
                    self._next()
                else:
                    self._meet(False)
        except Everywhere as e:
            raise e.error from e.error.__cause__
        except RankDied:
            raise
        except Joined:
            self.world.agree(None, "the end of a stage")
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._join(to_shared(error))

    def between(self) -> None:
        """Between two batches of a piece: look whether a tick is through, and whether the operator can go on."""
        PULSE.beat()
        if self._owed:
            if not self._whole and self._wants_round():
                self._step_of_cut(True)        # the others wait for this rank's piece, and meanwhile it may not fit
            return
        if self._tick.in_flight:
            if self._tick.done():
                self._take(True)
        elif time.monotonic() - self._last_s > TICK_MAX_S:
            self._post(True)
        if not self._whole and not self._owed and self._wants_round():
            self._asking = True
            while self._asking:
                if self._owes():
                    self._step_of_cut(True)
                else:
                    self._meet(True)

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _limit(self) -> int:
        """How many pieces of the queue may have been begun by now."""
        return 0 if self._asking else self._kept if self._tick.in_flight else len(self._mine)

    def _next(self) -> None:
        piece = self._mine[self._begun]
        self._begun += 1
        began, idle = time.monotonic(), self._idle_s
        try:
            self._work(piece)
        except (Everywhere, Joined, RankDied):
            raise
        except (Exception, SystemExit) as error:
            shared = to_shared(error)
            if isinstance(shared, HpcmrError) and shared.split is None:
                shared.split = self.feed.where(piece)
            raise shared from error.__cause__
        tally = self.tally
        tally.work_s += time.monotonic() - began - (self._idle_s - idle)
        tally.pieces += 1
        tally.pieces_sum += piece if self._numbers is None else self._numbers[piece]
        tally.weight += int(self.feed.weights[piece]) if self.feed.dealt else 1
        self._after()

    def _after(self) -> None:
        """Between two pieces."""
        if self._tick.in_flight and self._tick.done():
            self._take(False)
        if self._owed:
            self._pay()
        if self._wants_round():
            self._asking = True
        elif not self._tick.in_flight and time.monotonic() - self._last_s >= TICK_MIN_S:
            self._post(False)

    def _wants_round(self) -> bool:
        if self._pressure is None or self._asking or (self._stuck and self.tally.nbytes_in - self._fed < ROUND_NBYTES_MIN):
            return False
        return self._pressure() >= 1

    def _exchange(self) -> None:
        assert self._round is not None
        self._together(self._round)
        self.tally.rounds += 1
        self._asking = False
        self._fed = self.tally.nbytes_in
        self._stuck = self._pressure is not None and self._pressure() >= 1

    def _together(self, call: Callable[[], None]) -> None:
        """A collective call that begins with an `agree`, and raises on all ranks if on any."""
        began = time.monotonic()
        try:
            call()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            raise Everywhere(error) from error
        self._idle_s += time.monotonic() - began

    # -- cuts ------------------------------------------------------------------------------------------------------

    def _owes(self) -> bool:
        return self._owed

    def _pay(self) -> None:
        """The piece is over: do what is owed."""
        if self._cutting:
            self._cut()
        else:
            self._exchange()
        self._owed = False

    def _cut(self) -> None:
        """Rounds until every rank is between two pieces, then the cut."""
        cuts = self._cuts
        assert cuts is not None
        began = time.monotonic()
        while self._step_of_cut(False):
            pass
        cuts.blocked_s += time.monotonic() - began
        stop = self._stopping
        self._owed = self._cutting = self._stopping = False
        self._together(lambda: cuts.cut(stop))

    def _step_of_cut(self, amid: bool) -> bool:
        """One round of all ranks; returns whether any of them is in the middle of a piece. That rank had to join: it has no memory left."""
        others = np.zeros(1, np.int64)

        def look() -> None:
            self.world.agree(None, "cut a stage for a checkpoint")
            others[0] = self.world.allreduce(np.array([amid], np.int64), "max")[0]

        self._together(look)
        self._asking = False
        if self._round is not None:
            self._exchange()
        return bool(others[0])

    # -- ticks -----------------------------------------------------------------------------------------------------

    def _post(self, amid: bool, failed: bool = False) -> None:
        """Tell the others how this rank stands, and promise what it keeps."""
        tally = self.tally
        left = len(self._mine) - self._begun
        if self.feed.dealt and self.world.size > 1:
            split_s = tally.work_s / tally.pieces if tally.pieces else 0.0
            self._kept = self._begun + promise(left, split_s, self._tick_s)
        else:
            self._kept = len(self._mine)
        status = np.zeros(WIDTH, np.int64)
        status[ERROR], status[WANTS], status[DONE], status[KEPT] = failed, self._asking, self._begun - amid, self._kept
        status[LEFT], status[WEIGHT], status[WORK_US] = left + amid, tally.weight, int(tally.work_s * 1e6)
        status[ROWS], status[NBYTES], status[PIECES] = tally.rows_in, tally.nbytes_in, tally.pieces
        if self._cuts is not None:
            status[VOTE], status[WRITTEN], status[NOTICE] = self._cuts.vote(), self._cuts.written(), self._cuts.noticed()
        self._tick.post(status)
        self._posted_s = time.monotonic()

    def _meet(self, amid: bool) -> None:
        """Nothing may be begun here: wait for the tick."""
        began = time.monotonic()
        if not self._tick.in_flight:
            self._post(amid)
        self._await(None)
        self._idle_s += time.monotonic() - began
        self._take(amid)

    def _await(self, limit_s: float | None) -> bool:
        """Wait until the tick is through; False if that takes longer than `limit_s`."""
        pause = Backoff(limit_s)
        while not self._tick.done():
            if not pause.pause():
                if limit_s is not None:
                    return False
                self._tick.wait(0.0)
        return True

    def _take(self, amid: bool) -> None:
        """All ranks have posted: do what the table says."""
        table = self._tick.wait()
        self._last_s = time.monotonic()
        self._tick_s = self._last_s - self._posted_s
        if self._watch is not None:
            self._watch(table)
        if table[:, ERROR].any():
            raise Joined
        self._deal_again(table)
        if self._cuts is not None:
            self._look_for_cuts(self._cuts, table)
        if self._cutting or (table[:, WANTS].any() and amid and self._whole):
            self._owed = True
            if not amid:
                self._pay()
        elif table[:, WANTS].any():
            self._exchange()
        elif not table[:, LEFT].any():
            self._ended = True

    def _look_for_cuts(self, cuts: Cuts, table: Table) -> None:
        if cuts.pending and (table[:, WRITTEN] >= cuts.pending).all():
            self._together(cuts.commit)
        self._stopping = bool(table[:, NOTICE].any())
        self._cutting = self._stopping or bool(table[:, VOTE].any())

    def _deal_again(self, table: Table) -> None:
        if not self.feed.dealt:
            return
        done, kept = table[:, DONE].tolist(), table[:, KEPT].tolist()
        if self._floors is not None:
            self._floors = [max([f, *q[:k]]) for f, q, k in zip(self._floors, self._queues, kept, strict=True)]
        queues = [q[d:] for q, d in zip(self._queues, done, strict=True)]
        keep = [k - d for k, d in zip(kept, done, strict=True)]
        if self.world.size > 1 and any(len(q) > k for q, k in zip(queues, keep, strict=True)):
            weights = self.feed.weights
            busy = [float(weights[q[:k]].sum()) if k else 0.0 for q, k in zip(queues, keep, strict=True)]
            speeds = (table[:, WEIGHT] / np.maximum(table[:, WORK_US], 1)).tolist()
            queues = redeal(queues, keep, busy, speeds, weights, self._floors)
        self._queues = queues
        self._mine = queues[self.world.rank]
        self._begun -= done[self.world.rank]

    # -- errors ----------------------------------------------------------------------------------------------------

    def _join(self, error: BaseException) -> None:
        """Tell the others at the next tick that this rank has failed, and raise the error that all agree on. Where a round or a cut is owed,
        they are on their way to it, and post no tick before.
        """
        while not self._owed:
            if not self._tick.in_flight:
                self._post(False, failed=True)
            if not self._await(self._grace_s):
                self._end(error)
            table = self._tick.wait()
            if self._leads_to_agree(table):
                break
        try:
            self.world.agree(error, "the end of a stage", self._grace_s)
        except HpcmrError as e:
            if self._grace_s is not None and not e.ranks and not isinstance(e, RankDied):      # the others did not come
                self._end(error)
            raise

    def _leads_to_agree(self, table: Table) -> bool:
        """Whether the next collective call of every rank that acts on this table is an `agree`."""
        words = (ERROR, WANTS, VOTE, NOTICE)
        committing = self._cuts is not None and self._cuts.pending and (table[:, WRITTEN] >= self._cuts.pending).all()
        return bool(table[:, words].any() or committing or not table[:, LEFT].any())

    def _end(self, error: BaseException) -> None:
        assert self._last_words is not None
        self._last_words(error)
