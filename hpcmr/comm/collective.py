"""What makes a function collective, and how one rank's error becomes everybody's. Pure Python: no MPI here.

``@collective`` marks a function that all ranks must enter: it adds a sentence to the docstring, and with ``HPCMR_STRICT=1``
ranks compare the names of the functions they enter, so that a rank that went another way is named instead of waited for.
"""

from __future__ import annotations

import functools
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from hpcmr.errors import HpcmrError, RemoteError

P = ParamSpec("P")
T = TypeVar("T")
SENTENCE = "Collective: yes, every rank must call it."


def strict() -> bool:
    """Whether ranks compare the names of the collective functions they enter (``HPCMR_STRICT=1``)."""
    return os.environ.get("HPCMR_STRICT") == "1"


def collective(function: Callable[P, T]) -> Callable[P, T]:
    """Mark `function` as collective; its first argument is a World, or has one as ``.world``."""
    name = function.__qualname__

    @functools.wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> T:
        if strict():
            owner: Any = args[0]
            getattr(owner, "world", owner).compare_calls(name)
        return function(*args, **kwargs)

    entered.__doc__ = (function.__doc__ or "").rstrip() + f"\n\n        {SENTENCE}\n        "
    entered.__dict__["is_collective"] = True
    return entered


def pack_error(error: BaseException) -> bytes:
    """An error as bytes that another rank can raise; what cannot travel becomes a `RemoteError` with its text."""
    shown = to_shared(error)
    try:
        raw = pickle.dumps(shown)
        pickle.loads(raw)
        return raw
    except Exception:
        return pickle.dumps(RemoteError(_text(error), trace=getattr(shown, "trace", None)))


def to_shared(error: BaseException) -> BaseException:
    """The form in which all ranks raise `error`: one of this package's, or KeyboardInterrupt, or else a `RemoteError`."""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(*error.args)
    shared = error if isinstance(error, HpcmrError) else RemoteError(_text(error))
    if shared.trace is None:
        shared.trace = "".join(traceback.format_exception(error))
    return shared


def _text(error: BaseException) -> str:
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def place_error(shared: BaseException, ranks: tuple[int, ...]) -> BaseException:
    """Write down on which ranks it happened; ``rank`` is the lowest, unless the error tells already."""
    if isinstance(shared, HpcmrError):
        shared.rank = ranks[0] if shared.rank is None else shared.rank
        shared.ranks = ranks
    return shared
