"""The job file: reads TOML, checks every key, and says what is wrong with file, line, key and the valid ones.

What comes out is a `JobFile` of plain values, so that rank 0 can read it and hand it to the others. `hpcmr.api.jobplan` makes
a `Table` of it.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmr.errors import JobSpecError

MAPPERS = ("words", "lines", "columns", "regex")
REDUCERS = ("sum", "count", "min", "max", "mean", "first", "list", "distinct")
COMBINERS = ("sum", "min", "max", "first")
HDF5_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")
JOB_FILE_NBYTES_MAX = 1 << 20
NAME_MAX = 100
DEPTH_MAX = 64
NUMBER_MAX = (1 << 63) - 1
SHOWN_MAX = 200
LINE_MAX = 1000
"""Characters of a line in which a key is looked for."""


@dataclass(frozen=True)
class Key:
    """What a key of the job file may hold."""

    wanted: str
    types: tuple[type, ...]
    required: bool = False
    choices: tuple[str, ...] = ()


_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*'""")
_IN_PATHS = ("job.name", "input.paths", "input.follow", "output.path", "map.function", "combine.function", "reduce.function")
_FUNCTION = " or a function of yours as 'module:function' or 'file.py:function'"
KEYS: dict[str, dict[str, Key]] = {
    "job": {"name": Key("a string", (str,))},
    "input": {
        "format": Key("'text' or 'hdf5'", (str,), choices=("text", "hdf5")),
        "paths": Key("a file, folder or glob, or a list of these", (str, list), required=True),
        "group": Key("the path of an HDF5 group or data set", (str,)),
        "columns": Key("a list of column names", (list,)),
        "follow": Key("a folder that links in HDF5 files may lead to, or a list of these", (str, list)),
    },
    "map": {
        "function": Key(f"one of {', '.join(MAPPERS)}{_FUNCTION}", (str,), required=True),
        "key": Key("a column, a field number or a group of the pattern", (str, int)),
        "value": Key("a column, a field number, a group of the pattern, 'file', or a number for every row", (str, int, float)),
        "lowercase": Key("true or false", (bool,)),
        "strip_punctuation": Key("true or false", (bool,)),
        "pattern": Key("a regular expression", (str,)),
    },
    "combine": {"function": Key(f"one of {', '.join(COMBINERS)}{_FUNCTION}", (str,))},
    "shuffle": {
        "partitions": Key("a power of two", (int,)),
        "partitioner": Key("'hash'", (str,), choices=("hash",)),
    },
    "reduce": {
        "function": Key(f"one of {', '.join(REDUCERS)}{_FUNCTION}", (str,), required=True),
        "order": Key("'ascending' or 'descending'", (str,), choices=("ascending", "descending")),
    },
    "output": {
        "path": Key("a folder", (str,)),
        "sort": Key("'key' or 'value'", (str,), choices=("key", "value")),
        "order": Key("'ascending' or 'descending'", (str,), choices=("ascending", "descending")),
        "share": Key("'group'", (str,), choices=("group",)),
    },
}


_NO_PATHS = ("sort", "order", "share")       # keys of [output] that name no folder


@dataclass(frozen=True)
class Setting:
    """One ``--set KEY=VALUE`` of the command line: dotted key, value, and the text as it was typed."""

    key: tuple[str, ...]
    value: Any
    text: str


@dataclass(frozen=True)
class JobFile:
    """A checked job file. `values` holds ``table.key``; paths are absolute; `places` tells where a key stands, for messages."""

    path: str
    values: Mapping[str, Any]
    places: Mapping[str, str] = field(compare=False)
    folders: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key)

    def fail(self, key: str, why: str) -> JobSpecError:
        """The error that `why` is wrong with `key`."""
        return JobSpecError(f"{self.places.get(key, self.path)}: {why}")


def parse_settings(pairs: list[str]) -> list[Setting]:
    """The ``--set`` options: values are read as TOML, else taken as plain strings; keys may be dotted."""
    found = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        parts = tuple(name.strip().split("."))
        if not equals or not all(parts):
            raise JobSpecError(f"--set {pair}: write KEY=VALUE, for example --set output.path=out")
        found.append(Setting(parts, _toml_value(text), pair))
    return found


