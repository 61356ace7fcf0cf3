"""``group_by(...).agg(...)`` of any mix of aggregates: parts that each hold one kind of state, zipped by key.

- *states of a fixed size* (count, sum, mean, ...) lie in the table (`hpcmr.ops.aggregate`);
- *counted values* (median, quantile, distinct, sketches) are finer groups in a table of their own, one for each column and way of
  counting, shared by the aggregates of that column (`hpcmr.ops.fine_groups`);
- *rows* (list, argmin, argmax, top_k, functions of the user's) are kept by key (`hpcmr.ops.keyed_rows`).

Every part sees all rows, has the same partitions, and gives a partition's groups in the order of their keys: so the results stand side
by side. A seal takes out one part after the other; what is sealed carries the part's number in the names of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.partitioning import Partitioned
from hpcmr.data.schema import Schema
from hpcmr.data.sort_keys import directions
from hpcmr.errors import ConservationError, JobSpecError
from hpcmr.ops.accumulators import FUNCTIONS, Agg, output_names
from hpcmr.ops.aggregate import Aggregate
from hpcmr.ops.contract import Origin, StageContext
from hpcmr.ops.group_best import GroupBest
from hpcmr.ops.group_fold import GroupFold
from hpcmr.ops.group_list import GroupLists
from hpcmr.ops.group_quantile import GroupValues
from hpcmr.ops.group_sketch import GroupLogBuckets, GroupRegisters, log_bits, register_bits

Part = Aggregate | GroupLists | GroupBest | GroupFold
VALUES = ("count_distinct", "median", "quantile")
BEST = ("argmin", "argmax", "top_k")
ALL_FUNCTIONS = (*FUNCTIONS, *VALUES, "approx_quantile", "approx_count_distinct", *BEST, "list", "fold", "apply")


def aggregation(keys: tuple[str, ...], aggs: Sequence[Agg], order_by: tuple[str, ...] = (),
                descending: bool | Sequence[bool] = False) -> Aggregate | MixedAggregate:
    """The operator for some aggregates: the table alone where it can hold all of them."""
    shares = {_share(a, bool(order_by)) for a in aggs}
    if shares == {("table",)}:
        return Aggregate(keys, tuple(aggs))
    return MixedAggregate(keys, tuple(aggs), order_by, directions(order_by, descending))


def _share(agg: Agg, ordered: bool) -> tuple[Any, ...]:
    """What aggregates that can share a part have in common. `ordered`: groups are sorted."""
    if ordered and agg.function in ("first", "last"):
        return ("lists",)
    if agg.function in FUNCTIONS:
        return ("table",)
    if agg.function not in ALL_FUNCTIONS:
        raise JobSpecError(f"unknown aggregate {agg.function!r}; there are {', '.join(ALL_FUNCTIONS)}")
    if agg.column is None:
        raise JobSpecError(f"{agg.function} needs a column; only count() counts rows")
    if agg.function == "fold":
        return ("fold", agg.column, agg.option("f", None), agg.option("exact", False))
    if agg.function in VALUES:
        return ("values", agg.column)
    if agg.function == "approx_quantile":
        return ("buckets", agg.column, log_bits(agg.option("error", 0.01)))
    if agg.function == "approx_count_distinct":
        return ("registers", agg.column, register_bits(agg.option("error", 0.01)))
    if agg.function in BEST:
        return ("best", agg.option("of", agg.column), agg.option("k", 1), agg.function != "argmin", agg.function != "top_k")
    return ("lists",)


def _part(keys: tuple[str, ...], share: tuple[Any, ...], wants: tuple[Agg, ...]) -> Part:
    kind, *rest = share
    if kind == "table":
        return Aggregate(keys, wants)
    make: Any = {"lists": GroupLists, "values": GroupValues, "buckets": GroupLogBuckets, "registers": GroupRegisters, "best": GroupBest,
                 "fold": GroupFold}[kind]
    made: Part = make(keys, *rest, wants)
    return made


class MixedAggregate:
    """Aggregates of all kinds over the rows of each key. Implements `hpcmr.ops.contract.KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    aggs : tuple of Agg
    order_by : tuple of str
        What the rows of a group are sorted by for `list`, `first`, `last` and `apply`.
    descending : tuple of bool
        For each of `order_by`.
    """

    name = "aggregate"

    def __init__(self, keys: tuple[str, ...], aggs: tuple[Agg, ...], order_by: tuple[str, ...] = (), descending: tuple[bool, ...] = ()) -> None:
        self.keys, self.aggs = keys, aggs
        shared: dict[tuple[Any, ...], list[Agg]] = {}
        for agg in aggs:
            share = _share(agg, bool(order_by))
            shared.setdefault((*share, order_by, descending) if share == ("lists",) else share, []).append(agg)
        # The first part sealed decides who owns which partition: rows weigh more than counted values, and these more than states.
        weight = {"lists": 0, "values": 1, "best": 2, "buckets": 3, "registers": 4, "fold": 5, "table": 6}
        self.parts = [_part(keys, s, tuple(shared[s])) for s in sorted(shared, key=lambda s: weight[s[0]])]

    @property
    def partitioned_by(self) -> tuple[str, ...] | None:
        """The partitions of the result are those of the keys' hash."""
        return self.keys or None

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, *(p.fingerprint() for p in self.parts))

    def bind(self, schema: Schema) -> Schema:
        names = output_names(self.keys, self.aggs)
        made: dict[str, Any] = {}
        for part in self.parts:
            made.update({f.name: f for f in part.bind(schema)})
        self.made = Schema(tuple(made[n] for n in names))
        return self.made

    @property
    def notice(self) -> str | None:
        """What is to be said of functions of the user's that are slow."""
        return next((n for n in (getattr(p, "notice", None) for p in self.parts) if n), None)

    @property
    def whole_splits(self) -> bool:
        """Whether rounds of an exchange must leave splits whole: a part folds within them."""
        return any(getattr(p, "whole_splits", False) for p in self.parts)

    def compile(self) -> None:
        """Compile functions that are kernels. Raises `KernelError`."""
        for part in self.parts:
            if isinstance(part, GroupLists | GroupFold):
                part.compile()

    def import_kernels(self) -> None:
        from hpcmr.kernels import sort, sort_keys  # noqa: F401

        for part in self.parts:
            if isinstance(part, Aggregate):
                part.import_kernels()

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.turn = 0
        self.part_pending = False
        self.rows_in = 0
        for part in self.parts:
            part.open(ctx, estimate)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def consume(self, batch: Batch, origin: Origin) -> None:
        self.rows_in += batch.nrows
        for part in self.parts:
            part.consume(batch, origin)

    def pressure(self) -> float:
        return max(max(p.pressure() for p in self.parts), self._share_held())

    def _share_held(self) -> float:
        own = sum(p.sealable_nbytes for p in self.parts)
        return own / max(1, own + self.ctx.available()) * 1.25

    def drain(self) -> None:
        for part in self.parts:
            part.drain()

    # ---- out and in again ----------------------------------------------------------------------------------------------

    def seal(self) -> Partitioned:
        """The state of one part; the next seal takes that of the next part."""
        number = self.turn
        part = self.parts[number].seal()
        # The answer is the same on all ranks: parts seal in one or in two steps by how they hold rows, which a common sample decides.
        self.part_pending = bool(getattr(self.parts[number], "pending", bool)())
        if not self.part_pending:
            self.turn = (number + 1) % len(self.parts)
        batch = Batch({f"{number}:{n}": c for n, c in part.batch.columns.items()}, part.batch.nrows)
        return Partitioned(batch, part.starts, part.first, part.reused)

    def pending(self) -> bool:
        return self.turn != 0 or self.part_pending

    def merge(self, part: Partitioned) -> None:
        if not part.batch.nrows:
            return
        number = next(iter(part.batch.columns)).partition(":")[0]
        batch = Batch({n.partition(":")[2]: c for n, c in part.batch.columns.items()}, part.batch.nrows)
        self.parts[int(number)].merge(Partitioned(batch, part.starts, part.first, part.reused))

    # ---- results -------------------------------------------------------------------------------------------------------

    def finish(self, partition: int) -> Batch:
        columns: dict[str, Any] = {}
        nrows = -1
        for part in self.parts:
            found = part.finish(partition)
            if nrows not in (-1, found.nrows):
                raise ConservationError(f"partition {partition} of group_by has {nrows:,} groups in one part and {found.nrows:,} in another; "
                                        "this is a defect of hpcmr, please report it")
            nrows = found.nrows
            columns.update(found.columns)
        return Batch({n: columns[n] for n in self.made.names}, nrows)

    @property
    def rows_out(self) -> int:
        """Rows that the groups count, in the first part that counts them."""
        return int(next((p.rows_out for p in self.parts if not getattr(p, "combines", None)), self.rows_in))

    def check(self, rows_global: int, rows_out_global: int) -> None:
        """Every row that came in, on any rank, is in exactly one group."""
        if rows_global != rows_out_global:
            raise ConservationError(f"group_by took in {rows_global:,} rows and its groups count {rows_out_global:,}")

    def close(self) -> None:
        for part in self.parts:
            part.close()
