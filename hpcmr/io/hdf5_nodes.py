"""From a data set to the node by which its rows are read: raw bytes, through HDF5, or as the mappings of a virtual one."""

from __future__ import annotations

import math
import os
import re
from types import ModuleType

import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z

from hpcmr.errors import InputError
from hpcmr.io.hdf5_layout import Axis, DataSet, Fields, FileRef, Form, Mapping, Node, Raw, Stored, Virtual
from hpcmr.io.hdf5_links import LINKS_MAX, Links, Missing, Opened, Place, numbered
from hpcmr.io.hdf5_types import Unsupported, fields_of, file_order, form_of, is_record, packed_record, raw_record

BUILT_IN_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_SZIP, h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET,
                    h5z.FILTER_LZF}
CACHE_NBYTES = 8 << 20
"""Chunk cache of a data set, unless one row of chunks needs more."""
CACHE_NBYTES_MAX = 512 << 20
CHUNK_NBYTES_MAX = 1 << 30
"""HDF5 holds a whole chunk in memory, on each rank that reads from it."""
ROW_NBYTES_MAX = 1 << 30
"""A batch holds one row at least."""


def data_set(links: Links, place: Place, fields: Fields, record: bool) -> DataSet:
    """How to read these fields of a compound data set, or the one column of another."""
    tid = place.id.get_type()
    memory = fields if record else fields[0][1]
    _check_row(place, fields)
    node = node_of(links, place, memory, 0)
    if not record:
        return DataSet(node, fields)
    if place.id.get_create_plist().get_external_count():
        return DataSet(node, fields, raw_record(tid, fields))
    raw = _raw(place, tid.get_size(), False) if not isinstance(node, Virtual) and _is_plain(place) else None
    lying = raw_record(tid, fields) if raw is not None else None
    return DataSet(raw, fields, lying) if raw is not None and lying is not None else DataSet(node, fields, packed_record(fields))


def _check_row(place: Place, fields: Fields) -> None:
    nbytes = sum(form.row_nbytes for _, form in fields)
    if nbytes > ROW_NBYTES_MAX:
        raise InputError(f"the data set {place} has rows of {nbytes:,} bytes, its shape is {place.id.shape}; a row is held in memory and may have "
                         f"{ROW_NBYTES_MAX:,}: rows run along the first axis, store the data set with another axis first")


def node_of(links: Links, place: Place, memory: Form | Fields, depth: int, whole_rows: bool = True) -> Node:
    """How to read a data set as values of this form; with `whole_rows` only rows of the form's shape will be asked for."""
    plist = place.id.get_create_plist()
    if plist.get_external_count():
        return _external(links, place, plist, memory, whole_rows and (depth == 0 or isinstance(memory, Form)))
    if plist.get_layout() == h5d.VIRTUAL:
        return _virtual(links, place, memory, depth)
    plugin = _check_filters(place, plist)
    if whole_rows and isinstance(memory, Form) and _is_plain(place):
        order = file_order(place.id.get_type(), memory)
        if order is not None:
            raw = _raw(place, memory.row_nbytes, order == "swapped")
            if raw is not None:
                return raw
    return _stored(place, memory, plugin)


