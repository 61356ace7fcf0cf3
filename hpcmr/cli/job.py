"""``hpcmr job``: run a job file, or a Python file that defines ``job(ctx)``.

Every rank runs this. All that can be wrong is agreed on by all ranks, so that each failure is reported once and every rank
leaves with the same exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmr.cli.durations import duration
from hpcmr.errors import EXIT_DONE, EXIT_FAILED, HpcmrError

if TYPE_CHECKING:
    from hpcmr.api.context import JobContext
    from hpcmr.api.jobfile import JobFile
    from hpcmr.comm.recovery import Death
    from hpcmr.comm.world import World
    from hpcmr.run.attempt import Attempt
    from hpcmr.run.command import Ending
    from hpcmr.run.notice import Notice
    from hpcmr.run.session import Session

FINALIZE_LIMIT_S = 20.0
STALL_TIMEOUT_S = 1800.0

EPILOG = """\
SPEC is a .toml job file or a .py file that defines job(ctx); without it ./job.toml, else ./job.py.
VALUE is read as a TOML value, else as a plain string. Dotted keys reach into the job file; a .py job finds
the values in ctx.params. Paths given here are relative to the working directory.

When the job is done, stdout has one line for each output: its path, a tab, and the number of rows.

The same command again goes on with a run that was left unfinished, on any number of ranks, from its newest checkpoint; of a run
that is done it says so. It refuses where the job, its code, its inputs or the format of checkpoints have changed since. SIGUSR1,
SIGUSR2 and SIGTERM make the job commit a checkpoint and leave with 75, at the latest when the split that is being read is through.

examples:
  mpirun -n 4 python -m hpcmr job wordcount.toml
  mpirun -n 4 python -m hpcmr job wordcount.toml --set input.paths="['a/*.txt']" --set output.path=counts
  mpirun -n 4 python -m hpcmr job stats.py --set input="'events.h5'" --set output.stats=stats --memory 2GiB
  mpirun -n 64 python -m hpcmr job halos.py --checkpoint-every 10min --stall-timeout 1h
  mpirun -n 64 python -m hpcmr job halos.py --mtbf 6h            nodes that fail, or are taken away, four times a day
  mpirun -n 64 python -m hpcmr job halos.py --fresh              start over, whatever an earlier run has left
  python -m hpcmr job wordcount.toml --explain

exit codes: 0 done (also: was done already), 1 failed, 2 refused before any work, 75 stopped and resumable
"""


def add_parser(subparsers: Any) -> None:
    """Add ``job`` to the commands."""
    parser = subparsers.add_parser("job", help="run a job file, or a .py file that defines job(ctx)", epilog=EPILOG,
                                   description="Run a job on the ranks that the launcher started, or on one without a launcher.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)


def add_options(parser: Any) -> None:
    """The words of ``job``; ``submit`` takes them as well, and passes them on."""
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="the job: a .toml or a .py file")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE",
                        help="set a key of the job file, or a parameter of the job")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of this run (default: hpcmr-runs/<name>-<hash of SPEC and --set>)")
    parser.add_argument("--memory", metavar="SIZE", help="memory for each rank, for example 4GiB or 500M (default: a share of what the node grants)")
    parser.add_argument("--scratch", metavar="DIR",
                        help="folder on each node for what does not fit in memory (default: Slurm's for the job, $TMPDIR)")
    parser.add_argument("--checkpoint-every", type=duration, metavar="TIME",
                        help="a checkpoint each 30s, 10min, 1h, ...; 0: only on notice by a signal and where the job says .checkpoint() "
                             "(default: by measured cost and --mtbf, at most 2 %% of the time)")
    parser.add_argument("--mtbf", type=duration, default=24 * 3600.0, metavar="TIME",
                        help="mean time between two failures of the whole job, from which the interval of checkpoints follows (default: 24h)")
    parser.add_argument("--stall-timeout", type=duration, metavar="TIME",
                        help="end the job, and say which rank does not answer, when nothing has moved for so long; 0: never "
                             "(default: $HPCMR_STALL_S, else 30min)")
    survive = parser.add_mutually_exclusive_group()
    survive.add_argument("--recover", action="store_true",
                         help="go on with the ranks that live when others die (Open MPI 5 under `mpirun --with-ft ulfm`; `hpcmr launch` does so)")
    survive.add_argument("--no-recover", action="store_true", help="a rank that dies ends the job, also under `hpcmr launch`")
    parser.add_argument("--explain", action="store_true", help="print the plan and run nothing")
    parser.add_argument("--fresh", action="store_true", help="discard what an earlier run left: its run directory and its outputs")
    parser.add_argument("--array-id", type=int, help=argparse.SUPPRESS)       # of batch scripts: the task of an array that this is
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors on stderr")
    loud.add_argument("-v", "--verbose", action="store_true", help="say more on stderr, such as the plan of each action")


@dataclass(frozen=True)
class Order:
    """What is to be run, as rank 0 read it from the command line and the files: plain values, broadcast to all ranks."""

    path: Path
    name: str
    params: dict[str, Any]
    run_dir: Path
    file: JobFile | None


def prepare(args: argparse.Namespace) -> Order:
    """Read the command line's words and the job file. Rank 0 only. Raises `JobSpecError`."""
    from hpcmr.api.context import check_one_path, outputs_of
    from hpcmr.api.jobfile import Setting, nested, read_job_file, task_settings
    from hpcmr.api.jobspec import default_run_dir, find_spec, named_outputs
    from hpcmr.io.hdf5_guard import start_early

    settings = task_settings(args.settings, args.array_id)
    path = find_spec(args.spec)
    file = read_job_file(path, settings) if path.suffix == ".toml" else None
    if file is not None and args.array_id is not None and file["output.path"] and not any(s.key == ("output", "path") for s in settings):
        whole = ("output", "path"), f"{file['output.path']}/{args.array_id}"
        file = read_job_file(path, [*settings, Setting(*whole, "--array-id")])
    params = nested(settings)
    if file is None:
        check_one_path(named_outputs(path), outputs_of(params))
    name = path.stem if file is None else str(file["job.name"])
    run_dir = Path(args.run_dir) if args.run_dir else default_run_dir(path, name, args.settings)
    if file["input.format"] == "hdf5" if file is not None else b"read_hdf5" in path.read_bytes():
        start_early()
    return Order(path, name, params, run_dir, file)


