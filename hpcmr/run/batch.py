"""The batch script of a run: a pure function of what was asked for and of the site file. Standard library only.

What the user typed goes into the script in two ways. On ``#SBATCH`` lines, which no shell reads, stands what matches a pattern that
is made for it; anything else is refused. In the body stands what `shlex.quote` made of it: the shell sees words, never code. The one
exception is the user's own prologue, which is a piece of a script and goes in as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcmr._version import __version__
from hpcmr.errors import JobSpecError
from hpcmr.run.site import Site
from hpcmr.run.slurm import seconds_of

NOTICE_S = 120
"""Seconds before the time limit at which Slurm gives notice where nothing was measured yet; it may come 60 s early or late."""
NOTICE_S_MIN = 60
NOTICE_EARLY_S = 60
PROLOGUE_NBYTES_MAX = 1 << 20
TEMPLATE = Path(__file__).resolve().parents[1] / "slurm" / "batch.sh.in"

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+:-]*"
_PATTERNS: dict[str, tuple[str, str]] = {
    "nodes": (r"[1-9]\d{0,6}(-[1-9]\d{0,6})?", "a number of nodes such as 4, or a range such as 2-8"),
    "ntasks": (r"[1-9]\d{0,7}", "a number of ranks"),
    "ntasks-per-node": (r"[1-9]\d{0,5}", "a number of ranks"),
    "cpus-per-task": (r"[1-9]\d{0,5}", "a number of cores"),
    "time": (r"(\d{1,3}-)?\d{1,6}(:\d{1,2}){0,2}", "a time such as 90 (minutes), 2:00:00 or 1-12:00:00"),
    "time-min": (r"(\d{1,3}-)?\d{1,6}(:\d{1,2}){0,2}", "a time such as 30 (minutes) or 0:30:00"),
    "partition": (rf"{_NAME}(,{_NAME})*", "the name of a partition"),
    "account": (_NAME, "the name of an account"),
    "qos": (_NAME, "the name of a quality of service"),
    "mem": (r"\d{1,9}[KMGT]?", "memory for each node such as 64G"),
    "mem-per-cpu": (r"\d{1,9}[KMGT]?", "memory for each core such as 2G"),
    "array": (r"\d{1,7}(-\d{1,7}(:\d{1,7})?)?(,\d{1,7}(-\d{1,7}(:\d{1,7})?)?)*(%[1-9]\d{0,5})?", "task ids such as 0-9, 1,3,5 or 0-99%10"),
    "dependency": (r"[A-Za-z0-9_:,?+.]+", "a dependency such as afterok:1234"),
}
_MODULE = r"[A-Za-z0-9_][A-Za-z0-9_./+@~=:-]*"
_SBATCH_KEY = r"[a-z][a-z0-9-]*"
_SBATCH_VALUE = r"[A-Za-z0-9_.,:@%+=/*()\[\]&|-]*"
OURS = {"array": "--array", "job-name": "the run's name", "output": "the run directory", "error": "the run directory", "signal": "the notice",
        "requeue": "the site file", "no-requeue": "the site file", "open-mode": "the restarts", "chdir": "the working directory", "wrap": "SPEC",
        "parsable": "submit", "test-only": "--print", "wait": "--wait", "no-kill": "--recover", "dependency": "--dependency"}


@dataclass(frozen=True)
class Batch:
    """What a batch script is made of.

    Attributes
    ----------
    title : str
        For people; one line.
    words : sequence of str
        Of the command line, from ``job`` on, without run directory.
    run_dir : Path
        Absolute; an array's task uses the folder of its id in it.
    python : str
        Absolute path of the interpreter.
    folder : str
        Working directory.
    options : mapping
        ``nodes``, ``time``, ... as sbatch calls them; empty ones are left out.
    modules, sbatch : sequence of str
    prologue : str
        Text of the user's, run before the ranks.
    environment : mapping
        Variables to export.
    measured_s : float, optional
        How long this run's checkpoints take.
    fresh : bool
        What an earlier run left is discarded when this one first begins.
    recover : bool
        The job goes on when a node dies, so that Slurm must not end it.
    max_restarts : int, optional
        None: the site's.
    """

    title: str
    words: Sequence[str]
    run_dir: Path
    python: str
    folder: str
    options: dict[str, str] = field(default_factory=dict)
    modules: Sequence[str] = ()
    sbatch: Sequence[str] = ()
    prologue: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    measured_s: float | None = None
    fresh: bool = False
    recover: bool = False
    max_restarts: int | None = None


def notice_s(measured_s: float | None, time: str = "") -> int:
    """Seconds before the limit at which notice shall come: time for two checkpoints, and what Slurm may be late; never more than half the time.

    Parameters
    ----------
    measured_s : float or None
        What a checkpoint of this run took, from the notice to its commit.
    time : str
        The time limit as sbatch has it; empty: unknown.
    """
    wanted = NOTICE_S if measured_s is None else max(NOTICE_S, round(2 * measured_s) + NOTICE_EARLY_S + 30)
    limit = seconds_of(time)
    return wanted if not limit else max(NOTICE_S_MIN, min(wanted, limit // 2))


def render(batch: Batch, site: Site) -> str:
    """The batch script.

    Raises
    ------
    JobSpecError
        A value would not reach Slurm or the job as it was typed.
    """
    _check_plain(batch)
    array = batch.options.get("array", "")
    run = shlex.quote(str(batch.run_dir))
    identity = [f"run={run}", "job=$SLURM_JOB_ID"]
    words = [*batch.words, "--run-dir"]
    quoted = " ".join(map(shlex.quote, words)) + ' "$run"'
    if array:
        identity = [f"run={run}/$SLURM_ARRAY_TASK_ID", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"]
        quoted += ' --array-id "$SLURM_ARRAY_TASK_ID"'
    if site.scratch and not any(w.startswith("--scratch") for w in words):
        quoted += f" --scratch={_place(site.scratch)}"
    # What an earlier run left is discarded once: not when this one begins again.
    fresh = '[ -e "$run/slurm/attempts.json" ] || words+=(--fresh)' if batch.fresh else ""
    restarts = site.max_restarts if batch.max_restarts is None else batch.max_restarts
    places = {
        "directives": "\n".join(directives(batch, site)),
        "version": __version__, "title": batch.title,
        "python": shlex.quote(batch.python),
        "script": shlex.quote(str(script_path(batch.run_dir))),
        "identity": "\n".join(identity),
        "notice_s": str(notice_s(batch.measured_s, batch.options.get("time", ""))),
        "folder": shlex.quote(batch.folder),
        "environment": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(batch.environment.items())),
        "site": "\n".join(_modules(batch, site)),
        "prologue": f"\n# --- prologue\n{batch.prologue.rstrip()}\n# --- end of the prologue" if batch.prologue.strip() else "",
        "words": quoted,
        "fresh": fresh,
        "launch": f"--launcher {site.launcher}" if site.launcher != "auto" else "",
        "end": f" --max-restarts {restarts}" + ("" if site.requeue else " --resubmit"),
    }
    text = re.sub(r"@([a-z_]+)@", lambda m: places[m[1]], TEMPLATE.read_text())
    return re.sub(r"\n{3,}", "\n\n", text).replace("launch  --", "launch --")


def script_path(run_dir: Path) -> Path:
    """Where the script of a run lies."""
    from hpcmr.store import paths

    return paths.batch_script(run_dir)


def directives(batch: Batch, site: Site) -> list[str]:
    """The ``#SBATCH`` lines. Raises `JobSpecError`."""
    options = {"job-name": job_name(batch.run_dir)}
    options |= {k: v for k, v in (("partition", site.partition), ("account", site.account), ("qos", site.qos)) if v}
    options |= {k: v for k, v in batch.options.items() if v}
    if site.ntasks_per_node and not options.get("ntasks") and not options.get("ntasks-per-node"):
        options["ntasks-per-node"] = str(site.ntasks_per_node)
    for key, value in options.items():
        check_option(key, value)
    lines = [f"--{key}={value}" for key, value in options.items()]
    lines.append(f"--output={output_pattern(batch.run_dir, bool(options.get('array')))}")
    lines += ["--open-mode=append", "--requeue" if site.requeue else "--no-requeue"]
    lines.append(f"--signal=B:USR1@{notice_s(batch.measured_s, options.get('time', ''))}")
    if batch.recover:
        lines.append("--no-kill")
    lines += [f"--{_sbatch(pair)}" for pair in (*site.sbatch, *batch.sbatch)]
    return [f"#SBATCH {line}" for line in lines]


