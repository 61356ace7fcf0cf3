"""MapReduce for MPI clusters: HDF5 in, HDF5 out, compiled kernels in between.

::

    import hpcmr as mr

    def job(ctx):
        events = mr.read_hdf5(ctx.params["input"], "/events", columns=["key", "value"])
        stats = events.group_by("key").agg(n=mr.count(), total=mr.sum("value"))
        stats.write_hdf5(ctx.output("stats"))

Importing this package loads neither NumPy nor MPI: names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpcmr._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hpcmr.api.aggregates import (
        all,
        any,
        apply,
        approx_count_distinct,
        approx_quantile,
        argmax,
        argmin,
        count,
        count_distinct,
        first,
        fold,
        last,
        list,
        max,
        mean,
        median,
        min,
        quantile,
        std,
        sum,
        top_k,
        var,
    )
    from hpcmr.api.expressions import col, lit, when
    from hpcmr.api.functions import batch, kernel
    from hpcmr.api.iterate import iterate
    from hpcmr.api.library import broadcast, gather, join, reduce_by_key, scatter, shuffle, sort
    from hpcmr.api.output import open
    from hpcmr.api.reading import from_arrays, read_hdf5, read_text
    from hpcmr.api.result import Result
    from hpcmr.api.submit import Run, submit
    from hpcmr.api.table import Table
    from hpcmr.errors import HpcmrError

_HOMES = {
    "hpcmr.api.aggregates": ("all", "any", "apply", "approx_count_distinct", "approx_quantile", "argmax", "argmin", "count", "count_distinct",
                             "first", "fold", "last", "list", "max", "mean", "median", "min", "quantile", "std", "sum", "top_k", "var"),
    "hpcmr.api.expressions": ("col", "lit", "when"),
    "hpcmr.api.functions": ("batch", "kernel"),
    "hpcmr.api.iterate": ("iterate",),
    "hpcmr.api.library": ("broadcast", "gather", "join", "reduce_by_key", "scatter", "shuffle", "sort"),
    "hpcmr.api.output": ("open",),
    "hpcmr.api.reading": ("from_arrays", "read_hdf5", "read_text"),
    "hpcmr.api.result": ("Result",),
    "hpcmr.api.submit": ("Run", "submit"),
    "hpcmr.api.table": ("Table",),
    "hpcmr.errors": ("HpcmrError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "HpcmrError", "Result", "Run", "Table", "__version__", "all", "any", "apply", "approx_count_distinct", "approx_quantile", "argmax", "argmin",
    "batch", "broadcast", "col", "count", "count_distinct", "first", "fold", "from_arrays", "gather", "iterate", "join", "kernel", "last",
    "list", "lit", "max", "mean", "median", "min", "open", "quantile", "read_hdf5", "read_text", "reduce_by_key", "scatter", "shuffle",
    "sort", "std", "submit", "sum", "top_k", "var", "when",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'hpcmr' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> Iterable[str]:
    return sorted(__all__)
