"""Columns of text: fields of each line, by white space or a separator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.parse import Index, Places, check_string, kept, output_schema, parse_column, parsed_type, places_of


class SplitColumns:
    """Fields of a string column as columns of their own; rows that lack one of the fields are left out.

    Parameters
    ----------
    fields : mapping of str to int
        Output columns: name to number of the field, from 1.
    column : str
        The string column to read.
    separator : str or bytes, optional
        One byte between two fields, which may then be empty. None: fields are words, separated by any white space.
    types : mapping of str to str, optional
        Output columns that are numbers: name to type, for example ``{"size": "int64"}``; blanks around a number do not matter.
        Others are text as the column is.
    keep : sequence of str
        Columns that are carried along.
    """

    name = "columns"

    def __init__(self, fields: Mapping[str, int], *, column: str = "line", separator: str | bytes | None = None,
                 types: Mapping[str, str] | None = None, keep: Sequence[str] = ()) -> None:
        for name, number in fields.items():
            if number < 1:
                raise JobSpecError(f"the column {name!r} asks for field {number}; fields are numbered from 1")
        if not fields:
            raise JobSpecError("no field is asked for; name at least one, for example {'key': 1}")
        raw = separator.encode("utf-8", "surrogateescape") if isinstance(separator, str) else separator
        if raw is not None and len(raw) != 1:
            raise JobSpecError(f"the separator {separator!r} has {len(raw)} bytes; it must be one, or None for white space")
        self.fields = dict(fields)
        self.column = column
        self.separator = raw
        self.types = dict(types or {})
        self.keep = tuple(keep)
        for name in self.types:
            if name not in self.fields:
                raise JobSpecError(f"types names {name!r}, and the columns are {', '.join(map(repr, self.fields))}")

    def fingerprint(self) -> tuple[Any, ...]:
        return ("columns", tuple(self.fields.items()), self.column, self.separator, tuple(sorted(self.types.items())), self.keep)

    def bind(self, schema: Schema) -> Schema:
        text = check_string(schema, self.column, "columns").type.kind == "text"
        made = [Field(name, parsed_type(self.types.get(name), text, "columns")) for name in self.fields]
        return output_schema(schema, made, self.keep, "columns")

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to cast to: the types are known from `types`."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        rows = places_of(batch, self.column)
        starts, ends, counts = self._split(rows)
        whole = counts >= max(self.fields.values())
        valid = batch[self.column].valid
        if valid is not None:
            whole &= valid
        first = (np.cumsum(counts) - counts)[whole]
        records = origin.row + np.flatnonzero(whole)
        columns: dict[str, Column] = {}
        for name, number in self.fields.items():
            places = BytesColumn(starts[first + (number - 1)], ends[first + (number - 1)], rows.data, rows.text)
            columns[name] = parse_column(places, parsed_type(self.types.get(name), rows.text, "columns"), f"field {number}", records)
        return Batch({**columns, **kept(batch, self.keep, whole.astype(np.int64))})

    def _split(self, rows: Places) -> tuple[Index, Index, Index]:
        """Starts and ends of all fields, and how many each row has."""
        from hpcmr.kernels.words import SLACK, find_fields, find_words

        lengths = rows.ends - rows.starts
        room = int((lengths + 1).sum()) if self.separator else int(((lengths + 1) // 2).sum()) + SLACK
        starts, ends, counts = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(len(lengths), np.int64)
        if self.separator:
            find_fields(rows.data, rows.starts, rows.ends, np.uint8(self.separator[0]), starts, ends, counts)
        else:
            find_words(rows.data, rows.starts, rows.ends, starts, ends, counts)
        return starts, ends, counts
