"""The exchange: rows in partition order go to the owners of the partitions.

Planned from counts, then executed column by column; everything lands at its final place::

    Partitioned (all partitions) --encode--> streams of bytes --travel--> receive buffers --decode--> one Partitioned per source

A column is one stream (fixed width), or lengths and data (bytes, text), or lengths and the streams of its child (list), and
one more for its validity where any rank has nulls. Row and byte counts are compared on all ranks after every exchange.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcmr.comm.blocks import check_bounds, ends_of, row_cuts
from hpcmr.comm.buffers import Buffers
from hpcmr.comm.collective import collective
from hpcmr.comm.travel import DEFECT, Stats, Stream, as_bytes, travel
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import ColumnType
from hpcmr.errors import ConservationError, HpcmrError

ROUND_NBYTES = 64 << 20
LENGTH_TYPES = (np.uint8, np.uint16, np.uint32, np.int64)
Counts = NDArray[np.int64]
T = TypeVar("T")


class Exchange:
    """One plan for arrays whose rows are grouped by destination rank; executed as often as there are columns.

    Parameters
    ----------
    world : World
    sendcounts : (size,) int64
        Rows for each rank.
    round_nbytes : int
        Most bytes on the way in each direction.

    Attributes
    ----------
    sendcounts, recvcounts : (size,) int64
        Rows to and from each rank, our own among them.
    stats : Stats

    Notes
    -----
    Collective: yes. Cost: one Alltoall of 8 bytes.
    """

    def __init__(self, world: World, sendcounts: Counts, *, round_nbytes: int = ROUND_NBYTES) -> None:
        self.world = world
        self.round_nbytes = round_nbytes
        self.sendcounts = np.asarray(sendcounts, np.int64)
        bad = None
        if self.sendcounts.shape != (world.size,) or bool((self.sendcounts < 0).any()):
            bad = HpcmrError(f"send counts must be {world.size} numbers of rows, these are {self.sendcounts.tolist()[:20]}")
        world.agree(bad, "plan an exchange")
        self.recvcounts = world.alltoall(self.sendcounts.reshape(-1, 1))[:, 0].copy()
        self.stats = Stats()

    @property
    def n_send(self) -> int:
        return int(self.sendcounts.sum())

    @property
    def n_recv(self) -> int:
        return int(self.recvcounts.sum())

    @collective
    def execute(self, sendbuf: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Send the rows of `sendbuf` and receive those for us, in the order of their source ranks.

        Parameters
        ----------
        sendbuf : (n_send, ...) array
            Rows grouped by destination; dtype and shape of a row are the same on all ranks.
        out : (n_recv, ...) array, optional
            Where the rows go; C-contiguous, of the same dtype.

        Raises
        ------
        ConservationError
            Rows or bytes received are not those sent.

        Notes
        -----
        Cost: each byte once, at most `round_nbytes` on the way in each direction.
        """
        with self.world.together("execute an exchange"):
            rows = np.ascontiguousarray(sendbuf)
            if len(rows) != self.n_send:
                raise HpcmrError(f"the exchange was planned for {self.n_send:,} rows, the array has {len(rows):,}")
            if out is None:
                out = np.empty((self.n_recv, *rows.shape[1:]), rows.dtype)
            if out.shape != (self.n_recv, *rows.shape[1:]) or out.dtype != rows.dtype or not out.flags.c_contiguous:
                raise HpcmrError(f"the receive array must be C-contiguous, {rows.dtype} of shape {(self.n_recv, *rows.shape[1:])}; "
                                 f"it is {out.dtype} of shape {out.shape}")
        assert out is not None
        width = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
        stream = Stream("rows", as_bytes(rows), self.sendcounts * width, as_bytes(out), self.recvcounts * width)
        call = Stats(rows_sent=self.n_send, rows_received=self.n_recv)
        travel(self.world, [stream], self.round_nbytes, call, "exchange")
        conserve(self.world, call, None, "exchange")
        add_stats(self.stats, call)
        return out


def add_stats(total: Stats, call: Stats) -> None:
    for name, value in vars(call).items():
        setattr(total, name, getattr(total, name) + value)


def conserve(world: World, call: Stats, error: BaseException | None, what: str) -> None:
    """Raise on every rank unless all rows and bytes sent anywhere were received somewhere, and no rank has an error. Collective."""
    mine = [call.rows_sent, call.rows_received, call.nbytes_sent, call.nbytes_received, error is not None]
    sums = world.allreduce(np.array(mine, np.int64)).tolist()
    if sums[4]:
        world.agree(error, what)
    if sums[0] != sums[1] or sums[2] != sums[3]:
        raise ConservationError(f"{what}: {sums[0]:,} rows and {sums[2]:,} bytes were sent, "
                                f"{sums[1]:,} rows and {sums[3]:,} bytes received; {DEFECT}")


