"""Rows as text: cells of CSV, and objects of JSON Lines, column by column.

Numbers are written with the fewest digits that read back as the same number of the column's own width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, ListColumn

_ODD = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


_quote = json.JSONEncoder(ensure_ascii=False).encode


def jsonl_lines(batch: Batch) -> Iterator[str]:
    """One JSON object per row, keys in the order of the columns; non-finite numbers as NaN, Infinity and -Infinity.

    Undecodable bytes come out as ``\\udcXX``, N-d values and lists as lists, complex numbers as [real, imaginary], dates as strings
    of ISO 8601, nulls as null.
    """
    keys = [_quote(n) for n in batch.names]
    cells = [json_cells(batch[n]) for n in batch.names]
    pattern = "{" + ", ".join(f"{k.replace('%', '%%')}: %s" for k in keys) + "}"
    if not cells:
        return iter(["{}"] * batch.nrows)
    return (pattern % row for row in zip(*cells, strict=True))


def csv_rows(batch: Batch) -> Iterator[tuple[str, ...]]:
    """Cells by row: strings as they are, numbers and dates as text, N-d values and lists as JSON, nulls as nothing."""
    cells = [csv_cells(batch[n]) for n in batch.names]
    return zip(*cells, strict=True) if cells else iter([()] * batch.nrows)


def json_cells(column: Column) -> list[str]:
    """Each row's value as JSON."""
    if isinstance(column, BytesColumn):
        cells = list(map(_quote, _strings(column)))
    elif isinstance(column, ListColumn):
        whole = column.compact()
        items = json_cells(whole.child)
        cells = ["[" + ", ".join(items[a:b]) + "]" for a, b in zip(whole.starts.tolist(), whole.ends.tolist(), strict=True)]
    else:
        cells = _nested(_flat_json(column.values), column.values.shape)
    return _with_nulls(cells, column, "null")


def csv_cells(column: Column) -> list[str]:
    """Each row's value as the content of a CSV cell, not quoted yet."""
    if isinstance(column, BytesColumn):
        cells = _strings(column)
    elif isinstance(column, FixedColumn) and column.values.ndim == 1 and column.values.dtype.kind in "ScM":
        cells = [_complex(*parts) for parts in _parts(column.values)] if column.values.dtype.kind == "c" else _plain(column.values)
    else:
        return ["" if cell == "null" else cell for cell in json_cells(column)]
    return _with_nulls(cells, column, "")


def _with_nulls(cells: list[str], column: Column, null: str) -> list[str]:
    return cells if column.valid is None else [c if ok else null for c, ok in zip(cells, column.valid.tolist(), strict=True)]


def _strings(column: BytesColumn) -> list[str]:
    whole = column.compact()
    raw = whole.data.tobytes()
    return [raw[a:b].decode("utf-8", "surrogateescape") for a, b in zip(whole.starts.tolist(), whole.ends.tolist(), strict=True)]


def _plain(values: NDArray[Any]) -> list[str]:
    """Strings of fixed width, or dates, as text."""
    if values.dtype.kind == "S":
        return [v.decode("utf-8", "surrogateescape") for v in values.ravel().tolist()]
    return [str(v) for v in np.datetime_as_string(values.ravel()).tolist()]


def _parts(values: NDArray[Any]) -> Iterator[tuple[str, str]]:
    flat = values.ravel()
    return zip(_floats(flat.real), _floats(flat.imag), strict=True)


def _complex(real: str, imaginary: str) -> str:
    return f"{real}{'' if imaginary.startswith('-') else '+'}{imaginary}j"


def _floats(values: NDArray[Any]) -> list[str]:
    if values.dtype == np.float64:
        cells = list(map(repr, values.tolist()))
    else:
        cells = [str(v) for v in np.ascontiguousarray(values).astype(str).tolist()]
    return cells if bool(np.isfinite(values).all()) else [_ODD.get(c, c) for c in cells]


def _flat_json(values: NDArray[Any]) -> list[str]:
    """Every scalar of a fixed column as JSON, in C order."""
    kind, flat = values.dtype.kind, values.ravel()
    if kind == "b":
        return ["true" if v else "false" for v in flat.tolist()]
    if kind == "f":
        return _floats(flat)
    if kind == "c":
        return [f"[{real}, {imaginary}]" for real, imaginary in _parts(flat)]
    if kind in "SM":
        return list(map(_quote, _plain(flat)))
    return list(map(str, flat.astype(np.int64).tolist() if kind == "m" else flat.tolist()))


def _nested(cells: list[str], shape: Sequence[int]) -> list[str]:
    """Group flat cells into one list per row, nested as `shape` is."""
    for size in reversed(shape[1:]):
        count = len(cells) // size if size else int(np.prod(shape[:-1], dtype=np.int64))
        cells = ["[" + ", ".join(cells[i * size:(i + 1) * size]) + "]" for i in range(count)]
        shape = shape[:-1]
    return cells


_QUOTED = re.compile('[",\r\n\t]|^[ ]|[ ]$')


def delimited(cells: Sequence[str], separator: str) -> str:
    """One line of CSV (RFC 4180, LF at its end): cells are quoted where they must be. An only cell that is empty is quoted as well."""
    if len(cells) == 1 and not cells[0]:
        return '""\n'
    return separator.join('"' + c.replace('"', '""') + '"' if _QUOTED.search(c) else c for c in cells) + "\n"


def csv_bytes(batch: Batch, separator: str = ",") -> bytes:
    """The rows as CSV; what was no UTF-8 when it was read is written as it was."""
    return "".join(delimited(row, separator) for row in csv_rows(batch)).encode("utf-8", "surrogateescape")


def csv_header(names: Sequence[str], separator: str = ",") -> bytes:
    return delimited(names, separator).encode("utf-8", "surrogateescape")


def jsonl_bytes(batch: Batch) -> bytes:
    """The rows as JSON Lines; what was no UTF-8 when it was read comes out as ``\\udcXX``."""
    return "".join(line + "\n" for line in jsonl_lines(batch)).encode("utf-8", "backslashreplace")
