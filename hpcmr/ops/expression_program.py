"""A set of expressions at work on batches: conditions and columns in one compiled pass, strings by kernels, the rest as it is.

Arrays for what is computed are kept between batches and grow to what the largest one needed; what is given on is a view of them that
is good until the next batch, as everything that flows through a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.ops.expression_code import BLOCK, Source, held, size
from hpcmr.ops.expression_strings import Strings, picked, read_only
from hpcmr.ops.expression_types import Node

SMALLEST = 1024


class Program:
    """Conditions and columns over batches of one schema.

    Parameters
    ----------
    outputs : sequence of (name, Node)
    conditions : sequence of Node
        Rows stay for which all are true.
    """

    def __init__(self, outputs: Sequence[tuple[str, Node]], conditions: Sequence[Node] = ()) -> None:
        self._outputs = list(outputs)
        self._conditions = list(conditions)
        computed: dict[str, Node] = {}
        taken = False
        for _, node in self._outputs:
            if self._is_computed(node):
                computed[node.key] = node
            else:
                taken |= bool(conditions)
        self._slots = {key: q for q, key in enumerate(computed)}
        self.source = Source(self._conditions, list(computed.values()), taken) if computed or self._conditions else None
        self._choosers = {c.key: Program([("c", c)]) for c in _string_conditions([n for _, n in self._outputs] + self._conditions)}
        self._drive: Any = None
        self._arrays: list[NDArray[Any]] = []
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._rows = np.empty(1, np.uint64)
        self._ones = np.ones(1, np.bool_)
        self._room = 0

    def _is_computed(self, node: Node) -> bool:
        """Whether a column comes out of the compiled loop; columns that just pass do where rows go."""
        if not node.type.is_fixed or node.kind == "S":
            return False
        return node.op not in ("col", "view") or (bool(self._conditions) and node.type.dtype != "float16")

    @property
    def has_strings(self) -> bool:
        return bool(self._choosers) or any(asks_strings(n) for n in (*(n for _, n in self._outputs), *self._conditions))

    def compile(self) -> None:
        """Compile, or load what was compiled."""
        if self.source is not None and self._drive is None:
            from hpcmr.kernels.expression import build

            self._drive = build(self.source.text, tuple((kind, dtype) for _, kind, dtype in self.source.arguments()))
        for chooser in self._choosers.values():
            chooser.compile()

    def run(self, batch: Batch) -> Batch:
        """The columns of the rows that stay, in order; valid until the next call."""
        n = batch.nrows
        strings = Strings(batch, self._chosen)
        kept = n if self.source is None else self._loop(n, strings)
        columns: dict[str, Column] = {}
        for name, node in self._outputs:
            if node.key in self._slots:
                columns[name] = self._column(node, kept)
            else:
                whole = strings.string(node) if node.type.is_string else strings.column(node)
                columns[name] = whole if kept == n else whole.take(self._rows[:kept].view(np.int64))
        return Batch(columns, kept)

    def _chosen(self, condition: Node, batch: Batch) -> NDArray[np.bool_]:
        found = self._choosers[condition.key].run(batch)["c"]
        assert isinstance(found, FixedColumn)
        return found.values if found.valid is None else found.values & found.valid

    # ---- the compiled loop -------------------------------------------------------------------------------------------

    def _loop(self, n: int, strings: Strings) -> int:
        self.compile()
        source = self.source
        assert source is not None
        self._make_room(n)
        inputs = [_as_input(strings, node) for node in source.inputs]
        nulls = any(m is not None for _, m in inputs)
        masks = [self._all_valid(n if nulls else 1) if m is None else m for _, m in inputs]
        arguments = [*(x for x, _ in inputs), *masks, *(_scalar(node) for node in source.literals),
                     *(read_only(node.extra) for node in source.tables), *self._arrays, *self._masks.values()]
        self._was_masked = nulls
        return int(self._drive(n, nulls, *arguments, self._rows))

    def _make_room(self, n: int) -> None:
        source = self.source
        assert source is not None
        if n > self._room or not self._room:
            self._room = max(n + n // 8, SMALLEST)
            self._arrays = [np.empty(self._room * size(node.type), held(node.type)) for node in source.outputs]
            self._masks = {q: np.empty(self._room, np.bool_) for q in sorted(source.nullable[1])}
            self._rows = np.empty(max(self._room, BLOCK) if source.rows else BLOCK, np.uint64)

    def _all_valid(self, n: int) -> NDArray[np.bool_]:
        if len(self._ones) < n:
            self._ones = np.ones(n, np.bool_)
        return read_only(self._ones[:n])

    def _column(self, node: Node, kept: int) -> FixedColumn:
        assert self.source is not None
        q = self._slots[node.key]
        values = self._arrays[q][:kept * size(node.type)].reshape(kept, *node.type.shape)
        if values.dtype != node.dtype:
            values = values.view(node.dtype) if node.kind in "mM" else values.astype(node.dtype)
        valid = self._masks[q][:kept] if q in self.source.nullable[self._was_masked] else None
        return FixedColumn(values, None if valid is None or valid.all() else valid)


def _as_input(strings: Strings, node: Node) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A flat array as the loop reads it, and its mask if there are nulls."""
    column = picked(strings.column(node.args[0]), node) if node.op == "view" else strings.column(node)
    assert isinstance(column, FixedColumn)
    values, dtype = column.values, np.dtype(held(node.type))
    if values.dtype.kind in "mM":
        values = np.ascontiguousarray(values).view(np.int64)
    values = read_only(np.require(values, dtype, ["C", "A"]).reshape(-1))
    return values, None if column.valid is None or column.valid.all() else read_only(column.valid)


def _scalar(node: Node) -> Any:
    return node.extra.view(np.int64) if node.kind in "mM" else node.extra


def asks_strings(node: Node) -> bool:
    """Whether strings are worked on in a node; a column that just passes is not."""
    return node.op.startswith("s_") or any(asks_strings(a) for a in node.args)


def _string_conditions(nodes: Sequence[Node]) -> list[Node]:
    """Conditions that strings are chosen by."""
    found: dict[str, Node] = {}
    seen: set[str] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.key not in seen:
            seen.add(node.key)
            stack += node.args
            if node.op == "s_when":
                found[node.args[0].key] = node.args[0]
    return list(found.values())
