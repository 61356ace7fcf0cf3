"""What is in an HDF5 file: its columns, their types and attributes, and where the rows lie. Runs on rank 0 only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5l, h5p

from hpcmr.data.schema import TEXT, ColumnType, Field
from hpcmr.errors import InputError
from hpcmr.io.files import FileInfo
from hpcmr.io.hdf5_layout import STRING_NBYTES, DataSet, Fields, Form, Layout, Raw, Stored, Surveyed
from hpcmr.io.hdf5_links import Links, Missing, Opened, Place, not_found
from hpcmr.io.hdf5_nodes import data_set, unsupported
from hpcmr.io.hdf5_types import Unsupported, fields_of, form_of, is_record, member_names

NOT_CARRIED = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict"}
"""Attributes that tell how data sets of one file hang together: wrong anywhere else."""
CARRIED_MAX = 64
"""Values of an attribute that is carried along."""
DECLARED_NBYTES_MAX = 4 << 30
DECLARED_MAX = 1000
"""A file may declare this many bytes of rows, or this many times its own size: gzip makes at most 1,030 bytes of one."""


def survey_files(infos: Sequence[FileInfo], group: str, columns: Sequence[str] | None, attrs: Mapping[str, str],
                 follow: Sequence[str]) -> Iterator[Surveyed]:
    """What is in each of some files, one after the other. Raises `InputError`."""
    links = Links(follow)
    try:
        for info in infos:
            try:
                found = survey_file(links, info, group, columns, attrs)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:       # what h5py makes of HDF5's errors
                raise InputError(f"{info.path!r} is damaged or truncated, HDF5 cannot read its headers: {str(error) or type(error).__name__}; "
                                 "copy or write it again") from error
            links.trim()
            yield found
    finally:
        links.close()


def survey_file(links: Links, info: FileInfo, group: str, columns: Sequence[str] | None, attrs: Mapping[str, str]) -> Surveyed:
    """Find the columns in one file. Raises `InputError`."""
    opened = links.open(info.path)
    try:
        place = links.find(opened, group)
    except Missing:
        raise not_found(opened, group) from None
    if isinstance(place.id, h5d.DatasetID):
        found = [_of_data_set(links, place, group, columns)]
    elif place.is_group:
        found = _of_group(links, place, group, columns)
    else:
        raise InputError(f"{place} is neither a group nor a data set")
    rows = _common_length(opened, group, found)
    constants = tuple((name, _attribute(links, opened, where)) for name, where in attrs.items())
    sets = _with_string_lengths([d for d, _, _ in found], rows, info.nbytes)
    by_name = {f.name: f for _, fields, _ in found for f in fields}
    order = list(columns) if columns is not None else list(by_name)
    fields = [by_name[n] for n in order] + [Field(n, _constant_type(v)) for n, v in constants]
    layout = Layout(info.path, rows, sets, constants)
    _check_size(layout)
    return Surveyed(layout, tuple(fields))


def _check_size(layout: Layout) -> None:
    """What is declared may be any number; what is stored shows whether it can be meant."""
    declared = layout.rows * layout.row_nbytes
    if declared > DECLARED_NBYTES_MAX and declared > layout.stored_nbytes * DECLARED_MAX:
        raise InputError(f"{layout.path!r} declares {layout.rows:,} rows of {layout.row_nbytes:,} bytes, {declared:,} in all, and has "
                         f"{layout.stored_nbytes:,} bytes: more than {DECLARED_MAX:,} times as much; it is damaged or was made to do harm, or a "
                         "data set was never written: leave that out by naming the others in columns=[...]")


Found = tuple[DataSet, list[Field], int]


def _of_data_set(links: Links, place: Place, group: str, columns: Sequence[str] | None) -> Found:
    """One data set: the fields of a compound one, or a single column called as the last part of its path."""
    _check_rows(place)
    tid = place.id.get_type()
    if not is_record_or_refuse(place):
        name = group.rstrip("/").rpartition("/")[2]
        _check_names(columns, [name], place)
        return _column(links, place, name)
    names = member_names(tid)
    _check_names(columns, names, place)
    if len(place.id.shape) > 1:
        raise InputError(f"{place} is a compound data set in {len(place.id.shape)} dimensions; rows need it in one")
    forms: list[tuple[str, Form]] = []
    for name, form in fields_of(tid, names if columns is None else list(columns)):
        if isinstance(form, Unsupported):
            raise unsupported(form, f"the field {name!r} of {place}")
        forms.append((name, form))
    return data_set(links, place, tuple(forms), record=True), [Field(n, f.type) for n, f in forms], int(place.id.shape[0])


def _of_group(links: Links, place: Place, group: str, columns: Sequence[str] | None) -> list[Found]:
    names = _members(links, place)
    if not names:
        error = not_found(place.opened, group)
        raise InputError(f"the group {place} holds no data set{error.message[error.message.index(';'):]}; name a group or data set with group=")
    _check_names(columns, names, place)
    found = []
    for name in names if columns is None else columns:
        member = links.child(place, name)
        _check_rows(member)
        if is_record_or_refuse(member):
            raise InputError(f"{member} is compound: read it by itself with group={place.name.rstrip('/') + '/' + name!r}, or "
                             "name other columns with columns=[...]")
        found.append(_column(links, member, name))
    return found


def _column(links: Links, place: Place, name: str) -> Found:
    try:
        form = form_of(place.id.get_type(), tuple(int(n) for n in place.id.shape[1:]))
    except Unsupported as error:
        raise unsupported(error, f"the data set {place}") from None
    return data_set(links, place, ((name, form),), record=False), [Field(name, form.type, carried(place))], int(place.id.shape[0])


def is_record_or_refuse(place: Place) -> bool:
    try:
        return is_record(place.id.get_type())
    except Unsupported as error:
        raise unsupported(error, f"the data set {place}") from None


def _members(links: Links, place: Place) -> list[str]:
    """Names of the data sets of a group, linked ones too: in the order of creation if the file keeps it, else by the bytes of the name."""
    kept = place.id.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    raw: list[bytes] = []
    place.id.links.iterate(raw.append, idx_type=h5py.h5.INDEX_CRT_ORDER if kept else h5py.h5.INDEX_NAME)
    names = []
    for name in raw:
        text = name.decode("utf-8", "surrogateescape")
        hard = place.id.links.get_info(name).type == h5l.TYPE_HARD
        kind = h5py.h5o.get_info(place.id, name).type if hard else None
        if kind == h5py.h5o.TYPE_DATASET or (not hard and isinstance(links.child(place, text).id, h5d.DatasetID)):
            names.append(text)
    return names


def _check_rows(place: Place) -> None:
    if not isinstance(place.id, h5d.DatasetID):
        raise InputError(f"{place} is no data set")
    if not place.id.shape:
        raise InputError(f"the data set {place} is a {'scalar' if place.id.shape == () else 'null'}, it has no rows; "
                         "name the data sets that have with columns=[...]")


def _check_names(columns: Sequence[str] | None, names: Sequence[str], place: Place) -> None:
    for column in columns or ():
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            raise InputError(f"there is no column {column!r} in {place}; the columns are {', '.join(map(repr, names))}"
                             + (f" (did you mean {near[0]!r}?)" if near else ""))


def _common_length(opened: Opened, group: str, found: list[Found]) -> int:
    lengths = {rows for _, _, rows in found}
    if len(lengths) > 1:
        each = ", ".join(f"{fields[0].name} {rows:,}" for _, fields, rows in found)
        raise InputError(f"the data sets of the group {group!r} of {opened.path!r} have unequal lengths: {each} rows; "
                         "choose some of equal length with columns=[...]")
    return lengths.pop()


def _with_string_lengths(found: list[DataSet], rows: int, file_nbytes: int) -> tuple[DataSet, ...]:
    """Strings take at most what the rest of the file does not: long ones then make splits and batches of fewer rows."""
    fixed = rows * sum(f.row_nbytes for d in found for _, f in d.fields if not f.is_object and isinstance(d.node, Raw | Stored))
    strings = sum(f.is_object for d in found for _, f in d.fields)
    if not strings or not rows:
        return tuple(found)
    each = max(STRING_NBYTES, (file_nbytes - fixed) // (rows * strings))

    def changed(fields: Fields) -> Fields:
        return tuple((n, f._replace(string_nbytes=each) if f.is_object else f) for n, f in fields)

    return tuple(d._replace(fields=changed(d.fields)) for d in found)


def carried(place: Place) -> tuple[tuple[str, Any], ...]:
    """Attributes of a data set as plain values, by name: numbers, strings and short lists of these."""
    found = {}
    attrs = h5py.AttributeManager(h5py.Dataset(place.id))
    for name in attrs:
        if name in NOT_CARRIED:
            continue
        try:
            if math.prod(attrs.get_id(name).shape or ()) > CARRIED_MAX:
                continue
            value = attrs[name]
        except (OSError, TypeError, ValueError, RuntimeError):
            continue
        if not isinstance(value, h5py.Empty) and np.size(value) <= CARRIED_MAX and (plain := _plain(value)) is not None:
            found[name] = plain
    return tuple(sorted(found.items()))


def _plain(value: Any) -> Any:
    """A JSON value, or None for what has none (references, records, complex numbers)."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist() if value.dtype.names is None else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        items = [_plain(v) for v in value]
        return None if any(i is None for i in items) else items
    return value if isinstance(value, str | bool | int | float) else None


