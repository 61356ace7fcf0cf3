"""What this node grants a rank: memory, cores, kinds of file system. Standard library only, Linux."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SHARED_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph",
                       "panfs", "afs", "orangefs", "pvfs", "glusterfs", "9p", "wekafs", "quobyte")
_UNLIMITED = 1 << 60


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cgroup_nbytes(proc: Path, cgroups: Path) -> int | None:
    """The least memory limit on the way from this process's control group to the root, version 1, 2, or 2 beside 1.

    In version 2 ``memory.high`` counts as well: beyond it a process is slowed down to a crawl.
    """
    limits = []
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        bases, names = ([cgroups, cgroups / "unified"], ("memory.max", "memory.high")) if number == "0" else (
            [cgroups / "memory"], ("memory.limit_in_bytes",))
        for base in bases:
            # Inside a container the path may be that of the host, or lead up ("/../x"): what is mounted is ours, and its top counts.
            folder = base.joinpath(*(part for part in Path(path).parts if part not in ("/", "..")))
            places = [folder, *folder.parents]
            texts = [_read(place / name).strip() for place in places[:places.index(base) + 1] for name in names]
            limits += [int(text) for text in texts if text.isdigit()]
    least = min(limits, default=_UNLIMITED)
    return least if least < _UNLIMITED else None


def _slurm_nbytes(env: Mapping[str, str]) -> int | None:
    """Memory of this node in the Slurm allocation; Slurm counts MiB, and 0 means all of the node."""
    per_node, per_cpu, cpus = (env.get(n, "") for n in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"))
    if per_node.isdigit() and int(per_node):
        return int(per_node) << 20
    return (int(per_cpu) * int(cpus)) << 20 if per_cpu.isdigit() and cpus.isdigit() and int(per_cpu) else None


def meminfo(name: str, proc: Path = Path("/proc")) -> int:
    """Bytes of a line of ``/proc/meminfo``, for example ``MemTotal`` or ``MemAvailable``; 0 if there is none."""
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def memory_limits(env: Mapping[str, str] | None = None, proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> dict[str, int]:
    """Limits in bytes by who sets them, for all ranks of this node together: ``node``, ``cgroup``, ``slurm``."""
    env = os.environ if env is None else env
    found = {"node": meminfo("MemTotal", proc) or None, "cgroup": _cgroup_nbytes(proc, cgroups), "slurm": _slurm_nbytes(env)}
    return {name: n for name, n in found.items() if n is not None}


def memory_per_rank(node_size: int, env: Mapping[str, str] | None = None, proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> tuple[int, str]:
    """Bytes that each of `node_size` ranks on this node may use, and which limit that is (``node``, ``cgroup``, ``slurm`` or ``ulimit``)."""
    shares = [(n // node_size, name) for name, n in memory_limits(env, proc, cgroups).items()]
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        shares.append((soft, "ulimit"))
    return min(shares, default=(_UNLIMITED, "nothing"))


def file_system(path: Path, proc: Path = Path("/proc")) -> str:
    """Kind of the file system that `path` (or its nearest existing parent) lies on, for example ``ext4`` or ``nfs4``."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    real = str(place.resolve())
    best, kind = "", "unknown"
    for line in _read(proc / "self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best) and right:
            best, kind = mount, right.split()[0]
    return kind


def is_shared(kind: str) -> bool:
    """Whether a kind of file system is shared between nodes (as far as its name tells)."""
    return any(kind.removeprefix("fuse.").startswith(name) for name in SHARED_FILE_SYSTEMS)
