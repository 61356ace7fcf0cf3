"""The one place with compiler options, and the compile cache.

Kernels carry ``@kernel(signature)`` and are compiled once per machine. Numba's own cache does not see a changed *imported* helper,
hence the cache folder is named by a digest of every file of this package, the compiler, NumPy and the processor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

from hpcmr.kernels.cache import CACHE

helper: Callable[..., Any] = numba.njit(inline="always", nogil=True)
"""A function that is inlined where it is called: handing arrays to one that is not made row loops 2.4 times slower."""

inner: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy")
"""A function that kernels call and Python does not: it lies in its callers' cache entries and costs nothing to load (a kernel of its
own costs each rank some 6 ms)."""


def compile_into(folder: Path, dispatcher: Any, signatures: Sequence[Any]) -> None:
    """Compile a function for given types, or load what lies in `folder`."""
    # Numba's folder is put back: we are a guest in processes that use it for themselves.
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(folder)
    try:
        dispatcher.enable_caching()
    finally:
        _config.CACHE_DIR = before
    if not _load(dispatcher, signatures):
        for signature in signatures:
            dispatcher.compile(signature)


def _load(dispatcher: Any, signatures: Sequence[Any]) -> bool:
    """What Numba does to load a function from its cache, but for reading in all of its own library first, which costs a rank 0.1 s.

    For functions that call nothing but the C library's arithmetic. Uses what Numba does not promise to keep; where it is not found, or
    nothing is cached, the long way is taken. So it is where a kernel that calls this one has compiled it: what is added twice is ambiguous.
    """
    if dispatcher.overloads:
        return False
    try:
        from numba.core.runtime import rtsys

        context, cache = dispatcher.targetctx, dispatcher._cache
        rtsys.initialize(context)
        loaded = [cache._load_overload(signature, context) for signature in signatures]
    except Exception:
        return False
    if any(made is None for made in loaded):
        return False
    for made in loaded:
        dispatcher.add_overload(made)
    return True


class Kernel:
    """A function for given types, compiled or loaded from the cache when it is first called (or by `compile_imported`).

    A module costs a rank nothing for the kernels that its job does not use. Other types than those of the signatures are refused.
    """

    def __init__(self, function: Callable[..., Any], signatures: tuple[str, ...]) -> None:
        self.function = function
        self.signatures = signatures
        self.dispatcher = numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)
        self._call: Callable[..., Any] = self._first

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def _first(self, *args: Any) -> Any:
        self.ready()
        return self._call(*args)

    def ready(self) -> None:
        """Compile, or load what was compiled."""
        with _loading:
            if self._call == self.dispatcher:
                return
            compile_into(CACHE, self.dispatcher, self.signatures)
            self.dispatcher.disable_compile()
            self._call = self.dispatcher

    @property
    def _numba_type_(self) -> Any:
        """What a kernel sees that calls this one."""
        return numba.types.Dispatcher(self.dispatcher)


_imported: list[Kernel] = []
_loading = threading.RLock()        # a checkpoint's thread may need a kernel at the same time


def kernel(*signatures: str) -> Callable[[Callable[..., Any]], Any]:
    """A kernel for `signatures`: cached, without the GIL, without fast-math (bits are promised)."""

    def decorate(function: Callable[..., Any]) -> Any:
        if os.environ.get("NUMBA_DISABLE_JIT") == "1":
            return function
        made = Kernel(function, signatures)
        _imported.append(made)
        return made

    return decorate


def compile_imported() -> None:
    """Compile (or load) every kernel of the modules that were imported; one rank of a node does so before the others need them."""
    while _imported:
        _imported.pop().ready()
