"""Who started this process, and how to start many: launchers, their environment variables and their flags.

Owns the knowledge about `mpirun`, `srun` and what they leave in the environment. Imports the standard library only, so that
it can be asked before MPI, or without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FAMILIES = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "Intel MPI", "mvapich": "MVAPICH", "slurm": "srun", "pmix": "a PMIx launcher", "pmi": "a PMI launcher"}
LAUNCH_VARIABLES = ("OMPI_", "PMI_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MV2_COMM_", "PRTE_", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
KEPT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_", "PMIX_MCA_", "PRTE_MCA_")


@dataclass(frozen=True)
class Started:
    """What the launcher that started this process left in the environment: its kind, and the size and rank it meant."""

    family: str
    size: int
    rank: int

    @property
    def by(self) -> str:
        name = FAMILIES[self.family]
        return name if self.family in ("slurm", "pmix", "pmi") else f"the mpirun of {name}"


def _number(env: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        if re.fullmatch(r"\d+", env.get(name, "")):
            return int(env[name])
    return None


def started(env: Mapping[str, str] | None = None) -> Started | None:
    """How this process was started, from the environment alone; None without a launcher.

    A batch script of Slurm is no launcher, nor is a Slurm step of one task without PMI.
    """
    env = os.environ if env is None else env
    slurm_size, slurm_rank = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_PROCID") or 0
    size = _number(env, "OMPI_COMM_WORLD_SIZE")
    if size is not None:
        return Started("openmpi", size, _number(env, "OMPI_COMM_WORLD_RANK") or 0)
    size = _number(env, "MV2_COMM_WORLD_SIZE")
    if size is not None:
        return Started("mvapich", size, _number(env, "MV2_COMM_WORLD_RANK") or 0)
    size = _number(env, "PMI_SIZE")
    if size is not None:
        hydra = any(name in env for name in ("HYDI_CONTROL_FD", "MPI_LOCALNRANKS", "HYDRA_LAUNCHER"))
        kind = "intel" if "I_MPI_INFO_NP" in env or "I_MPI_HYDRA_BOOTSTRAP" in env and hydra else "mpich" if hydra else "slurm" if slurm_size else "pmi"
        return Started(kind, size, _number(env, "PMI_RANK", "PMI_ID") or 0)
    if "PMIX_RANK" in env:
        return Started("slurm" if slurm_size else "pmix", slurm_size or 1, _number(env, "PMIX_RANK") or 0)
    if slurm_size is not None and slurm_size > 1:
        return Started("slurm", slurm_size, slurm_rank)
    return None


def env_rank(env: Mapping[str, str] | None = None) -> int:
    """Rank that the launcher gave to this process, without asking MPI; 0 without a launcher."""
    found = started(env)
    return 0 if found is None else found.rank


def clean_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what a launcher put there, to start a process that is no rank of ours."""
    env = os.environ if env is None else env
    return {k: v for k, v in env.items() if not k.startswith(LAUNCH_VARIABLES) or k.startswith(KEPT_VARIABLES)}


def mismatch(library: str, size: int | None = None, env: Mapping[str, str] | None = None) -> str | None:
    """Why the launcher and the MPI library do not fit, and the fix; None if they do.

    Parameters
    ----------
    library : str
        What ``MPI.Get_library_version()`` says.
    size : int, optional
        Size of COMM_WORLD; None before MPI is initialised.
    """
    found = started(env)
    if found is None:
        return None
    kind = library_family(library)
    mine = FAMILIES.get(kind, library.split("\n")[0][:40])
    crossed = {found.family, kind} >= {"openmpi"} and found.family in ("openmpi", "mpich", "intel", "mvapich") and kind in ("openmpi", "mpich", "intel", "mvapich") and found.family != kind
    if not crossed and (size is None or size > 1 or found.size <= 1):
        return None
    why = f"{found.by} started {found.size} processes, but mpi4py is bound to {mine}: each would be rank 0 of 1 and do the whole job"
    if found.family in ("slurm", "pmi", "pmix"):
        kinds = "--mpi=pmix" if kind == "openmpi" else "--mpi=pmi2"
        return f"{why}; start it with `srun {kinds}` (`srun --mpi=list` names those there are) or with `{sys.executable} -m hpcmr launch -n {found.size} ...`"
    return f"{why}; use the mpirun of {mine}, or `{sys.executable} -m hpcmr launch -n {found.size} ...`, which finds it"


def library_family(library: str) -> str:
    """``openmpi``, ``mpich``, ``intel``, ``mvapich`` or ``unknown``, from the text of ``MPI.Get_library_version()`` or of ``mpirun --version``."""
    for family, words in (("openmpi", ("Open MPI", "OpenRTE", "PRRTE", "prterun")), ("intel", ("Intel(R) MPI", "Intel MPI")), ("mvapich", ("MVAPICH",)),
                          ("mpich", ("MPICH", "HYDRA", "CRAY MPICH"))):
        if any(word in library for word in words):
            return family
    return "unknown"