def run(args: argparse.Namespace) -> int:
    """Run the job on all ranks. Returns the same exit code on each."""
    # NumPy asks for huge pages, and the kernel then makes room for them while we wait: small pages made W2a 20 % faster.
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    from hpcmr.run.node import KERNEL_CACHE, kernel_cache

    cache = kernel_cache(args.scratch)
    if cache is not None:
        os.environ[KERNEL_CACHE] = str(cache)
    from hpcmr.comm.world import World
    from hpcmr.io.hdf5_guard import turn_on
    from hpcmr.run.notice import Notice

    turn_on()
    notice = Notice()
    if not args.explain:
        notice.install()
    world = World.of()
    _speak(args, world.rank)
    try:
        order = world.on_root(lambda: prepare(args))
        if args.recover:
            from hpcmr.comm import recovery

            recovery.enable(world)
    except (HpcmrError, KeyboardInterrupt) as error:
        return _failed(error, world)
    from hpcmr.run.command import run_on

    claimed: list[Attempt] = []
    world, code = run_on(world, lambda world, deaths: _attempt(order, args, world, deaths, notice, claimed))
    return world.leave(code)


def _attempt(order: Order, args: argparse.Namespace, world: World, deaths: tuple[Death, ...], notice: Notice, claimed: list[Attempt]) -> Ending:
    """All that belongs to one attempt; after `deaths` the one that has `claimed` the run goes on, on the ranks that live."""
    from hpcmr.run.attempt import redone
    from hpcmr.run.command import Ending, deaths_of
    from hpcmr.run.report import degraded

    _speak(args, world.rank)
    try:
        session, ctx = _session(order, args, world)
    except (HpcmrError, KeyboardInterrupt) as error:
        world.settle(error)
        return Ending(_failed(error, world))
    if deaths:
        session.say(f"{world.size} rank{'s' if world.size > 1 else ''} go on after {world.recovered_s:.2f} s: {'; '.join(map(str, deaths))}")
    session.notice = notice
    code = _execute(order, session, ctx, args, claimed)

    def tell(world: World) -> None:
        died, attempt = deaths_of(world), session.attempt
        if died:
            _speak(args, world.rank)
            session.log.warning("%s", degraded(died, world.size, redone(attempt) if attempt is not None else (), code == EXIT_DONE))
        if attempt is not None:
            attempt.end(session.error, session.outputs)
        if code == EXIT_DONE:
            _tell_end(session, args)

    return Ending(code, tell, session.scratch.close)


def _session(order: Order, args: argparse.Namespace, world: World) -> tuple[Session, JobContext]:
    from hpcmr.api.context import JobContext, outputs_of
    from hpcmr.run.progress import Progress
    from hpcmr.run.session import Session

    outputs = outputs_of(order.params)
    ctx = JobContext(world, order.name, order.params, order.run_dir, outputs)
    ctx.array_id = args.array_id
    session = Session(world, order.run_dir, args.memory, ctx.seed, order.params, name=order.name,
                      progress=None if args.quiet else Progress(), command_line=True, scratch=args.scratch)
    session.fresh = args.fresh
    return session, ctx


