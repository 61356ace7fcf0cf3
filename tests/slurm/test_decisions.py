"""What is decided about a run, from plain values: no Slurm is needed, or a pretended one that writes down what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmr.api import submit
from hpcmr.api.jobfile import nested, parse_settings, task_settings
from hpcmr.cli import site as site_command
from hpcmr.comm import allocation
from hpcmr.errors import JobSpecError, Refused
from hpcmr.run import restarts, runs, slurm
from hpcmr.run.restarts import GO_ON, LEAVE, STOP, verdict
from hpcmr.run.runs import Facts, judge
from hpcmr.run.site import Site, read_site, site_text
from hpcmr.run.status import new_status, read_status, write_status
from hpcmr.store import paths
from tests.support.launch import ROOT


@pytest.mark.parametrize(("code", "state", "job", "do", "exit_code"), [
    (0, "done", "RUNNING", LEAVE, 0), (1, "failed", "RUNNING", LEAVE, 1), (2, "queued", "RUNNING", LEAVE, 2),
                                                                       (75, "checkpointed", "RUNNING", GO_ON, 75),
    (75, "checkpointed", "TIMEOUT", GO_ON, 75), (75, "checkpointed", "PREEMPTED", GO_ON, 75), (75, "checkpointed", "CANCELLED", LEAVE, 75),
    (75, "checkpointed", "COMPLETING", LEAVE, 75), (75, "checkpointed", "PENDING", LEAVE, 75), (75, "checkpointed", None, GO_ON, 75),
    (137, "running", "RUNNING", GO_ON, 75), (1, "running", "RUNNING", GO_ON, 75), (0, "running", "RUNNING", GO_ON, 75),
                                                                       (1, None, "RUNNING", GO_ON, 75)])
def test_what_becomes_of_a_job(code: int, state: str | None, job: str | None, do: str, exit_code: int) -> None:
    found = verdict(code, state, job, None, 0, 50)
    assert (found.do, found.code) == (do, exit_code)


def test_a_job_stops_for_a_reason() -> None:
    assert verdict(75, "checkpointed", "RUNNING", "no way", 0, 50) == restarts.Verdict(STOP, 1, "no way")
    found = verdict(75, "checkpointed", "RUNNING", None, 3, 3)
    assert (found.do, found.code) == (STOP, 1)
    assert "restarted 3 times" in found.reason


@pytest.mark.parametrize(("marks", "now", "stops"),
                         [([], "", False), ([""], "", False), (["", ""], "", True), (["", ""], "a", False), (["", "a"], "a", False),
                                                     (["a", "a"], "a", True), (["a", "b", "b"], "b", True), (["b", "b", "a"], "b", False)])
def test_two_attempts_without_progress_are_enough(marks: list[str], now: str, stops: bool) -> None:
    assert (restarts.stalled(marks, now) is not None) == stops


def test_a_checkpoint_that_holds_no_more_is_no_progress() -> None:
    def body(ledger: list[list[int]], file: str, finished: int = 0) -> dict[str, Any]:
        return {"finished": [{"ordinal": i, "result": {"file": file}} for i in range(finished)], "kept": {},
                "action": {"ordinal": 3, "records": {":keyed": {"ledger": ledger, "complete": False, "settled": None, "pieces": [{"file": file}]}}}}
    assert restarts.behind(body([[0, 4]], "a")) == restarts.behind(body([[0, 4]], "b"))
    assert restarts.behind(body([[0, 4]], "a")) != restarts.behind(body([[0, 5]], "a"))
    assert restarts.behind(body([[0, 4]], "a")) != restarts.behind(body([[0, 4]], "a", finished=1))


def facts(told: str | None, *, alive: bool = False, started: bool = False, answered: bool = True, submitted: bool = True, cancelled: bool = False,
          lives: bool = False, checkpoint: bool = True) -> Facts:
    return Facts(told, checkpoint, alive or started, started, answered, submitted, cancelled, lambda: lives)


@pytest.mark.parametrize(("found", "state"), [
    (facts("done"), "done"), (facts("failed"), "failed"), (facts(None, alive=True), "queued"), (facts("queued", alive=True), "queued"),
    (facts("queued", started=True), "running"), (facts("queued"), "lost"), (facts("queued", answered=False), "queued"),
                                              (facts("running", lives=True), "running"),
    (facts("running", started=True), "running"), (facts("running", alive=True), "checkpointed"),
                                              (facts("running", alive=True, checkpoint=False), "queued"),
    (facts("running"), "lost"), (facts("running", submitted=False), "lost"), (facts("checkpointed", alive=True), "checkpointed"),
    (facts("checkpointed", started=True), "running"), (facts("running", cancelled=True), "cancelled"),
                                              (facts("running", cancelled=True, started=True), "running"),
    (facts("done", cancelled=True), "done")])
def test_state_of_a_run(found: Facts, state: str) -> None:
    assert judge(found)[0] == state


def test_a_run_that_says_running_and_has_no_owner_is_lost(tmp_path: Path) -> None:
    os.close(write_status(tmp_path, new_status(tmp_path, state="running", attempt=1, pid=1 << 22, start=5, boot="another")))
    queue = runs.Queue(lambda ids: {})
    assert runs.view(tmp_path, queue).state == "running", "its heartbeat is fresh"
    os.utime(paths.status(tmp_path), (1, 1))
    assert runs.view(tmp_path, queue).state == "lost"


@pytest.mark.parametrize(("text", "seconds"),
                         [("90", 5400), ("10:30", 630), ("2:00:00", 7200), ("1-12", 129600), ("1-12:30", 131400), ("1-00:00:01", 86401),
                                               ("UNLIMITED", None), ("", None)])
def test_times_of_slurm(text: str, seconds: int | None) -> None:
    assert slurm.seconds_of(text) == seconds


def test_ids_of_an_array() -> None:
    assert runs.task_ids("0-3") == [0, 1, 2, 3]
    assert runs.task_ids("1,3,5-9:2%4") == [1, 3, 5, 7, 9]


def test_slurm_is_asked_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    monkeypatch.setattr(slurm, "here", lambda: True)
    queue = runs.Queue(lambda ids: asked.append(set(ids)) or {})
    for _ in range(5):
        queue.jobs(["1", "2"])
    assert asked == [{"1", "2"}]
    queue.jobs(["1", "3"])
    assert asked[1:] == [{"1", "2", "3"}]


def test_nodes_that_are_left() -> None:
    env = {"SLURM_TASKS_PER_NODE": "4(x2),3", "SLURM_JOB_CPUS_PER_NODE": "8(x3)"}
    found = allocation.reduced(env, ["a", "b", "c"], ["a", "c"])
    assert (found["SLURM_NTASKS"], found["SLURM_TASKS_PER_NODE"], found["SLURM_JOB_CPUS_PER_NODE"], found["SLURM_NODELIST"]) == ("7", "4,3", "8,8",
                                                                                                                                 "a,c")


# -- parameters ------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(st.one_of(st.booleans(), st.integers(-2**63, 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))),
                      lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@given(VALUES)
def test_parameters_from_python_reach_the_job(value: Any) -> None:
    assert nested(parse_settings(submit.settings_of({"a": {"b-c": value}}))) == {"a": {"b-c": value}}


@pytest.mark.parametrize("params", [{"a b": 1}, {"a": b"x"}, {"a": object()}, {"a=b": 1}, {1: 2}])
def test_parameters_that_cannot_reach_it_are_refused(params: Any) -> None:
    with pytest.raises(JobSpecError):
        submit.settings_of(params)


def test_a_task_has_its_own_values_and_folders() -> None:
    found = nested(task_settings(["run={array}", "in='r{array}.h5'", "output.a=x", "output.b='y-{array}'", "n=1"], 7))
    assert found == {"run": 7, "in": "r7.h5", "output": {"a": "x/7", "b": "y-7"}, "n": 1}


# -- the site file -----------------------------------------------------------------------------------------------------------

def test_a_site_file_is_written_and_read(tmp_path: Path) -> None:
    listed = [slurm.Partition("batch", True, "1-00:00:00", 12, 64, 257000, "REQUEUE"),
              slurm.Partition("long", False, "infinite", 2, 32, 128000, "OFF")]
    site, notes = site_command.learn(listed, {"JobRequeue": "0"}, {"LOADEDMODULES": "gcc/13:openmpi/5", "TMPDIR": "/x"}, "abc")
    path = tmp_path / "site.toml"
    path.write_text(site_text(site, notes))
    assert read_site(path) == Site(partition="batch", account="abc", modules=("gcc/13", "openmpi/5"), requeue=False,
                                   ntasks_per_node=64,
                                   path=str(path))
    assert tomllib.loads(path.read_text())["requeue"] is False


@pytest.mark.parametrize("text",
                         ["partition = 1", "partion = 'x'", "launcher = 'magic'", "modules = 'gcc'", "modules = [1]", "requeue = 1",
                          "max_restarts = -1",
                                  "max_restarts = true", "a = [", "\xff", "x = " + "[" * 5000])
def test_a_site_file_that_is_wrong_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(JobSpecError, match=r"site\.toml"):
        read_site(path)


# -- with a pretended Slurm ----------------------------------------------------------------------------------------------------

FAKE = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["FAKE"] + "/calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "sbatch":
    print("77")
if name == "scontrol" and sys.argv[1] == "show":
    print("JobId=12 JobState=" + os.environ.get("FAKE_STATE", "RUNNING") + " RunTime=00:01:00 TimeLimit=00:10:00")
sys.exit(int(os.environ.get("FAKE_" + name.upper(), "0")) if sys.argv[1:2] != ["show"] else 0)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with commands of Slurm that write down what they are told."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "scontrol", "squeue", "scancel", "sinfo"):
        (tools / name).write_text(FAKE.format(python=sys.executable))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tools))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HPCMR_SITE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tools


def calls(fake: Path, name: str) -> list[list[str]]:
    lines = (fake / "calls").read_text().splitlines() if (fake / "calls").exists() else []
    return [words[1:] for words in map(json.loads, lines) if words[0] == name and words[1:2] != ["show"]]


@pytest.fixture
def run(fake: Path, tmp_path: Path) -> submit.Run:
    (tmp_path / "job.py").write_text("def job(ctx): pass\n")
    return submit.submit("job.py", nodes=2, time="10", params={"x": "$(touch pwned)"})


def ended(run: submit.Run, code: int, **more: Any) -> restarts.Verdict:
    values = {"run_dir": run.run_dir, "script": paths.batch_script(run.run_dir), "job": "77", "code": code, "notice_s": 120, "max_restarts": 5,
              "resubmit": False} | more
    return restarts.end(restarts.End(**values))


def say(run: submit.Run, state: str, seconds: float | None = None) -> None:
    kept = None if seconds is None else {"generation": 1, "committed_at": 1.0, "age_s": 0.0, "nbytes": 1, "seconds": seconds}
    os.close(write_status(run.run_dir, new_status(run.run_dir, state=state, attempt=1, slurm_jobs=["77"], checkpoint=kept)))


def test_submitted_once_and_written_down(run: submit.Run, fake: Path) -> None:
    script = paths.batch_script(run.run_dir)
    assert calls(fake, "sbatch") == [["--parsable", str(script)]]
    assert (run.jobs, read_status(run.run_dir)["state"]) == (["77"], "queued")      # type: ignore[index]
    assert script.stat().st_mode & 0o777 == 0o700
    assert run.run_dir.stat().st_mode & 0o777 == 0o700
    assert runs.registered() == [run.run_dir]
    assert "x=$(touch pwned)" not in script.read_text().replace("'", "\"").split("\"--set=x=")[0]


def test_checkpointed_goes_back_into_the_queue(run: submit.Run, fake: Path) -> None:
    assert restarts.begin(run.run_dir, "77") is None
    say(run, "checkpointed")
    assert ended(run, 75).do == GO_ON
    assert calls(fake, "scontrol") == [["requeue", "77"]]
    assert len(calls(fake, "sbatch")) == 1


@pytest.mark.parametrize("how", ["forbidden", "site", "notice"])
def test_or_is_submitted_anew_as_a_singleton(how: str, run: submit.Run, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "forbidden":
        monkeypatch.setenv("FAKE_SCONTROL", "1")
    say(run, "checkpointed", 100.0 if how == "notice" else 1.0)
    assert ended(run, 75, resubmit=how == "site").do == GO_ON
    assert calls(fake, "sbatch")[1] == ["--parsable", "--dependency=singleton", str(paths.batch_script(run.run_dir))]
    text = paths.batch_script(run.run_dir).read_text()
    notice = 290 if how == "notice" else 120
    assert f"#SBATCH --signal=B:USR1@{notice}\n" in text
    assert f"\nnotice_s={notice}\n" in text


def test_a_cancelled_run_neither_begins_nor_goes_on(run: submit.Run, fake: Path) -> None:
    restarts.change(run.run_dir, cancelled=True)
    assert "cancelled" in str(restarts.begin(run.run_dir, "77"))
    say(run, "checkpointed")
    assert ended(run, 75).do == LEAVE
    assert not calls(fake, "scontrol")


def test_no_progress_stops_with_a_reason(run: submit.Run, fake: Path) -> None:
    assert restarts.begin(run.run_dir, "77") is None
    assert restarts.begin(run.run_dir, "77") is None
    assert "without a newer checkpoint" in str(restarts.begin(run.run_dir, "77"))
    found = run.status()
    assert (found["state"], "without a newer checkpoint" in found["reason"]) == ("failed", True)
    submit.resume(run.run_dir, {"nodes": 3})
    assert restarts.begin(run.run_dir, "77") is None, "whoever resumes it has changed something"
    assert calls(fake, "sbatch")[1] == ["--parsable", "--nodes=3", str(paths.batch_script(run.run_dir))]


def test_what_slurm_refuses_is_said(fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def job(ctx): pass\n")
    monkeypatch.setenv("FAKE_SBATCH", "1")
    with pytest.raises(slurm.SlurmError, match="cannot submit"):
        submit.submit("job.py")


@pytest.mark.parametrize(("spec", "options"), [("none.py", {}), ("bad.py", {}), ("job.py", {"colour": "red"}), ("job.py", {"nodes": "-1"}),
                                               ("job.py", {"time": "soon"}), ("job.py", {"array": "a"}), ("job.py", {"prologue": "missing"})])
def test_what_would_fail_later_is_refused_now(spec: str, options: dict[str, Any], fake: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def job(ctx): pass\n")
    (tmp_path / "bad.py").write_text("def job(ctx:\n")
    with pytest.raises(Refused):
        submit.submit(spec, **options)
    assert not calls(fake, "sbatch")
    assert not (tmp_path / "hpcmr-runs").exists()


LIGHT = ["--help", "submit --help", "submit job.py --nodes 2 --print", "status", "status --json", "site show", "cancel x", "logs x", "resume x"]


@pytest.mark.parametrize("words", LIGHT)
def test_looking_loads_neither_numpy_nor_mpi(words: str, fake: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def job(ctx): pass\n")
    code = ("import sys\nfrom hpcmr.cli.main import main\n"
            f"try:\n    main({words.split()!r})\nexcept SystemExit:\n    pass\n"
            "found = {'numpy', 'mpi4py', 'h5py', 'numba'} & set(sys.modules)\nsys.exit(f'loaded: {found}' if found else 0)")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
