"""The way through node leaders: between nodes one message for each pair of *nodes*, not of ranks.

Where many ranks exchange little, what costs time is the number of messages: ranks^2 of them. Ranks of a node share memory, so they lay
what they send beside one another in a window, and one of them, the leader, sends each other node all that is for its ranks::

    ranks of node A --copy--> window of A ==one message for each node B==> window of B --copy--> ranks of node B

A message from A to B holds a block for each pair (rank of A, rank of B), in this order; a block holds the streams one behind the other.
Both nodes know the lengths of all blocks from the counts of their own ranks, so that every rank finds its blocks by itself and leaders
copy nothing. The window is bounded, so messages are cut into fragments and move in *turns* that fill it at most.

No turn waits for ever: the messages of a node, out and in together, are put in the order (step, fragment), where step i goes from node n
to node n + i, and turns take them in that order. Of all fragments not yet received take the least: both its nodes are through
with everything before it, hence in the turn that posts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.blocks import ends_of
from hpcmr.comm.mpi_world import MpiWorld
from hpcmr.comm.travel import DEFECT, Bytes, Stats, Stream
from hpcmr.comm.waiting import Backoff
from hpcmr.errors import ConservationError

TAG_LEADER = 31003
RANKS_MIN = 64               # with fewer, a message for each pair is no burden
RANKS_PER_NODE_MIN = 4
PAIR_NBYTES_MAX = 16 << 10   # above, ranks that send for themselves use more than one core to drive the network
Counts = NDArray[np.int64]


def worth_leaders(size: int, nodes: int, nbytes: int) -> bool:
    """Whether an exchange goes through node leaders: many ranks, several to a node, and few bytes for each pair of them.

    Parameters
    ----------
    size, nodes : int
        Ranks and nodes of the communicator.
    nbytes : int
        Bytes that all ranks send together.
    """
    return nodes > 1 and size >= max(RANKS_MIN, RANKS_PER_NODE_MIN * nodes) and nbytes <= PAIR_NBYTES_MAX * size * size


@dataclass
class _Route:
    """What goes from our node to another one, or comes from it: lengths of the blocks ``(their senders, their receivers) int64``."""

    node: int
    ends: Counts          # (senders * receivers + 1,) where blocks end in the message
    width: int            # receivers

    @property
    def nbytes(self) -> int:
        return int(self.ends[-1])

    def start(self, sender: int, receiver: int) -> int:
        return int(self.ends[sender * self.width + receiver])


@dataclass(frozen=True)
class _Fragment:
    """Bytes ``start`` to ``stop`` of a message, which lie at ``place`` of the window in this turn."""

    step: int
    start: int
    stop: int
    place: int

    @property
    def there(self) -> slice:
        return slice(self.place, self.place + self.stop - self.start)


@dataclass
class _Turn:
    out: list[_Fragment]
    come: list[_Fragment]


class _Plan:
    """Who sends what through which part of the window; the same on all ranks of a node."""

    def __init__(self, world: MpiWorld, streams: list[Stream]) -> None:
        self.world, self.streams = world, streams
        nodes = world.node_of
        self.members = [np.flatnonzero(nodes == n) for n in range(world.node_count)]
        self.here = int(nodes[world.rank])
        sends = sum((s.sendcounts for s in streams), np.zeros(world.size, np.int64))
        comes = sum((s.recvcounts for s in streams), np.zeros(world.size, np.int64))
        self.mine = np.stack([sends, comes])
        self.mine[:, world.rank] = 0                                          # our own part stays
        table = world.node_allgather(self.mine)                              # (ranks of the node, 2, size)
        steps = range(world.node_count)
        self.out = [self._route((self.here + t) % world.node_count, table[:, 0], False) for t in steps]
        self.come = [self._route((self.here - t) % world.node_count, table[:, 1], True) for t in steps]

    def _route(self, node: int, table: Counts, incoming: bool) -> _Route:
        lengths = table[:, self.members[node]]
        blocks = lengths.T if incoming else lengths
        return _Route(node, ends_of(blocks.reshape(-1)), blocks.shape[1])

    def turns(self, room: int) -> list[_Turn]:
        """Fragments that fill the window of `room` bytes in each direction, in order."""
        turns = [_Turn([], [])]
        used = [0, 0]
        for step in range(len(self.out)):
            totals = self.out[step].nbytes, self.come[step].nbytes if step else 0      # at step 0 ranks read what was laid out
            for start in range(0, max(totals), room):
                need = [max(0, min(room, n - start)) for n in totals]
                if used[0] + need[0] > room or used[1] + need[1] > room:
                    turns.append(_Turn([], []))
                    used = [0, 0]
                for way, fragments in enumerate((turns[-1].out, turns[-1].come)):
                    if need[way]:
                        fragments.append(_Fragment(step, start, start + need[way], used[way]))
                    used[way] += need[way]
        return turns

    def blocks(self, step: int, incoming: bool) -> Iterator[tuple[int, Bytes]]:
        """Place in the message of a step, and memory, of each stream's part of each of this rank's blocks."""
        route = (self.come if incoming else self.out)[step]
        me = self.world.node_rank
        for i, peer in enumerate(self.members[route.node].tolist()):
            if peer == self.world.rank:
                continue
            at = route.start(i, me) if incoming else route.start(me, i)
            for buffer, counts, displs in (s.places(not incoming) for s in self.streams):
                n, d = int(counts[peer]), int(displs[peer])
                if n:
                    yield at, buffer[d:d + n]
                    at += n


def travel_through_leaders(world: MpiWorld, streams: list[Stream], round_nbytes: int, stats: Stats, own: Iterator[tuple[Bytes, Bytes]],
                           what: str) -> None:
    """As `hpcmr.comm.travel.travel`, through the leaders of nodes. Collective: yes.

    Notes
    -----
    Cost: at most nodes^2 messages for each turn, two copies of each byte, two node barriers a turn.
    """
    window = world.node_window()
    room = max(1, min(round_nbytes, len(window) // 2))
    outgoing, incoming = window[:len(window) // 2], window[len(window) // 2:]
    plan = _Plan(world, streams)
    turns = plan.turns(room)
    for turn in turns:       # as many on every rank of a node; between nodes the order of fragments keeps turns from waiting for ever
        for f in turn.out:
            _copy(outgoing[f.there], f, plan.blocks(f.step, False), True)
        world.node_sync(what)
        if world.node_rank == 0:
            stats.messages += _between_leaders(world, plan, turn, outgoing, incoming, what)
        for there, here in own:
            np.copyto(there, here)
        world.node_sync(what)
        for f in turn.out:
            if f.step == 0:
                _copy(outgoing[f.there], f, plan.blocks(0, True), False)
        for f in turn.come:
            _copy(incoming[f.there], f, plan.blocks(f.step, True), False)
        world.node_sync(what)        # what was read may be overwritten
    stats.nbytes_sent += int(plan.mine[0].sum())
    stats.nbytes_received += int(plan.mine[1].sum())
    stats.rounds += len(turns)


def _copy(window: Bytes, f: _Fragment, blocks: Iterator[tuple[int, Bytes]], into: bool) -> None:
    """Between the window and those parts of this rank's blocks that lie in the fragment."""
    for at, data in blocks:
        lo, hi = max(at, f.start), min(at + len(data), f.stop)
        if lo < hi:
            here, there = data[lo - at:hi - at], window[lo - f.start:hi - f.start]
            np.copyto(*((there, here) if into else (here, there)))


def _between_leaders(world: MpiWorld, plan: _Plan, turn: _Turn, outgoing: Bytes, incoming: Bytes, what: str) -> int:
    """Move a turn's fragments; the number of messages. On leaders only."""
    requests: list[Any] = []
    lengths: list[int] = []
    for fragments, routes, memory, call in ((turn.come, plan.come, incoming, world.comm.Irecv), (turn.out, plan.out, outgoing, world.comm.Isend)):
        for f in fragments:
            if f.step:
                requests.append(call(memory[f.there], int(plan.members[routes[f.step].node][0]), TAG_LEADER))
                lengths.append(f.stop - f.start if memory is incoming else -1)
    left, pause = len(requests), Backoff()
    while left:
        finished = world.testsome(requests, what)
        for i, nbytes in finished:
            if lengths[i] >= 0 and nbytes != lengths[i]:
                raise ConservationError(f"{what}: {nbytes:,} bytes came from a node where {lengths[i]:,} were planned; {DEFECT}")
        left -= len(finished)
        if finished:
            pause.reset()
        elif not pause.pause():
            raise world.stalled(what)
    return len(requests)
