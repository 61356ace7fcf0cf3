"""Rows of two tables brought together by key.

Two ways, chosen from the measured size of the right side alone:

- *broadcast*: the right side is small. Every rank gets all of it as an index, which left rows are looked up in on their way to what
  comes next; left rows do not travel. The result is in the order of the left rows, then of the right ones.
- *shuffle*: both sides go to the owners of their keys. The result is in key order within partitions of the key's hash, then in the
  order of the left rows, then of the right ones. ``right`` and ``outer`` always go this way: who has no partner shows at the owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch
from hpcmr.data.keys import as_words
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Collective, Origin, StageContext
from hpcmr.ops.join_cuts import Cuts, Plan, agree_on_cuts
from hpcmr.ops.join_index import BLOCK_NBYTES, Index, Prober
from hpcmr.ops.join_keys import HOWS, Columns, key_batch
from hpcmr.ops.join_rows import JoinSide, Matches, joined
from hpcmr.ops.settled import pack, unpack

BROADCAST_NBYTES = 128 << 20
"""Right sides up to this size go to every rank. A constant: the way decides the order of the result."""

ORDERS = {"broadcast": "in the order of the left rows, then of the right ones",
          "shuffle": "in key order within partitions, then in the order of the left rows, then of the right ones"}


class Join:
    """A join. Implements `hpcmr.ops.contract.PairOperator`.

    Parameters
    ----------
    left_on, right_on : tuple of str
        Key columns of both sides, which go together in this order.
    how : {"inner", "left", "right", "outer", "semi", "anti"}
    broadcast_nbytes : int, optional
        Size up to which the right side goes to every rank; `BROADCAST_NBYTES`.
    block_nbytes : int
        About how large a piece of the result may become before it goes on to the next operation.
    """

    name = "join"

    def __init__(self, left_on: tuple[str, ...], right_on: tuple[str, ...], how: str = "inner", *, broadcast_nbytes: int | None = None,
                 block_nbytes: int = BLOCK_NBYTES) -> None:
        if how not in HOWS:
            raise JobSpecError(f"join: there is no how={how!r}; there are {', '.join(HOWS)}")
        if not left_on or len(left_on) != len(right_on):
            raise JobSpecError(f"join: the left side has {len(left_on)} key columns and the right side {len(right_on)}; name as many on both, "
                               "and one at least")
        for names in (left_on, right_on):
            if len(set(names)) < len(names):
                raise JobSpecError(f"join: a key column stands twice in {', '.join(names)}")
        self.left_on, self.right_on, self.how = left_on, right_on, how
        self.keys, self.right_keys = left_on, right_on
        self.broadcast_nbytes, self.block_nbytes = BROADCAST_NBYTES if broadcast_nbytes is None else broadcast_nbytes, block_nbytes
        self.cuts: Cuts | None = None

    @property
    def survey(self) -> bool:
        """Both sides are looked at before they are shuffled: a key with very many rows is spread over ranks."""
        return True

    @property
    def rule(self) -> str:
        """What decides between the two ways, for `explain`."""
        if self.how in ("right", "outer"):
            return f"shuffle, as any {self.how} join: {ORDERS['shuffle']}"
        limit = f"{self.broadcast_nbytes / 2**20:.4g} MiB"
        return (f"broadcast if the right side has up to {limit}: {ORDERS['broadcast']}; shuffle if it has more: {ORDERS['shuffle']}")

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.left_on, self.right_on, self.how, self.broadcast_nbytes)

    def bind(self, left: Schema, right: Schema) -> Schema:
        self.schemas = left, right
        self.columns = columns = Columns.of(left, right, self.left_on, self.right_on, self.how)
        keeps = self.how in ("right", "outer")
        self.left = JoinSide("left", self.left_on, columns.key_types, left, left.names, self.how in ("inner", "right", "semi"))
        self.right = JoinSide("right", self.right_on, columns.key_types, right, (*self.right_on, *columns.right_names), not keeps)
        self.right.distinct = self.how in ("semi", "anti")
        return columns.schema

    def import_kernels(self) -> None:
        """Import the kernels that this operator may call, to be compiled by one rank of a node."""
        from hpcmr.kernels import join, keys, strings  # noqa: F401

    def choose(self, nbytes_global: int, rows_global: int) -> tuple[str, str]:
        """The way, and why, from the size of the right side."""
        size = f"the right side has {rows_global:,} rows, {nbytes_global / 2**20:.4g} MiB"
        limit = f"{self.broadcast_nbytes / 2**20:.4g} MiB"
        if self.how in ("right", "outer"):
            return "shuffle", f"as any {self.how} join; {ORDERS['shuffle']}"
        if nbytes_global <= self.broadcast_nbytes:
            return "broadcast", f"{size}, up to {limit} goes to every rank; {ORDERS['broadcast']}"
        return "shuffle", f"{size}, up to {limit} would go to every rank; {ORDERS['shuffle']}"

    # ---- broadcast -----------------------------------------------------------------------------------------------------

    def probe(self, right: Batch) -> Probe:
        return Probe(self, right)

    # ---- shuffle -------------------------------------------------------------------------------------------------------

    @property
    def partitioned_by(self) -> tuple[str, ...] | None:
        """The left keys, where their hash in the result is the one that decided where they went, and no key was spread."""
        if self.cuts is not None:
            return None
        columns = getattr(self, "columns", None)
        if columns is not None and any(_letter(f.type) != _letter(t) for f, t in zip(columns.key_fields, columns.key_types, strict=True)):
            return None
        return self.left_on

    def open(self, ctx: StageContext, estimate: Batch | None) -> None:
        self.ctx = ctx
        self.cuts = None
        self.left.open(ctx, estimate)
        self.right.open(ctx, None)

    def settle(self, together: Collective) -> None:
        """Agree on the keys that are spread over several pieces. Collective: yes."""
        self._adopt(agree_on_cuts(self.left.sampler, self.right.sampler, self.how, self.ctx.partitions, together), together.rank)

    def _adopt(self, plan: Plan, rank: int) -> None:
        self.plan = plan
        self.cuts = self.left.cuts = self.right.cuts = plan.cuts
        # What all ranks know is said by one.
        self.left.expected = plan.weights if rank == 0 else np.zeros_like(plan.weights)
        self.right.expected = np.zeros_like(plan.weights)
        if plan.cuts is not None and rank == 0:
            self.ctx.count("keys spread over ranks", len(plan.cuts.hot))

    def settled(self) -> Batch:
        """The keys that are spread, and where they are cut.

        These come from samples of a bounded size on each rank, and so from the number of ranks: the rows and their order are the same with
        any cuts, but the pieces of the result are those of these.
        """
        return pack(self.plan.told())

    def resettle(self, found: Batch) -> None:
        self._adopt(Plan.of(unpack(found)), getattr(self.ctx, "rank", 0))

    def finish(self, partition: int) -> Batch:
        blocks = list(self.finish_blocks(partition))
        return Batch.concat(blocks) if blocks else Batch.empty(self.columns.schema)

    def finish_blocks(self, partition: int) -> Iterator[Batch]:
        """The joined rows of a partition, in key order, then left, then right origin; a bounded number of bytes at a time."""
        left, right = self.left.rows_of(partition), self.right.rows_of(partition)
        if not left.nrows and not right.nrows:
            return
        types = self.columns.key_types
        matches = Matches(left, right, key_batch(left, self.left_on, types), key_batch(right, self.right_on, types), self.how)
        yield from joined(matches, left, right, self.columns, self.how, self.block_nbytes)

    def close(self) -> None:
        self.left.close()
        self.right.close()


def _letter(kind: ColumnType) -> str:
    """Types of one letter hash equal values alike."""
    if not kind.is_fixed or kind.np_dtype.kind == "S":
        return "s"
    return as_words(np.zeros(0, kind.np_dtype))[0]


class Probe:
    """The step that joins left rows with a right side that every rank has.

    Parameters
    ----------
    join : Join
        Bound.
    right : Batch
        All right rows, in their order.
    """

    name = "join"
    repeatable = True

    def __init__(self, join: Join, right: Batch) -> None:
        self.join = join
        self.columns = join.columns
        values = right.select(self.columns.right_names)
        keys = key_batch(right, join.right_on, self.columns.key_types)
        self.prober = Prober(Index(keys, values), join.how, self.columns.right_names, join.block_nbytes)

    def fingerprint(self) -> tuple[Any, ...]:
        return (*self.join.fingerprint(), "probe")

    def bind(self, schema: Schema) -> Schema:
        return self.columns.schema

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.columns.schema

    def fix(self, schema: Schema) -> None:
        """Nothing to take: both sides are known."""

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Left columns keep their names and values."""
        return names

    def apply_blocks(self, batch: Batch, origin: Origin) -> Iterator[Batch]:
        """The result of a batch in pieces of a bounded size, each in the memory of the one before."""
        if batch.nrows:
            yield from self.prober.blocks(batch, key_batch(batch, self.join.left_on, self.columns.key_types))

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        from hpcmr.ops.keyed_rows import owned

        blocks = [owned(b) for b in self.apply_blocks(batch, origin)]
        return Batch.concat(blocks) if blocks else Batch.empty(self.columns.schema)

