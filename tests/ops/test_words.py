"""Words and lines as steps, against ``bytes.split``."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.schema import INT64, TEXT, Schema
from hpcmr.errors import JobSpecError
from hpcmr.io.text import TextSource
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.lines import Lines
from hpcmr.ops.words import Words, source_for

AT = Origin(0, 0)
pieces = [b" ", b"\n", b"\t", b"A", b"b,", b"--", b"It's", b"\0", b"\xff", "É".encode(), b"(x)"]
rows_of_text = st.lists(st.lists(st.sampled_from(pieces), max_size=12).map(b"".join) | st.none(), min_size=1, max_size=12)
PUNCTUATION = string.punctuation.encode()


def batch_of(rows: list[bytes | None], text: bool = False) -> Batch:
    return Batch({"line": BytesColumn.from_list(rows, text), "i": FixedColumn(np.arange(len(rows)))})


@given(rows_of_text, st.booleans(), st.booleans())
def test_words(rows: list[bytes | None], lowercase: bool, strip: bool) -> None:
    step = Words(lowercase=lowercase, strip_punctuation=strip, keep=("i",))
    batch = batch_of(rows)
    want = []
    for i, row in enumerate(rows):
        for word in (row or b"").split():
            word = word.strip(PUNCTUATION) if strip else word
            want += [(word.lower() if lowercase else word, i)] if word else []
    got = step.apply(batch, AT)
    got.check(step.bind(batch.schema))
    assert list(zip(got["word"].to_list(), got["i"].to_list(), strict=True)) == want
    assert batch["line"].to_list() == rows                  # the input is as it was


def test_a_step_is_used_for_batches_of_any_size() -> None:
    step = Words(lowercase=True)
    for n in (3, 3000, 1, 300_000, 2):
        assert step.apply(batch_of([b"A b " * n, b"C"]), AT)["word"].to_list() == [b"a", b"b"] * n + [b"c"]


def test_room_is_counted_where_the_bound_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcmr.ops.words.ROOM_MAX", 100)
    step = Words()
    for rows in ([b"x" * 100_000], [b"a b c " * 1000, b"d"], [b"e"], [b" " * 1000]):
        assert step.apply(batch_of(rows), AT)["word"].to_list() == [w for r in rows for w in r.split()]
    assert len(step._starts) < 3200                       # what the second batch needed was given back


def test_rows_in_any_order_and_strided() -> None:
    batch = batch_of([b"a b", b"", b"c", b"d e f"]).take(np.array([3, 0, 3]))
    assert Words(lowercase=True).apply(batch, AT)["word"].to_list() == [b"d", b"e", b"f", b"a", b"b", b"d", b"e", b"f"]
    line = batch_of([b"a b", b"", b"c"])["line"]
    assert isinstance(line, BytesColumn)
    every_other = BytesColumn(line.starts[::2], line.ends[::2], line.data, False)
    assert Words().apply(Batch({"line": every_other}), AT)["word"].to_list() == [b"a", b"b", b"c"]


def test_no_word_is_an_empty_batch_of_the_schema() -> None:
    step = Words(strip_punctuation=True, lowercase=True)
    batch = batch_of([b" ", b"--"], text=True)
    got = step.apply(batch, AT)
    assert got.nrows == 0
    got.check(step.bind(batch.schema))


def test_text_stays_text() -> None:
    step = Words(name="w")
    batch = batch_of(["é ü".encode()], text=True)
    assert step.bind(batch.schema) == Schema.of({"w": TEXT})
    assert step.apply(batch, AT).to_pydict() == {"w": ["é", "ü"]}
    assert isinstance(step, Step) and step.infer(batch, AT) == step.bind(batch.schema)


def test_what_does_not_fit_is_refused() -> None:
    schema = Schema.of({"line": TEXT, "n": INT64, "word": TEXT})
    for step, message in ((Words("n"), r"words reads text, and the column 'n' is int64"), (Words("lines"), "did you mean 'line'"),
                          (Words(keep=("word",)), "two columns would be called 'word'"), (Words(keep=("what",)), "no column 'what'"),
                          (Lines("n"), "lines reads text"), (Lines(keep=("line",)), "two columns would be called 'line'")):
        with pytest.raises(JobSpecError, match=message):
            step.bind(schema)


def test_fingerprints_differ() -> None:
    steps = [Words(), Words("x"), Words(lowercase=True), Words(strip_punctuation=True), Words(keep=("a",)), Words(name="w"),
             Lines(), Lines("x"), Lines(name="l")]
    assert len({s.fingerprint() for s in steps}) == len(steps)


def test_blocks_instead_of_lines_where_words_come_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one two\nthree\n" * 100)
    source = TextSource(tmp_path, file="doc")
    blocks = source_for(Words(keep=("doc",)), source)
    assert blocks is not source and not source.whole_blocks
    assert blocks.fingerprint()[1:5] == source.fingerprint()[1:5]
    schema, splits = blocks.survey()
    assert (schema, splits) == source.survey()
    batches = [Words(keep=("doc",)).apply(b, AT) for b in blocks.read(splits[0])]
    assert [w for b in batches for w in b["word"].to_list()] == ["one", "two", "three"] * 100
    assert {d for b in batches for d in b["doc"].to_list()} == {str(tmp_path / "a.txt")}
    numbered = TextSource(tmp_path, row="i")
    assert source_for(Words(), numbered) is numbered and source_for(Words("doc"), source) is source and source_for(Lines(), source) is source


def test_lines_are_the_column() -> None:
    step = Lines(name="key", keep=("i",))
    batch = batch_of([b"a b", b"", b"a b"])
    got = step.apply(batch, AT)
    got.check(step.bind(batch.schema))
    assert got.to_pydict() == {"key": [b"a b", b"", b"a b"], "i": [0, 1, 2]}
    assert isinstance(step, Step)
