"""What is left when a job is done: an output on disk, opened in Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpcmr.errors import Refused
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
