"""Some of the rows, drawn by a hash of a seed and of where a row stands: ``sample``.

The rows are the same on any number of ranks. Where a row stands is its split and its number in it, which follow from the data;
where that is not so (functions that change the number of rows, over arrays of which a split lies on two ranks) the rows are
numbered first, and the number is the place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.schema import Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.settled import pack, unpack

if TYPE_CHECKING:
    from hpcmr.ops.contract import Collective

ORIGIN_BITS = 40
HASHES = 1 << 64
WAITING = 1 << 16
Draws = NDArray[np.uint64]


class _Drawn:
    """What both kinds of samples have in common: the number drawn for a row.

    Parameters
    ----------
    seed : int
    place : str, optional
        A column of row numbers, which is dropped; None: a row's origin.
    """

    name = "sample"
    repeatable = True

    def __init__(self, seed: int, place: str | None = None) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise JobSpecError(f"sample: seed={seed!r} is not an integer from 0 to 2**63 - 1")
        self.seed, self.place = seed, place

    def import_kernels(self) -> None:
        from hpcmr.kernels import sample  # noqa: F401

    def bind(self, schema: Schema) -> Schema:
        return Schema(tuple(f for f in schema if f.name != self.place))

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to keep."""

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return names

    def draws(self, batch: Batch, origin: Origin) -> Draws:
        from hpcmr.kernels.sample import draws, draws_at

        out = np.empty(batch.nrows, np.uint64)
        if self.place is None:
            draws(np.uint64(self.seed), np.uint64((origin.split << ORIGIN_BITS) + origin.row), out)
        else:
            column = batch[self.place]
            assert isinstance(column, FixedColumn)
            draws_at(np.uint64(self.seed), column.values.view(np.uint64), out)
        return out

    def kept(self, batch: Batch, origin: Origin, limit: int) -> Batch:
        """The rows whose number is below `limit`."""
        rows = batch if self.place is None else batch.select(n for n in batch.names if n != self.place)
        if limit >= HASHES:
            return rows
        return rows.take(np.flatnonzero(self.draws(batch, origin) < np.uint64(limit)))


class SampleFraction(_Drawn):
    """Each row with probability `fraction`. A `Step`.

    Parameters
    ----------
    fraction : float
        0 to 1.
    seed : int
    place : str, optional
    """

    def __init__(self, fraction: float, seed: int = 0, place: str | None = None) -> None:
        super().__init__(seed, place)
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise JobSpecError(f"sample(fraction={fraction!r}): a fraction is a number from 0 to 1; sample(count=...) draws a number of rows")
        self.fraction = fraction
        self.limit = int(fraction * HASHES)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, "fraction", float(self.fraction), self.seed, self.place)

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return self.kept(batch, origin, self.limit)


class SampleCount(_Drawn):
    """Exactly `count` rows (all, where there are fewer): those whose numbers are the smallest. A `SurveyStep`.

    Parameters
    ----------
    count : int
    seed : int
    place : str, optional

    Notes
    -----
    Cost: the rows are seen twice; 8 bytes for each row drawn on a rank, and 64 small messages.
    """

    survey = True

    def __init__(self, count: int, seed: int = 0, place: str | None = None) -> None:
        super().__init__(seed, place)
        if not isinstance(count, int) or count < 0:
            raise JobSpecError(f"sample(count={count!r}): the number of rows is an integer, 0 or above")
        self.count = count
        self._begin()

    def _begin(self) -> None:
        self.limit, self.below = HASHES, HASHES - 1
        self.smallest: list[Draws] = []
        self.waiting = self.rows = 0

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, "count", self.count, self.seed, self.place)

    def bind(self, schema: Schema) -> Schema:
        self._begin()       # a plan's step is copied for each action; this is the copy's own
        return super().bind(schema)

    def observe(self, batch: Batch, origin: Origin) -> None:
        self.rows += batch.nrows
        found = self.draws(batch, origin)
        self.smallest.append(found[found <= np.uint64(self.below)])
        self.waiting += len(self.smallest[-1])
        if self.waiting > 2 * self.count + WAITING:
            self._shrink()

    def _shrink(self) -> Draws:
        """The `count` smallest numbers of this rank."""
        mine = np.concatenate(self.smallest) if self.smallest else np.empty(0, np.uint64)
        if len(mine) > self.count:
            mine = np.partition(mine, self.count - 1)[:self.count] if self.count else mine[:0]
            self.below = int(mine.max()) if self.count else 0
        self.smallest, self.waiting = [mine], len(mine)
        return mine

    def settle(self, together: Collective) -> None:
        """Find the number that has exactly `count` below it, by halving: no two rows have the same."""
        mine = np.sort(self._shrink())
        self.smallest = []
        if int(together.allreduce(np.array([self.rows], np.int64))[0]) <= self.count:
            return
        low, high = 0, HASHES
        while low < high:
            middle = (low + high) // 2
            below = int(np.searchsorted(mine, np.uint64(middle)))
            if int(together.allreduce(np.array([below], np.int64))[0]) >= self.count:
                high = middle
            else:
                low = middle + 1
        self.limit = low

    def settled(self) -> Batch:
        return pack(self.limit)

    def resettle(self, found: Batch) -> None:
        self.limit = unpack(found)

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return self.kept(batch, origin, self.limit)
