"""Aggregates as accumulator programs: what each one needs of a state row.

An aggregate needs *instructions* (see `hpcmr.kernels.accumulate`) on an *input*: a column read as integers (i), unsigned (u), floats
(f) or strings (s). Equal ones are shared, so that ``sum`` and ``mean`` of one column keep one sum; sum, min and max of one float are
fused. The state of each column starts with a count of its nulls. A column of a fixed shape is aggregated element by element.
How values come out at the end is told in `hpcmr.ops.finals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.keys import word_count
from hpcmr.data.schema import ColumnType, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.expression import Expr

FUNCTIONS = ("count", "sum", "min", "max", "mean", "var", "std", "first", "last", "any", "all")
INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")
Input = tuple[str, str]                  # column, letter


@dataclass(frozen=True)
class Agg:
    """One aggregate: `function` of `column` (None: rows), called `name` in the output. Options: ``ddof`` for var and std."""

    function: str
    column: str | None
    name: str
    options: tuple[tuple[str, Any], ...] = ()
    expr: Expr | None = field(default=None, compare=False)      # what the column is made of, where it is one for this aggregate only

    def option(self, key: str, default: Any) -> Any:
        return dict(self.options).get(key, default)


@dataclass
class Program:
    """Instructions, and where their states lie, counted from the first accumulator word of a row.

    Attributes
    ----------
    instructions : list of (op, place, input, component, words)
    places : dict
        (op, input, component) -> place, also of what was fused.
    windows : dict
        (input, component) -> place of the sum whose NaN flag speaks for a fused min and max.
    nulls : dict
        column -> place of its count of nulls.
    init : list of int
        A fresh state.
    """

    instructions: list[tuple[int, int, Input, int, int]] = field(default_factory=list)
    places: dict[tuple[int, Input, int], int] = field(default_factory=dict)
    windows: dict[tuple[Input, int], int] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    init: list[int] = field(default_factory=list)
    string_places: list[int] = field(default_factory=list)
    sum_places: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.init)

    @property
    def inputs(self) -> list[Input]:
        return list(dict.fromkeys(i for _, _, i, _, _ in self.instructions if i[1]))

    @property
    def has_origin(self) -> bool:
        from hpcmr.kernels.opcodes import FIRST, LAST

        return any(op in (FIRST, LAST) for op, *_ in self.instructions)

    def add(self, op: int, source: Input, component: int, fresh: Sequence[int], words: int = 1) -> int:
        at = self.size
        self.instructions.append((op, at, source, component, words))
        self.places[op, source, component] = at
        self.init.extend(fresh)
        return at

    def array(self, base: int) -> NDArray[np.int64]:
        """The program as kernels take it, addresses still empty; `base` is the first accumulator word of a row."""
        from hpcmr.kernels.opcodes import OP, PLACE, WORDS

        out = np.zeros((len(self.instructions), 6), np.int64)
        for i, (op, at, _, _, words) in enumerate(self.instructions):
            out[i, OP], out[i, PLACE], out[i, WORDS] = op, base + at, words
        return out


def letter_of(kind: ColumnType) -> str:
    """How a column is read by most aggregates."""
    if word_count(kind) == 3:
        return "s"
    return {"f": "f", "c": "f", "i": "i", "m": "i", "M": "i"}.get(kind.np_dtype.kind, "u")


def components(kind: ColumnType) -> int:
    """Scalars in one row's value."""
    if not kind.is_fixed or kind.np_dtype.kind == "S":
        return 1
    return int(np.prod(kind.shape, dtype=np.int64)) * (2 if kind.np_dtype.kind == "c" else 1)


def input_of(agg: Agg, kind: ColumnType) -> Input:
    """Squares are of floats: integers beyond 2^53 are rounded to float64 before var and std."""
    return agg.column or "", "f" if agg.function in ("var", "std") else letter_of(kind)


def _check(agg: Agg, kind: ColumnType) -> None:
    wants = ""
    letter = letter_of(kind) if kind.kind != "list" else "list"
    dtype = kind.np_dtype.kind if kind.is_fixed else ""
    if letter == "list":
        wants = "a column that is not a list"
    elif agg.function in ("sum", "mean", "var", "std") and (letter == "s" or dtype in "mM"):
        wants = "numbers"
    elif agg.function in ("min", "max", "var", "std") and dtype == "c":
        wants = "real numbers"
    elif agg.function in ("any", "all") and dtype != "b":
        wants = "a bool column"
    if wants:
        raise JobSpecError(f"{agg.function}({agg.column!r}) needs {wants}, and the column is {kind}")


