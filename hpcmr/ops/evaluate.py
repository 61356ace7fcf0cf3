"""Expressions as a step: ``filter``, ``select`` and ``with_columns`` of expressions, and any number of them made one.

A step is a list of *moves*. Consecutive steps are joined move by move (`fuse`), with `select`, `drop` and `rename` between them, so
that one compiled loop reads the columns that come in and writes those that go out, with nothing in between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin, Step
from hpcmr.ops.expression import Expr
from hpcmr.ops.expression_program import Program
from hpcmr.ops.expression_types import Binder, Node, columns_of
from hpcmr.ops.rename import Rename
from hpcmr.ops.select import Drop, Select


@dataclass(frozen=True)
class Move:
    """One verb: ``filter`` by an expression, or the columns that ``select`` and ``with_columns`` make, or a step that only moves names."""

    verb: str
    columns: tuple[tuple[str, Expr], ...] = ()
    condition: Expr | None = None
    names: Step | None = None

    def fingerprint(self) -> tuple[Any, ...]:
        beside = [x.fingerprint() for x in (self.condition, self.names) if x is not None]
        return (self.verb, tuple((n, e.fingerprint()) for n, e in self.columns), *beside)


def filter_move(condition: Expr) -> Move:
    return Move("filter", condition=condition)


def select_move(columns: Iterable[tuple[str, Expr]]) -> Move:
    return Move("select", tuple(columns))


def with_columns_move(columns: Mapping[str, Expr]) -> Move:
    return Move("with_columns", tuple(columns.items()))


@dataclass
class View:
    """What the columns are after some moves, in terms of those that come in."""

    fields: dict[str, Node]
    attrs: dict[str, tuple[tuple[str, Any], ...]]
    conditions: list[Node] = field(default_factory=list)

    def after(self, move: Move) -> None:
        if move.names is not None:
            self._rename(move.names)
            return
        binder = Binder(self.fields, move.verb)
        if move.condition is not None:
            self._filter(binder.bind(move.condition), move)
            return
        made = {name: binder.bind(e) for name, e in move.columns}
        attrs = {name: self.attrs.get(e.extra, ()) if e.op == "col" else () for name, e in move.columns}
        if move.verb == "select":
            self.fields, self.attrs = made, attrs
        else:
            self.fields, self.attrs = {**self.fields, **made}, {**self.attrs, **attrs}

    def _filter(self, node: Node, move: Move) -> None:
        if node.kind != "b" or node.type.shape:
            hint = "; take a component, for example x[:, 0]" if node.type.shape else "; write for example mr.col('x') > 0"
            raise JobSpecError(f"filter({move.condition}): this is {node.type} and not true or false for a row{hint}")
        self.conditions.append(node)

    def _rename(self, step: Step) -> None:
        schema = self.schema
        # The step decides, on columns that are named by themselves.
        if isinstance(step, Rename):
            names = {step.names.get(n, n): n for n in schema.names} if step.bind(schema) else {}
        else:
            found = step.bind(schema)
            assert found is not None
            names = {n: n for n in found.names}
        self.fields, self.attrs = {n: self.fields[o] for n, o in names.items()}, {n: self.attrs.get(o, ()) for n, o in names.items()}

    @property
    def schema(self) -> Schema:
        return Schema(tuple(Field(n, node.type, self.attrs.get(n, ())) for n, node in self.fields.items()))


class Evaluate:
    """Rows and columns as expressions make them.

    Parameters
    ----------
    moves : sequence of Move
        In order; each sees the columns that the one before leaves.
    """

    quick = True        # for samples: a row costs next to nothing

    def __init__(self, *moves: Move) -> None:
        self.moves = moves
        self.name = moves[0].verb if len(moves) == 1 else "expressions"
        self.program: Program | None = None
        self.schema: Schema | None = None

    def fingerprint(self) -> tuple[Any, ...]:
        return ("expressions", *(m.fingerprint() for m in self.moves))

    def bind(self, schema: Schema) -> Schema:
        view = View(columns_of(schema), {f.name: f.attrs for f in schema})
        for move in self.moves:
            view.after(move)
        self.program = Program(list(view.fields.items()), view.conditions)
        self.schema = view.schema
        return view.schema

    def import_kernels(self) -> None:
        """Import the kernels that this step calls, to be compiled by one rank of a node."""
        if self.program is not None and self.program.has_strings:
            from hpcmr.kernels import strings, text  # noqa: F401

    def compile(self) -> None:
        assert self.program is not None
        self.program.compile()

    def infer(self, sample: Batch, origin: Origin) -> Schema:
        return self.bind(sample.schema)

    def fix(self, schema: Schema) -> None:
        """Nothing to take: the expressions decide."""

    def apply(self, batch: Batch, origin: Origin) -> Batch:
        assert self.program is not None
        return self.program.run(batch)

    def _needs_strings(self) -> bool:
        """Whether something is asked about strings, as far as the expressions tell without types."""
        return any(_asks(e) for m in self.moves for e in (*(e for _, e in m.columns), *([m.condition] if m.condition is not None else [])))

    @property
    def filters(self) -> bool:
        return any(m.condition is not None for m in self.moves)


def _asks(expr: Expr) -> bool:
    return expr.op.startswith("s_") or (expr.op == "lit" and isinstance(expr.extra, str | bytes)) or any(_asks(a) for a in expr.args)


def fuse(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The same steps, with neighbours that are expressions, or move names beside some, made one. Results do not change.

    What is asked about strings is asked about whole columns before the loop: behind a filter that is a step of its own, for the rows
    that are left.
    """
    out: list[Step] = []
    for step in steps:
        mine = _as_evaluate(step)
        last = out[-1] if out else None
        before = _as_evaluate(last) if last is not None and mine is not None else None
        plain = isinstance(step, Select | Drop | Rename) and isinstance(last, Select | Drop | Rename)
        if mine is None or before is None or plain or (before.filters and mine._needs_strings()):
            out.append(step)
        else:
            out[-1] = Evaluate(*before.moves, *mine.moves)
    return tuple(out)


def _as_evaluate(step: Step | None) -> Evaluate | None:
    if isinstance(step, Evaluate):
        return step
    return Evaluate(Move(step.name, names=copy.copy(step))) if isinstance(step, Select | Drop | Rename) else None


__all__ = ["Evaluate", "Move", "filter_move", "fuse", "select_move", "with_columns_move"]
