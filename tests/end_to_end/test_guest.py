"""A guest in an MPI program of somebody else's: nothing of the program is changed, and an error is an exception."""

from __future__ import annotations

from pathlib import Path

from tests.support.launch import check, needs_launcher, run_ranks

PROGRAM = """
import os, signal, sys, threading
import numpy as np
from mpi4py import MPI
import hpcmr as mr

comm = MPI.COMM_WORLD
half = comm.Split(comm.rank % 2, comm.rank)

def surroundings():
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    return handlers, dict(os.environ), sys.excepthook, threading.excepthook, comm.Get_errhandler(), half.Get_errhandler(), os.getcwd()

def sums(c, function=None):
    table = mr.from_arrays(c, {"key": np.arange(100) % 5, "value": np.full(100, 0.1 + comm.rank)})
    table = table if function is None else table.filter(function)
    return table.group_by("key").agg(n=mr.count(), total=mr.sum("value")).collect()

before = surroundings()
assert sums(comm)["n"].tolist() == [20 * comm.size] * 5
assert sums(half)["n"].tolist() == [20 * half.size] * 5          # the halves work side by side

def bad(row):
    if row.value > 1 and row.key == 3:
        raise KeyError("not this one")
    return True

try:
    sums(comm, bad)
except mr.HpcmrError as error:
    said = str(error)
else:
    said = None
assert len(set(comm.allgather(said))) == 1 and "not this one" in said, said
assert sums(comm)["n"].tolist() == [20 * comm.size] * 5          # and life goes on

for c in (comm, half):                                           # arrays in, arrays out
    sent = mr.shuffle(c, {"to": np.arange(c.size), "from": np.full(c.size, c.rank)}, dest=np.arange(c.size))
    assert sent["from"].tolist() == list(range(c.size)) and set(sent["to"].tolist()) == {c.rank}
    sums = mr.reduce_by_key(c, {"k": np.arange(10) % 3}, key="k", aggs={"n": mr.count()})
    there = mr.gather(c, mr.sort(c, sums, by="k"))
    assert there is None or there["n"].tolist() == [4 * c.size, 3 * c.size, 3 * c.size]
try:
    mr.shuffle(comm, {"a": [1]}, dest=[comm.size if comm.rank == 1 else 0])
except mr.HpcmrError as error:
    said = str(error)
else:
    said = None
assert len(set(comm.allgather(said))) == 1 and "there are ranks" in said, said
after = surroundings()
assert before == after, (before, after)
half.Free()
print("fine", flush=True)
"""


@needs_launcher
def test_library_call_leaves_the_program_alone(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = check(run_ranks([tmp_path / "program.py"], n=3, cwd=tmp_path))
    assert done.stdout.count("fine") == 3