def needs(agg: Agg, letter: str) -> tuple[int, ...]:
    """Instructions that an aggregate needs on its input."""
    from hpcmr.kernels import opcodes as k

    total = {"f": k.SUM_F, "i": k.SUM_I, "u": k.SUM_U, "s": -1}[letter]
    least = {"f": k.MIN_F, "i": k.MIN_I, "u": k.MIN_U, "s": k.MIN_S}[letter]
    most = {"f": k.MAX_F, "i": k.MAX_I, "u": k.MAX_U, "s": k.MAX_S}[letter]
    return {"count": (), "sum": (total,), "mean": (total,), "var": (total, k.SQUARES_F), "std": (total, k.SQUARES_F), "min": (least,),
            "all": (least,), "max": (most,), "any": (most,), "first": (k.FIRST,), "last": (k.LAST,)}[agg.function]


def compile_program(schema: Schema, aggs: Sequence[Agg]) -> Program:
    """The program of some aggregates over a schema.

    Raises
    ------
    JobSpecError
        For a column that is not there, or of a type that the function does not take.
    """
    from hpcmr.kernels.opcodes import NULLS

    wanted: dict[Input, dict[int, None]] = {}
    program = Program()
    for agg in aggs:
        if agg.function not in FUNCTIONS:
            raise JobSpecError(f"unknown aggregate {agg.function!r}; there are {', '.join(FUNCTIONS)}")
        if agg.column is None:
            if agg.function != "count":
                raise JobSpecError(f"{agg.function} needs a column; only count() counts rows")
            continue
        kind = schema[agg.column].type
        _check(agg, kind)
        source = input_of(agg, kind)
        wanted.setdefault(source, {}).update(dict.fromkeys(needs(agg, source[1])))
        if agg.column not in program.nulls:
            program.nulls[agg.column] = program.add(NULLS, (agg.column, ""), 0, [0])
    for source, ops in wanted.items():
        _lay_out(program, source, list(ops), schema[source[0]].type)
    return program


def _lay_out(program: Program, source: Input, ops: list[int], kind: ColumnType) -> None:
    from hpcmr.kernels import opcodes as k

    whole = [op for op in ops if op in (k.FIRST, k.LAST, k.MIN_S, k.MAX_S)]
    for op in whole:
        words = 3 if source[1] == "s" else components(kind)
        fresh = [(1 << 64) - 1 if op in (k.FIRST, k.LAST) else 0] + [0] * words
        at = program.add(op, source, 0, fresh, words)
        if source[1] == "s":
            program.string_places.append(at + 1)
    trio = {k.SUM_F, k.MIN_F, k.MAX_F} <= set(ops)
    for c in range(components(kind)):
        if trio:
            at = program.add(k.STATS_F, source, c, [1, 0, 0, _bits(np.inf), _bits(-np.inf)])
            program.places.update({(k.SUM_F, source, c): at, (k.MIN_F, source, c): at + 3, (k.MAX_F, source, c): at + 4})
            program.windows[source, c] = at
            program.sum_places.append(at)
        for op in ops:
            if op not in whole and not (trio and op in (k.SUM_F, k.MIN_F, k.MAX_F)):
                at = program.add(op, source, c, _fresh(op))
                if op in (k.SUM_F, k.SQUARES_F):
                    program.sum_places.append(at)


def _fresh(op: int) -> list[int]:
    from hpcmr.kernels import opcodes as k

    return {k.SUM_F: [1, 0, 0], k.SQUARES_F: [1, 0, 0], k.SUM_I: [0, 0], k.SUM_U: [0, 0], k.MIN_F: [_bits(np.inf)], k.MAX_F: [_bits(-np.inf)],
            k.MIN_I: [(1 << 63) - 1], k.MAX_I: [1 << 63], k.MIN_U: [(1 << 64) - 1], k.MAX_U: [0]}[op]


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


def output_names(keys: tuple[str, ...], aggs: tuple[Agg, ...]) -> list[str]:
    """Columns of a group's result: the keys, then the aggregates. Raises `JobSpecError` where two have one name, or no key is given."""
    if not keys:
        raise JobSpecError("group_by needs at least one key column")
    names = [*keys, *(a.name for a in aggs)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise JobSpecError(f"two output columns are called {twice[0]!r}; name aggregates apart, for example total=sum('x')")
    return names
