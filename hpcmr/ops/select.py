"""Which columns there are: ``select`` and ``drop``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin


class Select:
    """The named columns, in the order given; nothing is copied."""

    name = "select"
    repeatable = True

    def __init__(self, names: Iterable[str]) -> None:
        self.names = _distinct(names, self.name)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.names)

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return names if set(names) <= set(self.names) else None

    def bind(self, schema: Schema) -> Schema:
        return schema.select(self.names)

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return sample.schema.select(self.names)

    def fix(self, schema: Schema) -> None:
        """Nothing to take: the names decide."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return batch.select(self.names)


class Drop:
    """All columns but the named ones."""

    name = "drop"
    repeatable = True

    def __init__(self, names: Iterable[str]) -> None:
        self.names = _distinct(names, self.name)
        self.kept: tuple[str, ...] = ()

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.names)

    def carries(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        return None if set(names) & set(self.names) else names

    def bind(self, schema: Schema) -> Schema:
        schema.select(self.names)          # raises for a column that is not there
        self.kept = tuple(n for n in schema.names if n not in self.names)
        if not self.kept:
            raise JobSpecError(f"drop of {', '.join(map(repr, self.names))} leaves no column")
        return schema.select(self.kept)

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return sample.schema.select(self.kept)

    def fix(self, schema: Schema) -> None:
        """Nothing to take: the names decide."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        return batch.select(self.kept)


def _distinct(names: Iterable[str], verb: str) -> tuple[str, ...]:
    given = (names,) if isinstance(names, str) else tuple(names)
    if not given:
        raise JobSpecError(f"{verb} needs at least one column name")
    twice = next((n for n in given if given.count(n) > 1), None)
    if twice is not None:
        raise JobSpecError(f"{verb} names column {twice!r} twice")
    return given
