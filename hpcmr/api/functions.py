"""The three speeds of a user's function: compiled per row, columns at a time, or plain Python per row.

The decorators only mark a function; `hpcmr.ops.functions` runs it. A marked function can still be called, so it can be tested.
A function that is not marked is the slow, convenient speed.

::

    @mr.kernel(out={"bin": "int64", "energy": "float64"})     # per row, compiled by Numba; emits zero or more rows
    def fast(row, emit):
        if row.energy > 0:
            emit(int(row.energy), row.energy)

    @mr.batch                                                 # NumPy columns in, columns out
    def quick(cols):
        return {"bin": cols["energy"].astype("int64"), "energy": cols["energy"]}

    def plain(row):                                           # any Python; a dict, a tuple or a value out
        return {"bin": int(row.energy), "energy": row.energy}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

from hpcmr.data.schema import Schema
from hpcmr.ops.functions import UserFunction, batch_function, kernel_function

Out = Mapping[str, Any] | Schema | None
Decorator = Callable[[Callable[..., Any]], UserFunction]


@overload
def kernel(fn: Callable[..., Any], *, out: Out = None) -> UserFunction: ...
@overload
def kernel(fn: None = None, *, out: Out = None) -> Decorator: ...
def kernel(fn: Callable[..., Any] | None = None, *, out: Out = None) -> UserFunction | Decorator:
    """Mark a function to be compiled and called per row.

    Parameters
    ----------
    fn : callable
        ``f(row, emit)`` that calls ``emit(column values...)`` zero or more times, or ``f(row)`` that returns one value or a tuple;
        as a reducer ``f(a, b)``. Columns are attributes of `row`. What it may use is what Numba compiles.
    out : dict of str to type, optional
        Columns that it makes, in the order of the values it emits: ``{"k": "int64", "pos": "float64[3]"}``.

    Returns
    -------
    UserFunction
        To give to `map`, `flat_map`, `filter`, `reduce_by_key` or `reduce`; still callable.
    """
    if fn is None:
        return lambda found: kernel_function(found, out)
    return kernel_function(fn, out)


@overload
def batch(fn: Callable[..., Any], *, out: Out = None) -> UserFunction: ...
@overload
def batch(fn: None = None, *, out: Out = None) -> Decorator: ...
def batch(fn: Callable[..., Any] | None = None, *, out: Out = None) -> UserFunction | Decorator:
    """Mark a function that is called with many rows at once, as columns.

    Parameters
    ----------
    fn : callable
        ``f(cols) -> dict of arrays``; `cols` maps names to read-only arrays ``(n, *shape)``, also as attributes, and
        ``cols.nrows`` is n. In `map` it returns n rows, in `flat_map` any number, in `filter` a bool array ``(n,)``. How many rows
        come at once is not fixed.
    out : dict of str to type, optional
        Columns that it returns; without it they are found by running it on the first rows.

    Returns
    -------
    UserFunction
        To give to `map`, `flat_map` or `filter`; still callable.
    """
    if fn is None:
        return lambda found: batch_function(found, out)
    return batch_function(fn, out)
