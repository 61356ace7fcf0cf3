"""``hpcmr submit``: render the batch script of a job and hand it to Slurm."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
Every option of `hpcmr job` is taken as well and passed on. What is not given comes from the site file, see `hpcmr site --help`.
With --array, {array} in a --set is the id of the task, and run directory and outputs get a folder of that name.

When it is submitted, stdout has one line: the job's id, a tab, and the run directory.

examples:
  hpcmr submit stats.py --nodes 2 --ntasks-per-node 32 --time 2:00:00 --set input="'/scratch/me/*.h5'"
  hpcmr submit stats.py --nodes 2 --time 2:00:00 --print               show the script, submit nothing
  hpcmr submit stats.py --array 0-9 --set input="'/scratch/me/run{array}.h5'"
  hpcmr submit stats.py --nodes 2 --module gcc/13 --sbatch constraint=cpu --sbatch exclusive --wait

exit codes: 0 submitted (with --wait: done), 1 Slurm refused it (with --wait: failed), 2 refused before, 75 (with --wait) stopped and resumable
"""


def add_parser(subparsers: Any) -> None:
    from hpcmr.cli import job

    parser = subparsers.add_parser("submit", help="run a job as a batch job of Slurm", epilog=EPILOG,
                                   description="Render a batch script that takes the job from submission to its result, whatever time limit, "
                                               "preemption and dying nodes do in between, and submit it.")
    job.add_options(parser)
    add_sizes(parser)
    group = parser.add_argument_group("batch job")
    group.add_argument("--partition", metavar="P")
    group.add_argument("--account", metavar="A")
    group.add_argument("--qos", metavar="Q")
    group.add_argument("--array", metavar="IDS", help="one run for each id, for example 0-9 or 0-99%%10")
    group.add_argument("--dependency", metavar="D", help="for example afterok:1234")
    group.add_argument("--module", action="append", default=[], dest="modules", metavar="M", help="module to load (several)")
    group.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch (several)")
    group.add_argument("--prologue", metavar="FILE", help="lines of shell to run before the ranks")
    group.add_argument("--max-restarts", type=int, metavar="N", help="how often it may go on after a stop (default: 50, or the site's)")
    group.add_argument("--print", action="store_true", dest="show", help="print the script, submit nothing")
    group.add_argument("--wait", action="store_true", help="wait for the end, and exit with its code")


def add_sizes(parser: Any) -> None:
    """Options that say how much of the machine a run gets."""
    group = parser.add_argument_group("size")
    group.add_argument("--nodes", metavar="N", help="nodes, or a range such as 2-8")
    group.add_argument("--ntasks", metavar="N", help="ranks in all")
    group.add_argument("--ntasks-per-node", metavar="N", help="ranks on each node")
    group.add_argument("--cpus-per-task", metavar="N", help="cores for each rank (default 1)")
    group.add_argument("--time", metavar="T", help="time limit, for example 90 (minutes) or 2:00:00")
    group.add_argument("--time-min", metavar="T", help="less than --time that will do as well, to start earlier")
    group.add_argument("--mem", metavar="M", help="memory on each node, for example 64G")
    group.add_argument("--mem-per-cpu", metavar="M", help="memory for each core")


def sizes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_sizes` that were given."""
    names = ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "time", "time_min", "mem", "mem_per_cpu")
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}


def run(args: argparse.Namespace) -> int:
    from hpcmr.api.submit import hand_in, plan
    from hpcmr.errors import JobSpecError
    from hpcmr.run.batch import render

    if args.explain:
        raise JobSpecError("--explain runs nothing: use `hpcmr job ... --explain` here, without submitting")
    if args.array_id is not None:
        raise JobSpecError("--array-id is set by batch scripts; use --array 0-9")
    options = sizes_of(args) | {n: getattr(args, n) for n in ("partition", "account", "qos", "array", "dependency") if getattr(args, n) is not None}
    batch, site = plan(args.spec, args.settings, job_words(args), run_dir=args.run_dir, options=options, modules=args.modules, sbatch=args.sbatch,
                       prologue=args.prologue, fresh=args.fresh, max_restarts=args.max_restarts)
    if args.show:
        print(render(batch, site), end="")
        return 0
    submitted = hand_in(batch, site)
    print(f"{submitted.jobs[-1]}\t{submitted.run_dir}", flush=True)
    if not args.wait:
        return 0
    from hpcmr.cli.status import exit_code, watch

    return exit_code(watch(submitted.run_dir, quiet=args.quiet))


OWN = ("spec", "settings", "run_dir", "fresh", "explain", "array_id")
"""Options of ``job`` that `submit` deals with itself."""


def job_words(args: argparse.Namespace) -> list[str]:
    """The options of ``job`` that were given, as words for the batch script."""
    from hpcmr.cli import job

    parser = argparse.ArgumentParser(add_help=False)
    job.add_options(parser)
    words: list[str] = []
    for action in parser._actions:
        value = getattr(args, action.dest)
        if action.dest in OWN or value == action.default or value is None:
            continue
        name = next((o for o in action.option_strings if o.startswith("--")), "")
        if action.nargs == 0:
            words.append(name)
        else:
            words += [f"{name}={v}" for v in (value if isinstance(value, list) else [value])]
    return words
