"""From HDF5 types to the forms that columns are read in, and back to the type that HDF5 converts to in memory."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from h5py import h5t

from hpcmr.io.hdf5_layout import Fields, Form

CLASSES = {h5t.INTEGER: "integer", h5t.FLOAT: "float", h5t.STRING: "string", h5t.BITFIELD: "bit field", h5t.OPAQUE: "opaque",
           h5t.COMPOUND: "compound", h5t.REFERENCE: "reference", h5t.ENUM: "enumeration", h5t.VLEN: "variable-length",
           h5t.ARRAY: "array", h5t.TIME: "time"}


class Unsupported(Exception):
    """A type that no column has; the text names it."""


def form_of(tid: h5t.TypeID, shape: tuple[int, ...] = ()) -> Form:
    """Form of a data set of this type whose rows have this shape. Raises `Unsupported`."""
    kind = tid.get_class()
    if kind == h5t.STRING:
        return _string_form(tid, shape)
    if kind == h5t.ARRAY:
        inner = tuple(int(n) for n in tid.get_array_dims())
        base = form_of(tid.get_super())
        if base.kind not in ("fixed", "bool") or base.shape:
            raise Unsupported(f"an array type of {base.type} elements")
        return Form(base.kind, base.dtype, (*shape, *inner), inner)
    if kind == h5t.VLEN:
        item = form_of(tid.get_super())
        if shape or item.kind != "fixed" or item.shape:
            raise Unsupported("variable-length lists in several dimensions" if shape else "variable-length lists of other things than numbers")
        return Form("list", item.dtype)
    dtype = _numpy_type(tid)
    if dtype.kind == "b":
        return Form("bool", "bool", shape)
    wide = dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16)
    if dtype.kind not in "iufcmM" or wide or (kind == h5t.COMPOUND and dtype.kind != "c"):
        raise Unsupported(f"{CLASSES.get(kind, 'unknown')} type {_shown(dtype)}")
    return Form("fixed", dtype.newbyteorder("=").str, shape)


def fields_of(tid: h5t.TypeID, names: list[str]) -> list[tuple[str, Form | Unsupported]]:
    """Form of each field of a compound type, in the order of `names`; or why it has none."""
    found: list[tuple[str, Form | Unsupported]] = []
    for name in names:
        try:
            found.append((name, form_of(member(tid, name))))
        except Unsupported as error:
            found.append((name, error))
    return found


def member(tid: h5t.TypeID, name: str) -> h5t.TypeID:
    return tid.get_member_type(tid.get_member_index(_raw_name(name)))


def member_names(tid: h5t.TypeID) -> list[str]:
    return [tid.get_member_name(i).decode("utf-8", "surrogateescape") for i in range(tid.get_nmembers())]


def is_record(tid: h5t.TypeID) -> bool:
    """Whether it is a compound type, and not one that stands for complex numbers."""
    return tid.get_class() == h5t.COMPOUND and _numpy_type(tid).kind != "c"


def _raw_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _string_form(tid: Any, shape: tuple[int, ...]) -> Form:
    text = tid.get_cset() == h5t.CSET_UTF8
    if shape and (text or tid.is_variable_str()):
        raise Unsupported("strings in several dimensions" + ("" if tid.is_variable_str() else ", in UTF-8"))
    if tid.is_variable_str():
        return Form("text" if text else "bytes", "")
    return Form("padded" if text else "fixed", f"S{tid.get_size()}", shape)


def _numpy_type(tid: h5t.TypeID) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = tid.dtype
        return dtype
    except (TypeError, ValueError) as error:
        raise Unsupported(f"{CLASSES.get(tid.get_class(), 'unknown')} type ({error})") from None


def _shown(dtype: np.dtype[Any]) -> str:
    return f"{dtype} with fields {', '.join(map(repr, dtype.names))}" if dtype.names else str(dtype)


def file_order(tid: h5t.TypeID, form: Form) -> str | None:
    """``=`` or ``swapped`` if the bytes in the file are those of the form's buffer, perhaps in the other order; None if HDF5 must convert."""
    if form.is_object:
        return None
    base = tid.get_super() if tid.get_class() == h5t.ARRAY else tid
    dtype = base.dtype
    try:
        same = base.equal(h5t.py_create(dtype, logical=True))
    except TypeError:
        return None
    wanted = np.dtype(form.dtype)
    if not same or dtype.newbyteorder("=") != wanted:
        return None
    return "=" if dtype.isnative else "swapped"


def raw_record(tid: h5t.TypeID, fields: Fields) -> np.dtype[Any] | None:
    """NumPy's type of the records as they lie in the file, with the wanted fields only; None if HDF5 must convert one of them."""
    formats, offsets = [], []
    for name, form in fields:
        order = file_order(member(tid, name), form)
        if order is None:
            return None
        element = np.dtype(form.dtype) if order == "=" else np.dtype(form.dtype).newbyteorder("S")
        formats.append((element, form.shape))
        offsets.append(tid.get_member_offset(tid.get_member_index(_raw_name(name))))
    return np.dtype({"names": [n for n, _ in fields], "formats": formats, "offsets": offsets, "itemsize": tid.get_size()})


def packed_record(fields: Fields) -> np.dtype[Any]:
    """Records of the wanted fields without gaps, in native byte order, as HDF5 is asked to give them."""
    return np.dtype([(name, form.buffer, form.shape) for name, form in fields])


def memory_type(memory: Form | Fields) -> h5t.TypeID:
    """The type that HDF5 is asked to convert to."""
    if isinstance(memory, Form):
        return _created(memory)
    record = packed_record(memory)
    tid = h5t.create(h5t.COMPOUND, record.itemsize)
    assert record.fields is not None
    for name, form in memory:
        tid.insert(_raw_name(name), record.fields[name][1], _created(form))
    return tid


def _created(form: Form) -> h5t.TypeID:
    # Not "logical", a string is a Python object; logical, it would be a pointer of C's.
    return h5t.py_create(_memory_dtype(form), logical=not form.is_object)


def _memory_dtype(form: Form) -> Any:
    if form.kind in ("text", "bytes"):
        return h5py.string_dtype("utf-8" if form.kind == "text" else "ascii")
    if form.kind == "list":
        return h5py.vlen_dtype(np.dtype(form.dtype))
    if form.kind == "padded":
        return h5py.string_dtype("utf-8", np.dtype(form.dtype).itemsize)
    dtype = np.dtype(form.dtype)
    if dtype.kind in "mM":
        dtype = h5py.opaque_dtype(dtype)
    return np.dtype((dtype, form.inner)) if form.inner else dtype
