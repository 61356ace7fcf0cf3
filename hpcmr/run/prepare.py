"""Before a stage runs: columns are known, kernels are compiled, and every rank has seen the same sample.

Where a function of the user's does not declare what it returns, it is run on the first rows that reach it, in the order of the
input, and all ranks take what was found. That order depends on the data alone, and so does the schema.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from hpcmr.comm.collective import to_shared
from hpcmr.comm.world import World
from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.errors import HpcmrError, JobSpecError
from hpcmr.ops.contract import KeyedOperator, Origin, Step
from hpcmr.ops.warm import leave_mark, mark_of
from hpcmr.run.feed import Feed
from hpcmr.run.through import through

SAMPLE_ROWS = 65536
SAMPLE_ROWS_IN = 8192    # of a batch, what goes into steps, which may be slow
SAMPLE_PIECES = 4        # in how many pieces a row is looked for


class Chain:
    """The steps of a stage, fused: a batch goes through all of them before the next one is read; and the operator behind them, if there is one.

    Attributes
    ----------
    schema : Schema
        What comes out, of the operator if there is one, as far as it is known.
    into_operator : Schema
        What goes into the operator, once all before it is known; without one the same as `schema`.
    missing : int or None
        The first step whose columns only a sample can tell; the operator counts as the last one.
    """

    def __init__(self, steps: tuple[Step, ...], schema: Schema, operator: KeyedOperator | None = None,
                 bound: tuple[int, Schema] | None = None) -> None:
        self.steps = steps
        # An operator that runs a function of the user's is bound, asked and told like a step.
        self._links: tuple[Any, ...] = steps if operator is None else (*steps, operator)
        first, self.schema = bound or (0, schema)       # how many steps are bound already, and the columns behind them
        self.into_operator = self.schema
        self.missing: int | None = None
        self._bind(first)

    def _bind(self, first: int) -> None:
        for i in range(first, len(self._links)):
            self.into_operator = self.schema
            found = self._links[i].bind(self.schema)
            if found is None:
                self.missing = i
                return
            self.schema = found
        self.missing = None
        if len(self._links) == len(self.steps):
            self.into_operator = self.schema

    @property
    def complete(self) -> bool:
        return self.missing is None

    @property
    def missing_name(self) -> str:
        return "" if self.missing is None else str(self._links[self.missing].name)

    def fix(self, schema: Schema) -> None:
        """Take what the missing step makes, and go on to the next that is missing."""
        assert self.missing is not None
        self._links[self.missing].fix(schema)
        self.schema = schema
        self._bind(self.missing + 1)

    def learn(self, batches: Iterable[Batch], piece: int, row: int) -> list[Schema]:
        """Run rows through until nothing is missing any more or they end; the schemas found, which this rank has fixed already."""
        found: list[Schema] = []
        rows = [row] * len(self._links)
        for batch in batches:
            if self._learn_from(batch, piece, rows, 0, found):
                break
        return found

    def _learn_from(self, batch: Batch, piece: int, rows: list[int], first: int, found: list[Schema]) -> bool:
        """A batch into the link `first`; returns whether nothing is missing any more."""
        for i in range(first, len(self._links)):
            if not batch.nrows:
                return False
            step, origin = self._links[i], Origin(piece, rows[i])
            rows[i] += batch.nrows
            if i == self.missing:
                schema = step.infer(batch, origin)
                if schema is None:
                    return False
                self.fix(schema)
                found.append(schema)
                if self.complete:
                    return True
            assert i < len(self.steps)
            if hasattr(step, "apply_blocks"):
                return any(self._learn_from(b, piece, rows, i + 1, found) for b in step.apply_blocks(batch, origin))
            batch = step.apply(batch, origin)
        return False

    def forget(self, missing: int, schema: Schema) -> None:
        """Back to before `learn`: another rank found rows that come before."""
        self.missing, self.schema = missing, schema

    def through(self, batches: Iterable[Batch], piece: int, row: int) -> Iterator[Batch]:
        """Rows that come out at the end."""
        rows = [row] * len(self.steps)
        for batch in batches:
            yield from through(self.steps, batch, piece, rows)


def infer_columns(world: World, chain: Chain, feed: Feed) -> None:
    """Find the columns that only a sample can tell, the same on all ranks. Collective: yes.

    Pieces that any rank can read are tried in order: the first by rank 0, then as many at a time as there are ranks. Otherwise
    each rank looks through its own. The lowest piece with a row wins. Where no row reaches a step, it is taken to make no columns.
    """
    start, width = 0, 1
    left = list(feed.mine)
    while chain.missing is not None:
        before, schema = chain.missing, chain.schema
        tries = [start + world.rank] if feed.dealt and world.rank < width else [] if feed.dealt else left
        with world.together("find the columns"):
            piece, found = _learn_first(chain, feed, [p for p in tries if p < feed.count])
        answers = world.allgather((piece, found))
        best = min((a for a in answers if a[1]), key=lambda a: a[0], default=None)
        chain.forget(before, schema)
        for s in best[1] if best else []:
            chain.fix(s)
        if feed.dealt:
            start, width = (start + width if best is None else best[0] + 1), world.size
            if start >= feed.count:
                break
        elif best is None:
            break
        else:
            left = [p for p in left if p > best[0]]
    if chain.missing is not None:
        _assume_nothing(chain)


def _learn_first(chain: Chain, feed: Feed, pieces: list[int]) -> tuple[int, list[Schema]]:
    for piece in pieces:
        try:
            found = chain.learn(feed.peek(piece), piece, feed.row(piece))
        except Exception as error:
            raise located(error, feed, piece) from error.__cause__
        if found:
            return piece, found
    return -1, []


def located(error: BaseException, feed: Feed, piece: int) -> BaseException:
    """The error with the name of the piece."""
    shared = to_shared(error)
    if isinstance(shared, HpcmrError) and shared.split is None:
        shared.split = feed.where(piece)
    return shared


def _assume_nothing(chain: Chain) -> None:
    name = chain.missing_name
    try:
        while chain.missing is not None:
            chain.fix(Schema(()))
    except JobSpecError as error:
        raise JobSpecError(f"no row reaches {name}, so the columns that it makes are not known, and {error}; "
                           "declare them with out={...}") from error


def sample_of(world: World, chain: Chain, feed: Feed) -> Batch | None:
    """The first rows that come out of the chain on rank 0, at most `SAMPLE_ROWS`; the same on all ranks. Collective: yes.

    Results never depend on it, so that any rows will do: they are looked for in the first few pieces only.
    """

    quick = all(getattr(step, "quick", False) for step in chain.steps)      # then what a filter leaves is worth filling up

    def look() -> Batch | None:
        pieces = range(min(feed.count, SAMPLE_PIECES)) if feed.dealt else feed.mine[:SAMPLE_PIECES]
        rows = SAMPLE_ROWS if quick else SAMPLE_ROWS_IN
        for piece in pieces:
            found: list[Batch] = []
            try:
                few = (batch.slice(0, rows) for batch in feed.peek(piece))
                for batch in chain.through(few, piece, feed.row(piece)):
                    left = SAMPLE_ROWS - sum(b.nrows for b in found)
                    # The memory of a batch may be that of the next one.
                    found.append(batch.take(np.arange(min(left, batch.nrows), dtype=np.int64)).compact())
                    if not quick or left <= 2 * batch.nrows:
                        break
            except Exception as error:
                raise located(error, feed, piece) from error.__cause__
            if found:
                return Batch.concat(found)
        return None

    return world.on_root(look)


class Kernels:
    """Gets kernels compiled by one rank of a node where they are not in its cache yet, and loaded by all at once where they are.

    Parameters
    ----------
    world : World
    key : str
        Fingerprint of what is compiled.
    """

    def __init__(self, world: World, key: str) -> None:
        self._world = world
        self._mark = mark_of(key)
        mine = np.array([self._mark.exists()], np.int64)
        self._warm = bool(world.allreduce(mine, "min")[0])

    def load(self, fn: Callable[[], None], what: str, things: Iterable[Any] = ()) -> None:
        """Run `fn`, which compiles or loads, and compile the kernels that `things` name. Collective: yes."""
        if not self._warm:
            def compile_first() -> None:
                fn()
                for thing in things:
                    if hasattr(thing, "import_kernels"):
                        thing.import_kernels()
                if "hpcmr.kernels.jit" in sys.modules:
                    sys.modules["hpcmr.kernels.jit"].compile_imported()

            self._world.first_on_node(compile_first)
            return
        with self._world.together(what):
            fn()

    def done(self) -> None:
        """All is compiled: the next stage like this one finds it."""
        if not self._warm and self._world.node_rank == 0:
            leave_mark(self._mark)


def compile_all(things: Iterable[Any]) -> None:
    """Compile what has something to compile."""
    for thing in things:
        if hasattr(thing, "compile"):
            thing.compile()
