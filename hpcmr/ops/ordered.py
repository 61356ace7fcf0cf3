"""Steps whose result for a row depends on the rows before it: row numbers, running values, ranks, moving windows.

Rows stay where they are. All of them are seen once first: each *part* (the rows of a piece that lie on one rank, one behind the
other) is summed up, the summaries of all ranks are put in order, and each part is told what came before it. The order is that of the
input: by piece, then row; so the result does not depend on who holds what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.settled import pack, unpack

if TYPE_CHECKING:
    from hpcmr.ops.contract import Collective

Part = tuple[int, int]       # piece, and row of it at which the part begins


class Ordered(ABC):
    """The part of a `SurveyStep` that follows the rows; what is summed up and carried on is its children's.

    A child implements `fresh`, `summed`, `carried` and `advance`.

    Attributes
    ----------
    new : str
        Name of the column that it adds.
    out : ColumnType
        Its type; there after `bind`.
    row : int
        Number of the first row of the batch at hand, for messages.
    """

    name = "ordered"
    survey = True
    repeatable = True

    def __init__(self, new: str) -> None:
        if not isinstance(new, str) or not new:
            raise JobSpecError(f"{self.name}: name={new!r}: give the new column a name")
        self.new = new
        self._forget()

    def _forget(self) -> None:
        self._at = (-1, -1)
        self._part: Part = (-1, -1)
        self._summaries: dict[Part, Any] = {}
        self._carried: dict[Part, Any] = {}
        self._state: Any = None
        self.row = 0

    @abstractmethod
    def fingerprint(self) -> tuple[Any, ...]:
        ...

    # ---- what a child says ---------------------------------------------------------------------------------------------

    @abstractmethod
    def new_type(self, schema: Schema) -> ColumnType:
        """Type of the new column; checks those that it is made of."""

    @abstractmethod
    def fresh(self) -> Any:
        """Summary of no rows."""

    @abstractmethod
    def summed(self, summary: Any, batch: Batch) -> Any:
        """Summary of the rows summed up so far and those of the batch, which stand behind them."""

    def packed(self, summary: Any) -> Any:
        """The summary as it travels."""
        return summary

    @abstractmethod
    def carried(self, summaries: list[Any]) -> list[Any]:
        """What each of the parts, in order, has to know of the others. Collective: no, each rank finds the same."""

    @abstractmethod
    def begin(self, carry: Any) -> Any:
        """State at the first row of a part; carry is None where nothing was agreed (a sample)."""

    @abstractmethod
    def advance(self, state: Any, batch: Batch) -> tuple[Any, Any]:
        """The new column for the rows of the batch, and the state behind them."""

    # ---- a step --------------------------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema:
        self._forget()
        if self.new in schema:
            raise JobSpecError(f"{self.name}: there is a column {self.new!r} already; give the new one another name")
        self.out = self.new_type(schema)
        return Schema((*schema.fields, Field(self.new, self.out)))

    def infer(self, sample: Batch, origin: Origin) -> Schema | None:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Take the type of the new column, which was known when it was bound."""
        self.out = schema[self.new].type

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return names

    def observe(self, batch: Batch, origin: Origin) -> None:
        if self._moves(batch, origin):
            self._summaries[self._part] = self.fresh()
        self._summaries[self._part] = self.summed(self._summaries[self._part], batch)

    def settle(self, together: Collective) -> None:
        """Collective: yes. Cost: one allgather of the summaries of all parts."""
        ranks = together.allgather([(part, self.packed(summary)) for part, summary in self._summaries.items()])
        everything = sorted((item for mine in ranks for item in mine), key=lambda item: item[0])
        found = self.carried([summary for _, summary in everything])
        self._carried = {part: carry for (part, _), carry in zip(everything, found, strict=True)}
        self._summaries = {}
        self._at = (-1, -1)

    def settled(self) -> Batch | None:
        """What each part has to know. Parts begin where pieces do, or where ranks that share a piece of rows in memory met: of these only
        the first is asked for by a run that continues, which has whole pieces.
        """
        return pack([(piece, row, self.kept(carry)) for (piece, row), carry in self._carried.items()])

    def resettle(self, found: Batch) -> None:
        self._carried = {(piece, row): self.taken_back(kept) for piece, row, kept in unpack(found)}

    def kept(self, carry: Any) -> Any:
        """A carry as plain values, arrays or batches."""
        return carry

    def taken_back(self, kept: Any) -> Any:
        """Inverse of `kept`."""
        return kept

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        if self._moves(batch, origin):
            self._state = self.begin(self._carried.get(self._part))
        column, self._state = self.advance(self._state, batch)
        return Batch({**batch.columns, self.new: column}, batch.nrows)

    def _moves(self, batch: Batch, origin: Origin) -> bool:
        """Whether a part begins; rows of a part come one behind the other."""
        self.row = origin.row
        begins = (origin.split, origin.row) != self._at
        if begins:
            self._part = (origin.split, origin.row)
        self._at = (origin.split, origin.row + batch.nrows)
        return begins