@dataclass
class _Node:
    """One column, or the child of a list: its values in final form, what each rank gets of them, and where they arrive."""

    name: str
    type: ColumnType
    column: Column
    cuts: Counts                                   # (size + 1,) first row for each rank
    children: list[_Node] = field(default_factory=list)
    valid: bool = False                            # any rank has nulls
    longest: int = 0                               # longest string or list on any rank
    recvcounts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))        # rows from each rank
    recvbytes: Counts = field(default_factory=lambda: np.zeros(0, np.int64))         # string bytes from each rank
    offsets: Counts = field(default_factory=lambda: np.zeros(0, np.int64))           # (n + 1,) of what is sent
    values: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.uint8))      # received values, or string data
    lengths: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.uint8))     # received lengths
    mask: NDArray[Any] | None = None                                                 # received validity

    @property
    def varies(self) -> bool:
        return not self.type.is_fixed

    def walk(self) -> list[_Node]:
        return [self, *(n for c in self.children for n in c.walk())]


def _node(name: str, column: Column, cuts: Counts) -> _Node:
    whole = column.compact()
    node = _Node(name, whole.type, whole, cuts)
    if not isinstance(whole, FixedColumn):
        node.offsets = np.concatenate([whole.starts, whole.ends[-1:]]) if len(whole) else np.zeros(1, np.int64)
    if isinstance(whole, ListColumn):
        node.children = [_node(f"{name}[]", whole.child, node.offsets[cuts])]
    return node


@collective
def exchange(world: World, part: Partitioned, bounds: Counts, round_nbytes: int = ROUND_NBYTES, *, copy_self: bool = False,
             buffers: Buffers | None = None, stats: Stats | None = None, take: Callable[[int], None] | None = None) -> list[Partitioned]:
    """Send every partition to its owner; return what this rank owns, one piece per source rank.

    Parameters
    ----------
    world : World
    part : Partitioned
        All partitions (``first=0``), with the same columns and number of partitions on every rank.
    bounds : (size + 1,) int64
        Rank r owns partitions ``bounds[r]`` to ``bounds[r + 1] - 1``; the same on every rank.
    round_nbytes : int
        Most bytes on the way in each direction; records may be larger.
    copy_self : bool
        Copy our own rows into the receive buffers, behind those of lower ranks. Otherwise our own piece is a view on `part`,
        whose memory must then stay as it is while the piece is used.
    buffers : Buffers, optional
        Pool that the receive buffers are taken from.
    stats : Stats, optional
        Added to.
    take : callable, optional
        Called with the bytes of the receive buffers before they are made; may raise (`MemoryTooSmall`), which every rank then does.

    Returns
    -------
    list of Partitioned
        In rank order of their sources, those without rows left out; ``first = bounds[rank]``. All are views into one receive
        buffer per column. A column has a validity on all ranks if it has one on any.

    Raises
    ------
    ConservationError
        Rows or bytes received are not those sent.
    HpcmrError
        Schemas, partitions or bounds differ between ranks, a rank is out of memory, or MPI failed.

    Notes
    -----
    Cost: each byte once; strings travel with lengths of 1, 2, 4 or 8 bytes; four small collective calls.
    """
    if world.size == 1 and not copy_self and check_bounds(bounds, part.count, 1) is None:
        return [part] if part.batch.nrows else []
    plan = _Plan(world, part, np.asarray(bounds, np.int64), copy_self)
    return plan.execute(_Plan.received, round_nbytes, buffers or Buffers(), take, stats)


@collective
def exchange_ranges(world: World, batch: Batch, counts: Counts, *, round_nbytes: int = ROUND_NBYTES,
                    take: Callable[[int], None] | None = None) -> Batch:
    """Send the first ``counts[0]`` rows to rank 0, the next to rank 1 and so on; return what comes, in rank order of the sources, as one batch.

    Parameters
    ----------
    world : World
    batch : Batch
        Of the same schema on every rank. It is sent from where it lies, without a copy.
    counts : (size,) int64
        Rows for each rank; they add up to the batch's.
    round_nbytes, take
        As in `exchange`.

    Notes
    -----
    Cost: that of `exchange`.
    """
    with world.together("cut rows by rank"):
        part = Partitioned(batch, ends_of(counts))
    plan = _Plan(world, part, np.arange(world.size + 1, dtype=np.int64), True)
    return plan.execute(_Plan.whole, round_nbytes, Buffers(), take, None)


