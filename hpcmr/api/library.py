"""Calls for a program that is parallel already: arrays in, arrays out, over the program's own communicator.

Every function is collective and independent of jobs, files and the process around it: it works on a cached duplicate of the
communicator, which is freed with it, sets no signal handler and no variable, never aborts, and raises the same exception on every
rank. What goes in and out is a dict of columns, a part of it on each rank; the whole is the concatenation in rank order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmr.api.result import Result
from hpcmr.comm.blocks import block_counts
from hpcmr.comm.broadcast import broadcast as broadcast_batch
from hpcmr.comm.exchange import exchange_ranges
from hpcmr.comm.rows import Parts, exchange_rows
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import owner_bounds, partition_bits, partition_count
from hpcmr.data.scatter import groups_of_ranks, partitions_of_keys, weigh
from hpcmr.data.schema import Schema
from hpcmr.errors import JobSpecError, MemoryTooSmall
from hpcmr.io.arrays import agree_on_columns, local_batch
from hpcmr.run.memory import parse_nbytes, show_nbytes
from hpcmr.run.prepare import Kernels
from hpcmr.run.report import show_ranks

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcmr.api.table import Table
    from hpcmr.ops.accumulators import Agg

Columns = Mapping[str, Any]
Arrays = dict[str, Any]
PARTITIONS_MIN = 1024      # even a small table is shared out among all ranks
ENGINE_PARTITIONS, PARTITION_ROWS = 64, 128      # where a partition costs more than an entry in an index

_warm: weakref.WeakSet[World] = weakref.WeakSet()


def shuffle(comm: MPI.Comm | None, columns: Columns, *, key: str | Sequence[str] | None = None, dest: Any = None,
            memory: str | int | None = None) -> Arrays:
    """Send rows to other ranks: those with equal keys to one, or each row to the rank that the caller names.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        Ranks that take part; it is duplicated once, never used itself. None: all ranks of the launcher, or this process alone.
    columns : dict of str to array
        Columns ``(n_local, *shape)`` of equal length on this rank: arrays of any type that a table holds, masked arrays (masked is
        null), lists of str, bytes, numbers or lists of these. Names and types are the same on all ranks; `n_local` may differ, and be 0.
    key : str or list of str
        Columns whose values belong together: integers, floats, bool, dates, bytes, text. All NaN are one key, and so are -0.0 and 0.0.
    dest : (n_local,) array of int
        The rank that each row goes to, in place of `key`.
    memory : str or int, optional
        Most bytes that the call may take on a rank beyond what it is given, for example ``"2GiB"``. None: no limit.

    Returns
    -------
    dict of str to array or list
        The rows for this rank: arrays ``(n, *shape)`` of the types that went in, masked where the column has nulls on any rank; text,
        bytes and lists as Python lists. With `dest` they are ordered by (source rank, row). With `key` they are ordered by (partition,
        source rank, row), and higher partitions lie on higher ranks: the concatenation in rank order is the same for the same global
        rows on any number of ranks. Partitions are ranges of the key's hash and are shared out by bytes; the rows of one key stay together.

    Raises
    ------
    InputError, JobSpecError, DataError
        Columns, key or dest are wrong on any rank, or the ranks do not call the same thing.
    MemoryTooSmall
        `memory` cannot hold what arrives on any rank.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it. An error on one rank is raised on all.

    Cost: every byte is packed once, travels once, and with `key` is placed once; two bytes a row more travel with `key`. Memory: what arrives, two
    blocks of 8 to 64 MiB, and up to six bytes a row.

    Examples
    --------
    >>> import hpcmr
    >>> hpcmr.shuffle(None, {"x": [1.5, 2.5], "n": [3, 4]}, dest=[0, 0])["n"].tolist()
    [3, 4]
    """
    keys = (key,) if isinstance(key, str) else key
    world = _enter(comm, f"shuffle by {'dest' if dest is not None else f'key {keys!r}'}", memory)
    with world.together("shuffle"):
        if (keys is None) == (dest is None):
            raise JobSpecError("shuffle(comm, columns): give either key=, columns whose equal values belong together, or dest=, a rank for each row")
        room = _Room(memory)
        names = _names(keys, "shuffle")
    batch, counts, row_nbytes = agree_on_columns(columns, world.allgather, "shuffle")
    _load(world)
    if dest is not None:
        with world.together("check dest"):
            room.take(2 * batch.nrows, "the destinations of rows")
            groups = groups_of_ranks(dest, batch.nrows, world.size)
        return _arrays(exchange_rows(world, batch, groups, room))
    rows = sum(counts)
    count = max(partition_count(rows * row_nbytes), min(PARTITIONS_MIN, 1 << (max(1, rows) - 1).bit_length()))
    with world.together("find the partitions of keys"):
        room.take(4 * batch.nrows, "the partitions of rows")
        groups = partitions_of_keys(batch, names, partition_bits(count))
        weights = weigh(batch, groups, count)
    bounds = owner_bounds(world.allreduce(weights), world.size)
    owners = np.repeat(np.arange(world.size), np.diff(bounds)).astype(np.uint16)
    return _arrays(exchange_rows(world, batch, owners[groups], room, Parts(groups, bounds)))


def scatter(comm: MPI.Comm | None, columns: Columns | None, *, root: int = 0, memory: str | int | None = None) -> Arrays:
    """Share out the rows of one rank in contiguous blocks whose lengths differ by at most one.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    columns : dict of str to array, or None
        As in `shuffle`, on rank `root`; not looked at on the others.
    root : int
    memory : str or int, optional
        As in `shuffle`.

    Returns
    -------
    dict of str to array or list
        This rank's block, as in `shuffle`: rank 0 has the first rows.

    Raises
    ------
    InputError, JobSpecError, DataError, MemoryTooSmall
        As in `shuffle`.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: each byte travels once, from where it lies. Memory: what arrives.
    """
    world = _enter(comm, f"scatter from rank {root}", memory)
    told: Any = None
    with world.together("scatter"):
        room, root = _Room(memory), _root(root, world)
        if world.rank == root:
            batch = local_batch(columns)       # type: ignore[arg-type]
            told = batch.schema.to_json(), batch.nrows
    fields, n_global = world.bcast(told, root)
    if world.rank != root:
        batch = Batch.empty(Schema.from_json(fields))
    sendcounts = block_counts(n_global, world.size) * (world.rank == root)
    return _arrays(exchange_ranges(world, batch, sendcounts, take=lambda nbytes: room.take(nbytes, "a rank's block of rows")))


def gather(comm: MPI.Comm | None, columns: Columns, *, root: int = 0, memory: str | int | None = None) -> Arrays | None:
    """Bring the rows of all ranks to one, in rank order.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    columns : dict of str to array
        As in `shuffle`.
    root : int
    memory : str or int, optional
        As in `shuffle`.

    Returns
    -------
    dict of str to array or list, or None
        All rows, as in `shuffle`, on rank `root`; None on the others.

    Raises
    ------
    InputError, JobSpecError, MemoryTooSmall
        As in `shuffle`.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: each byte travels once, from where it lies. Memory: all rows on rank `root`.
    """
    world = _enter(comm, f"gather to rank {root}", memory)
    with world.together("gather"):
        room, root = _Room(memory), _root(root, world)
    batch, _, _ = agree_on_columns(columns, world.allgather, "gather")
    sendcounts = batch.nrows * (np.arange(world.size) == root)
    rows = exchange_ranges(world, batch, sendcounts, take=lambda nbytes: room.take(nbytes, "the rows of all ranks"))
    return _arrays(rows) if world.rank == root else None


def broadcast(comm: MPI.Comm | None, columns: Columns | None, *, root: int = 0, memory: str | int | None = None) -> Arrays:
    """Give the rows of one rank to all.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    columns : dict of str to array, or None
        As in `shuffle`, on rank `root`; not looked at on the others.
    root : int
    memory : str or int, optional
        As in `shuffle`.

    Returns
    -------
    dict of str to array or list
        The rows of `root`, as in `shuffle`. On `root` arrays of a fixed width are those that it gave, not copies.

    Raises
    ------
    InputError, JobSpecError, DataError, MemoryTooSmall
        As in `shuffle`.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: each byte once through MPI's broadcast. Memory: all rows on each rank.
    """
    world = _enter(comm, f"broadcast from rank {root}", memory)
    with world.together("broadcast"):
        room, root = _Room(memory), _root(root, world)
        batch = local_batch(columns) if world.rank == root else None      # type: ignore[arg-type]
    return _arrays(broadcast_batch(world, batch, root, take=lambda nbytes: room.take(nbytes, "the rows that are broadcast")))


# -- through the engine ------------------------------------------------------------------------------------------------


def reduce_by_key(comm: MPI.Comm | None, columns: Columns, *, key: str | Sequence[str], aggs: Mapping[str, Agg] | Sequence[Agg] | None = None,
                  function: Callable[..., Any] | None = None, out: Mapping[str, Any] | None = None, exact: bool = False,
                  memory: str | int | None = None) -> Arrays:
    """One row for each key, each on one rank.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    columns : dict of str to array
        As in `shuffle`.
    key : str or list of str
        Columns to group by.
    aggs : dict of str to aggregate, or list of aggregates
        ``{"total": hpcmr.sum("mass"), "n": hpcmr.count()}``; float sums are exact and rounded once.
    function : callable
        ``f(a, b)`` that folds two values, in place of `aggs`; `out` and `exact` as in `Table.reduce_by_key`.
    memory : str or int, optional
        Bytes for each rank, 64 MiB or more, as ``--memory`` of a job. None: a share of what the node allows.

    Returns
    -------
    dict of str to array or list
        This rank's keys and their values, in the order of partitions and of keys within. Together the ranks hold each key once, with the same
        bits in the same order on any number of ranks.

    Raises
    ------
    InputError, JobSpecError, FunctionError, MemoryTooSmall
        On all ranks.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: one pass over the rows, then one state for each key and rank travels. Memory: the states of all keys that a rank has seen, in `memory`.
    """
    def plan(tables: list[Table]) -> Table:
        names = _names(_listed(key), "reduce_by_key")
        if (aggs is None) == (function is None):
            raise JobSpecError("reduce_by_key(comm, columns, key=...): give either aggs=, for example {'total': hpcmr.sum('x')}, or function=")
        if function is not None:
            return tables[0].reduce_by_key(function, key=names, out=out, exact=exact)
        grouped = tables[0].group_by(*names)
        return grouped.agg(**aggs) if isinstance(aggs, Mapping) else grouped.agg(*(aggs or ()))

    return _through_engine(comm, f"reduce_by_key, key={key!r}", [columns], memory, plan)


def sort(comm: MPI.Comm | None, columns: Columns, *, by: str | Sequence[str], descending: bool | Sequence[bool] = False,
         memory: str | int | None = None) -> Arrays:
    """All rows in order: rank 0 gets the first ones.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    columns : dict of str to array
        As in `shuffle`.
    by : str or list of str
        Columns to sort by, the first one first: numbers, bool, dates, bytes, text. NaN comes behind numbers, nulls come last.
    descending : bool or list of bool
        For all of `by`, or for each.
    memory : str or int, optional
        As in `reduce_by_key`; what does not fit goes to scratch files of the node.

    Returns
    -------
    dict of str to array or list
        This rank's rows, as in `shuffle`. The concatenation in rank order is sorted; rows that are equal in `by` stay in the order of
        (source rank, row). The same rows come out in the same order on any number of ranks; ranks get about as many each.

    Raises
    ------
    InputError, JobSpecError, MemoryTooSmall
        On all ranks.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: rows are seen twice and travel once.
    """
    def plan(tables: list[Table]) -> Table:
        return tables[0].sort_by(*_names(_listed(by), "sort"), descending=descending)

    return _through_engine(comm, f"sort by {by!r}, descending={descending!r}", [columns], memory, plan)


def join(comm: MPI.Comm | None, left: Columns, right: Columns, *, on: str | Sequence[str], how: str = "inner",
         memory: str | int | None = None) -> Arrays:
    """Rows of two sets of columns, brought together where their keys are equal.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    left, right : dict of str to array
        As in `shuffle`; each has its own number of rows on this rank.
    on : str or list of str
        Key columns of both.
    how : {"inner", "left", "right", "outer", "semi", "anti"}
        As in `Table.join`.
    memory : str or int, optional
        As in `sort`.

    Returns
    -------
    dict of str to array or list
        This rank's rows, as in `shuffle`: the left columns, then the right ones but the keys, with ``_right`` behind names that clash.
        Columns of a side that may have no partner are masked where it has none. The concatenation in rank order is that of `Table.join`: where
        the right side is small, left rows stay on their rank and in their order.

    Raises
    ------
    InputError, JobSpecError, MemoryTooSmall
        On all ranks.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.

    Cost: the right side goes to all ranks if it has up to 128 MiB in all, else both sides travel once.
    """
    def plan(tables: list[Table]) -> Table:
        return tables[0].join(tables[1], list(_names(_listed(on), "join")), how=how)

    return _through_engine(comm, f"join on {on!r}, how={how!r}", [left, right], memory, plan)


def _through_engine(comm: MPI.Comm | None, call: str, given: list[Columns], memory: str | int | None, plan: Callable[[list[Table]], Table]) -> Arrays:
    """Arrays into tables, a plan of them, and the rows of its result that this rank makes."""
    from hpcmr.api.reading import from_arrays
    from hpcmr.ops.keep import Keep
    from hpcmr.run.session import Session, current

    world = _enter(comm, call, memory)
    session = current(comm) if memory is None else Session(world, memory=memory)
    keep = Keep()
    with session:
        with world.together(call):
            batches = [local_batch(columns) for columns in given]
        tables = [from_arrays(comm, batch.columns) for batch in batches]
        rows, nbytes = world.allreduce(np.array([[b.nrows, b.nbytes] for b in batches], np.int64).sum(0)).tolist()
        with world.together(call):
            node: Any = plan(tables)._node
            # A job leaves a few MiB to one rank. Here the result is worked on where it lies, so that all ranks should have some.
            count = min(ENGINE_PARTITIONS, 1 << max(0, rows // PARTITION_ROWS).bit_length())
            node = replace(node, partitions=max(count, partition_count(nbytes)))
        session.execute(node, keep)
    return _arrays(keep.rows)


# -- what all calls have in common -------------------------------------------------------------------------------------


class _Room:
    """Memory that a call may take on this rank."""

    def __init__(self, memory: str | int | None) -> None:
        self.limit_nbytes = 1 << 62 if memory is None else parse_nbytes(memory)
        self.taken_nbytes = 0

    def take(self, nbytes: int, what: str) -> None:
        self.taken_nbytes += nbytes
        if self.taken_nbytes > self.limit_nbytes:
            raise MemoryTooSmall(f"{what} needs {show_nbytes(nbytes)}, which makes {show_nbytes(self.taken_nbytes)} for the call so far; it may take "
                                 f"{show_nbytes(self.limit_nbytes)}: give memory={-(-self.taken_nbytes // (1 << 20))}MiB or more, or use more ranks")

    def available(self) -> int:
        return max(0, self.limit_nbytes - self.taken_nbytes)


def _enter(comm: MPI.Comm | None, call: str, memory: str | int | None) -> World:
    """The world of a communicator, once its ranks are known to have made the same call. Collective."""
    world = World.of(comm)
    told = f"{call}, memory={memory!r}" if memory is not None else call
    if world.size > 1:
        said = world.allgather(told)
        if len(set(said)) > 1:
            calls = "; ".join(f"rank{'s' if said.count(s) > 1 else ''} {show_ranks([r for r, t in enumerate(said) if t == s])}: {s}"
                              for s in dict.fromkeys(said))
            raise JobSpecError(f"ranks make different calls ({calls}); every rank must make the same calls in the same order", rank=0)
    return world


def _load(world: World) -> None:
    """Kernels compiled by one rank of a node, once. Collective."""
    if world in _warm:
        return
    kernels = Kernels(world, "library shuffle")

    def import_kernels() -> None:
        import hpcmr.kernels.keys
        import hpcmr.kernels.shuffle  # noqa: F401

    kernels.load(import_kernels, "load the kernels of a shuffle")
    kernels.done()
    _warm.add(world)


def _listed(key: str | Sequence[str]) -> Sequence[str]:
    return (key,) if isinstance(key, str) else key


def _names(keys: Sequence[str] | None, call: str) -> tuple[str, ...]:
    if keys is None:
        return ()
    if not isinstance(keys, list | tuple) or not keys or not all(isinstance(k, str) for k in keys) or len(set(keys)) < len(keys):
        raise JobSpecError(f"{call}(key={keys!r}): name one column, or several different ones in a list")
    return tuple(keys)


def _root(root: int, world: World) -> int:
    if not isinstance(root, int | np.integer) or not 0 <= root < world.size:
        raise JobSpecError(f"root={root!r}: the communicator has ranks 0 to {world.size - 1}")
    return int(root)


def _arrays(batch: Batch) -> Arrays:
    result = Result(batch)
    return {name: result[name] for name in result.columns}
