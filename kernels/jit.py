"""The one place with compiler options, and the compile cache.

Kernels carry ``@kernel(signature)``: they are compiled, or loaded from the cache, when their module is imported, so the first
batch pays nothing. Numba's own cache does not see a changed *imported* helper, hence the cache folder is named by a digest of
every file of this package, the compiler, NumPy and the processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config as _config

HERE = Path(__file__).resolve().parent


def _cpu() -> str:
    try:
        import llvmlite.binding as ll

        return f"{ll.get_host_cpu_name()}|{ll.get_host_cpu_features().flatten()}"
    except RuntimeError:
        return platform.processor()


def source_digest() -> str:
    """Digest of all that decides what the compiler makes of this package; 16 hex digits."""
    h = hashlib.sha256(f"{numba.__version__}|{np.__version__}|{platform.python_version()}|{_cpu()}".encode())
    for path in sorted(HERE.glob("*.py")):
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def cache_root() -> Path:
    """Folder under which caches lie: ``$HPCMR_KERNEL_CACHE``, else ``$XDG_CACHE_HOME/hpcmr``, else ``~/.cache/hpcmr``, else a private temporary one."""
    chosen = os.environ.get("HPCMR_KERNEL_CACHE")
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if os.access(base if base.exists() else base.parent, os.W_OK):
        return base / "hpcmr"
    return Path(tempfile.gettempdir()) / f"hpcmr-{os.getuid()}"


CACHE = cache_root() / f"kernels-{source_digest()}"

helper: Callable[..., Any] = numba.njit(inline="always", nogil=True)
"""A function that is inlined where it is called: handing arrays to one that is not made row loops 2.4 times slower."""

inner: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy")
"""A function that kernels call and Python does not: it lies in its callers' cache entries and costs nothing to load (a kernel of its
own costs each rank some 6 ms)."""


def kernel(*signatures: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile for `signatures` at import, cached, releasing the GIL, without fast-math (bits are promised)."""

    def decorate(function: Callable[..., Any]) -> Any:
        if os.environ.get("NUMBA_DISABLE_JIT") == "1":
            return function
        # The folder is chosen while decorating, and put back: we are a guest in processes that use Numba for themselves.
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(CACHE)
        try:
            return numba.njit(list(signatures), cache=True, nogil=True, boundscheck=False, error_model="numpy")(function)
        finally:
            _config.CACHE_DIR = before

    return decorate