def check_option(key: str, value: str) -> None:
    """Raise `JobSpecError` unless `value` can be given to sbatch as ``--key=value``."""
    if key in _PATTERNS:
        _match(f"--{key}", value, *_PATTERNS[key])


def job_name(run_dir: Path) -> str:
    """The Slurm job's name: the run directory's, in characters that need no care. One for each run: it is what a singleton goes by."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", run_dir.name).strip("-")[:100] or "hpcmr"


def output_pattern(run_dir: Path, array: bool) -> str:
    """Where Slurm puts what the script says, as it stands on a ``#SBATCH`` line. Raises `JobSpecError`."""
    from hpcmr.store import paths

    path = str(paths.batch_folder(run_dir))
    if re.search(r"[\x00-\x1f\x7f\\\"']", path):
        raise JobSpecError(f"the run directory {path!r} cannot be given to sbatch: it has a quote, a backslash or a control character; name another "
                           "with --run-dir")
    whole = f"{path.replace('%', '%%')}/{'%A_%a' if array else '%j'}.out"
    return f'"{whole}"' if re.search(r"[^A-Za-z0-9_.,:@%+=/-]", whole) else whole


def _place(text: str) -> str:
    """A folder of the site file as a word of the shell; one that begins with a variable is looked up on the node, which must have it."""
    match = re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)(/.*)?", text, re.ASCII)
    return shlex.quote(text) if match is None else f'"${match[1]}"{shlex.quote(match[2]) if match[2] else ""}'