def _execute(order: Order, session: Session, ctx: JobContext, args: argparse.Namespace, claimed: list[Attempt]) -> int:
    from hpcmr.api.dry import dry_run
    from hpcmr.run.command import run_job
    from hpcmr.run.policy import Pace

    def body() -> None:
        with session.world.together("load the job"):
            job, session.code, modules = _load(order)
        if not args.explain:
            with _owned(order, session, modules, args, claimed) as todo:
                if todo:
                    job(ctx)
            return
        with dry_run(print if ctx.rank == 0 else lambda text: None):
            job(ctx)
        if ctx.rank == 0:
            print(Pace(args.mtbf, args.checkpoint_every).explain())

    code = run_job(session, body)
    if code == EXIT_FAILED and session.world.comm is not None:
        # What was under way when it failed may keep MPI from finalizing: then leave without.
        faulthandler.dump_traceback_later(FINALIZE_LIMIT_S, exit=True, file=open(os.devnull, "w"))
    return code


@contextlib.contextmanager
def _owned(order: Order, session: Session, modules: tuple[Path, ...], args: argparse.Namespace, claimed: list[Attempt]) -> Iterator[bool]:
    """The run is ours, and watched; False: it is done already."""
    from hpcmr.run.attempt import Job, begin, go_on
    from hpcmr.run.policy import Pace
    from hpcmr.run.watchdog import watched

    if not go_on(session, claimed[0] if claimed else None, order.name, order.path):
        values = order.params if order.file is None else order.file.values
        if not begin(session, Job(order.path, order.name, values, modules, session.code)):
            yield False
            return
    assert session.attempt is not None
    claimed[:] = [session.attempt]
    with watched(session, _stall_timeout_s(args)), session.keep_checkpoints(Pace(args.mtbf, args.checkpoint_every)):
        yield True


def _stall_timeout_s(args: argparse.Namespace) -> float:
    """Seconds without progress after which the job ends; 0: never."""
    from hpcmr.comm.waiting import stall_limit_s

    if args.stall_timeout is not None:
        return float(args.stall_timeout)
    if "HPCMR_STALL_S" not in os.environ:
        return STALL_TIMEOUT_S
    limit_s = stall_limit_s()
    return 0.0 if limit_s == float("inf") else limit_s


def _load(order: Order) -> tuple[Callable[[JobContext], Any], str, tuple[Path, ...]]:
    """The job as a function, the fingerprint of its code, and the files that the code is in. Runs the user's modules."""
    from hpcmr.api.jobspec import load_job
    from hpcmr.plan.fingerprint import code_files, code_fingerprint

    if order.file is None:
        return load_job(order.path), code_fingerprint(order.path), tuple(code_files(order.path))
    from hpcmr.api.jobplan import functions_of, table_of

    file = order.file
    functions = functions_of(file)
    table = table_of(file)
    output = Path(file["output.path"]) if file["output.path"] else order.run_dir / "output" / order.name
    return lambda ctx: table.write_hdf5(output, share=file["output.share"]), code_fingerprint(None, functions), tuple(code_files(None, functions))


def _failed(error: BaseException, world: World) -> int:
    from hpcmr.run.command import exit_code
    from hpcmr.run.report import error_report

    if world.rank == 0:
        print(error_report(error, world.size), file=sys.stderr, flush=True)
    return exit_code(error)


def _speak(args: argparse.Namespace, rank: int) -> None:
    """Logs go to stderr, from rank 0."""
    log = logging.getLogger("hpcmr")
    log.propagate = False
    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.ERROR if args.quiet else logging.NOTSET)
    # The log of the run, if there is one by now, stays.
    log.handlers = [shown, *(h for h in log.handlers if isinstance(h, logging.StreamHandler) and h.stream is not sys.stderr)]
    log.setLevel(logging.CRITICAL + 1 if rank else logging.DEBUG if args.verbose else logging.INFO)


def _tell_end(session: Session, args: argparse.Namespace) -> None:
    """What it cost on stderr, and what came of it on stdout."""
    from hpcmr.run.command import deaths_of

    report = session.report()
    if report and session.attempt is not None:
        session.attempt.note(report)
    if report and not args.quiet:
        print(report, file=sys.stderr, flush=True)
    for output in session.outputs:
        if output.get("done") and not deaths_of(session.world):
            session.say(f"{_shown(output['path'])} was published by this very run already; --fresh makes it anew")
        print(f"{_shown(output['path'])}\t{output['rows']}")
    sys.stdout.flush()


def _shown(path: str) -> str:
    """A path as one would type it here."""
    here = os.path.relpath(path)
    return path if here.startswith("..") else here
