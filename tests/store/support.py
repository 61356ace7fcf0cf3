"""Tables to store: written by one or several pretended ranks, and drawn at random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.data.schema import Schema
from hpcmr.store.manifest import Manifest
from hpcmr.store.publish import publish
from hpcmr.store.writer import TableWriter


def store(folder: Path, pieces: Sequence[Batch], *, ranks: int = 1, shard_nbytes: int = 1 << 20, schema: Schema | None = None,
          deal: Sequence[int] | None = None, **options: Any) -> Manifest:
    """Write piece i on rank ``deal[i]`` (contiguous ranges if not given) and publish."""
    schema = schema or pieces[0].schema
    owners = deal or [i * ranks // max(1, len(pieces)) for i in range(len(pieces))]
    infos = []
    for rank in range(ranks):
        writer = TableWriter(folder, rank, schema, attempt="test", shard_nbytes=shard_nbytes)
        for piece, batch in enumerate(pieces):
            if owners[piece] == rank:
                writer.append(piece, batch)
        infos += writer.close()
    return publish(folder, schema, infos, options.pop("provenance", None), attempt="test", **options)


def leftovers(folder: Path) -> list[str]:
    """What lies beside an output that is not the output."""
    return sorted(n for n in os.listdir(folder.parent) if n != folder.name)


def bits(column: Column) -> Any:
    """A column as plain values that compare bit by bit; null rows are None."""
    valid = np.ones(len(column), np.bool_) if column.valid is None else column.valid
    if isinstance(column, FixedColumn):
        values = np.ascontiguousarray(column.values)
        rows = [values[i].tobytes() for i in range(len(values))]
    elif isinstance(column, BytesColumn):
        rows = [column.data[a:b].tobytes() for a, b in zip(column.starts.tolist(), column.ends.tolist(), strict=True)]
    else:
        items = bits(column.child)
        rows = [items[a:b] for a, b in zip(column.starts.tolist(), column.ends.tolist(), strict=True)]
    return [r if ok else None for r, ok in zip(rows, valid.tolist(), strict=True)]


DTYPES = ["bool", "int8", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float32", "float64", "complex64", "complex128", "S1", "S10",
          "datetime64[ns]", "datetime64[D]", "timedelta64[s]"]


@st.composite
def columns(draw: st.DrawFn, rows: int, depth: int = 2) -> Column:
    """Any column: bits, bytes, lengths and nulls at random."""
    seed = draw(st.integers(0, 2 ** 32 - 1))
    rng = np.random.default_rng(seed)
    valid = rng.random(rows) < 0.7 if draw(st.booleans()) else None
    kind = draw(st.sampled_from(["fixed", "fixed", "bytes", "text"] + (["list"] if depth else [])))
    if kind == "fixed":
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        shape = draw(st.sampled_from([(), (), (3,), (2, 2), (0,)]))
        raw = rng.integers(0, 256, (rows, *shape, dtype.itemsize), dtype=np.uint8)
        raw = raw & 1 if dtype.kind == "b" else raw
        return FixedColumn(np.ascontiguousarray(raw).view(dtype).reshape(rows, *shape), valid)
    lengths = rng.integers(0, draw(st.sampled_from([1, 4, 40])), rows)
    ends = np.cumsum(lengths).astype(np.int64)
    total = int(ends[-1]) if rows else 0
    if kind == "list":
        return ListColumn(ends - lengths, ends, draw(columns(total, depth - 1)), valid)
    return BytesColumn(ends - lengths, ends, rng.integers(0, 256, total, dtype=np.uint8), kind == "text", valid)


NAMES = ["a", "b", "key", "a/b", "100%", "a%valid", ".", "", "Größe", "a\udcff", "a\0b", "data", "offsets", "x" * 300]


@st.composite
def batches(draw: st.DrawFn, rows_max: int = 100) -> Batch:
    rows = draw(st.integers(0, rows_max))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    return Batch({n: draw(columns(rows)) for n in names}, rows)
