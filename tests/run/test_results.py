"""Results of finished actions: written by one rank, answered on all, with the same types and bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.data.batch import Batch, BytesColumn, FixedColumn
from hpcmr.data.python_values import row_type
from hpcmr.errors import HpcmrError, StorageError
from hpcmr.run.memory import MemoryBudget
from hpcmr.run.results import Waiting, keep_result, result_of

N = 30_000
BATCH = Batch({"x": FixedColumn(np.arange(N) * 0.1, np.arange(N) % 3 > 0), "w": BytesColumn.from_list([f"w{i}" for i in range(N)], True)})
VALUES = {"none": None, "number": 0.1 + 0.2, "row": row_type(("a", "b"))(1, "x"), "batch": BATCH, "few": BATCH.slice(0, 3),
          "edges": (np.arange(N), [np.arange(4.0)]), "long": ["a text"] * 4000}


def plain(value: Any) -> Any:
    if isinstance(value, Batch):
        return {n: c.to_list() for n, c in value.columns.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(plain, value)]
    return (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value


@pytest.mark.mpi
@pytest.mark.parametrize("name", VALUES)
def test_a_result_is_answered(world: Any, mpi_tmp_path: Path, name: str) -> None:
    root = world.size - 1
    kept = keep_result(world, mpi_tmp_path, 1, 4, VALUES[name] if world.rank == root else None, root)
    assert isinstance(kept, dict) and len(str(kept)) < 40_000
    assert len(kept["parts"]) == {"batch": 1, "edges": 1, "long": 1}.get(name, 0)
    assert plain(result_of(world, mpi_tmp_path, kept, root, True)) == plain(VALUES[name])
    only = result_of(world, mpi_tmp_path, kept, 0, False)
    assert plain(only) == (plain(VALUES[name]) if world.rank == 0 else None)


@pytest.mark.mpi
def test_what_cannot_be_kept_is_said_on_all_ranks(world: Any, mpi_tmp_path: Path) -> None:
    assert keep_result(world, mpi_tmp_path, 1, 1, {1, 2} if world.rank == 0 else None, 0) is None


@pytest.mark.mpi
def test_a_damaged_result_is_an_error_on_all_ranks(world: Any, mpi_tmp_path: Path) -> None:
    kept = keep_result(world, mpi_tmp_path, 2, 1, BATCH if world.rank == 0 else None, 0)
    assert isinstance(kept, dict)
    if world.rank == 0:
        path = mpi_tmp_path / kept["parts"][0]["file"]
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with pytest.raises(StorageError):
        result_of(world, mpi_tmp_path, kept, 0, True)
    with pytest.raises(HpcmrError, match="cannot read"):
        result_of(world, mpi_tmp_path, {"what": 1}, 0, True)


@pytest.mark.mpi
def test_a_large_result_waits_and_is_not_the_user_s(world: Any, mpi_tmp_path: Path) -> None:
    memory = MemoryBudget(1 << 30, "a test")
    values = np.arange(N) * 0.1
    kept = keep_result(world, mpi_tmp_path, 1, 2, values, 0, memory)
    if world.rank == 0:
        assert isinstance(kept, Waiting) and memory.available() < 1 << 30 and not (mpi_tmp_path / "results").exists()
        values[:] = 0
        kept = kept.write()
    told = world.bcast(kept, 0)
    assert result_of(world, mpi_tmp_path, told, 0, True).tolist() == (np.arange(N) * 0.1).tolist()


@pytest.mark.mpi
def test_a_result_that_has_no_room_for_a_copy_is_written_at_once(world: Any, mpi_tmp_path: Path) -> None:
    memory = MemoryBudget(1 << 30, "a test")
    memory.take(memory.available() - 1000, "a test")
    kept = keep_result(world, mpi_tmp_path, 1, 2, BATCH, 0, memory)
    assert isinstance(kept, dict) and plain(result_of(world, mpi_tmp_path, kept, 0, True)) == plain(BATCH)
