"""What `make demo` runs: two jobs on four ranks, and what came of them. Uses the Python and the mpirun of its own environment."""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "demo"
RANKS = 4
ROWS = 8_000_000


def mpirun() -> tuple[list[str], dict[str, str]]:
    """The launcher of this environment, with the flags that this machine needs."""
    words = [str(Path(sys.executable).parent / "mpirun"), "-n", str(RANKS)]
    if (os.cpu_count() or 1) < RANKS:
        words.append("--oversubscribe")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return words, env


def say(text: str = "") -> None:
    print(text, flush=True)


def hpcmr(*args: str) -> str:
    return subprocess.run([sys.executable, "-m", "hpcmr", *args], cwd=WORK, check=True, stdout=subprocess.PIPE, text=True).stdout


def quoted(word: str) -> str:
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word.replace("[!", "[")) else shlex.quote(word)


def job(title: str, args: list[str], out: str, rows: int | None, nbytes: int) -> None:
    """Run one job, and print its first rows and rates; `rows` = None: the sum of the output's values (words that were counted)."""
    say(f"\n== {title}")
    launcher, env = mpirun()
    line = [*launcher, sys.executable, "-m", "hpcmr", "job", *args, "--set", f"output.path={out}", "--fresh"]
    say("$ " + " ".join(map(quoted, [Path(launcher[0]).name, *launcher[1:], "python", *line[line.index("-m"):]])))
    began = time.monotonic()
    subprocess.run(line, cwd=WORK, env=env, check=True)
    seconds = time.monotonic() - began
    say(f"\nfirst rows ($ python -m hpcmr cat {out} --limit 5):")
    say(hpcmr("cat", out, "--limit", "5").rstrip())
    if rows is None:
        import hpcmr as mr

        rows = int(mr.open(str(WORK / out))["value"][:].sum())
    say(f"\n{rows:,} rows and {nbytes / 1e6:,.0f} MB in {seconds:.1f} s: {rows / seconds / 1e6:,.2f} M rows/s, {nbytes / seconds / 1e6:,.0f} MB/s, "
        f"start of {RANKS} ranks included")
    say(f"the result lies in {WORK / out}")


def warm_up() -> None:
    """Both jobs on next to nothing: what is compiled is kept, so that the figures are of the work."""
    say("compiling kernels (once, about a minute; they are kept in ~/.cache/hpcmr) ...")
    began = time.monotonic()
    generate(WORK / "little.h5", 1000)
    for args in (["wordcount/job.toml", "--set", "output.path=little-counts"],
                 ["particles/stats.py", "--set", "input=little.h5", "--set", "output.path=little-stats"]):
        hpcmr("job", "-q", "--fresh", str(ROOT / "examples" / args[0]), *args[1:])
    say(f"ready after {time.monotonic() - began:.0f} s")


def generate(snapshot: Path, rows: int) -> None:
    if not snapshot.exists():
        say(f"making {snapshot} ({rows:,} particles)")
        subprocess.run([sys.executable, str(ROOT / "examples/particles/generate.py"), str(snapshot) + ".part", "--rows", str(rows)], check=True)
        os.replace(str(snapshot) + ".part", snapshot)


def main() -> int:
    WORK.mkdir(parents=True, exist_ok=True)
    snapshot = WORK / "snapshot.h5"
    generate(snapshot, ROWS)
    warm_up()
    library = sysconfig.get_paths()["stdlib"]
    # All but site-packages, which lies below it where Python is not the system's.
    globs = [f"{library}/*.py", f"{library}/[!s]*/**/*.py", f"{library}/s[!i]*/**/*.py"]
    files = [Path(f) for g in globs for f in glob.glob(g, recursive=True)]
    job(f"word count over the standard library of this Python: {len(files):,} files of {library}",
        [str(ROOT / "examples/wordcount/job.toml"), "--set", f"input.paths={globs}"],
        "wordcount", None, sum(f.stat().st_size for f in files))
    job("statistics per cell of a particle snapshot", [str(ROOT / "examples/particles/stats.py"), "--set", f"input={snapshot}"],
        "stats", ROWS, 16 * ROWS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
