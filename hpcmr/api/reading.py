"""Where tables come from: files and arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpcmr.api.base import where
from hpcmr.api.table import Table
from hpcmr.errors import JobSpecError
from hpcmr.plan.nodes import Read

if TYPE_CHECKING:
    from mpi4py import MPI

Paths = str | os.PathLike[str] | list[str | os.PathLike[str]] | tuple[str | os.PathLike[str], ...]


def read_text(paths: Paths, *, encoding: str | None = "utf-8", file: str | None = None, row: str | None = None,
              comm: MPI.Comm | None = None) -> Table:
    """Lines of text files: a table with the column ``line``.

    Parameters
    ----------
    paths : str, path or list of these
        Files, folders and globs. What a folder or a glob stands for is sorted by the bytes of the path; a list keeps its order.
    encoding : "utf-8" or None
        None: the column is bytes. Bytes that are no UTF-8 are data, not errors.
    file : str, optional
        Name of a further text column with the path of the row's file.
    row : str, optional
        Name of a further int64 column with the number of the line in its file, from 0.
    comm : mpi4py.MPI.Comm, optional
        Ranks that take part; it is duplicated, never used itself.

    Notes
    -----
    Collective: no; the actions are. Cost: nothing is read before an action.
    """
    from hpcmr.io.text import TextSource

    return Table(Read(f"read_text({_shown(paths)})", where(), TextSource(_listed(paths), encoding, file=file, row=row)), comm)


def read_hdf5(paths: Paths, group: str = "/", columns: list[str] | tuple[str, ...] | None = None, *, file: str | None = None, row: str | None = None,
              attrs: Mapping[str, str] | None = None, follow: Paths = (), comm: MPI.Comm | None = None) -> Table:
    """Rows of HDF5 files: the data sets of a group, the fields of a compound data set, or one data set.

    Parameters
    ----------
    paths : str, path or list of these
        Files, folders and globs, as in `read_text`. All files have the same columns.
    group : str
        A group of data sets of equal length (of their first axis), or one data set.
    columns : list of str, optional
        Columns to read, in this order; all by default.
    file, row : str, optional
        Names of further columns: the path of the row's file (text), the number of the row in it (int64).
    attrs : dict of str to str, optional
        Further columns from attributes of the row's file: ``{"z": "/Header@Redshift"}``.
    follow : path or list of these, optional
        Folders that external links, virtual data sets and external storage may lead to, beside the folder of the file that names them.
    comm : mpi4py.MPI.Comm, optional
        Ranks that take part; it is duplicated, never used itself.

    Notes
    -----
    Collective: no; the actions are. Attributes of data sets, such as units, are carried to the output.
    """
    from hpcmr.io.hdf5 import Hdf5Source

    label = f"read_hdf5({_shown(paths)}, {group!r}" + (f", columns={list(columns)}" if columns else "") + ")"
    source = Hdf5Source(_listed(paths), group, columns, file=file, row=row, attrs=dict(attrs or {}), follow=_listed(follow))
    return Table(Read(label, where(), source), comm)


def from_arrays(comm: MPI.Comm | None, columns: Mapping[str, Any]) -> Table:
    """Rows that lie in memory: those of rank 0, then those of rank 1, and so on.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        Ranks that hold the rows; it is duplicated, never used itself. None: as elsewhere, all ranks of the launcher, or this process.
    columns : dict of str to array
        Columns ``(n_local, *shape)`` of equal length on this rank; lists of str, bytes, numbers or lists of these are taken as well.
        Names and types are the same on all ranks. The arrays are not copied; leave them alone until the action is done.

    Notes
    -----
    Collective: yes, every rank of `comm` must call it.
    """
    from hpcmr.io.arrays import ArraySource
    from hpcmr.run.session import current

    world = current(comm).world
    return Table(Read(f"from_arrays({', '.join(columns)})", where(), ArraySource(world, columns)), comm)


def _listed(paths: Paths) -> list[str]:
    listed = list(paths) if isinstance(paths, list | tuple) else [paths]
    if not all(isinstance(p, str | os.PathLike) for p in listed):
        raise JobSpecError(f"paths = {paths!r}: a file, folder or glob, or a list of these")
    return [os.fspath(p) for p in listed]


def _shown(paths: Paths) -> str:
    listed = _listed(paths)
    return repr(listed[0]) + (f" and {len(listed) - 1} more" if len(listed) > 1 else "") if listed else "nothing"
