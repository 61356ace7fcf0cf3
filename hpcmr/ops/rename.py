"""Other names for columns: ``rename``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin


class Rename:
    """Columns under new names, in their places; attributes stay.

    Parameters
    ----------
    names : mapping of str to str
        Old name to new name. Names may be swapped: all are renamed at once.
    """

    name = "rename"
    repeatable = True

    def __init__(self, names: Mapping[str, str]) -> None:
        if not names:
            raise JobSpecError("rename needs at least one old name and new name")
        self.names = dict(names)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, tuple(sorted(self.names.items())))

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return tuple(self.names.get(n, n) for n in names)

    def bind(self, schema: Schema) -> Schema:
        schema.select(self.names)          # raises for a column that is not there
        out = Schema(tuple(Field(self.names.get(f.name, f.name), f.type, f.attrs) for f in schema))
        twice = next((n for n in out.names if out.names.count(n) > 1), None)
        if twice is not None:
            if any(old.startswith("~") for old in self.names):        # a key that is an expression
                raise JobSpecError(f"a key and a column would both be called {twice!r}; give the key a name, for example group_by(cell=...)")
            raise JobSpecError(f"rename gives two columns the name {twice!r}")
        return out

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to take: the names decide."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return Batch({self.names.get(n, n): c for n, c in batch.columns.items()}, batch.nrows)
