"""The compiled form of expressions: source that `hpcmr.ops.expression_code` wrote, compiled or loaded from the cache.

The name of the file is a digest of the source and the types, and the folder's name one of this package, the compiler and the processor:
what was compiled once is found by every rank of a node, and by the next job.
"""

from __future__ import annotations

import hashlib
import sys
import types as pytypes
from typing import Any

import numba
import numpy as np
from numba import types

from hpcmr.kernels import expression_math
from hpcmr.kernels.emit import _array, _written
from hpcmr.kernels.jit import compile_into

OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def build(source: str, arguments: tuple[tuple[str, str], ...]) -> Any:
    """The function ``drive`` of `source`.

    Parameters
    ----------
    source : str
    arguments : tuple of (kind, dtype)
        In order; kind is "scalar", "in" (an array that is read) or "out" (one that is written).

    Returns
    -------
    callable
        Returns an int64.

    Notes
    -----
    Collective: no. Cost: half a second or more, some milliseconds from the cache.
    """
    key = hashlib.sha256(f"{source}|{arguments}|{OPTIONS}".encode()).hexdigest()[:20]
    found = _built.get(key)
    if found is not None:
        return found
    signature = types.int64(*(_type(kind, dtype) for kind, dtype in arguments))
    path = _written(f"expression_{key}.py", source)
    module = pytypes.ModuleType(f"hpcmr.kernels.expression_{key}")
    module.__dict__.update(__file__=str(path), np=np, m=expression_math)
    sys.modules[module.__name__] = module      # Numba finds the globals of what it loads from its cache there
    exec(compile(source, str(path), "exec"), module.__dict__)
    made = numba.njit(**OPTIONS)(module.drive)
    compile_into(path.parent, made, [signature])
    made.disable_compile()
    _built[key] = made
    return made


_built: dict[str, Any] = {}


def _type(kind: str, dtype: str) -> Any:
    return numba.from_dtype(np.dtype(dtype)) if kind == "scalar" else _array(dtype, 1, kind == "in")
