"""A manifest is believed only after it has been checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.data.batch import Batch
from hpcmr.errors import InputError
from hpcmr.store import manifest, paths
from hpcmr.store.manifest import Manifest, parse, plain, render, unplain
from hpcmr.store.publish import read_manifest
from tests.store.support import store


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("manifest") / "out"
    batch = Batch.of({"a": np.ma.MaskedArray(np.arange(50), np.arange(50) == 3), "s": ["x"] * 50, "l": [["a", "b"]] * 50})
    return store(folder, [batch.slice(0, 20), batch.slice(20, 50)], ranks=2, deal=[1, 0],
                 provenance={"writer": {"job": "wörd\udcff", "size": 2}, "inputs": [{"path": "x.txt", "nbytes": 10}]})


def test_round_trip(good: Manifest) -> None:
    content = good.to_bytes()
    again = parse(content, "m")
    assert again == good and again.to_bytes() == content
    assert again.writer["job"] == "wörd\udcff" and again.inputs == [{"path": "x.txt", "nbytes": 10}]
    assert content.isascii() and json.loads(content)["rows"] == 50


def test_every_changed_byte_is_noticed(good: Manifest) -> None:
    content = good.to_bytes()
    for at in range(len(content)):
        for bit in (1, 2, 16, 128):
            with pytest.raises(InputError):
                parse(content[:at] + bytes([content[at] ^ bit]) + content[at + 1:], "m")


def test_every_truncation_is_noticed(good: Manifest) -> None:
    content = good.to_bytes()
    for at in range(len(content)):
        with pytest.raises(InputError):
            parse(content[:at], "m")
    with pytest.raises(InputError, match="digest"):
        parse(content + b"\n", "m")


def changed(good: Manifest, change: Any) -> bytes:
    """A manifest with a right digest, and something else made up."""
    value = json.loads(good.to_bytes())
    change(value)
    value.pop("digest")
    return render(value)


def part(**news: Any) -> Any:
    return lambda v: v["shards"][0].update(news)


def put(key: str, value: Any) -> Any:
    return lambda v: v.__setitem__(key, value)


@pytest.mark.parametrize(("change", "says"), [
    (part(name="../../etc/passwd"), "has the name"), (part(name="/etc/passwd"), "has the name"), (part(name="part-00000.h5/x"), "has the name"),
    (part(name="part-00001.h5"), "two shards"), (part(name="part-٠٠٠٠٠.h5"), "has the name"), (part(name=7), "is a int"),
    (part(rows=-1), "not a count"), (part(rows=True), "not a count"), (part(rows=1.0), "not a count"), (part(rows=1 << 62), "not a count"),
    (part(rows=31), "entries need"), (part(nbytes=10), "overlaps"), (part(digest="x" * 32), "hexadecimal"),
    (part(digest="0" * 32), "not that of its parts"),
    (part(arrays=[]), "entries need"), (part(arrays=[["a", 0, 1, "0" * 32]]), "entries need"), (part(arrays=[["a", 0]]), "is described by"),
    (part(arrays="x"), "is a str"), (part(arrays=[["zz", 0, 8, "0" * 32]]), "entries need"), (part(extra=1), "is described by"),
    (put("segments", [[0, 0, 50]]), "exactly once"), (put("segments", [[9, 0, 50]]), "not there"), (put("segments", [[0, -5, 50]]), "not there"),
    (put("segments", [[0, 0, 1.5]]), "not all"), (put("segments", [[0, 0]]), "not all"),
    (put("segments", {}), "is a dict"), (put("segments", []), "exactly once"),
    (put("segments", [[0, 2 ** 62, 2 ** 62]]), "not there"), (put("segments", [[True, 0, 1]]), "not all"),
    (put("rows", 51), "the shards make"), (put("nbytes", 0), "the shards make"), (put("schema", []), "belongs to no column"),
    (put("schema", [{"name": "a", "type": "int64", "attrs": {}}] * 2), "two columns"), (put("schema", [{"name": "a"}]), "is described by"),
    (put("schema", [{"name": "a", "type": "object", "attrs": {}}]), "unknown type"),
    (put("schema", [{"name": "a", "type": "list<" * 4000, "attrs": {}}]), "unknown type"),
    (put("schema", [{"name": "a", "type": "list<" * 3000 + "int8" + ">" * 3000, "attrs": {}}]), "unknown type"),
    (put("schema", [{"name": "a", "type": "int64[99999999999,99999999999,9999999999]", "attrs": {}}]), "unknown type"),
    (put("schema", [{"name": "a", "type": "i8,i8", "attrs": {}}]), "unknown type"),
    (put("schema", [{"name": "a", "type": "int64", "attrs": []}]), "is a list"),
    (put("version", 2), "version is 2"), (put("version", "1"), "version is 1"), (put("format", "other"), "format is 'other'"),
    (put("writer", []), "is a list"), (put("inputs", {}), "is a dict"), (put("created", 5), "is a int"),
])
def test_made_up_manifests_are_refused(good: Manifest, change: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(changed(good, change), "m")


@pytest.mark.parametrize(("content", "says"), [
    (b"", "no JSON"), (b"[]", "does not hold an object"), (b"null", "does not hold"), (b"\xff", "not ASCII"), (b'{"a": NaN}', "no JSON number"),
    (b'{"a": 1, "a": 2}', "twice"), (b"[" * 100_000, "nested more"), (b'{"a":' * 50 + b"1" + b"}" * 50, "nested more"),
    (b'{"rows": ' + b"9" * 5000 + b"}", "64 bits"), (b'{"rows": 9223372036854775808}', "64 bits"), (b'{"format": "hpcmr-table"}', "version"),
    (b'{"format": "hpcmr-table", "version": 1}', "keys"), (b'{"a": "' + b"[" * 100_000 + b'"}', "format"),
    (b'{"a": "\\"[[[[[[[[[[[[[[[[[[[[["}', "format"),
])
def test_other_things_are_refused(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(content, "m")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        parse(content, "m")


keys = st.text(max_size=5).filter(lambda t: not t.startswith("$"))
values = st.recursive(st.none() | st.booleans() | st.integers(-2 ** 63 + 1, 2 ** 63 - 1) | st.floats() | st.text() | st.binary(),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8)


@given(values)
def test_plain_values_come_back(value: Any) -> None:
    again = unplain(json.loads(json.dumps(plain(value), allow_nan=False)))
    assert repr(again) == repr(value)


def test_numpy_values_become_plain() -> None:
    assert plain({"a": np.float32(2), "b": np.arange(3), "c": np.float64("nan"), "d": 2 ** 80, "e": {3}, "f": (1, 2), "g": Path("x")}) == {
        "a": 2.0, "b": [0, 1, 2], "c": {"$float": "nan"}, "d": {"$text": str(2 ** 80)}, "e": [3], "f": [1, 2], "g": {"$text": "x"}}
    assert math.isnan(unplain({"$float": "nan"}))


def test_opening_what_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        read_manifest(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / paths.MANIFEST).mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "other")


def test_a_manifest_that_is_too_large(monkeypatch: pytest.MonkeyPatch, good: Manifest) -> None:
    monkeypatch.setattr(manifest, "NBYTES_MAX", 100)
    with pytest.raises(InputError, match="more than 100"):
        parse(good.to_bytes(), "m")


def test_schema_types_survive(good: Manifest) -> None:
    assert [str(f.type) for f in parse(good.to_bytes(), "m").schema] == ["int64", "text", "list<text>"]
