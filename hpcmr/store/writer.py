"""Writing an output: each rank its own shards, in bounded memory, into a folder that nobody sees until it is published."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hpcmr.data.batch import Batch
from hpcmr.data.schema import Schema
from hpcmr.errors import ConservationError, DamagedCheckpoint, DataError, InputError, StorageError
from hpcmr.store import files, paths
from hpcmr.store.arrays import schema_arrays
from hpcmr.store.encode import encode
from hpcmr.store.shard import BUFFER_NBYTES, ShardWriter

SHARD_NBYTES = 256 << 20
SLICE_NBYTES = 16 << 20
"""Larger batches are taken in slices of about this size, so that putting strings together stays small."""

ShardInfo = dict[str, Any]
"""What a closed shard says of itself, as plain values: ``file, rank, rows, nbytes, digest, frame, arrays, pieces``; `pieces` is a
list of ``[piece, rows]`` in the order of the shard's rows."""


class TableWriter:
    """Writes the rows of one rank.

    Parameters
    ----------
    folder : Path
        The output; it is not touched before `publish`. Shards are written to a folder beside it.
    rank : int
    schema : Schema
        Columns in their order, with the attributes to carry.
    attempt : str
        Names this attempt, the same on all ranks: letters, digits, ``-`` and ``_``.
    shard_nbytes : int
        Bytes at which a shard is full and another one is begun: a rank writes at most ``1 + nbytes // shard_nbytes`` shards.
    share : {"group"}, optional
        Who else may read the output.

    Notes
    -----
    Collective: no. Cost: `memory_nbytes` of memory, plus a slice of `SLICE_NBYTES` where strings are put together; each byte is
    written once, but for a rank's last shard, of which all but the first column is moved when it is closed.
    """

    def __init__(self, folder: Path, rank: int, schema: Schema, *, attempt: str, shard_nbytes: int = SHARD_NBYTES,
                 share: str | None = None) -> None:
        _check_names(schema)
        self.folder = Path(folder)
        self.rank = rank
        self.schema = schema
        self._staging = paths.staging(self.folder, attempt)
        self._shard_nbytes, self._mode = shard_nbytes, paths.file_mode(share)
        self._shard: ShardWriter | None = None
        self._pieces: list[list[int]] = []
        self._infos: list[ShardInfo] = []
        self._told = 0                  # of these, what `cut` has told
        self._kept: list[Path] = []     # files that a checkpoint names
        self._commits: list[Future[None]] = []
        self._shards: list[ShardWriter] = []
        self._pool: ThreadPoolExecutor | None = None
        self._last_piece = -1

    @property
    def memory_nbytes(self) -> int:
        """Bytes of memory that the buffers take at most."""
        return BUFFER_NBYTES * len(schema_arrays(self.schema))

    def append(self, piece: int, batch: Batch) -> None:
        """Write the rows of `batch`, which come behind all rows of lower pieces and of this one that were written before.

        The batch is not kept: its buffers may be used again at once.

        Raises
        ------
        DataError
            If the batch has other columns than the schema.
        StorageError
            If writing fails. Then call `abandon`.
        """
        if batch.nrows == 0:
            return
        batch = batch.select(self.schema.names) if set(batch.names) == set(self.schema.names) else batch
        batch.check(self.schema)
        if piece < self._last_piece:
            raise ConservationError(f"piece {piece} came to be written behind piece {self._last_piece}")
        self._last_piece = piece
        step = max(1, int(batch.nrows * SLICE_NBYTES / max(1, batch.nbytes)))
        for start in range(0, batch.nrows, step):
            self._append(piece, batch.slice(start, start + step))

    def _append(self, piece: int, batch: Batch) -> None:
        done = 0
        while done < batch.nrows:
            shard = self._open()
            rows = min(batch.nrows - done, shard.room())
            part = batch if rows == batch.nrows else batch.slice(done, done + rows)
            shard.append(encode(part, self.schema), rows)
            if self._pieces and self._pieces[-1][0] == piece:
                self._pieces[-1][1] += rows
            else:
                self._pieces.append([piece, rows])
            done += rows
            if shard.full():
                self._finish()

    def _open(self) -> ShardWriter:
        if self._shard is None:
            files.make_folder(self._staging)
            self._shard = ShardWriter(self._staging / paths.staged_name(self.rank, len(self._infos)), self.schema, self._shard_nbytes,
                                      self._mode)
            self._shards.append(self._shard)
        return self._shard

    def _finish(self) -> None:
        """Close the shard; it becomes durable in a thread of its own, while the next one is being filled."""
        shard, info = self._taken()
        if shard is not None:
            info.update(shard.finish())
            self._submit(shard.commit)

    def _taken(self) -> tuple[ShardWriter | None, ShardInfo]:
        """The shard at hand, which nothing is written to any more, and what is known of it."""
        shard, self._shard = self._shard, None
        if shard is None:
            return None, {}
        info: ShardInfo = {"file": shard.path.name, "rank": self.rank, "pieces": self._pieces}
        self._infos.append(info)
        self._pieces = []
        return shard, info

    def _submit(self, work: Callable[[], None]) -> None:
        for earlier in self._commits:
            if earlier.done():
                earlier.result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="hpcmr-store")
        self._commits.append(self._pool.submit(work))

    def cut(self) -> tuple[list[ShardInfo], Callable[[], None]]:
        """End the shard at hand: a checkpoint will name it.

        Returns
        -------
        infos
            One for each shard that was finished since the last cut, told when `durable` has returned. `abandon` leaves these where they are.
        durable
            Waits until they are. In any thread; raises `StorageError`.

        Notes
        -----
        The shard is far from full: its arrays must be moved together, which the thread does, so that the rank can go on.
        """
        shard, last = self._taken()
        if shard is not None:
            ending = shard

            def end() -> None:
                last.update(ending.finish())
                ending.commit()

            self._submit(end)
        ended, commits, staging = self._infos[self._told:], list(self._commits), self._staging
        self._told = len(self._infos)
        self._kept += [staging / i["file"] for i in ended]
        infos: list[ShardInfo] = [{} for _ in ended]
        for info in ended:
            info["kept"] = True

        def durable() -> None:
            for commit in commits:
                commit.result()
            files.sync_folder(staging)
            for info, known in zip(infos, ended, strict=True):
                info.update((k, v) for k, v in known.items() if k != "kept")

        return infos, durable

    def adopt(self, infos: Sequence[ShardInfo], attempt: str) -> None:
        """Take over shards that an earlier attempt has finished: they get a name in our folder, and stay where they are.

        Raises
        ------
        StorageError
            A shard is damaged, or gone.
        """
        files.make_folder(self._staging)
        for info in infos:
            name = paths.adopted_name(self.rank, self._told)
            take_over(paths.staging(self.folder, attempt), info, self._staging / name, self.schema)
            self._kept.append(self._staging / name)
            self._infos.append({**info, "file": name, "attempt": attempt})
            self._told += 1

    def close(self) -> list[ShardInfo]:
        """Finish all shards and make them durable; return what `publish` needs to know of them, from every rank.

        Raises
        ------
        StorageError
            If writing fails. Then call `abandon`.
        """
        self._finish()
        self._wait(raising=True)
        if self._infos:
            files.sync_folder(self._staging)
        return self._infos

    def _wait(self, raising: bool) -> None:
        errors = [e for e in (c.exception() for c in self._commits) if e is not None]
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._commits = None, []
        if errors and raising:
            raise errors[0]

    def abandon(self) -> None:
        """Remove all that this rank has written and no checkpoint names, and the folder beside the output once it is empty. Never raises."""
        self._wait(raising=False)
        kept = set(self._kept)
        for shard in self._shards:
            if shard.path not in kept or not os.path.lexists(shard.path):
                shard.abandon()
        self._shard, self._shards = None, []
        files.remove_empty_folder_quietly(self._staging)