def _attribute(links: Links, opened: Opened, where: str) -> Any:
    """The value of ``/path@name``: a string, or an array of a row's shape."""
    path, _, name = where.rpartition("@")
    try:
        place = links.find(opened, path or "/")
    except Missing:
        raise InputError(f"attrs={where!r}: there is no {path!r} in {opened.path!r}") from None
    attrs = h5py.AttributeManager(h5py.Group(place.id) if place.is_group else h5py.Dataset(place.id))
    if name not in attrs:
        near = difflib.get_close_matches(name, list(attrs), n=1)
        raise InputError(f"attrs={where!r}: {path or '/'!r} of {opened.path!r} has no attribute {name!r}; it has "
                         f"{', '.join(map(repr, attrs)) or 'none'}"
                         + (f" (did you mean {near[0]!r}?)" if near else ""))
    try:
        value = attrs[name]
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"attrs={where!r}: the attribute of {opened.path!r} cannot be read: {error}") from None
    if isinstance(value, bytes | str):
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise InputError(f"attrs={where!r}: the attribute of {opened.path!r} has an unsupported dtype: {array.dtype}; "
                         "a number, an array of numbers or a string can be a column")
    return array.astype(array.dtype.newbyteorder("="))


def _constant_type(value: Any) -> ColumnType:
    return TEXT if isinstance(value, str) else ColumnType.fixed(value.dtype, value.shape)
