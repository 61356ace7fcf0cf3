"""Lines: each line as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Field, Schema
from hpcmr.ops.contract import Origin
from hpcmr.ops.parse import check_string, output_schema


class Lines:
    """One row per line: the string column itself, under a name of its own, and the columns that are kept.

    Parameters
    ----------
    column : str
        The string column to read.
    name : str
        Its name in the output.
    keep : sequence of str
        Further columns of the output.
    """

    name = "lines"

    def __init__(self, column: str = "line", *, name: str = "line", keep: Sequence[str] = ()) -> None:
        self.column = column
        self.output = name
        self.keep = tuple(keep)

    def fingerprint(self) -> tuple[Any, ...]:
        return ("lines", self.column, self.output, self.keep)

    def bind(self, schema: Schema) -> Schema:
        field = check_string(schema, self.column, "lines")
        return output_schema(schema, [Field(self.output, field.type, field.attrs)], self.keep, "lines")

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to cast to: the columns stay as they are."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return Batch({self.output: batch[self.column], **{name: batch[name] for name in self.keep}})
