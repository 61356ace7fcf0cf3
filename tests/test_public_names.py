"""What `import hpcmr` offers: about twenty names, each documented."""

from __future__ import annotations

import inspect

import pytest

import hpcmr

NAMES = [n for n in hpcmr.__all__ if n != "__version__"]


def test_about_twenty_names() -> None:
    assert 15 <= len(hpcmr.__all__) <= 60
    assert len(set(hpcmr.__all__)) == len(hpcmr.__all__)
    assert set(dir(hpcmr)) >= set(hpcmr.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_name_is_there_and_documented(name: str) -> None:
    value = getattr(hpcmr, name)
    assert inspect.getdoc(value), f"hpcmr.{name} has no docstring"
    assert getattr(value, "__module__", "").startswith("hpcmr.")


@pytest.mark.parametrize("name", NAMES)
def test_public_methods_are_documented(name: str) -> None:
    value = getattr(hpcmr, name)
    if inspect.isclass(value):
        members = [(m, f) for m, f in inspect.getmembers(value) if not m.startswith("_") and callable(f)]
        bare = [m for m, f in members if getattr(f, "__module__", "").startswith("hpcmr") and not inspect.getdoc(f)]
        assert not bare, f"hpcmr.{name} has methods without docstring: {', '.join(bare)}"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        hpcmr.nonsense  # noqa: B018
