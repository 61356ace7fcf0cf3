"""What every input format must be able to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema

SPLIT_NBYTES = 32 << 20
BATCH_NBYTES = 1 << 20


@dataclass(frozen=True)
class Split:
    """A contiguous piece of the input, cut from the data alone.

    `index` counts over the whole input in its order; `where` is the readable name used in messages; `part` is what the
    source needs to read it (plain values: it is broadcast).
    """

    index: int
    nbytes: int
    where: str
    part: tuple[Any, ...]


class Source(Protocol):
    """An input. `survey` runs on rank 0 only and is broadcast; `read` runs on the rank that a split was dealt to."""

    name: str

    def fingerprint(self) -> tuple[Any, ...]: ...

    def survey(self) -> tuple[Schema, list[Split]]:
        """Find files, check them, and cut splits. Only rank 0 lists folders and reads headers. Raises `InputError`."""

    def adopt(self, schema: Schema, splits: list[Split]) -> None:
        """Take what rank 0 surveyed."""

    def read(self, split: Split) -> Iterator[Batch]:
        """Batches of about `BATCH_NBYTES` in row order; their buffers may be reused by the next batch. No empty batches."""

    def close(self) -> None: ...
