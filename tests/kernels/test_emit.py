"""Kernels against themselves as plain Python: the rewritten loop does what the function does, whatever its control flow."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpcmr.kernels.emit import build, build_fold
from hpcmr.kernels.rewrite import FLAG, ROW, Column, KernelTrouble

INPUTS = (Column("n", "int64"), Column("x", "float64"), Column("p", "float64", (3,)), Column("s", "bytes"))
OUTPUTS = (Column("k", "int64"), Column("v", "float64"))
N = 40
DATA = {"n": np.arange(N) % 7, "x": np.linspace(-1, 3, N), "p": np.arange(3.0 * N).reshape(N, 3)}
STRINGS = [b"ab cd" * (i % 3) for i in range(N)]
ENDS = np.cumsum([len(s) for s in STRINGS])
STARTS = ENDS - np.array([len(s) for s in STRINGS])
BYTES = np.frombuffer(b"".join(STRINGS), np.uint8)


def returns_from_nested_loops(row, emit):
    for i in range(row.n):
        for j in range(3):
            if row.p[j] > 50:
                return
            if j == 2 and i == 3:
                emit(-1, row.x)
                return
            emit(i, row.p[j])
        emit(i * 10, 0.5)
    emit(99, row.x)


def breaks_and_continues(row, emit):
    i = 0
    while True:
        i += 1
        if i == 2:
            continue
        if i > row.n:
            break
        emit(i, row.x)
    else:
        emit(7, 7.0)
    for j in range(2):
        if row.n == j:
            break
    else:
        emit(1000 + i, 1.0)


def returns_in_else_and_after(row, emit):
    if row.n < 3:
        emit(row.n, 1)
        return
    elif row.n == 3:
        return
    else:
        for _ in range(2):
            pass
        else:
            if row.x > 1:
                return
    emit(row.n, v=row.x)


def returns_from_try(row, emit):
    try:
        for i in range(5):
            if i == row.n:
                return
            emit(i, 0.0)
    finally:
        emit(-5, 1.0)


def hands_the_row_on(row, emit):
    emit(row.n, total(row) + row.x)


def total(row):
    return row.p[0] + row.p[1] * len(row.s)


def reads_bytes(row, emit):
    """A docstring is no statement of consequence."""
    for b in row.s:
        if b == 32:
            emit(k=b, v=len(row.s))


def has_inner_functions(row, emit):
    def square(v):
        return v * v
    values = [square(row.x + q) for q in row.p]
    for v in values:
        emit(len(values), v)


def recursive(row, emit):
    emit(fibonacci(row.n), row.x)


def fibonacci(n):
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)


def has_names_like_those_of_the_loop(row, emit):
    _left, state, need, c0, o0, _i, fits, Z0 = 3, 1, 2, 3, 4, 5, 6, 7
    emit(_left + state + need + c0 + o0 + _i + fits + Z0, row.x)
    if row.n > 2:
        return emit(row.n, row.x)
    return None


def plain(fn: Callable[..., Any]) -> list[tuple[int, float]]:
    out: list[tuple[int, float]] = []

    def emit(k: Any, v: Any) -> None:
        out.append((int(k), float(v)))

    for i in range(N):
        fn(SimpleNamespace(n=int(DATA["n"][i]), x=DATA["x"][i], p=DATA["p"][i], s=STRINGS[i]), emit)
    return out


def arguments(driver: Any) -> list[Any]:
    given: list[Any] = []
    for c in driver.inputs:
        given += [STARTS, ENDS, BYTES] if c.is_bytes else [DATA[c.name]]
    return given


def compiled(fn: Callable[..., Any], capacity: int = 10_000) -> list[tuple[int, float]]:
    driver = build(fn, INPUTS, OUTPUTS)
    k, v, state, need = np.empty(capacity, np.int64), np.empty(capacity), np.zeros(3, np.int64), np.zeros(1, np.int64)
    out: list[tuple[int, float]] = []
    at = 0
    while (at := driver.run(at, N, *arguments(driver), k, v, state, need)) < N:
        assert need[0] > capacity
        assert state[2], "no row of these tests is larger than the arrays"
        out += zip(k[:state[2]].tolist(), v[:state[2]].tolist(), strict=True)
        state[:] = 0
    return out + list(zip(k[:state[2]].tolist(), v[:state[2]].tolist(), strict=True))


@pytest.mark.parametrize("fn", [returns_from_nested_loops, breaks_and_continues, returns_in_else_and_after, hands_the_row_on, reads_bytes,
                                has_inner_functions, recursive, has_names_like_those_of_the_loop,
                                lambda row, emit: emit(row.n, row.x)], ids=lambda f: f.__name__)
def test_a_kernel_does_what_the_function_does(fn: Callable[..., Any]) -> None:
    expected = plain(fn)
    assert compiled(fn) == expected
    assert compiled(fn, capacity=25) == expected


def test_a_return_through_finally_is_refused_or_right() -> None:
    try:
        found = compiled(returns_from_try)
    except KernelTrouble:
        return
    assert found == plain(returns_from_try)


def test_values_returned_on_all_paths_or_an_error() -> None:
    def some(row):
        if row.n < 3:
            return row.n, 0.5
        for i in range(10):
            if i == row.n:
                return i * 10, row.x

    driver = build(some, INPUTS, OUTPUTS)
    k, v, state, need = np.empty(N, np.int64), np.empty(N), np.zeros(3, np.int64), np.zeros(1, np.int64)
    assert driver.run(0, N, *arguments(driver), k, v, state, need) == N
    assert k.tolist() == [n if n < 3 else n * 10 for n in DATA["n"].tolist()]

    def none(row):
        if row.n < 3:
            return row.n, 0.5

    with pytest.raises(ValueError, match="returned nothing"):
        build(none, INPUTS, OUTPUTS).run(0, N, DATA["n"], k, v, np.zeros(3, np.int64), need)


def test_only_columns_that_are_read_are_loaded() -> None:
    assert [c.name for c in build(returns_in_else_and_after, INPUTS, OUTPUTS).inputs] == ["n", "x"]
    assert [c.name for c in build(hands_the_row_on, INPUTS, OUTPUTS).inputs] == ["n", "x", "p", "s"]


def test_a_second_build_comes_from_the_cache_and_another_constant_does_not() -> None:
    def maker(shift: int) -> Callable[..., Any]:
        def kernel(row, emit):
            emit(row.n + shift, row.x)
        return kernel

    build(maker(1), INPUTS, OUTPUTS)
    again, other = build(maker(1), INPUTS, OUTPUTS), build(maker(2), INPUTS, OUTPUTS)
    assert again.run.stats.cache_hits and again.run.__module__ != other.run.__module__
    assert compiled(maker(1)) != compiled(maker(2))


def test_numbas_own_settings_are_left_alone() -> None:
    from numba.core import config

    before = config.CACHE_DIR
    build(recursive, INPUTS, OUTPUTS)
    with pytest.raises(KernelTrouble):
        build(lambda row, emit: emit(row.n, None), INPUTS, OUTPUTS)
    assert config.CACHE_DIR == before


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint64", "float64", "float32", "bool", "complex128"])
def test_a_fold_of_each_type(dtype: str) -> None:
    values = np.array([1, 0, 1, 1, 0, 1, 0], dtype)
    def keep(a, b):
        return a if abs(a) > 0 else b

    order, starts = np.array([0, 2, 4, 1, 3, 6, 5]), np.array([0, 3, 6, 7])
    driver = build_fold(keep, dtype)
    out = np.empty(3, dtype)
    assert driver.run(order, starts, values, out, np.empty(1, dtype), np.zeros(4, np.int64)) == 3
    assert out.tolist() == np.array([1, 1, 1], dtype).tolist()


def test_a_fold_that_leaves_its_range_is_noticed() -> None:
    state = np.zeros(4, np.int64)
    values = np.array([100, 27, 1], np.int8)
    build_fold(lambda a, b: a + b, "int8").run(np.arange(3), np.array([0, 3]), values, np.empty(1, np.int8), np.empty(1, np.int8), state)
    assert state[FLAG] and state[ROW] == 2
