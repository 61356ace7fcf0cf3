"""What ``job(ctx)`` is given: parameters, names of outputs, communicator, seed and log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcmr.comm.world import World, mpi_module
from hpcmr.errors import JobSpecError

LOGGER = "hpcmr.job"


class Params(dict[str, Any]):
    """The ``--set`` values; a name that was not set is an error that says how to set it."""

    def __missing__(self, name: str) -> Any:
        have = f"; set are {', '.join(map(repr, self))}" if self else ""
        raise JobSpecError(f"the job asks for ctx.params[{name!r}], which was not given: add --set {name}=VALUE{have}")


class JobContext:
    """The surroundings of a job.

    Attributes
    ----------
    params : dict
        Values of ``--set KEY=VALUE``; a dotted key makes nested dicts.
    name : str
        The job's name.
    run_dir : Path
        Folder of this run.
    seed : int
        ``--set seed=...``, else 0; the same on all ranks.
    rank, size : int
        This process and the number of them.
    array_id : int or None
        The task of ``submit --array`` that this is.
    log : logging.Logger
        ``ctx.log.info(...)`` goes to stderr, from rank 0 only.

    Notes
    -----
    Made collectively, by all ranks of `world`.
    """

    def __init__(self, world: World, name: str, params: Mapping[str, Any], run_dir: Path, outputs: Mapping[str, Any]) -> None:
        # Made while all ranks are here: at the first use one of them may have failed already.
        self._comm = None if world.comm is None else world.comm.Dup()
        if world.watch is not None and self._comm is not None:
            world.watch.guard(self._comm)
        self._outputs = dict(outputs)
        self._named: list[str] = []
        self.name = name
        self.params = Params(params)
        self.run_dir = run_dir
        self.seed = _seed_of(params)
        self.array_id: int | None = None
        self.rank = world.rank
        self.size = world.size
        self.log = job_logger(world.rank)

    @cached_property
    def comm(self) -> Any:
        """An mpi4py communicator over the ranks of the job, for your own messages: a duplicate, never used by this package.

        Without a launcher it is a duplicate of COMM_SELF.
        """
        return mpi_module().COMM_SELF.Dup() if self._comm is None else self._comm

    def output(self, name: str) -> Path:
        """Where to write the output `name`.

        ``--set output.<name>=PATH``, else ``--set output.path=PATH`` (of a job with one output), else ``output/<name>`` in the
        run directory.

        Raises
        ------
        JobSpecError
            The name is no plain file name, or two outputs would go to the same path.
        """
        if not isinstance(name, str) or not name or name in (".", "..", "path") or "/" in name or "\0" in name:
            raise JobSpecError(f"ctx.output({name!r}): the name of an output is a plain word, and not 'path'")
        if name not in self._named:
            self._named.append(name)
        told = self._outputs.get(name)
        if told is not None:
            return Path(str(told)).expanduser()
        whole = self._outputs.get("path")
        if whole is None:
            return self.run_dir / "output" / name
        check_one_path(self._named, self._outputs)
        return Path(str(whole)).expanduser()

    def fingerprint(self) -> tuple[Any, ...]:
        """What counts of a context that a function of the user's captured."""
        return ("context", dict(self.params), self.seed, *(() if self.array_id is None else (self.array_id,)))


def _seed_of(params: Mapping[str, Any]) -> int:
    seed = params.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise JobSpecError(f"--set seed={seed}: the seed is an integer from 0 to 2**63 - 1")
    return seed


def check_one_path(names: Sequence[str], outputs: Mapping[str, Any]) -> None:
    """Raise `JobSpecError` if ``output.path`` would have to hold two of the outputs `names`."""
    others = [n for n in names if n not in outputs]
    if len(others) > 1 and "path" in outputs:
        whole = outputs["path"]
        raise JobSpecError(f"--set output.path={whole} names one folder, and the job has the outputs {' and '.join(map(repr, others))}: "
                           f"set each, for example --set output.{others[-1]}={whole}-{others[-1]}")


def outputs_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the parameters that names outputs: ``output.<name>`` and ``output.path``."""
    told = params.get("output", {})
    if not isinstance(told, Mapping):
        raise JobSpecError(f"--set output={told}: write --set output.path={told}, or --set output.<name>=PATH")
    return dict(told)


def job_logger(rank: int) -> logging.Logger:
    """The log of the job's author: rank 0 speaks, the others are silent."""
    log = logging.getLogger(LOGGER)
    log.disabled = rank != 0
    return log
