"""The job file: what is right is read, what is wrong is named with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcmr.api.jobfile import nested, parse_settings, read_job_file, scan_lines
from hpcmr.errors import EXIT_REFUSED, JobSpecError

GOOD = """\
# Count words.
[job]
name = "wordcount"

[input]
paths = "texts/*.txt"

[map]
function = "words"

[reduce]
function = "sum"
"""


def read(folder: Path, text: str, *settings: str) -> Any:
    path = folder / "wc.toml"
    path.write_text(text)
    return read_job_file(path, parse_settings(list(settings)))


def test_a_word_count(tmp_path: Path) -> None:
    job = read(tmp_path, GOOD)
    assert job["job.name"] == "wordcount"
    assert job["input.paths"] == [str(tmp_path / "texts/*.txt")]
    assert job["input.format"] == "text"
    assert job["reduce.order"] == "ascending"
    assert job["output.path"] is None


def test_defaults(tmp_path: Path) -> None:
    job = read(tmp_path, '[input]\npaths=["a.h5", "/b.hdf5"]\n[map]\nfunction="columns"\nkey="k"\n[reduce]\nfunction="count"\n[output]\npath="out"')
    assert (job["job.name"], job["input.format"]) == ("wc", "hdf5")
    assert job["input.paths"] == [str(tmp_path / "a.h5"), "/b.hdf5"]
    assert job["output.path"] == str(tmp_path / "out")


def test_settings_take_the_place_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = read(tmp_path, GOOD, "input.paths=['a/*.txt']", "output.path=out", "map.lowercase=true", "job.name=other")
    assert job["input.paths"] == [str(elsewhere / "a/*.txt")]
    assert job["output.path"] == str(elsewhere / "out")
    assert job["map.lowercase"] is True
    assert job["job.name"] == "other"


def test_a_folder_with_glob_characters_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    assert read(folder, GOOD.replace("texts/*.txt", "*.txt"))["input.paths"] == [str(tmp_path / "run[[]1]" / "*.txt")]
    assert read(folder, GOOD.replace("texts/*.txt", "a.txt"))["input.paths"] == [str(folder / "a.txt")]


BAD = [
    (GOOD + '\n[redduce]\nfunction = "sum"', 14, ["[redduce]", "[reduce]", "did you mean 'reduce'"]),
    (GOOD.replace('paths = "texts', 'path = "texts'), 6, ["'path'", "paths", "format", "columns"]),
    (GOOD.replace('function = "words"', 'function = "words"\nlowercas = true'), 10, ["'lowercas'", "did you mean 'lowercase'", "strip_punctuation"]),
    (GOOD.replace('"wordcount"', "5"), 3, ["name = 5", "a string"]),
    (GOOD.replace('"texts/*.txt"', "[1, 2]"), 6, ["paths = [1, 2]", "a file, folder or glob"]),
    (GOOD.replace('"texts/*.txt"', "[]"), 6, ["paths = []"]),
    (GOOD.replace('paths = "texts/*.txt"', ""), 5, ["needs the key 'paths'", "columns"]),
    (GOOD.replace('"words"', '"wrods"'), 9, ["'wrods'", "did you mean 'words'", "module:function"]),
    (GOOD.replace('"sum"', '"avg"'), 12, ["'avg'", "mean", "distinct"]),
    (GOOD.replace('"words"', '"words"\nlowercase = "yes"'), 10, ["lowercase = 'yes'", "true or false"]),
    (GOOD.replace('"words"', '"words"\npattern = "a"'), 10, ["'pattern' means nothing", "regex"]),
    (GOOD.replace('"words"', '"words"\nvalue = "line"'), 10, ["value = 'line'", "'file'"]),
    (GOOD.replace('"words"', '"regex"'), 9, ["needs the key 'pattern'"]),
    (GOOD + 'order = "down"', 13, ["order = 'down'", "'descending'"]),
    (GOOD + "[shuffle]\npartitions = 12", 14, ["partitions = 12", "power of two"]),
    (GOOD + "[shuffle]\npartitions = true", 14, ["partitions = true", "power of two"]),
    (GOOD + '[shuffle]\npartitioner = "range"', 14, ["'range'", "'hash'"]),
    (GOOD.replace("[reduce]", "[reduce"), 11, ["no TOML"]),
    (GOOD.replace('[input]', '[input]\nformat = "csv"'), 6, ["'csv'", "'text' or 'hdf5'"]),
    (GOOD.replace('[input]', '[input]\ngroup = "/e"'), 6, ["'group' is for format = 'hdf5'"]),
    ('reduce = "sum"\n' + GOOD.replace("[reduce]", "[output]").replace("function = \"sum\"", ""), 1, ["must be a table", "[reduce]"]),
    ("x = 1\n" + GOOD, 1, ["'x'", "[job]"]),
    (GOOD.replace('"wordcount"', '"a/b"'), 3, ["'a/b'", "'/'"]),
]


@pytest.mark.parametrize(("text", "line", "words"), BAD, ids=[f"{i}-{words[0]}" for i, (_, _, words) in enumerate(BAD)])
def test_errors_name_file_line_and_keys(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    with pytest.raises(JobSpecError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'wc.toml'}:{line}: "), said
    assert all(word in said for word in words), said
    assert not said.endswith(".")
    assert caught.value.exit_code == EXIT_REFUSED


def test_a_missing_table_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match=r"wc.toml:1: \[input\] needs the key 'paths'"):
        read(tmp_path, "[job]\n")


@pytest.mark.parametrize(("setting", "words"), [
    ("map.lowercas=true", ["--set map.lowercas=true", "did you mean 'lowercase'"]),
    ("maps.lowercase=true", ["[map]"]),
    ("output=out", ["output.path"]),
    ("job.name=5", ["--set job.name=5", "a string"]),
    ("reduce.function=avg", ["--set reduce.function=avg"]),
])
def test_errors_in_settings_name_the_option(tmp_path: Path, setting: str, words: list[str]) -> None:
    with pytest.raises(JobSpecError) as caught:
        read(tmp_path, GOOD, setting)
    assert str(caught.value).startswith("--set ")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_not_readable(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="cannot be read"):
        read_job_file(tmp_path / "none.toml", [])
    (tmp_path / "latin.toml").write_bytes(b"[job]\nname = '\xff'\n")
    with pytest.raises(JobSpecError, match="UTF-8"):
        read_job_file(tmp_path / "latin.toml", [])


def test_values_of_settings() -> None:
    values = {s.key[0]: s.value for s in parse_settings([
        "a=1", "b=1.5", "c=true", "d=[1, 2]", "e=text", "f='5'", "g=", "h=a=b", "i={x = 1}", "j=2020-01-01x"])}
    assert values == {"a": 1, "b": 1.5, "c": True, "d": [1, 2], "e": "text", "f": "5", "g": "", "h": "a=b", "i": {"x": 1}, "j": "2020-01-01x"}
    assert nested(parse_settings(["a.b=1", "a.c.d=2", "e=3"])) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"], ["a.b=1", "a=2"]])
def test_settings_that_make_no_sense(pairs: list[str]) -> None:
    with pytest.raises(JobSpecError, match="--set"):
        nested(parse_settings(pairs))


def test_lines_of_keys() -> None:
    text = 'top = 1\n[a]\nx = """\n"""\n"q r" = 2\n[ b ]\nc.d = 3\n'
    assert scan_lines(text) == {("top",): 1, ("a",): 2, ("a", "x"): 3, ("a", "q r"): 5, ("b",): 6, ("b", "c"): 7, ("b", "c", "d"): 7}
