"""Memory whose pages were released into other arrays: nobody's values change."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from hpcmr.data import memory

MAPPINGS = "/proc/self/maps"


def mappings() -> int:
    with open(MAPPINGS) as file:
        return sum(1 for _ in file)


def test_pages_go_from_array_to_array_and_values_stay() -> None:
    rng = np.random.default_rng(1)
    live: list[tuple[np.ndarray, int]] = []
    before, moved = mappings(), 0
    for i in range(600):
        n = int(rng.integers(1, 3_000_000))
        a = memory.small_pages(n) if i % 3 else memory.room(n)
        a[:] = i % 251
        live.append((a, i % 251))
        moved = max(moved, memory._pool.moved)
        if len(live) > 8:
            a, value = live.pop(int(rng.integers(len(live))))
            start = int(rng.integers(len(a)))
            stop = int(rng.integers(start, len(a) + 1))
            memory.release(a[start:].ctypes.data, stop - start)
            assert (a[:start] == value).all() and (a[stop:] == value).all()
    assert all((a == value).all() for a, value in live)
    assert moved > 0, "no page was used again"
    del a, live
    gc.collect()
    memory.trim()
    assert memory._pool.moved == 0
    assert mappings() < before + 50


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory._pool, "limit_nbytes", 1 << 20)
    arrays = [memory.small_pages(1 << 19) for _ in range(8)]
    for a in arrays:
        a[:] = 1
        memory.release(a.ctypes.data, a.nbytes)
    assert 0 < memory._pool.nbytes <= 1 << 20
    assert not arrays[0].any() and not arrays[-1].any()        # released either way
    memory.trim()
    assert memory._pool.nbytes == 0
