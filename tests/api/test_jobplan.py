"""Job files become the plans that a ``job(ctx)`` would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcmr.api.jobfile import parse_settings, read_job_file
from hpcmr.api.jobplan import functions_of, table_of
from hpcmr.errors import JobSpecError
from hpcmr.plan.nodes import Apply, Keyed, Node, Read, walk

WORDS = '[input]\npaths="*.txt"\n[map]\nfunction="words"\n[reduce]\nfunction="sum"\n'


def plan(folder: Path, text: str, *settings: str) -> list[Node]:
    (folder / "j.toml").write_text(text)
    return walk(table_of(read_job_file(folder / "j.toml", parse_settings(list(settings))))._node)


def read_of(nodes: list[Node]) -> Any:
    assert isinstance(nodes[0], Read)
    return nodes[0].source


def steps_of(nodes: list[Node]) -> list[Any]:
    return [n.step for n in nodes if isinstance(n, Apply)]


def operator_of(nodes: list[Node]) -> Any:
    assert isinstance(nodes[-1], Keyed)
    return nodes[-1].operator


def test_a_word_count_counts_rows_of_whole_blocks(tmp_path: Path) -> None:
    nodes = plan(tmp_path, WORDS)
    assert read_of(nodes).whole_blocks
    words, = steps_of(nodes)
    assert (words.name, words.output, words.keep, words.lowercase) == ("words", "key", (), False)
    assert operator_of(nodes).fingerprint() == ("aggregate", ("key",), (("count", None, "value", ()),))
    assert nodes[-1].partitions is None  # type: ignore[attr-defined]
    assert [n.where for n in nodes] == ["j.toml:2", "j.toml:4", "j.toml:6"]


def test_options_of_words(tmp_path: Path) -> None:
    nodes = plan(tmp_path, WORDS, "map.lowercase=true", "map.strip_punctuation=true", "shuffle.partitions=8", "reduce.order=descending")
    words, = steps_of(nodes)
    assert words.lowercase
    assert words.strip_punctuation
    assert nodes[-2].partitions == 8  # type: ignore[attr-defined]
    assert operator_of(nodes).fingerprint() == (("key",), (True,), ())


@pytest.mark.parametrize(("settings", "fingerprint"), [
    (["output.sort=key"], (("key",), (False,), ())),
    (["output.sort=key", "output.order=descending"], (("key",), (True,), ())),
    (["output.sort=value", "output.order=descending"], (("value", "key"), (True, False), ())),
])
def test_sorted_output(tmp_path: Path, settings: list[str], fingerprint: Any) -> None:
    assert operator_of(plan(tmp_path, WORDS, *settings)).fingerprint() == fingerprint


@pytest.mark.parametrize(("settings", "message"), [
    (["output.sort=value", "reduce.order=descending"], "leave this out"),
    (["output.order=descending"], "it goes with sort"),
])
def test_orders_that_contradict(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(JobSpecError, match=message):
        plan(tmp_path, WORDS, *settings)


def test_the_document_as_value(tmp_path: Path) -> None:
    nodes = plan(tmp_path, WORDS, "map.value=file", "reduce.function=first")
    assert read_of(nodes).file == "value"
    assert read_of(nodes).whole_blocks
    assert steps_of(nodes)[0].keep == ("value",)
    assert operator_of(nodes).fingerprint()[2] == (("first", "value", "value", ()),)


@pytest.mark.parametrize(("settings", "expected"), [
    (["map.value=2"], ["words", "with_columns"]),
    (["map.value=1.0"], ["words", "with_columns"]),
    (["reduce.function=mean"], ["words", "with_columns"]),
    (["reduce.function=count", "map.value=1"], ["words"]),
])
def test_a_number_as_value(tmp_path: Path, settings: list[str], expected: list[str]) -> None:
    assert [s.name for s in steps_of(plan(tmp_path, WORDS, *settings))] == expected


def test_regex(tmp_path: Path) -> None:
    text = WORDS.replace('"words"', '"regex"\npattern = "(a+)(?P<size>[0-9]+)"')
    regex, = steps_of(plan(tmp_path, text))
    assert regex.groups == {"key": 1}
    regex, = steps_of(plan(tmp_path, text, "map.value='size:int64'", "map.key=0"))
    assert (regex.groups, regex.types) == ({"key": 0, "value": 2}, {"value": "int64"})
    regex, = steps_of(plan(tmp_path, text.replace("(a+)(?P<size>[0-9]+)", "[a-z]+")))
    assert regex.groups == {"key": 0}
    nodes = plan(tmp_path, text, "map.value=file", "reduce.function=first")
    assert read_of(nodes).file == "value"
    with pytest.raises(JobSpecError, match=r"j\.toml:5: .*no group 'weight'"):
        plan(tmp_path, text, "map.value=weight")
    with pytest.raises(JobSpecError, match=r"map.value=1\.5"):
        plan(tmp_path, text, "map.value=1.5")


def test_fields_of_text(tmp_path: Path) -> None:
    text = WORDS.replace('"words"', '"columns"\nkey = 2\nvalue = "1:float64"')
    split, = steps_of(plan(tmp_path, text))
    assert (split.fields, split.types) == ({"key": 2, "value": 1}, {"value": "float64"})
    with pytest.raises(JobSpecError, match=r"j\.toml:5: key = 'name'"):
        plan(tmp_path, text.replace("key = 2", 'key = "name"'))
    with pytest.raises(JobSpecError, match=r"j\.toml:5: .*field 0"):
        plan(tmp_path, text.replace("key = 2", "key = 0"))


def test_functions_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine_for_jobplan.py").write_text("def m(line): yield line, 1\ndef r(key, values): return len(values)\n")
    text = WORDS.replace('"words"', '"mine_for_jobplan.py:m"')
    nodes = plan(tmp_path, text)
    assert [s.name for s in steps_of(nodes)] == ["flat_map"]
    assert not read_of(nodes).whole_blocks
    job = read_job_file(tmp_path / "j.toml", parse_settings(["reduce.function=mine_for_jobplan.py:r"]))
    assert [f.__name__ for f in functions_of(read_job_file(tmp_path / "j.toml", []))] == ["m"]
    with pytest.raises(JobSpecError, match=r"--set reduce.function=mine_for_jobplan.py:r: .*no file"):
        functions_of(job)
    with pytest.raises(JobSpecError, match=r"j\.toml:4: .*there are m, r"):
        plan(tmp_path, text.replace(":m", ":n"))


def test_a_combiner_that_does_not_fit(tmp_path: Path) -> None:
    assert operator_of(plan(tmp_path, WORDS, "combine.function=sum")).name == "aggregate"
    with pytest.raises(JobSpecError, match="leave \\[combine\\] out"):
        plan(tmp_path, WORDS, "combine.function=sum", "reduce.function=mean")


def test_groups(tmp_path: Path) -> None:
    (tmp_path / "reducers_for_jobplan.py").write_text("def r(key, values): return len(values)\n")
    assert operator_of(plan(tmp_path, WORDS, "map.value=file", "reduce.function=distinct")).finisher == "distinct"
    text = WORDS.replace('"sum"', '"reducers_for_jobplan.py:r"')
    nodes = plan(tmp_path, text)
    assert [s.name for s in steps_of(nodes)] == ["words", "with_columns"]
    assert operator_of(nodes).combiner is None
    assert operator_of(plan(tmp_path, text, "combine.function=sum")).combiner.name
    both = plan(tmp_path, text + '[combine]\nfunction = "reducers_for_jobplan.py:r"\n')
    assert operator_of(both).combiner.name == operator_of(both).function.name == "r"
