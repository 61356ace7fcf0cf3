"""Functions of text and bytes in expressions: a column at a time, by kernels. What they give to numbers enters the compiled loop as an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, BytesColumn, Column, FixedColumn, concat_columns
from hpcmr.data.keys import as_strings
from hpcmr.ops.expression_types import Node

Mask = NDArray[np.bool_]
Chooser = Callable[[Node, Batch], Mask]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous view that kernels take as one they do not write to."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def picked(column: Column, node: Node) -> FixedColumn:
    """Components of a column as a `part` or `view` node asks."""
    assert isinstance(column, FixedColumn)
    values = column.values
    if node.op == "part":
        return FixedColumn(values.reshape(len(values), -1)[:, node.extra], column.valid)
    index = tuple(slice(*p) if isinstance(p, tuple) else p for p in node.extra)
    return FixedColumn(values[(slice(None), *index)], column.valid)


class Strings:
    """Columns of a batch's strings and of what is asked about them, each found once.

    Parameters
    ----------
    batch : Batch
    choose : callable
        The rows for which a node is true, for `when`.
    """

    def __init__(self, batch: Batch, choose: Chooser) -> None:
        self._batch = batch
        self._choose = choose
        self._memo: dict[str, Column] = {}

    def column(self, node: Node) -> Column:
        """What a node gives: a string column, or a fixed one of the node's type."""
        found = self._memo.get(node.key)
        if found is None:
            found = self._memo[node.key] = self._column(node)
        return found

    def _column(self, node: Node) -> Column:
        if node.op == "col":
            return self._batch[node.extra]
        if node.op in ("part", "view"):
            return picked(self.column(node.args[0]), node)
        if node.op == "lit":
            return self._constant(node, self._batch.nrows)
        if node.op == "is_null":
            valid = self.column(node.args[0]).valid
            return FixedColumn(np.zeros(self._batch.nrows, np.bool_) if valid is None else ~valid)
        if node.type.is_string:
            return self._string(node)
        return self._asked(node)

    def _constant(self, node: Node, n: int) -> BytesColumn:
        data = np.frombuffer(node.extra, np.uint8)
        return BytesColumn(np.zeros(n, np.int64), np.full(n, len(data), np.int64), data, node.type.kind == "text")

    def string(self, node: Node) -> BytesColumn:
        column = self.column(node)
        return column if isinstance(column, BytesColumn) else as_strings(column)

    # ---- strings of strings ------------------------------------------------------------------------------------------

    def _string(self, node: Node) -> BytesColumn:
        text = node.type.kind == "text"
        if node.op == "s_when":
            mask = self._choose(node.args[0], self._batch)
            return _chosen(mask, self.string(node.args[1]), self.string(node.args[2]) if len(node.args) > 2 else None, text)
        column = self.string(node.args[0])
        if node.op == "s_as":
            return BytesColumn(column.starts, column.ends, column.data, text, column.valid)
        if node.op == "s_fill":
            return column if column.valid is None else _chosen(column.valid, column, self.string(node.args[1]), text)
        return self._cased(column, node.op)

    def _cased(self, column: BytesColumn, op: str) -> BytesColumn:
        """ASCII letters small or large, in a copy of the bytes."""
        from hpcmr.kernels.strings import lower_ascii
        from hpcmr.kernels.text import upper_ascii

        if not len(column):
            return column
        lo, hi = int(column.starts.min()), int(column.ends.max())
        if hi - lo > 4 * int((column.ends - column.starts).sum()) + 4096:       # views that lie far apart
            column = column.compact()
            lo, hi = 0, len(column.data)
        out = np.empty(max(hi - lo, 0), np.uint8)
        if op == "s_lower":
            lower_ascii(np.ascontiguousarray(column.data), lo, hi, out)
        else:
            upper_ascii(read_only(column.data), lo, hi, out)
        return BytesColumn(column.starts - lo, column.ends - lo, out, column.text, column.valid)

    # ---- questions about strings ------------------------------------------------------------------------------------

    def _asked(self, node: Node) -> FixedColumn:
        from hpcmr.kernels import text as kernels

        if node.op in ("s_equal", "s_compare"):
            return self._compared(node)
        column = self.string(node.args[0])
        starts, ends, data = _rows(column)
        if node.op == "s_length" and not column.text:
            return FixedColumn(ends - starts, column.valid)
        out: NDArray[Any] = np.empty(len(column), node.dtype)
        if node.op == "s_length":
            kernels.text_lengths(starts, ends, data, out)
        elif node.op == "s_is_in":
            kernels.strings_in(starts, ends, data, *_rows(BytesColumn.from_list(node.extra, text=False)), out)
        else:
            find = {"s_starts_with": kernels.starts_with, "s_ends_with": kernels.ends_with, "s_contains": kernels.contains}[node.op]
            find(starts, ends, data, read_only(np.frombuffer(node.extra, np.uint8)), out)
        return FixedColumn(out, column.valid)

    def _compared(self, node: Node) -> FixedColumn:
        from hpcmr.kernels.text import compare_strings, equal_strings

        out = np.empty(self._batch.nrows, np.int8)
        sides: list[Any] = []
        valid: Mask | None = None
        for arg in node.args:
            one = arg.op == "lit"
            column = self._constant(arg, 1) if one else self.string(arg)
            sides += [*_rows(column), 0 if one else 1]
            valid = column.valid if valid is None else valid if column.valid is None else valid & column.valid
        (equal_strings if node.op == "s_equal" else compare_strings)(*sides, out)
        return FixedColumn(out, valid)


def _rows(column: BytesColumn) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Places of the rows for a kernel; nulls are empty."""
    ends = column.ends if column.valid is None else np.where(column.valid, column.ends, column.starts)
    return read_only(column.starts), read_only(ends), read_only(column.data)


def _chosen(mask: Mask, a: BytesColumn, b: BytesColumn | None, text: bool) -> BytesColumn:
    """Rows of `a` where the mask is true, of `b` elsewhere; nulls where there is no `b`."""
    if b is None:
        return BytesColumn(a.starts, np.where(mask, a.ends, a.starts), a.data, text, mask if a.valid is None else mask & a.valid)
    n = len(mask)
    both = concat_columns([a, b])
    assert isinstance(both, BytesColumn)
    both.text = text
    return both.take(np.where(mask, np.arange(n), np.arange(n, 2 * n)))