def _stored(place: Place, memory: Form | Fields, plugin: bool) -> Stored:
    chunk_rows, cache = 1, 0
    plist = place.id.get_create_plist()
    if plist.get_layout() == h5d.CHUNKED:
        chunk = plist.get_chunk()
        chunk_rows = int(chunk[0])
        across = math.prod(-(-n // c) for n, c in zip(place.id.shape[1:], chunk[1:], strict=True))
        nbytes = math.prod(int(n) for n in chunk) * int(place.id.get_type().get_size())
        if nbytes > CHUNK_NBYTES_MAX:
            raise InputError(f"the data set {place} has chunks of {nbytes:,} bytes, {'x'.join(map(str, chunk))}; each rank holds a whole one in "
                             f"memory, {CHUNK_NBYTES_MAX:,} is the limit: store it in smaller ones with h5repack -l CHUNK=...")
        cache = max(CACHE_NBYTES, min(CACHE_NBYTES_MAX, 2 * across * nbytes))
    forms = [memory] if isinstance(memory, Form) else [form for _, form in memory]
    may_grow = bool(plist.get_nfilters()) or any(form.is_object for form in forms)
    return Stored(place.opened.ref, place.name, memory, plugin, chunk_rows, cache, may_grow)


def _is_plain(place: Place) -> bool:
    return bool(place.id.get_create_plist().get_layout() == h5d.CONTIGUOUS and place.id.get_space_status() == h5d.SPACE_STATUS_ALLOCATED)


def _raw(place: Place, row_nbytes: int, swap: bool) -> Raw | None:
    """None where nothing is stored. Raises `InputError` where the file ends before the rows do."""
    offset, ref = place.id.get_offset(), place.opened.ref
    if offset is None or place.id.get_storage_size() == 0:
        return None
    end = offset + place.id.shape[0] * row_nbytes
    if end > ref.nbytes:
        raise InputError(f"{ref.path!r} is truncated: it has {ref.nbytes:,} bytes, and the data set {place.name!r} goes on to byte {end:,}; "
                         "copy or write it again")
    return Raw(ref, place.name, int(offset), row_nbytes, swap)


def _external(links: Links, place: Place, plist: h5p.PropDCID, memory: Form | Fields, whole_rows: bool) -> Node:
    """Values that lie in other files as they are, one file behind the other: read with plain file calls, without HDF5."""
    what = f"the data set {place}, which keeps its values in other files (external storage),"
    if isinstance(memory, Form):
        order, row_nbytes = file_order(place.id.get_type(), memory), memory.row_nbytes
    else:
        order, row_nbytes = ("=" if raw_record(place.id.get_type(), memory) is not None else None), int(place.id.get_type().get_size())
    if order is None or not whole_rows or not row_nbytes:
        raise InputError(f"{what} must be converted or is mapped in part, which hpcmr does not do with such; copy the file with h5repack")
    rows, found, start = int(place.id.shape[0]), [], 0
    for i in range(plist.get_external_count()):
        raw_name, offset, nbytes = plist.get_external(i)
        path = links.locate(place.opened, os.fsdecode(raw_name), what[:-1])
        info = os.stat(path)
        stop = rows if nbytes >= (rows - start) * row_nbytes else start + nbytes // row_nbytes
        if stop < rows and nbytes % row_nbytes:
            raise InputError(f"{what} has a row that begins in {path!r} and ends in another file, which hpcmr does not read; "
                             "copy the file with h5repack")
        if offset + (stop - start) * row_nbytes > info.st_size:
            raise InputError(f"{what} wants bytes {offset:,} to {offset + (stop - start) * row_nbytes:,} of {path!r}, which has {info.st_size:,}; "
                             "rows would be missing")
        source = Raw(FileRef(path, info.st_size, info.st_mtime_ns), place.name, int(offset), row_nbytes, order == "swapped")
        found.append(Mapping(Axis.range(start, stop - start), None, source, (Axis.range(0, stop - start),), 0, True))
        start = stop
    if start < rows:
        raise InputError(f"{what} has {rows:,} rows, and room for {start:,} in those files; rows would be missing")
    return found[0].source if len(found) == 1 else Virtual(place.opened.ref, place.name, tuple(m for m in found if m.rows.size))


def _check_filters(place: Place, plist: h5p.PropDCID) -> bool:
    """Whether a plugin is needed to read it. Only filters of HDF5, of h5py and of hdf5plugin are used: a file loads no other code."""
    plugin = False
    for i in range(plist.get_nfilters()):
        number, _, _, name = plist.get_filter(i)
        # HDF5 looks for a filter that it is asked about in the plugin folders of the environment: it is asked about known ones alone.
        if number in BUILT_IN_FILTERS and h5z.filter_avail(number):
            continue
        more = None if number in BUILT_IN_FILTERS else _more_filters()
        if more is None or number not in more.FILTERS.values() or not h5z.filter_avail(number):
            title = f" ({name.decode('utf-8', 'replace')})" if name else ""
            to_do = ("install it: pip install 'hpcmr[filters]'" if more is None else
                     "the package hdf5plugin, which is installed, does not have it: compress the file anew with h5repack -f GZIP=4")
            raise InputError(f"the data set {place} is compressed with the filter {number}{title}, which is not there; {to_do}")
        plugin = True
    return plugin


def _more_filters() -> ModuleType | None:
    """The package hdf5plugin, whose import registers its filters; None if it is not installed."""
    try:
        import hdf5plugin
    except ImportError:
        return None
    return hdf5plugin


def _virtual(links: Links, place: Place, memory: Form | Fields, depth: int) -> Virtual:
    """Follow the mappings ourselves; HDF5 would give fill values for a source that is missing."""
    if depth >= LINKS_MAX:
        raise InputError(f"the virtual data set {place} is one of more than {LINKS_MAX} that refer to one another, perhaps in a circle")
    plist, shape = place.id.get_create_plist(), tuple(int(n) for n in place.id.shape)
    found: list[Mapping] = []
    for i in range(plist.get_virtual_count()):
        space, names = plist.get_virtual_vspace(i), (os.fsdecode(plist.get_virtual_filename(i)), plist.get_virtual_dsetname(i))
        counted = _endless_axis(space) if any(re.search(r"(?<!%)(%%)*%b", n) for n in names) else None
        target = _selection(space, shape, place, counted)
        if target is None:
            continue
        blocks = [target] if counted is None else _blocks(target, counted)
        for number, axes in enumerate(blocks):
            source = _source(links, place, numbered(names[0], number), numbered(names[1], number))
            found.append(_mapping(links, place, axes, shape, source, plist.get_virtual_srcspace(i), memory, depth))
        if counted is not None:
            _check_none_left(place, names[0], len(blocks))
    found = [m for m in found if m.rows.size]
    found.sort(key=lambda m: m.rows.start)
    _check_covered(place, shape, found)
    return Virtual(place.opened.ref, place.name, tuple(found))


def _source(links: Links, place: Place, file: str, name: str) -> Place:
    why = f"the virtual data set {place}"
    opened: Opened = links.beside(place.opened, file, why)
    try:
        source = links.find(opened, name)
    except Missing:
        raise InputError(f"{why} leads to {name!r} of {opened.path!r}, and there is no such data set; its rows would be missing") from None
    if source.is_group or not isinstance(source.id, h5d.DatasetID) or not source.id.shape:
        raise InputError(f"{why} leads to {source}, which is no data set with rows")
    return source


def _endless_axis(space: h5s.SpaceID) -> int | None:
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    _, _, count, block = space.get_regular_hyperslab()
    return next((i for i, (c, b) in enumerate(zip(count, block, strict=True)) if h5s.UNLIMITED in (c, b)), None)


def _selection(space: h5s.SpaceID, shape: tuple[int, ...], place: Place, counted: int | None = None) -> tuple[Axis, ...] | None:
    """The places along each axis that a selection holds, of a data set of this shape; None if it is empty. Blocks of axis `counted` stay apart."""
    kind = space.get_select_type()
    if kind == h5s.SEL_ALL:
        return tuple(Axis.range(0, n) for n in shape)
    if kind == h5s.SEL_NONE:
        return None
    if kind != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        raise InputError(f"the virtual data set {place} has a mapping of irregular places, which hpcmr does not follow; "
                         "map regular blocks, or copy the data set into an ordinary one")
    if len(shape) != len(space.shape):
        raise InputError(f"the virtual data set {place} was made for a source with {len(space.shape)} dimensions, which now has "
                         f"{len(shape)}; make it anew")
    axes = []
    for i, (start, stride, count, block, n) in enumerate(zip(*space.get_regular_hyperslab(), shape, strict=True)):
        if block == h5s.UNLIMITED:
            block = max(0, n - start)
        if count == h5s.UNLIMITED:
            count = max(0, -(-(n - start) // stride))
        plain = i != counted and (count <= 1 or stride == block)
        axes.append(Axis.range(start, count * block) if plain else Axis(start, stride, count, block))
    return tuple(axes)


def _blocks(target: tuple[Axis, ...], axis: int) -> list[tuple[Axis, ...]]:
    """The blocks along the axis without end, each of which has a file of its own."""
    a = target[axis]
    return [(*target[:axis], Axis.range(a.start + i * a.stride, a.block), *target[axis + 1:]) for i in range(a.blocks)]


def _check_none_left(place: Place, pattern: str, count: int) -> None:
    """HDF5 ends such a data set at the first file that is missing; one behind it shows that rows would be lost."""
    folder = os.path.join(place.opened.folder, os.path.dirname(pattern))
    expression = re.compile(re.sub(r"%%", "%", re.escape(os.path.basename(pattern)).replace("%b", r"(\d+)")))
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        match = expression.fullmatch(name)
        if match and int(match[1]) >= count:
            missing = os.path.join(folder, numbered(os.path.basename(pattern), count))
            raise InputError(f"the virtual data set {place} ends where {missing!r} is missing, though there is {name!r}; "
                             "put it there, its rows would be missing")


def _mapping(links: Links, place: Place, target: tuple[Axis, ...], shape: tuple[int, ...], source: Place, space: h5s.SpaceID, memory: Form | Fields,
             depth: int) -> Mapping:
    theirs = tuple(int(n) for n in source.id.shape)
    _check_alike(place, source, memory)
    chosen = _selection(space, theirs, place)
    if chosen is None:
        chosen = tuple(Axis.range(0, 0) for _ in theirs)
    sizes, wanted = [a.size for a in chosen if a.size != 1], [a.size for a in target if a.size != 1]
    if any(a.stop > n for a, n in zip(chosen, theirs, strict=True)) or math.prod(sizes) < math.prod(wanted):
        raise InputError(f"the virtual data set {place} wants more of {source} than there is, its shape is {theirs}; rows would be missing")
    if sizes != wanted:
        raise InputError(f"the virtual data set {place} maps {source} to another shape, {sizes} to {wanted}, which hpcmr does not follow")
    rest = None if all(a == Axis.range(0, n) for a, n in zip(target[1:], shape[1:], strict=True)) else target[1:]
    axis = next((i for i, a in enumerate(chosen) if a.size != 1), -1) if target[0].size != 1 else -1
    if target[0].size == 1 and chosen[0].size == 1:
        axis = 0
    whole = all(a == Axis.range(0, n) for a, n in zip(chosen[1:], theirs[1:], strict=True)) and theirs[1:] == shape[1:]
    plain = axis == 0 and rest is None and whole and target[0].blocks == 1 and chosen[0].blocks == 1
    node = node_of(links, source, memory, depth + 1, whole_rows=plain)
    if not plain and isinstance(node, Virtual):
        raise InputError(f"the virtual data set {place} takes parts of rows from {source}, which is virtual itself; hpcmr does not follow that")
    return Mapping(target[0], rest, node, chosen, axis, plain)


def _check_alike(place: Place, source: Place, memory: Form | Fields) -> None:
    """HDF5 converts between numbers, not between numbers and strings."""
    tid: h5t.TypeID = source.id.get_type()
    try:
        if isinstance(memory, Form):
            theirs = form_of(tid)
            numbers = all(np.dtype(d or "S").kind in "iuf" for d in (theirs.dtype, memory.dtype))
            alike = theirs.kind == memory.kind and (theirs.dtype == memory.dtype or numbers)
        else:
            alike = is_record(tid) and fields_of(tid, [n for n, _ in memory]) == list(memory)
    except (Unsupported, ValueError):
        alike = False
    if not alike:
        raise InputError(f"the virtual data set {place} and its source {source} are of different types; make them alike")


def _check_covered(place: Place, shape: tuple[int, ...], found: list[Mapping]) -> None:
    """Every value comes from one source: none is missing (it would be a fill value), none comes from two."""
    simple = all(m.rest is None and m.rows.blocks == 1 for m in found)
    next_row = 0
    for m in found if simple else []:
        if m.rows.start != next_row:
            break
        next_row = m.rows.stop
    values = sum(m.rows.size * math.prod([a.size for a in m.rest] if m.rest is not None else shape[1:]) for m in found)
    wanted = math.prod(shape)
    if values != wanted or (simple and next_row != shape[0]):
        where = f"row {next_row:,} and others come" if simple else f"{values:,} of {wanted:,} values come"
        raise InputError(f"the virtual data set {place}: {where} from no source, or from two; map each row to one")


def unsupported(error: Unsupported, what: str) -> InputError:
    return InputError(f"{what} has an unsupported dtype: {error}; columns hold bool, integers, floats of 16 to 64 bits, complex, bytes and text: "
                      "leave it out by naming the others in columns=[...]")
