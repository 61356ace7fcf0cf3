"""Values of results, to JSON and back: the same types and the same bits."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn, ListColumn, column_of_list
from hpcmr.data.python_values import row_type
from hpcmr.errors import StorageError
from hpcmr.store import typed


def there_and_back(value: Any) -> Any:
    parts: list[Batch] = []
    tree = typed.encode(value, parts)
    return typed.decode(typed.from_text(typed.to_text(tree)), lambda i: parts[i])


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float | complex):
        return np.array(a).tobytes() == np.array(b).tobytes()
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b)) and getattr(a, "_fields", None) == getattr(b, "_fields", None)
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(map(same, a.values(), b.values()))
    return bool(a == b)


NAN = struct.unpack("d", struct.pack("Q", 0x7FF8000000000123))[0]
VALUES = [None, True, 7, -(1 << 63) + 1, 1 << 200, -(1 << 64), "text", "\udc80 lone", 0.1, -0.0, NAN, float("inf"), complex(NAN, -0.0), b"\x00\xff",
          (1, (2.5, "a")), [1, [2, None]], {"a": (1,), 3: [0.5]}, row_type(("key", "sum"))("a", 0.5), np.float32(0.1), np.int8(-3), np.bool_(True),
          np.datetime64("2020-01-02T03:04:05", "s"), np.timedelta64("NaT"), np.arange(6).reshape(2, 3), np.array([b"ab", b"c"], "S2"),
          np.zeros((0, 3), np.float32), np.arange(5000) * 0.1, np.arange(5000).astype("datetime64[s]"), np.array(NAN),
          [np.arange(3), (np.uint64(1 << 63),)]]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_values_come_back_with_their_types_and_bits(value: Any) -> None:
    assert same(value, there_and_back(value))


@pytest.mark.parametrize("n", [0, 3, 3000])
def test_batches_come_back(n: int) -> None:
    words = BytesColumn.from_list([None if i % 5 == 1 else f"w{i}" for i in range(n)], True)
    lists: Any = column_of_list([[i] * (i % 3) for i in range(n)]) if n else ListColumn(np.zeros(0, np.int64), np.zeros(0, np.int64), words)
    valid = np.arange(n) % 3 > 0
    batch = Batch({"x": FixedColumn(np.arange(n) * 0.1), "p": FixedColumn(np.arange(3 * n).reshape(n, 3), valid), "w": words, "l": lists}, n)
    back = there_and_back((batch, 1))[0]
    assert back.schema == batch.schema and back.nrows == n
    for name in batch.names:
        assert back[name].to_list() == batch[name].to_list()


def test_small_values_need_no_file_and_large_ones_do() -> None:
    parts: list[Batch] = []
    typed.encode((np.arange(500), Batch({"x": FixedColumn(np.arange(500))})), parts)
    assert not parts
    typed.encode((np.arange(5000), Batch({"x": FixedColumn(np.arange(5000))})), parts)
    assert [p.nrows for p in parts] == [5000, 5000]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), (lambda: 1), type("T", (tuple,), {"_fields": ("a",)})((1,))])
def test_other_types_are_not_kept(value: Any) -> None:
    with pytest.raises(typed.NoWord):
        typed.encode(value, [])


@pytest.mark.parametrize("text", ['{"float": "00"}', '{"what": 1}', "[1]", '{"array": ["int64", [3], "AAAA"]}', '{"array": ["object", [1], ""]}',
                                  '{"batch": [[["x", ["fixed", "int64", 4, "", null]]], 3]}', '{"row": 3}', '{"int": "zz"}', "1.5", "{",
                                  '{"a":1,"b":2}', '{"batch": [[["x", ["text", "/////////38=", "", null]]], 1]}'])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(StorageError):
        typed.decode(typed.from_text(text), lambda i: Batch({}))


def test_nothing_of_a_tree_is_more_than_json() -> None:
    tree = typed.encode(VALUES[:-3], [])
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