def task_settings(pairs: list[str], array_id: int | None) -> list[Setting]:
    """The ``--set`` options of one task of an array: ``{array}`` is its id, and an output whose path does not say so gets a folder of that name."""
    if array_id is None:
        return parse_settings(pairs)
    found = parse_settings([pair.replace("{array}", str(array_id)) for pair in pairs])
    return [_own_folder(s, array_id) if "{array}" not in pair else s for pair, s in zip(pairs, found, strict=True)]


def _own_folder(setting: Setting, array_id: int) -> Setting:
    names_a_folder = setting.key[0] == "output" and len(setting.key) == 2 and setting.key[1] not in _NO_PATHS and isinstance(setting.value, str)
    return Setting(setting.key, f"{setting.value}/{array_id}", setting.text) if names_a_folder else setting


def _toml_value(text: str) -> Any:
    try:
        return _parsed(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise JobSpecError(f"--set: the value {text[:SHOWN_MAX]!r} cannot be read: {_too_much(error)}") from None


def nested(settings: list[Setting]) -> dict[str, Any]:
    """The settings as nested dicts, as a ``.py`` job sees them in ``ctx.params``."""
    found: dict[str, Any] = {}
    for setting in settings:
        at = found
        for part in setting.key[:-1]:
            below = at.setdefault(part, {})
            if not isinstance(below, dict):
                raise JobSpecError(f"--set {setting.text}: {part!r} is a value already, it cannot have keys")
            at = below
        if isinstance(at.get(setting.key[-1]), dict):
            raise JobSpecError(f"--set {setting.text}: {'.'.join(setting.key)!r} has keys already, it cannot be a value")
        at[setting.key[-1]] = setting.value
    return found


def read_job_file(path: Path, settings: list[Setting]) -> JobFile:
    """Read and check a job file, with `settings` in place of the keys they name.

    Raises
    ------
    JobSpecError
        Not readable, no TOML, or a key is unknown, missing, of the wrong type or without meaning beside the others.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(JOB_FILE_NBYTES_MAX + 1)
        if len(raw) > JOB_FILE_NBYTES_MAX:
            raise JobSpecError(f"{path}: the job file has {path.stat().st_size:,} bytes, more than {JOB_FILE_NBYTES_MAX:,}; data belong into "
                               "the files that [input] paths names")
        text = raw.decode()
        document = _parsed(text)
    except OSError as error:
        raise JobSpecError(f"{path}: the job file cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise JobSpecError(f"{path}: a job file is UTF-8 text, byte {error.start} is not") from error
    except tomllib.TOMLDecodeError as error:
        raise JobSpecError(_malformed(path, str(error))) from error
    except (ValueError, RecursionError) as error:
        raise JobSpecError(f"{path}: the job file cannot be read: {_too_much(error)}") from None
    lines = scan_lines(text)
    places = {".".join(key): f"{path}:{line}" for key, line in lines.items()}
    _check_tables(document, path, lines)
    values = {f"{table}.{key}": value for table, keys in document.items() for key, value in keys.items()}
    folders = dict.fromkeys(values, str(path.resolve().parent))
    for setting in settings:
        name = ".".join(setting.key)
        places[name] = f"--set {setting.text}"
        _check_known(setting.key, places[name])
        values[name], folders[name] = setting.value, str(Path.cwd())
    for table, keys in KEYS.items():
        for key, rule in keys.items():
            _check_value(f"{table}.{key}", rule, values, places, path)
    job = JobFile(str(path), _with_defaults(values, folders, path), places, folders)
    check_together(job)
    return job


def _parsed(text: str) -> dict[str, Any]:
    """The document; a dotted key of many parts, for which tomllib takes the square of their number, counts as nested too deeply."""
    depth = 0
    for part in text.split(".")[1:-1]:
        depth = depth + 1 if _KEY_PART.fullmatch(part.strip()) else 0
        if depth > DEPTH_MAX:
            raise RecursionError
    return tomllib.loads(text)


def _too_much(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number or a date in it is out of range"


def _malformed(path: Path, said: str) -> str:
    at = re.search(r"\(at line (\d+), column (\d+)\)", said)
    why = said[:at.start()].strip() if at else said
    return f"{path}{f':{at[1]}' if at else ''}: this is no TOML: {why}{f' (column {at[2]})' if at else ''}"


def scan_lines(text: str) -> dict[tuple[str, ...], int]:
    """Line, from 1, of each table and key. A scan of the text, good enough to point at things: tomllib keeps no lines."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate((whole[:LINE_MAX].strip() for whole in text.splitlines()), 1):
        header = re.match(r"\[\[?([^\[\]]+)\]", line)
        pair = re.match(r"""([A-Za-z0-9_\-."' \t]+)=""", line)
        if header:
            table = _parts(header[1])
            found.setdefault(table, number)
        elif pair:
            key = (*table, *_parts(pair[1]))
            for depth in range(1, len(key) + 1):
                found.setdefault(key[:depth], number)
    return found


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_tables(document: dict[str, Any], path: Path, lines: dict[tuple[str, ...], int]) -> None:
    for table, keys in document.items():
        at = f"{path}:{lines.get((table,), 1)}"
        if not isinstance(keys, dict):
            if table in KEYS:
                raise JobSpecError(f"{at}: {_shown(table)} must be a table: write [{table}] on a line of its own")
            raise JobSpecError(f"{at}: {_shown(table)} stands outside of any table; the tables are {_tables()}")
        _check_known((table,), at)
        for key in keys:
            _check_known((table, key), f"{path}:{lines.get((table, key), lines.get((table,), 1))}")


def _tables() -> str:
    return ", ".join(f"[{t}]" for t in KEYS)


def _check_known(key: tuple[str, ...], at: str) -> None:
    if key[0] not in KEYS:
        raise JobSpecError(f"{at}: there is no table [{key[0][:SHOWN_MAX]}]; the tables are {_tables()}{_near(key[0], list(KEYS))}")
    known = KEYS[key[0]]
    if len(key) == 2 and key[1] not in known:
        raise JobSpecError(f"{at}: [{key[0]}] has no key {_shown(key[1])}; its keys are {', '.join(known)}{_near(key[1], list(known))}")
    if len(key) > 2 or (len(key) == 1 and at.startswith("--set")):
        raise JobSpecError(f"{at}: keys are TABLE.KEY; those of [{key[0]}] are {', '.join(f'{key[0]}.{k}' for k in known)}")


def _check_value(name: str, rule: Key, values: dict[str, Any], places: dict[str, str], path: Path) -> None:
    table, _, key = name.partition(".")
    if name not in values:
        if rule.required:
            at = places.get(table, f"{path}:1")
            raise JobSpecError(f"{at}: [{table}] needs the key {key!r}: {rule.wanted}; its keys are {', '.join(KEYS[table])}")
        return
    value = values[name]
    if type(value) is int and abs(value) > NUMBER_MAX:
        raise JobSpecError(f"{places[name]}: {key} in [{table}] is a number that does not fit in 64 bits")
    fits = isinstance(value, rule.types) and (not isinstance(value, bool) or bool in rule.types)
    if fits and isinstance(value, list):
        fits = bool(value) and all(isinstance(v, str) for v in value)
    if not fits or (rule.choices and value not in rule.choices):
        raise JobSpecError(f"{places[name]}: {key} = {_shown(value)} in [{table}]: {key!r} must be {rule.wanted}; "
                           f"the keys of [{table}] are {', '.join(KEYS[table])}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and name in _IN_PATHS and (bad := re.search(r"[\0-\x1f\x7f]", text)):
            raise JobSpecError(f"{places[name]}: {key} = {_shown(text)} in [{table}]: there is a control character in it ({bad[0]!r})")


def _shown(value: Any) -> str:
    try:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
    except (ValueError, RecursionError):        # of a number with thousands of digits, say
        return f"a {type(value).__name__} that is too large to be shown"
    return shown if len(shown) <= SHOWN_MAX else f"{shown[:SHOWN_MAX]}..."


def _with_defaults(values: dict[str, Any], folders: dict[str, str], path: Path) -> dict[str, Any]:
    found = dict(values)
    paths = values["input.paths"]
    here = folders["input.paths"]
    found["input.paths"] = [_absolute(p, here) for p in ([paths] if isinstance(paths, str) else paths)]
    if "input.follow" in values:
        follow, here = values["input.follow"], folders["input.follow"]
        found["input.follow"] = [os.path.join(here, os.path.expanduser(f)) for f in ([follow] if isinstance(follow, str) else follow)]
    found.setdefault("job.name", path.stem)
    found.setdefault("reduce.order", "ascending")
    if "input.format" not in values:
        of_hdf5 = all(p.lower().endswith(HDF5_ENDINGS) for p in found["input.paths"])
        found["input.format"] = "hdf5" if of_hdf5 else "text"
    if "output.path" in values:
        found["output.path"] = os.path.join(folders["output.path"], os.path.expanduser(values["output.path"]))
    return found


def _absolute(pattern: str, folder: str) -> str:
    """`pattern` seen from `folder`; glob characters in the folder's own name mean themselves."""
    expanded = os.path.expanduser(pattern)
    if os.path.isabs(expanded):
        return expanded
    literal = os.path.join(folder, expanded)
    return literal if os.path.lexists(literal) else os.path.join(glob.escape(folder), expanded)


def is_users(function: str) -> bool:
    """Whether the name of a function is one of the user's: ``module:function`` or ``file.py:function``."""
    return ":" in function


def check_together(job: JobFile) -> None:
    """Raise `JobSpecError` where keys that are right by themselves do not go together."""
    for name, known in (("map.function", MAPPERS), ("reduce.function", REDUCERS), ("combine.function", COMBINERS)):
        function = job[name]
        if function is not None and not is_users(function) and function not in known:
            wanted = KEYS[name.split(".")[0]]["function"].wanted
            raise job.fail(name, f"there is no built-in function {function!r}; {name} is {wanted}{_near(function, list(known))}")
    if job["job.name"] != os.path.basename(job["job.name"]) or job["job.name"] in ("", ".", ".."):
        raise job.fail("job.name", f"name = {job['job.name']!r}: the name becomes part of a folder's name, it cannot be empty or hold '/'")
    if len(os.fsencode(job["job.name"])) > NAME_MAX:
        raise job.fail("job.name", f"name = {_shown(job['job.name'])}: the name becomes part of a folder's name, it may have {NAME_MAX} bytes")
    if job["input.format"] == "text":
        for key in ("input.group", "input.columns", "input.follow"):
            if job[key] is not None:
                raise job.fail(key, f"{key.split('.')[1]!r} is for format = 'hdf5'; text has one column, 'line'")
    _check_map(job)
    partitions = job["shuffle.partitions"]
    if partitions is not None and (partitions < 1 or partitions & (partitions - 1) or partitions > 65536):
        raise job.fail("shuffle.partitions", f"partitions = {partitions}: it must be a power of two from 1 to 65536")


_USED_BY = {"lowercase": ("words",), "strip_punctuation": ("words",), "pattern": ("regex",), "key": ("columns", "regex"),
            "value": ("words", "lines", "columns", "regex", "a function of yours")}


def _check_map(job: JobFile) -> None:
    function = job["map.function"]
    kind = "a function of yours" if is_users(function) else function
    for key, users in _USED_BY.items():
        if job[f"map.{key}"] is not None and kind not in users:
            raise job.fail(f"map.{key}", f"{key!r} means nothing to function = {function!r}; it is for {' and '.join(users)}")
    if kind in ("words", "lines", "regex") and job["input.format"] != "text":
        raise job.fail("map.function", f"function = {function!r} reads lines of text, the input is hdf5; use function = 'columns' or one of yours")
    if kind == "regex" and job["map.pattern"] is None:
        raise job.fail("map.function", "function = 'regex' needs the key 'pattern', a regular expression with groups")
    if kind == "columns" and job["map.key"] is None:
        raise job.fail("map.function", "function = 'columns' needs the key 'key', the column (or, of text, the number of the field) to group by")
    value = job["map.value"]
    if kind in ("words", "lines") and isinstance(value, str) and value != "file":
        raise job.fail("map.value", f"value = {value!r}: {function} takes 'file' (the name of the document) or a number")
    if isinstance(value, float) and (kind == "regex" or (kind == "columns" and job["input.format"] == "text")):
        raise job.fail("map.value", f"value = {value!r}: {function} takes a {'group' if kind == 'regex' else 'field'} by its number, or 'file'")
    if kind == "a function of yours" and value is not None and value != "file":
        raise job.fail("map.value", f"value = {value!r}: beside a function of yours only 'file' has a meaning, it adds "
                       "the name of the document to the rows")
