"""Hot keys of a join: found while the rows are looked at, and spread over several pieces of the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch
from hpcmr.data.schema import ColumnType
from hpcmr.ops.contract import Collective, Origin


class Sampler:
    def __init__(self, keys: tuple[str, ...], types: tuple[ColumnType, ...]) -> None:
        self.keys, self.types = keys, types

    def look(self, batch: Batch, origin: Origin, seed: int) -> None: ...


@dataclass
class Cuts:
    count: int
    keys: int

    def place(self, side: str, keys: Batch, partition: NDArray[np.int64], origin: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.arange(len(partition)), partition


def agree_on_cuts(left: Sampler, right: Sampler, how: str, partitions: int, together: Collective) -> Cuts | None:
    return None
