"""What `make demo` runs: two jobs on four ranks, and what came of them. Uses the Python and the mpirun of its own environment."""

from __future__ import annotations

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


def job(title: str, args: list[str], out: str, rows: int | None, nbytes: int) -> None:
    """Run one job, and print its first rows and rates; `rows` = None: the sum of the output's values (words that were counted)."""
    say(f"\n== {title}")
    launcher, env = mpirun()
    line = [*launcher, sys.executable, "-m", "hpcmr", "job", *args, "--set", f"output.path={out}", "--fresh"]
    say("$ " + shlex.join([Path(launcher[0]).name, *launcher[1:], "python", *line[line.index("-m"):]]))
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


def main() -> int:
    WORK.mkdir(parents=True, exist_ok=True)
    snapshot = WORK / "snapshot.h5"
    if not snapshot.exists():
        say(f"making {snapshot} ({ROWS:,} particles)")
        subprocess.run([sys.executable, str(ROOT / "examples/particles/generate.py"), str(snapshot) + ".part", "--rows", str(ROWS)], check=True)
        os.replace(str(snapshot) + ".part", snapshot)
    say("the first job compiles the kernels once (about a minute); later ones find them in the cache")
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in library.rglob("*.py") if f.is_file()]
    job(f"word count over the standard library of this Python: {len(files):,} files of {library}",
        [str(ROOT / "examples/wordcount/job.toml"), "--set", f"input.paths=['{library}/**/*.py']"],
        "wordcount", None, sum(f.stat().st_size for f in files))
    job("statistics per cell of a particle snapshot", [str(ROOT / "examples/particles/stats.py"), "--set", f"input={snapshot}"],
        "stats", ROWS, 16 * ROWS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
