"""From a checked job file to a `Table` of the columns ``key`` and ``value``: the same nodes that a ``job(ctx)`` would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcmr.api.functions import batch
from hpcmr.api.jobfile import JobFile, is_users
from hpcmr.api.jobspec import load_function
from hpcmr.api.reading import read_hdf5
from hpcmr.api.table import Table
from hpcmr.errors import JobSpecError
from hpcmr.io.text import TextSource
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.contract import KeyedOperator, Step
from hpcmr.plan.nodes import Apply, Keyed, Node, Read

COUNTED = ("sum", "count")
AGGREGATES = ("sum", "count", "min", "max", "mean", "first")


def table_of(job: JobFile) -> Table:
    """The table that a job file describes. Loads the functions of the user's that it names.

    Raises
    ------
    JobSpecError
        A function cannot be found, or a key does not fit the others.
    """
    mapped, has_value = _mapped(job)
    operator = _reducer(job, has_value)
    partitions = job["shuffle.partitions"]
    label = f"reduce {job['reduce.function']}" + (f", combine {job['combine.function']}" if job["combine.function"] else "")
    return Table(_sorted(job, Keyed(label, _place(job, "reduce.function"), mapped, operator, partitions)))


def _sorted(job: JobFile, node: Node) -> Node:
    """The reducer's rows in the order that the file asks for."""
    by, told = job["output.sort"], "output.sort"
    if by is not None and job["reduce.order"] == "descending":
        raise job.fail("reduce.order", "[output] sort orders the whole output; give its direction as [output] order, and leave this out")
    if by is None and job["output.order"] is not None:
        raise job.fail("output.order", "it goes with sort = 'key' or sort = 'value'")
    if by is None and job["reduce.order"] == "descending":
        by, told = "key", "reduce.order"
    if by is None:
        return node
    from hpcmr.ops.sort import Sort

    down = "descending" in (job["output.order"], job["reduce.order"])
    columns = ["key"] if by == "key" else ["value", "key"]
    return Keyed(f"sort by {by}{' descending' if down else ''}", _place(job, told), node, Sort(columns, [down, False][:len(columns)]), None)


def functions_of(job: JobFile) -> list[Callable[..., Any]]:
    """The functions of the user's that a job file names, loaded."""
    keys = ("map.function", "combine.function", "reduce.function")
    return [_load(job, key) for key in keys if job[key] is not None and is_users(job[key])]


def _load(job: JobFile, key: str) -> Callable[..., Any]:
    try:
        return load_function(job[key], Path(job.folders[key]))
    except JobSpecError as error:
        raise job.fail(key, error.message) from error


def _place(job: JobFile, key: str) -> str:
    place = job.places.get(key, "")
    return place if place.startswith("--set") else Path(place).name


# ---- map -------------------------------------------------------------------------------------------------------------------


def _mapped(job: JobFile) -> tuple[Node, bool]:
    """The node that yields ``key`` and ``value``, and whether there is a column ``value``: each row counts 1 without it."""
    function = job["map.function"]
    if is_users(function):
        return _users_mapper(job)
    node, has_value = _BUILT_IN[function](job, job["map.value"])
    value = 1 if job["map.value"] is None else job["map.value"]
    reducer = job["reduce.function"]
    counted = value == 1 and isinstance(value, int) and reducer in COUNTED and job["combine.function"] in (None, reducer)
    if has_value or counted:
        return node, has_value
    from hpcmr.ops.with_columns import WithColumns

    return Apply(f"value = {value}", _place(job, "map.value"), node, WithColumns({"value": value})), True


def _text(job: JobFile, file: str | None, whole_blocks: bool = False) -> Node:
    paths = job["input.paths"]
    return Read(f"text {', '.join(paths)}", _place(job, "input.paths"), TextSource(paths, file=file, whole_blocks=whole_blocks))


def _words(job: JobFile, value: Any) -> tuple[Node, bool]:
    from hpcmr.ops.words import Words

    file = "value" if value == "file" else None
    step = Words(name="key", lowercase=bool(job["map.lowercase"]), strip_punctuation=bool(job["map.strip_punctuation"]), keep=[file] if file else [])
    return _step(job, "words", _text(job, file, whole_blocks=True), step), file is not None


def _lines(job: JobFile, value: Any) -> tuple[Node, bool]:
    from hpcmr.ops.lines import Lines

    file = "value" if value == "file" else None
    return _step(job, "lines", _text(job, file), Lines(name="key", keep=[file] if file else [])), file is not None


def _regex(job: JobFile, value: Any) -> tuple[Node, bool]:
    from hpcmr.ops.regex import Regex

    pattern = job["map.pattern"]
    groups, types = _fields({"key": job["map.key"], "value": value})
    groups.setdefault("key", 1 if Regex(pattern).compiled.groups else 0)
    return _text_step(job, "regex", groups, lambda keep: Regex(pattern, groups, types=types, keep=keep), value)


