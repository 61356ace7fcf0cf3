"""The nodes of a Slurm job, and which of them still answer. Standard library only.

Open MPI's ranks can survive the death of others, but not its launcher the death of a node: it ends. Where the allocation outlives the node
(``--no-kill``), the run is launched once more, on the nodes that are left.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence

ANSWER_S = 20.0
"""A node that has not started a process by then is taken for dead."""


def expand(text: str) -> list[int]:
    """``"4(x2),3"`` as Slurm counts tasks of nodes: [4, 4, 3]."""
    return [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def nodes_of(env: Mapping[str, str]) -> list[str]:
    """Names of the allocation's nodes; empty where Slurm does not say."""
    scontrol, text = shutil.which("scontrol", path=env.get("PATH")), env.get("SLURM_JOB_NODELIST", "")
    if scontrol is None or not text:
        return []
    try:
        done = subprocess.run([scontrol, "show", "hostnames", text], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split()


def answering(nodes: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Those of `nodes` on which Slurm can start a process; asked all at once."""
    srun = shutil.which("srun", path=env.get("PATH"))
    if srun is None:
        return []
    asked = {node: subprocess.Popen([srun, "--overlap", "--nodes=1", "--ntasks=1", "--mem=0", f"--nodelist={node}", "true"], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(env)) for node in nodes}
    end = time.monotonic() + ANSWER_S
    while any(child.poll() is None for child in asked.values()) and time.monotonic() < end:
        time.sleep(0.1)
    for child in asked.values():
        if child.poll() is None:
            child.kill()
            child.wait()
    return [node for node, child in asked.items() if child.returncode == 0]


def reduced(env: Mapping[str, str], nodes: Sequence[str], alive: Sequence[str]) -> dict[str, str]:
    """The variables of Slurm as they would be had the job only the nodes `alive`. Pure."""
    places = [i for i, node in enumerate(nodes) if node in alive]
    changed = {"SLURM_JOB_NODELIST": ",".join(alive), "SLURM_NODELIST": ",".join(alive), "SLURM_JOB_NUM_NODES": str(len(alive)),
               "SLURM_NNODES": str(len(alive))}
    for name in ("SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE"):
        counts = expand(env.get(name, ""))
        if len(counts) == len(nodes):
            changed[name] = ",".join(str(counts[i]) for i in places)
    tasks = sum(expand(changed.get("SLURM_TASKS_PER_NODE", ""))) or len(alive)
    return {**changed, "SLURM_NTASKS": str(tasks), "SLURM_NPROCS": str(tasks)}


def mpirun_words(alive: Sequence[str]) -> list[str]:
    """What Open MPI's mpirun must be told to start its daemons on these nodes only: steps of an earlier launch may hold the cores until Slurm, too,
    has found a node dead."""
    return ["--prtemca", "plm_slurm_args", f"--overlap --mem=0 --nodes={len(alive)} --nodelist={','.join(alive)}"]
