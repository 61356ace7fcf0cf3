"""Words: one row per word of a string column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcmr.data.batch import Batch, BytesColumn, Column
from hpcmr.data.schema import Field, Schema
from hpcmr.data.source import Source
from hpcmr.io.text import TextSource
from hpcmr.ops.contract import Origin
from hpcmr.ops.parse import Index, Places, check_string, kept, output_schema, places_of

ROOM_MAX = 1 << 22
"""Places that are kept ready without counting the words first: those of 8 MiB of text."""


class Words:
    """One row per word: a maximal run of bytes that are not ASCII white space (9 to 13 and 32).

    Parameters
    ----------
    column : str
        The string column to read.
    name : str
        Name of the column of words; it has the type of the one that is read.
    lowercase : bool
        ASCII letters become small; other bytes stay.
    strip_punctuation : bool
        ASCII punctuation is taken off both ends of each word; a word of nothing else is dropped.
    keep : sequence of str
        Columns that are repeated for each word of their row.

    Notes
    -----
    Words are views on the bytes of the batch and are overwritten by the next batch. Since no word spans white space, blocks of
    whole words do as well as lines (``TextSource(whole_blocks=True)``), and cost less.
    """

    name = "words"

    def __init__(self, column: str = "line", *, name: str = "word", lowercase: bool = False, strip_punctuation: bool = False,
                 keep: Sequence[str] = ()) -> None:
        self.column = column
        self.output = name
        self.lowercase = lowercase
        self.strip_punctuation = strip_punctuation
        self.keep = tuple(keep)
        self._starts: Index = np.empty(0, np.int64)
        self._ends: Index = np.empty(0, np.int64)
        self._lower = np.empty(0, np.uint8)

    def fingerprint(self) -> tuple[Any, ...]:
        return ("words", self.column, self.output, self.lowercase, self.strip_punctuation, self.keep)

    def bind(self, schema: Schema) -> Schema:
        field = check_string(schema, self.column, "words")
        return output_schema(schema, [Field(self.output, field.type)], self.keep, "words")

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to cast to: words have the type of their column."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        from hpcmr.kernels.words import find_words, trim_punctuation

        rows = places_of(batch, self.column)
        counts = np.empty(len(rows.starts), np.int64)
        self._make_room(rows)
        starts, ends = self._starts, self._ends
        n = find_words(rows.data, rows.starts, rows.ends, starts, ends, counts)
        if self.strip_punctuation:
            n = trim_punctuation(rows.data, starts, ends, counts)
        starts, ends, data = starts[:n], ends[:n], rows.data
        if self.lowercase and n:
            starts, ends, data = self._lowered(starts, ends, data)
        words: dict[str, Column] = {self.output: BytesColumn(starts, ends, data, rows.text)}
        return Batch({**words, **kept(batch, self.keep, counts)})

    def _make_room(self, rows: Places) -> None:
        from hpcmr.kernels.words import SLACK, count_words

        room = int(((rows.ends - rows.starts + 1) // 2).sum()) + SLACK
        if room > ROOM_MAX:
            room = count_words(rows.data, rows.starts, rows.ends) + SLACK
        if room > len(self._starts) or len(self._starts) > 2 * max(room, ROOM_MAX):
            self._starts, self._ends = np.empty(room, np.int64), np.empty(room, np.int64)

    def _lowered(self, starts: Index, ends: Index, data: Any) -> tuple[Index, Index, Any]:
        """The words on a copy of their bytes in small letters: the batch's own bytes may be in other columns too."""
        from hpcmr.kernels.strings import lower_ascii

        lo, hi = int(starts.min()), int(ends.max())
        if len(self._lower) < hi - lo or len(self._lower) > 4 * max(hi - lo, ROOM_MAX):
            self._lower = np.empty(hi - lo, np.uint8)
        lower_ascii(data, lo, hi, self._lower)
        starts -= lo
        ends -= lo
        return starts, ends, self._lower


def source_for(step: object, source: Source) -> Source:
    """The source to read where `step` is the first to see its rows: text in whole blocks if only the words of its lines matter."""
    if isinstance(step, Words) and step.column == "line" and isinstance(source, TextSource):
        return source.in_blocks()
    return source
