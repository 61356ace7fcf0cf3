"""Pretended ranks: threads that meet where real ranks would, for operations that are tested without the engine.

One of them runs at a time: real ranks are processes, and share no kernels that are being loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class Pretended:
    """`hpcmr.ops.contract.Collective` for one thread of several."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any], turn: threading.Lock) -> None:
        self.rank, self.size, self._barrier, self._board, self._turn = rank, size, barrier, board, turn

    def allgather(self, obj: Any) -> list[Any]:
        self._board[self.rank] = obj
        self._meet()
        found = list(self._board)
        self._meet()
        return found

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait(30)
        finally:
            self._turn.acquire()

    def allreduce(self, array: Any, op: str = "sum") -> Any:
        ufunc = {"sum": np.add, "min": np.minimum, "max": np.maximum}[op]
        return ufunc.reduce(self.allgather(array))

    def exscan(self, array: Any) -> Any:
        return np.add.reduce([np.zeros_like(array), *self.allgather(array)[:self.rank]])


def on_ranks(size: int, work: Callable[[Pretended], Any]) -> list[Any]:
    """``work(together)`` on `size` pretended ranks; what each returned. The first error is raised."""
    barrier, board = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size
    errors: list[BaseException] = []
    turn = threading.Lock()

    def run(rank: int) -> None:
        with turn:
            try:
                results[rank] = work(Pretended(rank, size, barrier, board, turn))
            except BaseException as error:
                errors.append(error)
                barrier.abort()

    threads = [threading.Thread(target=run, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return results