def _columns(job: JobFile, value: Any) -> tuple[Node, bool]:
    from hpcmr.ops.split_columns import SplitColumns

    if job["input.format"] == "hdf5":
        return _hdf5_columns(job, value)
    fields, types = _fields({"key": job["map.key"], "value": value})
    for name, field in fields.items():
        if isinstance(field, str):
            raise job.fail(f"map.{name}", f"{name} = {field!r}: fields of text are numbered, from 1; {name} = 1 or {name} = '1:int64' is the first")
    numbers = {name: int(field) for name, field in fields.items()}
    return _text_step(job, "columns", fields, lambda keep: SplitColumns(numbers, types=types, keep=keep), value)


def _text_step(job: JobFile, name: str, fields: dict[str, int | str], make: Callable[[list[str]], Step], value: Any) -> tuple[Node, bool]:
    """A step that takes ``key`` and perhaps ``value`` out of lines; the value may be the document instead."""
    file = "value" if value == "file" else None
    try:
        step = make([file] if file else [])
    except JobSpecError as error:
        raise job.fail("map.pattern" if name == "regex" else "map.key", error.message) from error
    return _step(job, name, _text(job, file), step), file is not None or "value" in fields


def _fields(told: dict[str, Any]) -> tuple[dict[str, int | str], dict[str, str]]:
    """Fields or groups and their types from ``2``, ``"2:int64"``, ``"size"`` or ``"size:float64"``; 'file' is neither."""
    fields: dict[str, int | str] = {}
    types: dict[str, str] = {}
    for name, field in told.items():
        if field is None or field == "file":
            continue
        group, colon, kind = str(field).rpartition(":")
        if not colon:
            group, kind = str(field), ""
        fields[name] = int(group) if group.isdecimal() else group
        if kind:
            types[name] = kind
    return fields, types


def _hdf5_columns(job: JobFile, value: Any) -> tuple[Node, bool]:
    from hpcmr.ops.rename import Rename

    key = job["map.key"]
    if not isinstance(key, str):
        raise job.fail("map.key", f"key = {key!r}: the columns of an HDF5 input have names")
    column = value if isinstance(value, str) and value != "file" else None
    file = "value" if value == "file" else None
    wanted = [key, column] if column and column != key else [key]
    node = read_hdf5(job["input.paths"], job["input.group"] or "/", job["input.columns"] or wanted, file=file, follow=job["input.follow"] or ())._node
    if column == key:
        return _step(job, "columns", node, _twice(key)), True
    names = {a: b for a, b in zip(wanted, ("key", "value"), strict=False) if a != b}
    if job["input.columns"] is not None:
        from hpcmr.ops.select import Select

        node = _step(job, "select", node, Select([*wanted, *([file] if file else [])]))
    return _step(job, "columns", node, Rename(names)) if names else node, file is not None or column is not None


def _twice(key: str) -> Step:
    """The step that makes both key and value of one column."""
    from hpcmr.ops.map import Map

    return Map(batch(lambda cols: {"key": cols[key], "value": cols[key]}))


def _users_mapper(job: JobFile) -> tuple[Node, bool]:
    from hpcmr.ops.flat_map import FlatMap

    file = "file" if job["map.value"] == "file" else None
    if job["input.format"] == "hdf5":
        node = read_hdf5(job["input.paths"], job["input.group"] or "/", job["input.columns"], file=file, follow=job["input.follow"] or ())._node
    else:
        node = _text(job, file)
    return _step(job, job["map.function"], node, FlatMap(_load(job, "map.function"))), True


def _step(job: JobFile, label: str, parent: Node, step: Step) -> Node:
    return Apply(f"map {label}", _place(job, "map.function"), parent, step)


_BUILT_IN: dict[str, Callable[[JobFile, Any], tuple[Node, bool]]] = {"words": _words, "lines": _lines, "columns": _columns, "regex": _regex}


# ---- reduce ----------------------------------------------------------------------------------------------------------------


def _reducer(job: JobFile, has_value: bool) -> KeyedOperator:
    function, combine = job["reduce.function"], job["combine.function"]
    if function in AGGREGATES and (combine is None or combine == function):
        from hpcmr.ops.aggregate import Aggregate

        # Each row counts 1 where nobody said otherwise: then the sum of the values is the number of rows.
        counted = function == "count" or not has_value
        return Aggregate(("key",), (Agg("count", None, "value") if counted else Agg(function, "value", "value"),))
    if combine is not None and not is_users(function):
        raise job.fail("combine.function", f"reduce function = {function!r} is built in and folds by itself; leave [combine] out")
    from hpcmr.ops.group import GroupRows

    combiner = _load(job, "combine.function") if combine is not None and is_users(combine) else combine
    grouped: Any = GroupRows(("key",), _load(job, "reduce.function") if is_users(function) else function, combiner)
    return grouped  # type: ignore[no-any-return]
