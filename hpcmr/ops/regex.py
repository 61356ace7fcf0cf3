"""Regular expressions: one row per match, with groups of the pattern as columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.parse import check_string, kept, output_schema, parse_column, parsed_type, places_of


class Regex:
    """One row per match of a pattern in a string column.

    Parameters
    ----------
    pattern : str or bytes
        As Python's ``re`` takes it, without flags; it works on bytes: ``\\w`` and ``(?i)`` know ASCII only.
    groups : mapping of str to (int or str), optional
        Output columns: name to number or name of a group, 0 for the whole match. By default the named groups; without these all
        groups as ``group1``, ``group2``, ...; without any the whole match as ``match``.
    column : str
        The string column to read. A match never spans rows, and ``^`` and ``$`` are the ends of a row.
    types : mapping of str to str, optional
        Output columns that are numbers: name to type, for example ``{"size": "int64"}``. Others are text as the column is.
    keep : sequence of str
        Columns that are repeated for each match of their row.

    Notes
    -----
    A group that took no part in a match is null. Cost: Python's ``re``, about a microsecond per row and match.
    """

    name = "regex"

    def __init__(self, pattern: str | bytes, groups: Mapping[str, int | str] | None = None, *, column: str = "line",
                 types: Mapping[str, str] | None = None, keep: Sequence[str] = ()) -> None:
        try:
            self.compiled = re.compile(pattern if isinstance(pattern, bytes) else pattern.encode("utf-8", "surrogateescape"))
        except re.error as error:
            at = "" if error.pos is None else f" at character {error.pos}"
            raise JobSpecError(f"the pattern {pattern!r} is no regular expression: {error.msg}{at}") from None
        self.column = column
        self.groups = {name: self._number(group) for name, group in (self._default_groups() if groups is None else groups).items()}
        self.types = dict(types or {})
        self.keep = tuple(keep)
        for name in self.types:
            if name not in self.groups:
                raise JobSpecError(f"types names {name!r}, and the columns of the pattern are {', '.join(map(repr, self.groups))}")

    def _default_groups(self) -> dict[str, int | str]:
        if self.compiled.groupindex:
            return dict(self.compiled.groupindex)
        return {f"group{i}": i for i in range(1, self.compiled.groups + 1)} or {"match": 0}

    def _number(self, group: int | str) -> int:
        number = self.compiled.groupindex.get(group) if isinstance(group, str) else group if 0 <= group <= self.compiled.groups else None
        if number is None:
            names = "".join(f", {n!r}" for n in self.compiled.groupindex)
            raise JobSpecError(f"the pattern {self.compiled.pattern.decode('utf-8', 'replace')!r} has no group {group!r}; "
                               f"it has 0 (the whole match) to {self.compiled.groups}{names}")
        return number

    def fingerprint(self) -> tuple[Any, ...]:
        return ("regex", self.compiled.pattern, tuple(self.groups.items()), self.column, tuple(sorted(self.types.items())), self.keep)

    def bind(self, schema: Schema) -> Schema:
        text = check_string(schema, self.column, "regex").type.kind == "text"
        made = [Field(name, parsed_type(self.types.get(name), text, "regex")) for name in self.groups]
        return output_schema(schema, made, self.keep, "regex")

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to cast to: the types are known from the pattern and `types`."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        rows = places_of(batch, self.column)
        lo = int(rows.starts.min())
        raw = rows.data[lo:int(rows.ends.max())].tobytes()
        counts = np.zeros(batch.nrows, np.int64)
        spans: list[list[tuple[int, int]]] = [[] for _ in self.groups]
        at: list[int] = []
        wanted = list(zip(self.groups.values(), spans, strict=True))
        for i, (a, b) in enumerate(zip(rows.starts.tolist(), rows.ends.tolist(), strict=True)):
            # A slice, not finditer(raw, a, b): only so are ^ and lookbehind bound to the row.
            for match in self.compiled.finditer(raw[a - lo:b - lo]):
                for group, out in wanted:
                    out.append(match.span(group))
                counts[i] += 1
                at.append(a)
        records = np.repeat(np.arange(origin.row, origin.row + batch.nrows), counts)
        base = np.array(at, np.int64)
        columns: dict[str, Column] = {}
        for (name, group), found in zip(self.groups.items(), spans, strict=True):
            where = np.array(found, np.int64).reshape(len(found), 2)
            valid = where[:, 0] >= 0
            places = BytesColumn(base + where[:, 0] * valid, base + where[:, 1] * valid, rows.data, rows.text, None if valid.all() else valid)
            columns[name] = parse_column(places, parsed_type(self.types.get(name), rows.text, "regex"), f"group {group} of the pattern", records)
        return Batch({**columns, **kept(batch, self.keep, counts)})
