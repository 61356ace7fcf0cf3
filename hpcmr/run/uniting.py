"""Several flows, one behind the other."""

from __future__ import annotations

from hpcmr.comm.world import World
from hpcmr.data.schema import Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.run.feed import UnionFeed
from hpcmr.run.flow import Flow, joined
from hpcmr.run.prepare import Chain, infer_columns


def unite(world: World, flows: list[Flow], label: str) -> Flow:
    """The rows of the first flow, then those of the second, and so on. Collective: yes."""
    chains = []
    for flow in flows:
        with world.together("bind the columns"):
            chain = Chain(flow.steps, flow.schema, None, flow.bound)
        infer_columns(world, chain, flow.feed)
        chains.append(chain)
    with world.together("bind the columns"):
        schema = common_schema([c.schema for c in chains], label)
    feed = UnionFeed([(f.feed, c) for f, c in zip(flows, chains, strict=True)], world.rank, world.size)
    behind = tuple(b for f in flows for b in f.behind)
    labels = (" and ".join(" -> ".join(f.labels) for f in flows if f.labels),)
    return Flow(feed, schema, (), labels, behind, None, joined(*(f.splits for f in flows)))


def common_schema(schemas: list[Schema], label: str) -> Schema:
    """The columns of all tables, which must agree in name, type and order. A table of which no row told its columns fits any."""
    known = [(i, s) for i, s in enumerate(schemas) if len(s)]
    if not known:
        return schemas[0]
    at, first = known[0]
    for i, other in known[1:]:
        if other != first:
            raise JobSpecError(f"{label}: {_difference(first, other, at + 1, i + 1)}; rename(), select() or a cast brings the tables together")
    attrs = {f.name: f.attrs for _, s in reversed(known) for f in s}
    return Schema(tuple(Field(f.name, f.type, attrs[f.name]) for f in first))


def _difference(first: Schema, other: Schema, a: int, b: int) -> str:
    for name in first.names:
        if name not in other:
            return f"table {b} has no column {name!r}, which table {a} has"
        if first[name].type != other[name].type:
            return f"column {name!r} is {first[name].type} in table {a} and {other[name].type} in table {b}"
    more = next((n for n in other.names if n not in first), None)
    if more is not None:
        return f"table {a} has no column {more!r}, which table {b} has"
    return f"the columns are in the order {', '.join(first.names)} in table {a} and {', '.join(other.names)} in table {b}"
