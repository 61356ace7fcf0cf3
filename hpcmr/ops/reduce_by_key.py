"""One row for each key, its values folded two at a time: ``reduce_by_key``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpcmr.data.batch import Batch, FixedColumn
from hpcmr.data.python_values import ValueTrouble, cast_batch
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.contract import Origin
from hpcmr.ops.fold import Fold
from hpcmr.ops.functions import schema_of
from hpcmr.ops.keyed_rows import ORIGIN, ORIGIN_BITS, Index, KeyedRows
from hpcmr.ops.map import slow_notice


class ReduceByKey(KeyedRows):
    """The values of each key folded with ``f(a, b)``. A `KeyedOperator`.

    Within a split they are folded in the order of the rows, then the partial results in the order of the splits; what a split is
    depends on the input alone.

    Parameters
    ----------
    function : callable or UserFunction
        See `hpcmr.ops.fold.Fold`.
    key : str or tuple of str
        Columns to group by; all others are values.
    out : dict of str to type, optional
        Types of the values, to which they are brought before they are folded; by default those that come in.
    exact : bool
        The function is associative and commutative and does not round: partial results may be folded across splits, in any order.
    """

    name = "reduce_by_key"

    def __init__(self, function: Callable[..., Any], key: str | tuple[str, ...] = "key", out: Mapping[str, Any] | Schema | None = None,
                 exact: bool = False) -> None:
        super().__init__((key,) if isinstance(key, str) else tuple(key))
        self.template = function
        self.fold = Fold(function)
        self.out = None if out is None else schema_of(out)
        self.exact = exact
        self.combines = "any" if exact else "split"

    @property
    def notice(self) -> str | None:
        return slow_notice(self.name, self.fold.function)

    def fingerprint(self) -> tuple[Any, ...]:
        return (self.name, self.keys, self.fold.fingerprint(), str(self.out.to_json()) if self.out is not None else None, self.exact)

    def bind(self, schema: Schema) -> Schema:
        values = self.bind_rows(schema)
        if not len(values):
            raise JobSpecError(f"reduce_by_key: there is no column beside {', '.join(self.keys)} to fold; "
                               "add one, or count with group_by(...).agg(...)")
        if self.out is not None:
            if set(self.out.names) != set(values.names):
                raise JobSpecError(f"reduce_by_key: out= declares {', '.join(self.out.names)}, the values are {', '.join(values.names)}")
            values = Schema(tuple(Field(f.name, self.out[f.name].type, f.attrs) for f in values))
        self.values = values
        self.fold = Fold(self.template)          # a plan's operator is copied for each action; this is the copy's own
        self.fold.bind(values)
        keys = tuple(Field(n, schema[n].type, schema[n].attrs) for n in self.keys)
        return Schema(keys + values.fields)

    def compile(self) -> None:
        """Compile a kernel, or load it from the cache. Raises `KernelError`."""
        self.fold.compile()

    def state_schema(self) -> Schema:
        return Schema(tuple(Field(f.name, self.values[f.name].type if f.name in self.values else f.type) for f in self.schema))

    def out_schema(self) -> Schema:
        return Schema(tuple(Field(n, self.schema[n].type) for n in self.keys) + self.values.fields)

    @property
    def object_nbytes(self) -> int:
        return 0 if self.fold.function.kind == "kernel" else self.python_nbytes(len(self.value_names))

    def prepared(self, batch: Batch, origin: Origin) -> Batch:
        if self.out is None:
            return batch
        try:
            cast = cast_batch(batch.select(self.value_names), self.values, True)
        except ValueTrouble as trouble:
            raise self.fold.function.fail(trouble.message, origin.row + trouble.index) from None
        return Batch({n: (cast if n in cast.columns else batch)[n] for n in batch.names}, batch.nrows)

    def combine(self, rows: Batch, order: Index, starts: Index) -> Batch:
        origin = rows[ORIGIN]
        assert isinstance(origin, FixedColumn)
        record = None if self.exact else int(origin.values[0]) & ((1 << ORIGIN_BITS) - 1)
        values = self.fold.run(rows.select(self.value_names), order, starts, record)
        firsts = rows.select((*self.keys, ORIGIN)).take(order[starts[:-1]])
        return Batch({n: (firsts if n in firsts.columns else values)[n] for n in (*self.schema.names, ORIGIN)}, len(starts) - 1)

    def finished(self, rows: Batch, order: Index, starts: Index) -> Batch:
        values = self.fold.run(rows.select(self.value_names), order, starts)
        return Batch({**self.firsts(rows, order, starts).columns, **values.columns})