def _match(what: str, value: str, pattern: str, wanted: str) -> str:
    if re.fullmatch(pattern, value, re.ASCII) is None:
        raise JobSpecError(f"{what} {value[:80]!r} is not {wanted}")
    return value


def _sbatch(pair: str) -> str:
    key, equals, value = pair.partition("=")
    key = key.removeprefix("--")
    _match("--sbatch", key, _SBATCH_KEY,
           "KEY=VALUE with an option of sbatch as KEY, for example constraint=cpu, or a KEY alone, for example exclusive")
    if key in OURS:
        raise JobSpecError(f"--sbatch {key}: the script needs this one itself, for {OURS[key]}")
    if key in _PATTERNS:
        _match(f"--sbatch {key}", value, *_PATTERNS[key])
    _match(f"--sbatch {key}", value, _SBATCH_VALUE,
           "a value that can stand on an #SBATCH line (letters, digits and _ . , : @ % + = / * ( ) [ ] & | -)")
    return key + equals + value


def _modules(batch: Batch, site: Site) -> list[str]:
    names = [_match("--module", m, _MODULE, "the name of a module") for m in (*site.modules, *batch.modules)]
    return [f"module load {name} || exit 2" for name in names]


def _check_plain(batch: Batch) -> None:
    """Refuse what no word of a shell or of the operating system can hold."""
    for what, text in [("SPEC and its options", w) for w in batch.words] + [("the run directory", str(batch.run_dir)), ("the folder", batch.folder),
                                                                            ("the prologue", batch.prologue)]:
        if "\0" in text:
            raise JobSpecError(f"{what}: {text[:60]!r} has a zero byte, which no program can be given")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise JobSpecError(f"{what}: {text[:60]!r} is no valid text in UTF-8") from None
    if re.search(r"[\x00-\x1f\x7f]", batch.title):
        raise JobSpecError(f"{batch.title!r} cannot stand in a comment")


def read_prologue(path: Path) -> str:
    """The text of ``--prologue FILE``. Raises `JobSpecError`."""
    try:
        with open(path, "rb") as file:
            content = file.read(PROLOGUE_NBYTES_MAX + 1)
        if len(content) > PROLOGUE_NBYTES_MAX:
            raise JobSpecError(f"--prologue {path}: a prologue has at most {PROLOGUE_NBYTES_MAX >> 10} KiB")
        return content.decode()
    except OSError as error:
        raise JobSpecError(f"--prologue {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise JobSpecError(f"--prologue {path}: this is no text") from None
