"""What a generation says: a consistent cut of the whole job, as JSON values.

::

    {"form": 1,
     "finished": [{"ordinal": 1, "fingerprint": "...", "result": {...}}, ...],     actions that are over
     "kept": {"...": record, ...},                                                persisted tables that are alive
     "action": {"ordinal": 2, "fingerprint": "...", "records": {"...": record}} | null}

A *record* is what one stage of the running action has behind it. Its key comes from the place in the plan: the path of the segment (""
is the root, ".0" its first input, ".0.1" the second input of that) and a role: ``.0:keyed``, ``:left``, ``:outlet``. Nothing in it
depends on the number of ranks, and the files that it names lie in the run directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hpcmr.data.schema import ColumnType, Field, Schema
from hpcmr.errors import StorageError
from hpcmr.store.manifest import plain, unplain

FORM = 1
PieceInfo = dict[str, Any]
Runs = list[list[int]]


@dataclass
class Record:
    """What a stage, or a persisted table, has behind it.

    Attributes
    ----------
    complete : bool
        All its input is in; nothing below it is needed any more.
    ledger : Runs
        Pieces of input that are in, as ``[first, stop]``.
    pieces : list of dict
        Files of its state by partition (of an outlet, or of kept rows: by piece): see `hpcmr.store.pieces`.
    settled : dict or None
        File of what a first pass over the rows came to.
    told : list of dict
        What outlets said beside.
    facts : dict
        Small plain values: ``count`` of partitions, ``nbytes_total`` of the input that went in.
    schemas : dict of str to list
        Columns, so that nothing upstream has to be read again to know them: ``in`` and ``out`` of an operator.
    counts : list of int
        Sums of `Stage.counts` over all ranks, and over all attempts so far.
    given : dict of str to int
        By key of a stage that this one reads from: rows of its result that were counted when they were given out.
    """

    complete: bool = False
    ledger: Runs = field(default_factory=list)
    pieces: list[PieceInfo] = field(default_factory=list)
    settled: PieceInfo | None = None
    told: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    schemas: dict[str, list[Any]] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any) -> Record:
        if not isinstance(value, dict) or set(value) - set(cls.__dataclass_fields__):
            raise StorageError(f"a checkpoint holds a record that this version of hpcmr cannot read: {str(value)[:200]}; start over with --fresh")
        return cls(**value)

    @property
    def done(self) -> int:
        """Pieces of input that are in."""
        return sum(stop - first for first, stop in self.ledger)

    def left(self, count: int) -> list[int]:
        """Numbers below `count` that are not in the ledger."""
        out: list[int] = []
        at = 0
        for first, stop in self.ledger:
            out += range(at, min(first, count))
            at = stop
        return out + list(range(at, count))

    def schema(self, name: str) -> Schema:
        return Schema(tuple(Field(n, ColumnType.parse(t), tuple(sorted(unplain(attrs).items()))) for n, t, attrs in self.schemas[name]))

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(int(p["nbytes"]) for p in self.pieces)


def schema_json(schema: Schema) -> list[Any]:
    """Columns as JSON; inverse of `Record.schema`."""
    return [[f.name, str(f.type), plain(dict(f.attrs))] for f in schema]


def runs_of(numbers: Iterable[int]) -> Runs:
    """Numbers, each once, as ``[first, stop]`` in order."""
    out: Runs = []
    for n in sorted(numbers):
        if out and out[-1][1] == n:
            out[-1][1] = n + 1
        else:
            out.append([n, n + 1])
    return out


def joined_runs(parts: Iterable[Runs]) -> Runs:
    """Runs of several ledgers as one; they do not overlap."""
    out: Runs = []
    for first, stop in sorted(run for part in parts for run in part):
        if out and out[-1][1] == first:
            out[-1][1] = stop
        else:
            out.append([first, stop])
    return out


@dataclass
class News:
    """What one rank adds to one record at a cut, once it is written: plain values, gathered on rank 0."""

    key: str
    complete: bool
    ledger: Runs
    pieces: list[PieceInfo]
    settled: PieceInfo | None
    told: dict[str, Any] | None
    facts: dict[str, Any]
    schemas: dict[str, list[Any]]
    counts: list[int]
    given: dict[str, int]


def add_news(record: Record, news: list[News]) -> Record:
    """A record as it is when the news of all ranks are in. `counts` and `given` are those of the whole stage so far, not additions."""
    first = news[0]
    given = {key: sum(n.given.get(key, 0) for n in news) for key in first.given}
    return Record(record.complete or first.complete, joined_runs([record.ledger, *(n.ledger for n in news)]),
                  [*record.pieces, *(p for n in news for p in n.pieces)],
                  next((n.settled for n in news if n.settled is not None), record.settled),
                  [*record.told, *(n.told for n in news if n.told)], {**record.facts, **first.facts}, {**record.schemas, **first.schemas},
                  [sum(c) for c in zip(*(n.counts for n in news), strict=True)], given)