class _Plan:
    """Counts of one exchange, known on both sides before a byte travels."""

    def __init__(self, world: World, part: Partitioned, bounds: Counts, copy_self: bool) -> None:
        self.world, self.part, self.bounds, self.copy_self = world, part, bounds, copy_self
        self.nodes: list[_Node] = []
        error: BaseException | None = None
        try:
            self._encode()
        except (Exception, KeyboardInterrupt) as e:
            error = e
        self._compare(error)
        self._agree_on_columns()
        self._swap_counts()

    def _encode(self) -> None:
        wrong = check_bounds(self.bounds, self.part.count, self.world.size)
        if wrong or self.part.first != 0:
            raise HpcmrError(wrong or f"an exchange takes all partitions from 0, this starts at partition {self.part.first}")
        self.cuts = row_cuts(self.part.starts, self.bounds)
        self.columns = [_node(n, c, self.cuts) for n, c in self.part.batch.columns.items()]
        self.nodes = [n for c in self.columns for n in c.walk()]

    def _compare(self, error: BaseException | None) -> None:
        """One allreduce tells whether all ranks encoded the same schema, partitions and bounds, and whether any has nulls."""
        kind = "" if error else f"{self.part.count} partitions of {', '.join(f'{n.name}: {n.type}' for n in self.columns)}"
        raw = hashlib.blake2b(kind.encode() + self.bounds.tobytes() + bytes([self.copy_self]), digest_size=7).digest()
        mark = int.from_bytes(raw, "little")
        nulls = any(n.column.valid is not None for n in self.nodes)
        high = self.world.allreduce(np.array([error is not None, mark, -mark, nulls], np.int64), "max").tolist()
        if high[0]:
            self.world.agree(error, "plan an exchange")
        if high[1] != -high[2]:
            said = self.world.allgather(f"{kind}, owners {self.bounds.tolist()[:9]}")
            raise HpcmrError("ranks exchange different things: " + "; ".join(f"rank {r}: {s}" for r, s in enumerate(said) if s != said[0] or r == 0))
        self.any_nulls = bool(high[3])

    def _agree_on_columns(self) -> None:
        if not self.any_nulls and not any(n.varies for n in self.nodes):
            return
        mine = [[n.column.valid is not None, int(np.diff(n.offsets).max(initial=0))] for n in self.nodes]
        for node, (valid, longest) in zip(self.nodes, self.world.allreduce(np.array(mine, np.int64), "max").tolist(), strict=True):
            node.valid, node.longest = bool(valid), longest

    def _swap_counts(self) -> None:
        """Rows for each rank, rows of each list's child, bytes of each string column: a row of the table per destination."""
        table = [np.diff(self.cuts)]
        for node in self.nodes:
            if node.varies:
                table.append(np.diff(node.offsets[node.cuts]))
        got = self.world.alltoall(np.stack(table, 1)).T.copy()
        if not self.copy_self:
            got[:, self.world.rank] = 0
        self.rows = got[0]
        rest = iter(got[1:])
        for column in self.columns:
            column.recvcounts = self.rows
        for node in self.nodes:
            if node.varies:
                node.recvbytes = next(rest)
            for child in node.children:
                child.recvcounts = node.recvbytes

    def execute(self, result: Callable[[_Plan], T], round_nbytes: int, buffers: Buffers, take: Callable[[int], None] | None,
                stats: Stats | None) -> T:
        """Move everything, check it, and make a result of it. Collective."""
        call = Stats()
        with self.world.together("make room for an exchange"):
            streams = self.streams(buffers, take)
        travel(self.world, streams, round_nbytes, call, "exchange")
        call.rows_sent, call.rows_received = self.part.batch.nrows, int(self.partition_rows.sum())
        made: Any = None
        error: BaseException | None = None
        try:
            self.check()
            made = result(self)
        except (Exception, KeyboardInterrupt) as e:
            error = e
        conserve(self.world, call, error, "exchange")
        if stats is not None:
            add_stats(stats, call)
        return made  # type: ignore[no-any-return]

    def streams(self, buffers: Buffers, take: Callable[[int], None] | None) -> list[Stream]:
        if take is not None:
            take(self._recv_nbytes())
        owned = self.bounds[1:] - self.bounds[:-1]
        mine = int(owned[self.world.rank])
        self.partition_rows = np.zeros((self.world.size, mine), np.int64)
        counts = np.diff(self.part.starts)
        out = [Stream("partitions", as_bytes(counts), owned * 8, as_bytes(self.partition_rows), np.full(self.world.size, mine * 8, np.int64))]
        for node in self.nodes:
            out += self._node_streams(node, buffers)
        return out

    def _recv_nbytes(self) -> int:
        total = 0
        for n in self.nodes:
            rows = int(n.recvcounts.sum())
            total += rows * (n.type.row_nbytes if n.type.is_fixed else 16) + rows * n.valid + (int(n.recvbytes.sum()) if n.type.is_string else 0)
        return total

    def _node_streams(self, node: _Node, buffers: Buffers) -> list[Stream]:
        n, sent = int(node.recvcounts.sum()), np.diff(node.cuts)
        out = []
        if isinstance(node.column, FixedColumn):
            values = node.column.values
            node.values = buffers.take(n, values.dtype, values.shape[1:])
            width = node.type.row_nbytes
            out.append(Stream(node.name, as_bytes(values), sent * width, as_bytes(node.values), node.recvcounts * width))
        else:
            kind = np.dtype(next(t for t in LENGTH_TYPES if node.longest <= np.iinfo(t).max))
            node.lengths = buffers.take(n, kind)
            lengths = np.diff(node.offsets).astype(kind)
            width = kind.itemsize
            out.append(Stream(f"{node.name} lengths", as_bytes(lengths), sent * width, as_bytes(node.lengths), node.recvcounts * width))
        if isinstance(node.column, BytesColumn):
            node.values = buffers.take(int(node.recvbytes.sum()))
            data = as_bytes(np.ascontiguousarray(node.column.data))
            out.append(Stream(f"{node.name} data", data, np.diff(node.offsets[node.cuts]), node.values, node.recvbytes))
        if node.valid:
            node.mask = buffers.take(n, np.bool_)
            mask = np.ones(len(node.column), np.bool_) if node.column.valid is None else np.ascontiguousarray(node.column.valid)
            out.append(Stream(f"{node.name} valid", as_bytes(mask), sent, as_bytes(node.mask), node.recvcounts))
        return out

    def check(self) -> None:
        """Compare what arrived with itself: rows per partition add up to rows, lengths to bytes."""
        rows, planned, rank = self.partition_rows.sum(1), self.rows.copy(), self.world.rank
        planned[rank] = self.cuts[rank + 1] - self.cuts[rank]
        if (rows != planned).any() or (self.partition_rows < 0).any():
            raise ConservationError(f"rank {rank} received {planned.tolist()} rows, but partitions of {rows.tolist()}; {DEFECT}")

    def whole(self) -> Batch:
        """All that came, own rows among them."""
        return Batch({c.name: _decode(c) for c in self.columns}, int(self.partition_rows.sum()))

    def received(self) -> list[Partitioned]:
        first = int(self.bounds[self.world.rank])
        whole = {c.name: _decode(c) for c in self.columns}
        ends = ends_of(self.rows)
        out = []
        for source in range(self.world.size):
            starts = ends_of(self.partition_rows[source])
            nrows = int(starts[-1])
            if nrows == 0:
                continue
            if source == self.world.rank and not self.copy_self:
                batch = self._own_rows()
            else:
                a, b = int(ends[source]), int(ends[source + 1])
                batch = Batch({n: c.slice(a, b) for n, c in whole.items()}, nrows)
            out.append(Partitioned(batch, starts, first))
        return out

    def _own_rows(self) -> Batch:
        a, b = int(self.cuts[self.world.rank]), int(self.cuts[self.world.rank + 1])
        return Batch({c.name: _with_valid(c.column.slice(a, b), c) for c in self.columns}, b - a)


