"""Dates and times in expressions: units, constants, and what may be done with them. A date that is none (NaT) stays one.

Inside compiled code a date is the int64 that NumPy holds; units are made the same here, where types are found.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.schema import ColumnType

if TYPE_CHECKING:
    from hpcmr.ops.expression_types import Node

CALENDAR = ("Y", "M")       # units whose length is not fixed


def of(value: Any) -> Any:
    """A date of Python's as NumPy's."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(value)


def _unit(node: Node) -> str:
    return str(np.datetime_data(node.dtype)[0])


def _as_date(node: Node, other: Node) -> Node:
    """A str beside a date is read as one."""
    from hpcmr.ops.expression_types import Trouble, literal

    if not (node.weak and node.is_string):
        return node
    text = node.extra.decode("utf-8", "replace")
    try:
        value = np.datetime64(text) if other.kind == "M" else None
    except ValueError:
        value = None
    if value is None:
        raise Trouble(f"{text!r} is no date; write for example '2024-05-31' or '2024-05-31T12:00'")
    return literal(value, ColumnType.fixed(value.dtype))


def _in_unit(node: Node, dtype: np.dtype[Any]) -> Node:
    """A date in a finer unit, or in the same."""
    from hpcmr.ops.expression_types import Node as Made
    from hpcmr.ops.expression_types import Trouble, literal

    if node.dtype == dtype:
        return node
    kind = ColumnType.fixed(dtype, node.type.shape)
    if node.op == "lit":
        return literal(node.extra.astype(dtype), kind)
    if _unit(node) in CALENDAR:
        raise Trouble(f"{node.type} has no fixed length in the unit of {kind}; use dates of days or finer")
    return Made("date_scale", kind, (node,), (_factor(node.dtype, dtype), 1))


def _factor(coarse: np.dtype[Any], fine: np.dtype[Any]) -> int:
    """How many of the fine unit there are in one of the coarse one."""
    return int(np.ones(1, np.int64).astype(f"m8[{_text(coarse)}]").astype(f"m8[{_text(fine)}]").astype(np.int64)[0])


def _text(dtype: np.dtype[Any]) -> str:
    unit, count = np.datetime_data(dtype)
    return f"{count if count != 1 else ''}{unit}"


def comparable(args: list[Node]) -> tuple[Node, Node]:
    """Two dates, or two durations, in the finer of their units."""
    from hpcmr.ops.expression_types import Trouble

    a, b = _as_date(args[0], args[1]), _as_date(args[1], args[0])
    if a.kind != b.kind:
        raise Trouble(f"{a.type} and {b.type} do not go together; give a date, for example '2024-05-31' or numpy.datetime64('2024-05-31')")
    try:
        unit = np.promote_types(a.dtype, b.dtype)
    except TypeError as error:
        raise Trouble(str(error)) from None
    return _in_unit(a, unit), _in_unit(b, unit)


def arithmetic(op: str, args: list[Node]) -> Node:
    """Date - date, date +- duration, duration +- duration."""
    from hpcmr.ops.expression import INFIX
    from hpcmr.ops.expression_types import Node as Made
    from hpcmr.ops.expression_types import Trouble, shape_of

    a, b = _as_date(args[0], args[1]) if op == "sub" else args[0], _as_date(args[1], args[0]) if op == "sub" else args[1]
    kinds = (a.kind, b.kind)
    made = {("sub", "M", "M"): "m", ("sub", "M", "m"): "M", ("add", "M", "m"): "M", ("add", "m", "M"): "M", ("add", "m", "m"): "m",
            ("sub", "m", "m"): "m"}.get((op, *kinds))
    if made is None:
        raise Trouble(f"{INFIX[op]} of {a.type} and {b.type} makes no sense; dates have date - date and date + duration, "
                      "a duration being numpy.timedelta64(1, 's'); x.cast('int64') gives the number that stands for it")
    units = [f"m8[{_text(n.dtype)}]" for n in (a, b)]
    try:
        unit = _text(np.promote_types(*units))
    except TypeError as error:
        raise Trouble(str(error)) from None
    left, right = _in_unit(a, np.dtype(f"{a.kind}8[{unit}]")), _in_unit(b, np.dtype(f"{b.kind}8[{unit}]"))
    return Made(f"date_{op}", ColumnType.fixed(f"{made}8[{unit}]", shape_of(a, b)), (left, right))


def cast(node: Node, dtype: np.dtype[Any]) -> Node:
    """Between units (down to the unit that holds the date), and between a date and the number that stands for it."""
    from hpcmr.ops.expression_types import Node as Made
    from hpcmr.ops.expression_types import Trouble, literal, to

    kind = ColumnType.fixed(dtype, node.type.shape)
    if node.kind == dtype.kind:
        if node.op == "lit":
            return literal(node.extra.astype(dtype), kind)
        if _unit(node) in CALENDAR or str(np.datetime_data(dtype)[0]) in CALENDAR:
            raise Trouble(f"{node.type} is not cast to {kind}: months and years have no fixed length")
        if np.promote_types(node.dtype, dtype) == dtype:
            return _in_unit(node, dtype)
        return Made("date_scale", kind, (node,), (1, _factor(dtype, node.dtype)))
    if dtype == np.int64 and not node.type.shape:
        return Made("date_number", kind, (node,))
    if node.kind and node.kind in "iu" and node.dtype != np.uint64:
        return Made("to", kind, (to(node, np.int64),))
    raise Trouble(f"{node.type} is not cast to {kind}; dates and durations are cast to other units and to int64, integers to dates")


def table(node: Node, values: list[Any]) -> tuple[Node, NDArray[Any]]:
    """Constants to look a date up in, and the date in their unit."""
    from hpcmr.ops.expression_types import Trouble

    try:
        found = np.array([np.datetime64(v) if node.kind == "M" else np.timedelta64(v) for v in values],
                         None if values else node.dtype)
        unit = np.promote_types(found.dtype, node.dtype)
    except (ValueError, TypeError):
        raise Trouble(f"is_in of {node.type} takes dates, for example ['2024-05-31']") from None
    found = found.astype(unit)
    return _in_unit(node, unit), found[~np.isnat(found)].view(np.int64)
