"""``hpcmr status``: how runs stand, read from their folders and from Slurm's queue."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmr.run.runs import View

LOOK_EVERY_S = 2.0
EPILOG = """\
RUN is a run directory, the name of one in ./hpcmr-runs, or the id of its Slurm job. Without it: a list of your runs, those in ./hpcmr-runs and those
that you submitted.

states: queued, running, checkpointed (stopped, goes on later), done, failed, cancelled, lost (it says running, but nobody runs it)

examples:
  hpcmr status
  hpcmr status stats-1f00c2b1aa --watch
  hpcmr status 1234 --json | jq .done

exit codes: 0; with --watch that of the run's end: 0 done, 1 failed, cancelled or lost, 75 checkpointed and not in the queue
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("status", help="how runs stand", epilog=EPILOG, description="Say how a run stands, or all of them.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run directory, a name in ./hpcmr-runs, or a Slurm job's id")
    parser.add_argument("--json", action="store_true", help="print one JSON object (without RUN: one on each line)")
    parser.add_argument("--watch", action="store_true", help="go on until the run ends; Slurm is asked every 30 s")


def run(args: argparse.Namespace) -> int:
    from hpcmr.errors import Refused
    from hpcmr.run import runs

    if args.run is None:
        if args.watch:
            raise Refused("--watch needs a RUN to watch")
        show_list(runs.views(runs.users_runs(), runs.Queue()), args.json)
        return 0
    run_dir = runs.find_run(args.run)
    if args.watch:
        return exit_code(watch(run_dir, args.json))
    tasks = runs.tasks_of(run_dir)
    if args.json:
        from hpcmr.api.submit import Run

        print(json.dumps(Run(run_dir).status()))
    elif tasks:
        show_list(runs.views(tasks, runs.Queue()), False)
    else:
        print(page(runs.view(run_dir, runs.Queue())))
    return 0


def show_list(views: Sequence[View], as_json: bool) -> None:
    """One line for each run."""
    if as_json:
        for v in views:
            print(json.dumps(v.as_json()))
        return
    rows = [("run", "state", "attempt", "done", "jobs"), *(_row(v) for v in views)]
    if len(rows) == 1:
        print("no runs here, and none that you submitted", file=sys.stderr)
        return
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for r in rows:
        print("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip())


def _row(v: View) -> tuple[str, ...]:
    return shown(v.run_dir), v.state, str(v.status["attempt"]), share(v), ",".join(j.id for j in v.jobs if j.alive) or "-"


def shown(path: Path) -> str:
    """A run's folder as one would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def share(v: View) -> str:
    """Stage and share: ``2 of 5, 42 %``."""
    stage = v.status["stage"]
    if v.state == "done" or stage is None:
        return "all" if v.state == "done" else "-"
    return f"{stage['number']} of {stage['of']}, {100 * min(1.0, stage['done']):.0f} %"


def page(v: View) -> str:
    """All of a run, a fact on a line."""
    from hpcmr.run.clock import show_age, show_seconds

    s = v.status
    stage, rates, kept = s["stage"], s["rates"], s["checkpoint"]
    lines = [("run", str(v.run_dir)), ("state", v.state),
             ("attempt", f"{s['attempt']}" + (f", {s['ranks']} ranks on {s['nodes']} nodes" if s["ranks"] else ""))]
    if v.state in ("running", "checkpointed") and stage is not None:
        lines.append(("stage", f"{stage['number']} of {stage['of']}, {100 * min(1.0, stage['done']):.0f} % done: {stage['name']}"))
    if v.state == "running" and rates is not None:
        left = f", {show_seconds(s['eta_s'])} left" if s["eta_s"] is not None else ""
        lines.append(("rates", f"{rates['rows_s']:,.0f} rows/s, {rates['nbytes_s'] / 2**20:,.1f} MiB/s{left}"))
    if kept is not None:
        lines.append(("checkpoint", f"generation {kept['generation']}, {show_age(time.time() - kept['committed_at'])} ago, "
                                    f"{kept['nbytes'] / 2**20:,.1f} MiB in {kept['seconds']:.2f} s"))
    lines += [("job", f"{j.id} {j.state}" + (f" ({j.reason})" if j.state == "PENDING" and j.reason != "None" else "")
               + (f", {j.left} left" if j.state == "RUNNING" else "")) for j in v.jobs[-3:]]
    lines += [("output", f"{o['name']}: {o['path']}, {o['rows']:,} rows") for o in s["outputs"]]
    if v.reason:
        lines.append(("reason", v.reason))
    return "\n".join(f"{name:11s} {value}" for name, value in lines)


def watch(run_dir: Path, as_json: bool = False, quiet: bool = False) -> list[View]:
    """Say what changes until the run (all tasks of an array) has ended; the last views."""
    from hpcmr.run import runs

    queue, said = runs.Queue(), ""
    while True:
        found = runs.views(runs.tasks_of(run_dir) or [run_dir], queue)
        line = json.dumps([v.as_json() for v in found]) if as_json else "; ".join(f"{v.run_dir.name}: {v.state}, {share(v)}" for v in found)
        if line != said and not quiet:
            print(line, file=sys.stdout if as_json else sys.stderr, flush=True)
        said = line
        if all(v.over for v in found):
            if not as_json and not quiet:
                for v in found:
                    print(page(v), file=sys.stderr)
            return found
        time.sleep(LOOK_EVERY_S)


def exit_code(views: Sequence[View]) -> int:
    """0: all done; 75: all that is not done is resumable; else 1."""
    rest = [v.state for v in views if v.state != "done"]
    return 0 if not rest else 75 if all(s == "checkpointed" for s in rest) else 1
