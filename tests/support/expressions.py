"""What expressions should give, by plain NumPy over whole columns: values and validity, an operation at a time; and trees to try them on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from hypothesis import strategies as st

import hpcmr as mr
from hpcmr.ops.expression import Expr

Values = tuple[Any, Any]        # a column or a bare constant, and the validity

FUNCTIONS = {"sqrt": np.sqrt, "exp": np.exp, "log": np.log, "log2": np.log2, "log10": np.log10, "sin": np.sin, "cos": np.cos, "abs": np.abs,
             "floor": np.floor, "ceil": np.ceil, "neg": np.negative}
OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "floordiv": np.floor_divide, "mod": np.remainder,
              "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}


def expected(expr: Expr, columns: dict[str, Any], n: int) -> Values:
    """Values ``(n, ...)`` and validity ``(n,)``; what lies under a null is anything."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, valid = _expected(expr, columns, n)
    return np.broadcast_to(values, (n, *np.shape(values)[1:])) if np.shape(values) else np.full(n, values), valid


def _number(values: Any) -> Any:
    """What a column counts as in arithmetic."""
    if isinstance(values, np.ndarray):
        return values.astype({"b": np.int8}.get(values.dtype.kind, np.float32 if values.dtype == np.float16 else values.dtype))
    return values


def _expected(expr: Expr, columns: dict[str, Any], n: int) -> Values:
    op = expr.op
    if op == "col":
        column = columns[expr.extra]
        return (column.data, ~np.ma.getmaskarray(column)) if isinstance(column, np.ma.MaskedArray) else (column, np.ones(n, bool))
    if op == "lit":
        return expr.extra, np.ones(n, bool)
    args = [_expected(a, columns, n) for a in expr.args]
    values, valids = [v for v, _ in args], [o for _, o in args]
    valid = np.logical_and.reduce(valids)
    if op in ("and", "or", "not"):
        return _logic(op, values, valids)
    if op in OPERATIONS:
        return _operation(op, values, valid)
    if op in FUNCTIONS:
        x = _number(values[0])
        return (x if op in ("floor", "ceil") and x.dtype.kind in "iu" else FUNCTIONS[op](x.astype(float) if op not in ("abs", "neg", "floor", "ceil")
                                                                                        and x.dtype.kind in "iu" else x)), valid
    if op == "is_null":
        return ~valid, np.ones(n, bool)
    if op == "is_nan":
        return np.isnan(values[0]), valid
    if op == "fill_null":
        return np.where(valids[0], values[0], values[1]), valids[0] | valids[1]
    if op == "when":
        chosen = values[0] & valids[0]
        return np.where(chosen, _number(values[1]), _number(values[2])), np.where(chosen, valids[1], valids[2])
    assert op == "index"
    return values[0][(slice(None), *(slice(*p) if isinstance(p, tuple) else p for p in expr.extra))], valid


def _operation(op: str, values: list[Any], valid: Any) -> Values:
    if op in ("eq", "ne", "lt", "le", "gt", "ge"):
        return OPERATIONS[op](*values), valid
    if all(v.dtype == bool if isinstance(v, np.ndarray) else isinstance(v, int) for v in values):
        values = [v.astype(np.int64) if isinstance(v, np.ndarray) else v for v in values]       # bool with bool, or with a constant
    a, b = map(_number, values)
    found = OPERATIONS[op](a, b)
    return found, valid & (b != 0) if op in ("floordiv", "mod") and found.dtype.kind in "iu" else valid


def _logic(op: str, values: list[Any], valids: list[Any]) -> Values:
    if op == "not":
        return ~values[0], valids[0]
    (a, b), (oa, ob) = values, valids
    if op == "and":
        return a & b, (oa & ob) | (oa & ~a) | (ob & ~b)
    return a | b, (oa & ob) | (oa & a) | (ob & b)


# ---- trees -------------------------------------------------------------------------------------------------------------------

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")


def column_values(rng: np.random.Generator, dtype: str, n: int, nulls: bool) -> Any:
    """Values with the ends of the range, zeros of both signs, NaN and infinities among them."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        values = rng.random(n) < 0.5
    elif kind.kind in "iu":
        info = np.iinfo(kind)
        values = rng.integers(-5 if kind.kind == "i" else 0, 20, n).astype(kind)
        values[rng.random(n) < 0.1] = info.max
        values[rng.random(n) < 0.1] = info.min
    else:
        values = (rng.standard_normal(n) * 10).astype(kind)
        for odd in (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0):
            values[rng.random(n) < 0.04] = odd
    return np.ma.MaskedArray(values, rng.random(n) < 0.2) if nulls else values


def a_table(n: int, seed: int, nulls: bool = True) -> dict[str, Any]:
    """A column of each dtype, called by its name, and ``n_`` and the name with nulls in it."""
    rng = np.random.default_rng(seed)
    columns = {d: column_values(rng, d, n, False) for d in DTYPES}
    return columns | ({f"n_{d}": column_values(rng, d, n, True) for d in DTYPES} if nulls else {})


names = st.sampled_from(DTYPES).flatmap(lambda d: st.sampled_from((d, f"n_{d}")))
logical_names = st.sampled_from(("bool", "n_bool"))
constants = st.one_of(st.integers(0, 20), st.sampled_from((0.0, 0.5, -1.5, 2.0)))
numeric_ops = st.sampled_from(("add", "sub", "mul", "div", "floordiv", "mod"))
compare_ops = st.sampled_from(("eq", "ne", "lt", "le", "gt", "ge"))


@st.composite
def numbers(draw: Any, depth: int = 3) -> Expr:
    """A tree of arithmetic whose results are the same to the last bit in NumPy."""
    choice = draw(st.integers(0, 6)) if depth else 0
    if choice == 0:
        return mr.col(draw(names))
    if choice <= 3:
        right = mr.lit(draw(constants)) if draw(st.integers(0, 2)) == 0 else draw(numbers(depth - 1))
        return Expr(draw(numeric_ops), (draw(numbers(depth - 1)), right))
    if choice == 4:
        return mr.when(draw(conditions(depth - 1))).then(draw(numbers(depth - 1))).otherwise(draw(numbers(depth - 1)))
    inner = draw(numbers(depth - 1))
    return Expr(draw(st.sampled_from(("abs", "sqrt", "floor", "ceil"))), (inner + 0,))


@st.composite
def conditions(draw: Any, depth: int = 2) -> Expr:
    choice = draw(st.integers(0, 5)) if depth else 0
    if choice == 0:
        return mr.col(draw(logical_names))
    if choice <= 2:
        return Expr(draw(compare_ops), (draw(numbers(depth - 1)), draw(numbers(depth - 1))))
    if choice == 3:
        return ~draw(conditions(depth - 1))
    if choice == 4:
        return draw(numbers(depth - 1)).is_null()
    return Expr(draw(st.sampled_from(("and", "or"))), (draw(conditions(depth - 1)), draw(conditions(depth - 1))))