def take_over(folder: Path, info: ShardInfo, path: Path, schema: Schema) -> None:
    """Give a shard in `folder` a second name, once every byte of it was compared. Raises `StorageError`."""
    from hpcmr.store.manifest import Manifest, Shard
    from hpcmr.store.reader import StoredTable

    name = str(info["file"])
    if not paths.is_staged_name(name):
        raise StorageError(f"{str(folder / name)!r} is no name of a shard; start over with --fresh")
    if not (folder / name).exists():
        name = _published_as(folder, str(info["digest"])) or name
    arrays = tuple((str(a), int(b), int(c), str(d)) for a, b, c, d in info["arrays"])
    shard = Shard(name, int(info["rows"]), int(info["nbytes"]), str(info["digest"]), str(info["frame"]), arrays)
    segments = ((0, 0, shard.rows),) if shard.rows else ()
    with StoredTable(folder, Manifest(schema, (shard,), segments)) as table:
        for what in table.damages(0):
            raise DamagedCheckpoint(f"{what.partition(';')[0]}; a checkpoint names this shard of an unfinished output; start the job again: it goes "
                                    "on from an older checkpoint, or anew", file=str(info["file"]))
    with files.storing(path, "link"):
        files.link(folder / name, path)


def _published_as(folder: Path, digest: str) -> str | None:
    """The name that a shard has in a staging folder that was complete but did not become the output."""
    from hpcmr.store.publish import read_manifest

    try:
        return next((s.name for s in read_manifest(folder).shards if s.digest == digest), None)
    except InputError:
        return None


def _check_names(schema: Schema) -> None:
    for name in schema.names:
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise DataError(f"the column name {name!r} is no text that can be stored; rename the column") from None


def cut_segments(infos: list[ShardInfo]) -> tuple[list[ShardInfo], list[tuple[int, int, int]]]:
    """Put the shards of all ranks in order, and their pieces into segments ``(shard, first row, rows)`` in logical order.

    Rows are ordered by piece; where one piece came from several shards, by rank and by the order of writing.
    """
    ordered = sorted(infos, key=lambda i: (i["pieces"][0][0] if i["pieces"] else 0, i["rank"], i["file"]))
    runs = []
    for shard, info in enumerate(ordered):
        ends = itertools.accumulate(rows for _, rows in info["pieces"])
        runs += [(piece, info["rank"], info["file"], shard, end - rows, rows) for (piece, rows), end in zip(info["pieces"], ends, strict=True)]
    segments: list[tuple[int, int, int]] = []
    for _, _, _, shard, first, rows in sorted(runs):
        if segments and segments[-1][0] == shard and segments[-1][1] + segments[-1][2] == first:
            segments[-1] = (shard, segments[-1][1], segments[-1][2] + rows)
        else:
            segments.append((shard, first, rows))
    return ordered, segments
