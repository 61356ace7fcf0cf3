"""What is left when a job is done: an output on disk, opened in Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpcmr.errors import Refused
from hpcmr.store.arrays import FORMAT, VERSION
from hpcmr.store.manifest import plain
from hpcmr.store.reader import StoredTable

if TYPE_CHECKING:
    from hpcmr.api.table import Table


class Output(StoredTable):
    """An output on disk; see `open`. Nothing is read before it is asked for.

    ``output["n"]`` is a column that can be sliced like a NumPy array, ``output["n"][:]`` all of it. ``len(output)`` is the number of
    rows, ``output.columns`` the names, ``output.schema`` names and types, ``output.manifest`` all that is known of its making.
    """

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a pandas DataFrame; text as str, nulls as None, values of more than one dimension as arrays.

        Parameters
        ----------
        columns : sequence of str, optional
            Columns to read; all of them if not given.

        Raises
        ------
        Refused
            pandas is not installed.

        Notes
        -----
        Collective: no. Cost: the whole table in memory.
        """
        try:
            import pandas  # noqa: F401  (checked here, used by Result)
        except ImportError:
            raise Refused("to_pandas() needs pandas, which is not installed: pip install pandas") from None
        from hpcmr.api.result import Result

        schema = self.schema if columns is None else self.schema.select(columns)
        return Result(self.read_batch(0, self.rows, schema.names), schema).to_pandas()

    def digest(self) -> str:
        """``xxh3-128:<32 hex digits>`` of names, types and rows, the same for equal content however many shards hold it. Reads every row."""
        from hpcmr.store.digest import digest

        return digest(self)

    def export(self, file: str | os.PathLike[str], kind: str = "", *, replace: bool = False) -> list[str]:
        """Write all rows to one ordinary file.

        Parameters
        ----------
        file : str or path
        kind : {"h5", "csv", "tsv", "npz"}, optional
            What the file's name ends in, if not given.
        replace : bool
            Replace a file that is there.

        Returns
        -------
        list of str
            Columns that the format has no word for, and what became of them.

        Raises
        ------
        Refused
            `file` is there already.
        StorageError
            Writing fails; nothing is left behind.
        """
        from hpcmr.store.export import KINDS, export

        chosen = kind or os.path.splitext(file)[1][1:].lower()
        if chosen not in KINDS:
            raise Refused(f"cannot export to {os.fspath(file)!r}: the kinds of file are {', '.join(KINDS)}")
        return export(self, file, chosen, replace=replace)

    def describe(self) -> dict[str, Any]:
        """What the manifest says, as plain values that `json` can write."""
        m = self.manifest
        return {
            "path": str(self.path), "format": FORMAT, "version": VERSION, "rows": m.rows, "nbytes": m.nbytes, "created": m.created,
            "writer": plain(m.writer), "inputs": plain(m.inputs),
            "schema": [{"name": f.name, "type": str(f.type), "attrs": {k: plain(v) for k, v in f.attrs}} for f in self.schema],
            "shards": [{"name": s.name, "rows": s.rows, "nbytes": s.nbytes, "digest": s.digest} for s in m.shards],
            "segments": len(m.segments),
        }

    def to_table(self) -> Table:
        """A lazy `Table` that reads this output: the input of another job."""
        from hpcmr.api.table import Table

        return Table.from_stored(self.path)


def open(path: str | os.PathLike[str]) -> Output:
    """Open an output that a job has published.

    ::

        stats = hpcmr.open("results/stats")
        stats["n"][:10], stats["pos"][::100, 0], stats["name"][-1]

    Parameters
    ----------
    path : str or path
        The folder that ``write_hdf5`` or ``hpcmr job`` wrote.

    Returns
    -------
    Output

    Raises
    ------
    InputError
        There is no output at `path`, or it is damaged.

    Notes
    -----
    Collective: no. Any process may call it, with or without MPI.
    """
    return Output.open(path)
