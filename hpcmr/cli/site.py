"""``hpcmr site``: the file that says what batch jobs of this cluster need."""

from __future__ import annotations

import argparse
import os
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmr.run.site import Site
    from hpcmr.run.slurm import Partition

EPILOG = """\
The file is $HPCMR_SITE, else ~/.config/hpcmr/site.toml. Its keys: partition, account, qos, modules, launcher, scratch, requeue, ntasks_per_node,
max_restarts, sbatch. An option of `hpcmr submit` comes before it.

examples:
  hpcmr site init          write it, from what the cluster reports
  hpcmr site show          print what holds
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("site", help="what batch jobs of this cluster need", epilog=EPILOG,
                                   description="Write or show the site file.", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("init", "show"))
    parser.add_argument("--force", action="store_true", help="init: replace a file that is there")


def run(args: argparse.Namespace) -> int:
    from hpcmr.errors import Refused
    from hpcmr.run import site, slurm

    path = site.site_path()
    if args.action == "show":
        found = site.read_site()
        print(site.site_text(found, [f"from {found.path}" if found.path else f"there is no {path}: this is what holds without one"]), end="")
        return 0
    if path.exists() and not args.force:
        raise Refused(f"{path} is there already; --force replaces it, `hpcmr site show` prints it")
    text = site.site_text(*learn(slurm.partitions(), slurm.config(), dict(os.environ), _account()))
    path.parent.mkdir(parents=True, exist_ok=True)
    wait = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    wait.write_text(text)
    os.rename(wait, path)
    print(path)
    print(text, end="")
    return 0


def learn(partitions: list[Partition], config: dict[str, str], env: dict[str, str], account: str) -> tuple[Site, list[str]]:
    """A site file's values, and notes for its reader, from what the cluster reports. Pure."""
    from hpcmr.run.site import Site

    default = next((p for p in partitions if p.default), partitions[0] if partitions else None)
    notes = [f"partition {p.name}: {p.nodes} nodes of {p.cores} cores and {p.memory_mib / 1024:.0f} GiB, time limit {p.time_limit}, "
             f"preemption {p.preempt}"
             for p in partitions]
    modules = tuple(m for m in env.get("LOADEDMODULES", "").split(":") if m)
    requeue = config.get("JobRequeue", "1") != "0"
    if not requeue:
        notes.append("JobRequeue = 0 here: a job submits itself anew instead of going back into the queue")
    return Site(partition=default.name if default else "", account=account, modules=modules, requeue=requeue,
                ntasks_per_node=default.cores if default else 0), notes


def _account() -> str:
    """The user's default account, where Slurm keeps accounts."""
    from hpcmr.run import slurm

    if shutil.which("sacctmgr") is None:
        return ""
    try:
        said = slurm.call(["sacctmgr", "--noheader", "--parsable2", "show", "user", os.environ.get("USER", ""), "format=DefaultAccount"],
                          "ask for the default account", limit_s=20)
    except slurm.SlurmError:
        return ""
    return said.strip().splitlines()[0] if said.strip() else ""
