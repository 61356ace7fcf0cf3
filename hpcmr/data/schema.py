"""Column types and schemas: the logical side of a batch.

A type is one of four kinds. Everything that NumPy holds at a fixed width is *fixed* (with a shape, for columns such as
positions); bytes and text are of variable width; a list holds any number of values of one other type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmr.errors import DataError, JobSpecError

FIXED_KINDS = "biufcSmM"      # bool, int, uint, float, complex, bytes[N], timedelta, datetime


@dataclass(frozen=True)
class ColumnType:
    """The logical type of a column.

    Parameters
    ----------
    kind : {"fixed", "bytes", "text", "list"}
    dtype : str
        NumPy type string in native byte order, for example ``"int64"``, ``"S10"`` or ``"datetime64[ns]"``; empty unless fixed.
    shape : tuple of int
        Shape of one row's value; ``()`` for scalars.
    item : ColumnType, optional
        Type of a list's elements.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    item: ColumnType | None = None

    @classmethod
    def fixed(cls, dtype: Any, shape: tuple[int, ...] = ()) -> ColumnType:
        d = np.dtype(dtype)
        if d.kind not in FIXED_KINDS or d == np.dtype("float128"):
            raise DataError(f"unsupported dtype {d!s}; columns hold bool, integers, floats, complex, datetime64, bytes and text")
        native = d.newbyteorder("=")
        name = f"S{d.itemsize}" if d.kind == "S" else native.str[1:] if d.kind in "mM" else native.name
        return cls("fixed", name, tuple(int(s) for s in shape))

    @property
    def np_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def is_fixed(self) -> bool:
        return self.kind == "fixed"

    @property
    def is_string(self) -> bool:
        return self.kind in ("bytes", "text")

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row's value; 16 stands for a string, which is measured elsewhere."""
        return self.np_dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)) if self.is_fixed else 16

    def __str__(self) -> str:
        if self.is_fixed:
            return self.dtype + (f"[{','.join(map(str, self.shape))}]" if self.shape else "")
        return f"list<{self.item}>" if self.kind == "list" else self.kind

    @classmethod
    def parse(cls, text: str) -> ColumnType:
        """Inverse of ``str``: ``int64``, ``float64[3]``, ``S10``, ``datetime64[ns]``, ``bytes``, ``text``, ``list<text>``."""
        if text in ("bytes", "text"):
            return cls(text)
        if text.startswith("list<") and text.endswith(">"):
            return cls("list", item=cls.parse(text[5:-1]))
        head, bracket, tail = text.rpartition("[")
        if bracket and tail.endswith("]") and tail[:-1].replace(",", "").isdigit():
            return cls.fixed(head, tuple(int(s) for s in tail[:-1].split(",")))
        try:
            return cls.fixed(text)
        except TypeError:
            raise JobSpecError(f"unknown column type {text!r}; for example int64, float64[3], S10, text, bytes, list<text>") from None


BYTES = ColumnType("bytes")
TEXT = ColumnType("text")
INT64 = ColumnType.fixed("int64")
FLOAT64 = ColumnType.fixed("float64")


@dataclass(frozen=True)
class Field:
    """One column of a schema: its name, its type, and attributes (units) that are carried from input to output."""

    name: str
    type: ColumnType
    attrs: tuple[tuple[str, Any], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Schema:
    """An ordered set of named columns."""

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, types: Mapping[str, ColumnType] | Iterable[tuple[str, ColumnType]]) -> Schema:
        items = types.items() if isinstance(types, Mapping) else types
        return cls(tuple(Field(n, t) for n, t in items))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in self.fields)

    def __getitem__(self, name: str) -> Field:
        for f in self.fields:
            if f.name == name:
                return f
        near = difflib.get_close_matches(str(name), self.names, n=1)
        raise JobSpecError(f"there is no column {name!r}; the columns are {', '.join(map(repr, self.names)) or 'none'}"
                           + (f" (did you mean {near[0]!r}?)" if near else ""))

    def select(self, names: Iterable[str]) -> Schema:
        return Schema(tuple(self[n] for n in names))

    def with_field(self, new: Field) -> Schema:
        """This schema with `new` in the place of the field of its name, or behind the others."""
        if new.name in self:
            return Schema(tuple(new if f.name == new.name else f for f in self.fields))
        return Schema((*self.fields, new))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": f.name, "type": str(f.type), **({"attrs": dict(f.attrs)} if f.attrs else {})} for f in self.fields]

    @classmethod
    def from_json(cls, items: list[dict[str, Any]]) -> Schema:
        return cls(tuple(Field(str(i["name"]), ColumnType.parse(i["type"]), tuple(sorted(dict(i.get("attrs", {})).items()))) for i in items))