def _with_valid(column: Column, node: _Node) -> Column:
    """Our own rows in the form in which other ranks' rows come: with a validity if any rank has one."""
    valid = np.ones(len(column), np.bool_) if node.valid and column.valid is None else column.valid
    if isinstance(column, FixedColumn):
        return FixedColumn(column.values, valid)
    if isinstance(column, BytesColumn):
        return BytesColumn(column.starts, column.ends, column.data, column.text, valid)
    return ListColumn(column.starts, column.ends, _with_valid(column.child, node.children[0]), valid)


def _decode(node: _Node) -> Column:
    if isinstance(node.column, FixedColumn):
        return FixedColumn(node.values, node.mask)
    offsets = ends_of(node.lengths)
    if int(offsets[-1]) != int(node.recvbytes.sum()):
        raise ConservationError(f"lengths of column {node.name!r} add up to {int(offsets[-1]):,}, {int(node.recvbytes.sum()):,} came; {DEFECT}")
    if isinstance(node.column, BytesColumn):
        return BytesColumn.from_offsets(offsets, node.values, node.column.text, node.mask)
    return ListColumn(offsets[:-1], offsets[1:], _decode(node.children[0]), node.mask)


__all__ = ["Buffers", "Exchange", "Stats", "exchange", "exchange_ranges"]
