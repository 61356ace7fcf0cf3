"""The digest of a table's content: names, types and rows in order, whatever files hold them. `docs/reference/digest.md` defines it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from hpcmr.data.batch import BytesColumn, Column, FixedColumn, ListColumn
from hpcmr.store.encode import plain_values, without_nulls
from hpcmr.store.files import as_bytes
from hpcmr.store.reader import StoredTable

BLOCK_ROWS = 65536
MAGIC = b"hpcmr-digest-1\n"


def digest(table: StoredTable) -> str:
    """``xxh3-128:<32 hex digits>`` of the rows as they are read back.

    Notes
    -----
    Collective: no. Cost: every byte is read once; memory for a batch of about 1 MiB, or for the longest row.
    """
    whole = xxhash.xxh3_128(MAGIC + struct.pack("<QQ", len(table.schema), table.rows))
    for f in table.schema:
        for text in (f.name, str(f.type)):
            raw = text.encode("utf-8", "surrogateescape")
            whole.update(struct.pack("<Q", len(raw)) + raw)
    for start in range(0, table.rows, BLOCK_ROWS):
        for stream in _block(table, start, min(start + BLOCK_ROWS, table.rows)):
            whole.update(stream.digest())
    return f"xxh3-128:{whole.hexdigest()}"


def _block(table: StoredTable, start: int, stop: int) -> list[Any]:
    """The streams of one block of rows, each digested on its own, so that a block can be read in any number of batches."""
    streams: list[Any] = []
    for batch in table.batches(start=start, stop=stop, reuse=True):
        contents = [c for name in table.columns for c in _contents(batch[name])]
        streams = streams or [xxhash.xxh3_128() for _ in contents]
        for stream, content in zip(streams, contents, strict=True):
            stream.update(content)
    return streams


def _contents(column: Column) -> Iterator[Any]:
    """What a column adds to its streams: validity, then values, or lengths and data."""
    valid = None if column.valid is None or bool(column.valid.all()) else column.valid
    yield as_bytes(np.ones(len(column), np.uint8) if valid is None else valid)
    if isinstance(column, FixedColumn):
        yield as_bytes(plain_values(column.values, valid))
        return
    plain = without_nulls(column, valid).compact()
    yield as_bytes((plain.ends - plain.starts).astype("<i8", copy=False))
    if isinstance(plain, BytesColumn):
        yield as_bytes(plain.data)
    else:
        assert isinstance(plain, ListColumn)
        yield from _contents(plain.child)
