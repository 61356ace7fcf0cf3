"""Source of the compiled loop over nodes with types: one pass over the rows that filters them and computes all columns.

There are two loops, chosen for each batch: without nulls in what comes in, and with them. Values are computed where they are needed
first and once; a null's value is a zero of its type. With conditions, rows are taken in blocks: which ones stay, and then their columns
for these alone, so that nothing is computed for rows that go and no branch is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmr.data.schema import ColumnType
from hpcmr.ops.expression_types import COMPARISONS, FLOATS, Node

BLOCK = 1024
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
         "and": "&", "or": "|", "bitand": "&", "bitor": "|"}
BAKED = {"floordiv", "mod", "pow"}          # dividing by a constant is many times cheaper than by a value


def held(kind: ColumnType) -> str:
    """What an array of values is inside the compiled loop."""
    if kind.np_dtype.kind in "mM":
        return "int64"
    return "float32" if kind.dtype == "float16" else kind.dtype


def size(kind: ColumnType) -> int:
    return int(np.prod(kind.shape, dtype=np.int64))


def is_input(node: Node) -> bool:
    """Whether a node is read, not computed, by the compiled loop: columns, their parts, and what functions of strings give."""
    if node.op in ("col", "part", "view") or (node.op.startswith("s_") and node.type.is_fixed and node.kind != "S"):
        return True
    return node.op == "is_null" and (not node.args[0].kind or node.args[0].is_string)


@dataclass
class Source:
    """What the loop takes, and its text.

    Attributes
    ----------
    inputs : list of Node
        Arrays to read; a part of a column reads the column.
    literals : list of scalars
    tables : list of arrays
        Of `is_in`.
    nullable : list of set of int
        Outputs that may be null, without and with nulls in the inputs.
    """

    conditions: list[Node]
    outputs: list[Node]
    rows: bool
    inputs: list[Node] = field(default_factory=list)
    literals: list[Node] = field(default_factory=list)
    tables: list[Node] = field(default_factory=list)
    nullable: list[set[int]] = field(default_factory=lambda: [set(), set()])
    text: str = ""

    def __post_init__(self) -> None:
        self._places: dict[str, int] = {}
        loops = [self._loop(False), self._loop(True)]
        lines = [f"def drive({', '.join(name for name, _, _ in self.arguments())}):", "    k = np.int64(0)", "    if nulls:",
                 *indented(loops[1], 2), "    else:", *indented(loops[0], 2), "    return k", ""]
        self.text = "\n".join(lines)

    def arguments(self) -> list[tuple[str, str, str]]:
        """Name, kind (see `hpcmr.kernels.expression.build`) and dtype of each argument, in order."""
        found = [("n", "scalar", "int64"), ("nulls", "scalar", "bool")]
        found += [(f"x{i}", "in", held(node.type)) for i, node in enumerate(self.inputs)]
        found += [(f"m{i}", "in", "bool") for i in range(len(self.inputs))]
        found += [(f"l{i}", "scalar", held(node.type)) for i, node in enumerate(self.literals)]
        found += [(f"s{i}", "in", node.extra.dtype.name) for i, node in enumerate(self.tables)]
        found += [(f"y{q}", "out", held(node.type)) for q, node in enumerate(self.outputs)]
        found += [(f"v{q}", "out", "bool") for q in sorted(self.nullable[1])]
        return [*found, ("rows", "out", "uint64")]

    def place(self, node: Node, kind: str) -> int:
        """Number of an input, a literal or a table."""
        listed = {"x": self.inputs, "l": self.literals, "s": self.tables}[kind]
        key = kind + node.key
        if key not in self._places:
            self._places[key] = len(listed)
            listed.append(node)
        return self._places[key]

    def _loop(self, masked: bool) -> list[str]:
        if not self.conditions:
            return ["for i in range(n):", "    u = np.uint64(i)", "    w = u", *indented(self._stores(masked), 1), "k = n"]
        asked = Body(self, masked)
        keep = " & ".join(asked.true(c) for c in self.conditions)
        base = "k" if self.rows else "0"
        return [
            "start = np.int64(0)",
            "while start < n:",
            f"    stop = min(n, start + {BLOCK})",
            "    c = np.int64(0)",
            "    for i in range(start, stop):",
            "        u = np.uint64(i)",
            *indented(asked.lines, 2),
            f"        rows[np.uint64({base} + c)] = u",
            f"        c += np.int64({keep})",
            *([
                "    for a in range(c):",
                f"        u = rows[np.uint64({base} + a)]",
                "        w = np.uint64(k + a)",
                *indented(self._stores(masked), 2)] if self.outputs else []),
            "    k += c",
            "    start = stop",
        ]

    def _stores(self, masked: bool) -> list[str]:
        body = Body(self, masked)
        for q, node in enumerate(self.outputs):
            ok, parts = body.ok(node), size(node.type)
            if ok:
                self.nullable[masked].add(q)
                body.lines.append(f"v{q}[w] = {ok}")
            value = body.value(node)
            stored = f"({value} if {ok} else np.{_cast_name(node)}(0))" if ok else value
            if node.type.shape:
                body.lines += [f"for j in range({parts}):", *indented(body.take_inner(), 1),
                               f"    y{q}[w * np.uint64({parts}) + np.uint64(j)] = {stored}"]
            else:
                body.lines.append(f"y{q}[w] = {stored}")
        return body.lines


def indented(lines: list[str], depth: int) -> list[str]:
    return ["    " * depth + line for line in lines]


def _cast_name(node: Node) -> str:
    name = held(node.type)
    return "bool_" if name == "bool" else name


class Body:
    """Statements for one row, each value once; those for each component of a row that has a shape are kept apart."""

    def __init__(self, source: Source, masked: bool) -> None:
        self.source = source
        self.masked = masked
        self.lines: list[str] = []
        self.inner: list[str] = []
        self._values: dict[str, str] = {}
        self._inner_values: dict[str, str] = {}
        self._oks: dict[str, str] = {}
        self._names = 0

    def take_inner(self) -> list[str]:
        lines, self.inner = self.inner, []
        self._inner_values.clear()
        return lines

    def true(self, node: Node) -> str:
        """Whether a condition is true: not false, not null."""
        value, ok = self.value(node), self.ok(node)
        return f"({value} & {ok})" if ok else value

    # ---- values ----------------------------------------------------------------------------------------------------

    def value(self, node: Node) -> str:
        """Text of a node's value; its statements are written."""
        memo, lines = (self._inner_values, self.inner) if node.type.shape else (self._values, self.lines)
        if node.key not in memo:
            text = self._literal(node) if node.op == "lit" else self._read(node) if is_input(node) else self._computed(node)
            memo[node.key] = self._named("t", text, lines)
        return memo[node.key]

    def _named(self, letter: str, text: str, lines: list[str]) -> str:
        self._names += 1
        name = f"{letter}{self._names}"
        lines.append(f"{name} = {text}")
        return name

    def _literal(self, node: Node) -> str:
        return f"l{self.source.place(node, 'l')}"

    def _read(self, node: Node) -> str:
        if node.op == "part":
            k, parts = self.source.place(node.args[0], "x"), size(node.args[0].type)
            return f"x{k}[u * np.uint64({parts}) + np.uint64({node.extra})]"
        k = self.source.place(node, "x")
        return f"x{k}[u * np.uint64({size(node.type)}) + np.uint64(j)]" if node.type.shape else f"x{k}[u]"

    def _computed(self, node: Node) -> str:
        op = node.op
        if op == "is_null":
            ok = self.ok(node.args[0])
            return f"not {ok}" if ok else "False"
        if op == "when":
            return self._when(node)
        if op == "fill_null":
            ok, a, b = self.ok(node.args[0]), self.value(node.args[0]), self.value(node.args[1])
            return f"{a} if {ok} else {b}" if ok else a
        if op in BAKED:
            return self._divided(node)
        args = [self.value(a) for a in node.args]
        if op in COMPARISONS:
            return self._compared(op, node.args[0], *args)
        if op in ("and", "or"):
            return f"{args[0]} {SIGNS[op]} {args[1]}"
        if op in SIGNS:
            return f"np.{_cast_name(node)}({args[0]} {SIGNS[op]} {args[1]})"
        return self._function(node, args)

    def _compared(self, op: str, first: Node, a: str, b: str) -> str:
        text = f"{a} {SIGNS[op]} {b}"
        if first.kind in "mM":
            return f"({text}) | ({a} == m.NAT) | ({b} == m.NAT)" if op == "ne" else f"({text}) & ({a} != m.NAT) & ({b} != m.NAT)"
        return text

    def _function(self, node: Node, args: list[str]) -> str:
        op, x, name = node.op, args[0], _cast_name(node)
        kind = node.args[0].kind
        if op in ("to", "cast"):
            return self._cast(node, x)
        if op == "neg":
            return f"m.date_neg({x})" if kind == "m" else f"np.{name}(-{x})"
        if op == "round":
            return f"np.{name}(np.rint({x}))" if not node.extra else f"np.{name}(m.round_to(np.float64({x}), {10.0 ** node.extra}))"
        if op in FLOATS and op != "sqrt" and name == "float32":
            return f"np.float32(np.{op}(np.float64({x})))"          # rounded once; and the compiler mixes up log2 of both widths
        if op in FLOATS or op in ("floor", "ceil"):
            return f"np.{name}(np.{op}({x}))"
        if op == "is_nan":
            return f"{x} != {x}" if kind in "fc" else f"{x} == m.NAT" if kind in "mM" else "False"
        if op == "is_in":
            return f"m.is_in({x}, s{self.source.place(node, 's')})"
        if op == "date_scale":
            return f"m.date_scale({x}, np.int64({node.extra[0]}), np.int64({node.extra[1]}))"
        if op in ("date_add", "date_sub") or op.startswith("mixed_"):
            return f"m.{op}({x}, {args[1]})"
        return {"not": f"not {x}", "bitnot": f"np.{name}(~{x})", "abs": f"np.{name}(abs({x}))", "date_number": x}[op]

    def _cast(self, node: Node, x: str) -> str:
        name, have = _cast_name(node), node.args[0].kind
        if name == "bool_":
            return f"{x} != 0"
        if node.op == "cast" and have == "f":
            ok = self._fits(node)
            return f"np.{name}({x} if {ok} else np.{held(node.args[0].type)}(0))"
        return f"np.{name}({x})"

    def _divided(self, node: Node) -> str:
        """``// % **``: constants on the right are written into the source."""
        a, right, name = self.value(node.args[0]), node.args[1], _cast_name(node)
        wide = {"i": "int64", "u": "uint64", "f": "float64"}[node.kind]
        if node.op == "pow" and node.kind == "f" and right.op == "lit" and right.extra in (0.5, 1.0, 2.0):
            return {0.5: f"np.{name}(np.sqrt({a}))", 1.0: a, 2.0: f"np.{name}({a} * {a})"}[float(right.extra)]
        b = f"np.{wide}({_number(right.extra)})" if right.op == "lit" else f"np.{wide}({self.value(right)})"
        if node.op == "pow":
            return f"np.{name}(m.power_{node.kind}(np.{wide}({a}), {b}))" if node.kind != "f" else f"np.{name}({a} ** np.{name}({b}))"
        return f"np.{name}(m.{node.op}_{node.kind}(np.{wide}({a}), {b}))"

    def _when(self, node: Node) -> str:
        condition = self._condition(node)
        a = self.value(node.args[1])
        return f"{a} if {condition} else {self.value(node.args[2])}" if len(node.args) > 2 else a

    def _condition(self, node: Node) -> str:
        key = "?" + node.args[0].key
        if key not in self._oks:
            self._oks[key] = self._named("c", self.true(node.args[0]), self.lines)
        return self._oks[key]

    # ---- nulls -----------------------------------------------------------------------------------------------------

    def ok(self, node: Node) -> str:
        """Text that tells whether a row has a value; empty where each has. Of a row with a shape, for all components."""
        if node.key not in self._oks:
            text = self._ok(node)
            self._oks[node.key] = text if not text or text.isalnum() else self._named("o", text, self.lines)
        return self._oks[node.key]

    def _ok(self, node: Node) -> str:
        op = node.op
        if is_input(node):
            if not self.masked or op == "is_null":
                return ""
            return f"m{self.source.place(node.args[0] if op == 'part' else node, 'x')}[u]"
        if op in ("lit", "is_null"):
            return ""
        oks = [self.ok(a) for a in node.args]
        if op == "fill_null":
            return f"{oks[0]} | {oks[1]}" if all(oks) else ""
        if op == "when":
            return self._ok_when(node, oks)
        if op in ("and", "or") and not node.type.shape:
            return self._ok_logic(node, oks)
        return " & ".join([o for o in dict.fromkeys(oks) if o] + ([more] if (more := self._defined(node)) else []))

    def _ok_when(self, node: Node, oks: list[str]) -> str:
        a, b = oks[1] or "True", (oks[2] or "True") if len(oks) > 2 else "False"
        return "" if a == b == "True" else f"{a} if {self._condition(node)} else {b}"

    def _ok_logic(self, node: Node, oks: list[str]) -> str:
        """Three values: false & null is false, true | null is true."""
        if not any(oks):
            return ""
        sign = "not " if node.op == "and" else ""
        (a, oa), (b, ob) = ((self.value(n), o) for n, o in zip(node.args, oks, strict=True))
        alone = [f"({o + ' & ' if o else ''}({sign}{v}))" for v, o in ((a, oa), (b, ob))]
        return f"({' & '.join(o for o in (oa, ob) if o)}) | {' | '.join(alone)}"

    def _defined(self, node: Node) -> str:
        """Text that tells whether an operation has a value for its operands; empty where it always has."""
        op = node.op
        if op in ("floordiv", "mod") and node.kind in "iu":
            return self._nonzero(node.args[1], "!= 0")
        if op == "pow" and node.kind == "i":
            return self._nonzero(node.args[1], ">= 0")
        if op == "date_number":
            return f"({self.value(node.args[0])} != m.NAT)"
        return self._fits(node) if op == "cast" else ""

    def _nonzero(self, right: Node, test: str) -> str:
        if right.op == "lit":
            return "" if right.extra != 0 or test == ">= 0" else "False"
        return f"({self.value(right)} {test})"

    def _fits(self, node: Node) -> str:
        """Whether the integer type of a cast holds the value."""
        key = "fits" + node.key
        if key not in self._oks:
            self._oks[key] = self._named("f", _range_test(self.value(node.args[0]), node.args[0].type, node.dtype), self.lines)
        return self._oks[key]


def _number(value: Any) -> str:
    """A constant as source text, exactly."""
    x = value.item()
    if x != x or x in (float("inf"), float("-inf")):
        return "np.nan" if x != x else "np.inf" if x > 0 else "-np.inf"
    return repr(x)


def _range_test(x: str, have: ColumnType, want: np.dtype[Any]) -> str:
    to, kind = np.iinfo(want), have.np_dtype.kind
    if kind == "f":
        # The ends of the range are powers of two, so that floats hold them; what is cut off lies inside of them.
        return f"((np.trunc(np.float64({x})) >= {float(to.min)!r}) & (np.float64({x}) < {float(int(to.max) + 1)!r}))"
    if kind == "b":
        return "True"
    of = np.iinfo(have.np_dtype)
    low = f"({x} >= np.{have.dtype}({to.min}))" if of.min < to.min else ""
    high = f"({x} <= np.{have.dtype}({to.max}))" if of.max > to.max else ""
    return " & ".join(t for t in (low, high) if t) or "True"
