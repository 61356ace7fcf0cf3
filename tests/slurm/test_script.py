"""Batch scripts: golden ones, and what they do with hostile strings and with signals. Needs bash, and no Slurm."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import hpcmr._version
from hpcmr.errors import JobSpecError
from hpcmr.run.batch import Batch, notice_s, render
from hpcmr.run.site import Site

GOLDEN = Path(__file__).with_name("golden")
PLAIN = Batch("halos.py", ["job", "/home/ann/halos.py", "--set=run=42"], Path("/scratch/ann/hpcmr-runs/halos-1f00c2b1aa"),
              "/home/ann/venv/bin/python",
              "/home/ann")
SITE = Site(partition="batch", account="abc123", modules=("gcc/13", "openmpi/5.0"), launcher="mpirun", ntasks_per_node=64)

CASES: dict[str, tuple[Batch, Site]] = {
    "two-nodes": (replace(PLAIN, options={"nodes": "2", "ntasks-per-node": "32", "time": "2:00:00"}), Site()),
    "site": (replace(PLAIN, options={"nodes": "2", "time": "2:00:00", "account": "xyz"}, modules=["hdf5/1.14"]), SITE),
    "array": (replace(PLAIN, options={"nodes": "1", "ntasks": "8", "array": "0-9%2"}, words=["job", "/home/ann/halos.py", "--set=run={array}"]),
              Site()),
    "no-requeue": (replace(PLAIN, options={"nodes": "2"}, max_restarts=7), replace(SITE, requeue=False, launcher="srun")),
    "everything": (replace(PLAIN, options={"nodes": "2-8", "ntasks-per-node": "16", "cpus-per-task": "2", "time": "1-12:00:00", "time-min": "60",
                                           "partition": "long,short", "qos": "high", "mem": "64G", "dependency": "afterok:1234?afterany:7"},
                           sbatch=["constraint=cpu&ssd", "exclusive"], prologue="ulimit -n 4096\nexport FI_PROVIDER=cxi\n", measured_s=140.0,
                           fresh=True,
                           recover=True, environment={"PYTHONPATH": "/home/ann/my code"}), SITE),
    "odd-places": (replace(PLAIN, run_dir=Path("/scratch/ann o'neil/50 %/läufe".replace("'", "")), folder="/home/ann/it's", options={"nodes": "1"}),
                   Site()),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    text = render(*CASES[name])
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("HPCMR_GOLDEN"):
        path.write_text(text)
    assert text.replace(f"hpcmr {hpcmr._version.__version__} ",
                        "hpcmr 0.1.0 ") == path.read_text(), f"HPCMR_GOLDEN=1 rewrites {path}; then read what changed"
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"@[a-z_]+@", text) is None, "a place of the template was left"


def test_directives_stand_before_everything_else() -> None:
    for batch, site in CASES.values():
        lines = render(batch, site).splitlines()
        others = [i for i, line in enumerate(lines) if i and not line.startswith("#")]
        assert not [line for line in lines[others[0]:] if line.startswith("#SBATCH")]
        assert sum(line.startswith("#SBATCH --signal=B:USR1@") for line in lines) == 1


@pytest.mark.parametrize(("measured", "limit", "wanted"), [
    (None, "", 120), (None, "2:00:00", 120), (None, "1", 60), (None, "3", 90), (5.0, "2:00:00", 120), (140.0, "2:00:00", 370), (140.0, "10", 300),
    (1e4, "1-00:00:00", 20090), (None, "UNLIMITED", 120)])
def test_notice_leaves_time_for_a_checkpoint(measured: float | None, limit: str, wanted: int) -> None:
    assert notice_s(measured, limit) == wanted


# -- hostile strings -----------------------------------------------------------------------------------------------------

HOSTILE = ["a b", "a  b ", "'", '"', "it's \"quoted\"", "$(touch pwned)", "`touch pwned`", "; touch pwned", "&& touch pwned", "| touch pwned",
           "a\ntouch pwned",
           "\n#SBATCH --wrap=x", "-rf", "--time=9", "$HOME", "${PATH}", "*", "~", "\\", "a\\", "#x", "!!", "é ü 漢字 🜚", "\t", "\r", "%j", "{array}x",
           "x" * 3000,
           "@words@", "@fresh@", "\x1b[31m", ""]
FAKE = """#!/bin/bash
# $1 $2 are -m hpcmr
case "$3" in
launch) printf '%s\\0' "$@" >"$FAKE/words"; "$FAKE/ranks"; exit ;;
*) printf '%s\\0' "$@" >"$FAKE/$3-$4" ; [ "$4" = begin ] && exit "${FAKE_BEGIN:-0}"; exit 0 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a python and an srun that write down what they are given, and an empty folder to work in."""
    tools = tmp_path / "tools"
    for folder in (tools, tmp_path / "work"):
        folder.mkdir()
    srun = '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n'
    for name, text in (("python", FAKE), ("srun", srun), ("ranks", "#!/bin/bash\nexit ${FAKE_CODE:-0}\n"),
                       ("module", "#!/bin/bash\necho \"$@\" >>$FAKE/modules\n")):
        path = tools / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    tools = str(place / "tools")
    return {"PATH": f"{tools}:{os.environ['PATH']}", "FAKE": tools, "SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3",
            "SLURMD_NODENAME": "n1", "HOME": str(place), **more}


def run_script(text: str, place: Path, **more: str) -> dict[str, list[str]]:
    """Run a script; what each call of Python was given."""
    done = subprocess.run(["bash", "-c", text], cwd=place, env=environment(place, **more), capture_output=True, text=True, timeout=30)
    assert not list(place.rglob("pwned")), "a shell has read the text of a user"
    names = ("attempt-begin", "words", "attempt-end")
    found = {n: (place / "tools" / n).read_bytes().decode().split("\0")[:-1] for n in names if (place / "tools" / n).exists()}
    return {**found, "code": [str(done.returncode)], "said": [done.stderr]}


def batch_at(place: Path) -> Batch:
    return replace(PLAIN, python=str(place / "tools" / "python"), folder=str(place / "work"), run_dir=place / "run")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_reach_the_job_unchanged(text: str, place: Path) -> None:
    batch = batch_at(place)
    words = ["job", f"/x/{text}.py", f"--set=a={text}", f"--set={text}=1", f"--scratch={text}", text]
    found = run_script(render(replace(batch, words=words, options={"array": "3"}, environment={"A": text}), Site()), place)
    given = found["words"]
    assert given[given.index("--") + 1:] == [*words, "--run-dir", f"{batch.run_dir}/3", "--array-id", "3"], found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_folders_reach_the_job_unchanged_or_are_refused(text: str, place: Path) -> None:
    folder = place / "work" / (text[:200] or "empty")
    folder.mkdir()
    batch = replace(batch_at(place), folder=str(folder), run_dir=folder / "run")
    try:
        script = render(batch, Site())
    except JobSpecError:
        assert re.search(r"[\x00-\x1f\x7f\\\"']", text)
        return
    found = run_script(script, place)
    assert found["words"][-2:] == ["--run-dir", str(folder / "run")]
    assert found["attempt-end"][found["attempt-end"].index("--run-dir") + 1] == str(folder / "run")
    assert found["code"] == ["0"], found


@pytest.mark.parametrize("field",
                         ["nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "time", "time-min", "partition", "account", "qos", "mem",
                          "mem-per-cpu",
                                   "array", "dependency", "module", "sbatch key", "sbatch value"])
def test_hostile_options_of_sbatch_are_refused(field: str) -> None:
    calm = render(PLAIN, Site()).count("#SBATCH")
    for text in [*HOSTILE, "a;b", "a b", "1 2", "１２", "a=b c"]:
        if field == "module":
            batch = replace(PLAIN, modules=[text])
        elif field.startswith("sbatch"):
            batch = replace(PLAIN, sbatch=[f"{text}=1" if field.endswith("key") else f"comment={text}"])
        else:
            batch = replace(PLAIN, options={field: text})
        plain = re.fullmatch(r"[A-Za-z0-9_.,:@%+=/*()\[\]&|-]*", text, re.ASCII) is not None
        try:
            lines = [line for line in render(batch, Site()).splitlines() if line.startswith("#SBATCH")]
        except JobSpecError as error:
            assert text == "" or field.split()[0] in str(error) or "sbatch" in str(error)
            continue
        assert plain, f"{text!r} was let through as {field}"
        assert len(lines) <= calm + 1


@pytest.mark.parametrize("pair",
                         ["signal=USR2@5", "requeue", "no-requeue", "output=/x", "wrap=ls", "array=1-4", "job-name=x", "open-mode=truncate",
                          "chdir=/"])
def test_options_that_the_script_needs_itself_are_refused(pair: str) -> None:
    with pytest.raises(JobSpecError, match="the script needs this one itself"):
        render(replace(PLAIN, sbatch=[pair]), Site())


def test_zero_bytes_and_surrogates_are_refused() -> None:
    for text in ("a\0b", "\udcff"):
        with pytest.raises(JobSpecError):
            render(replace(PLAIN, words=["job", text]), Site())


# -- what the script does --------------------------------------------------------------------------------------------------

def test_exit_code_of_the_ranks_is_handed_on(place: Path) -> None:
    for code in (0, 1, 2, 75, 137):
        found = run_script(render(batch_at(place), Site()), place, FAKE_CODE=str(code))
        assert found["attempt-end"][found["attempt-end"].index("--code") + 1] == str(code), found


def test_an_attempt_that_may_not_begin_starts_no_ranks(place: Path) -> None:
    found = run_script(render(batch_at(place), Site()), place, FAKE_BEGIN="1")
    assert found["code"] == ["1"]
    assert "words" not in found


@pytest.mark.parametrize("who", ["script", "step"])
def test_a_notice_is_passed_on_at_once(who: str, place: Path) -> None:
    """To the script as USR1, or to the step that listens as SIGTERM; the ranks take it at the second try."""
    ranks = place / "tools" / "ranks"
    # What bash was told to ignore when it began it cannot trap any more.
    ranks.write_text(f"#!{sys.executable}\nimport os, signal, time\nopen(os.environ['FAKE'] + '/up', 'w')\ntime.sleep(1)\n"
                     "signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))\ntime.sleep(30)\n")
    fake = place / "tools" / "python"
    fake.write_text(FAKE.replace('"$FAKE/ranks"; exit', 'exec "$FAKE/ranks"'))
    script = subprocess.Popen(["bash", "-c", render(batch_at(place), Site())], env=environment(place), cwd=place, process_group=0)
    try:
        end = time.monotonic() + 20
        while not (place / "tools" / "up").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        target, number = (script.pid, signal.SIGUSR1) if who == "script" else (listener_of(script.pid), signal.SIGTERM)
        began = time.monotonic()
        os.kill(target, number)
        script.wait(15)
        assert time.monotonic() - began < 6
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()
    told = (place / "tools" / "attempt-end").read_text().split("\0")
    assert told[told.index("--code") + 1] == "75"


def listener_of(script: int) -> int:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[-3:-1] == [b"listen", str(script).encode()]:
                return int(entry)
    raise AssertionError("no step listens")


def test_scratch_of_the_site_is_looked_up_on_the_node(place: Path) -> None:
    for text, wanted in (("$NVME/it's", "/local/x/it's"), ("$NVME", "/local/x"), ("$(touch pwned)", "$(touch pwned)"), ("/a $NVME", "/a $NVME")):
        found = run_script(render(batch_at(place), Site(scratch=text)), place, NVME="/local/x")
        assert found["words"][-1] == f"--scratch={wanted}"


def test_fresh_is_said_only_once(place: Path) -> None:
    batch = replace(batch_at(place), fresh=True)
    assert "--fresh" in run_script(render(batch, Site()), place)["words"]
    (batch.run_dir / "slurm").mkdir(parents=True)
    (batch.run_dir / "slurm" / "attempts.json").write_text("{}")
    assert "--fresh" not in run_script(render(batch, Site()), place)["words"]
