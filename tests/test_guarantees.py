"""The page of guarantees names tests that are there, and all guarantees."""

from __future__ import annotations

import re

from tests.support.launch import ROOT

PAGE = ROOT / "docs" / "reference" / "guarantees.md"
ROW = re.compile(r"^\| (G\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.M)


def test_each_guarantee_has_tests_with_cases() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert [r[0] for r in rows] == [f"G{n}" for n in range(1, 16)]
    for name, tests, _, _ in rows:
        paths = re.findall(r"`(tests/[\w/.]+)`", tests)
        assert paths, f"{name} has no tests"
        for path in paths:
            assert re.search(r"^def test_", (ROOT / path).read_text(), re.M), f"{name} names {path}, which holds no tests"


def test_each_guarantee_is_told_in_full() -> None:
    text = PAGE.read_text()
    assert all(f"\n**G{n}.** " in text for n in range(1, 16)) and "## What is not promised" in text
