"""Runs on a real Slurm: from submission to the result, whatever is done to them.

The cluster has four nodes and the runs mostly rest, so that all of them go on at once: each scenario is a thread, and a test looks at what came of
it. Every result must have the digest of an undisturbed run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcmr.comm.launcher import bound_mpi
from tests.support.launch import has_launcher
from tests.support.slurm import PIECES, SLOW, Cluster

pytestmark = [pytest.mark.launcher, pytest.mark.skipif(not has_launcher(), reason="no mpirun for this interpreter")]

Scenario = Callable[[Cluster, str], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(work: Scenario) -> Scenario:
    SCENARIOS[work.__name__] = work
    return work


# -- scenarios -------------------------------------------------------------------------------------------------------------

@scenario
def two_nodes(cluster: Cluster, digest: str) -> None:
    said = cluster.hpcmr("submit", str(SLOW), "--nodes", "2", "--ntasks-per-node", "1", "--time", "5", "--run-dir", "plain", "--wait",
                         "--set", f"input='{cluster.folder}/in/*.h5'", "--set", "pause=0.05", "--sbatch", "exclude=node3,node4", limit_s=200)
    run_dir = cluster.folder / "work" / "plain"
    assert said.split()[1] == str(run_dir)
    found = json.loads(cluster.hpcmr("status", "plain", "--json"))
    assert list(found) == ["run", "state", "attempt", "stage", "done", "rates", "eta_s", "checkpoint", "slurm_jobs", "reason"]
    assert (found["state"], found["attempt"], found["slurm_jobs"][0]["id"]) == ("done", 1, said.split()[0])
    assert cluster.digest(run_dir / "output" / "stats") == digest
    assert "ranks on 2 nodes" in cluster.hpcmr("status", "plain")
    assert "20 rows" in cluster.hpcmr("status", said.split()[0])
    assert "stats\t20" in cluster.hpcmr("logs", "plain")
    assert "plain" in cluster.hpcmr("status")


@scenario
def walltime(cluster: Cluster, digest: str) -> None:
    """One minute, of which Slurm gives notice in the first half; the work takes longer than twice that."""
    run = cluster.submit("walltime", pause=56 * 2 / PIECES, time="1")
    run.until_done(400)
    assert run.starts() >= 3, run.report()
    assert run.digest() == digest
    twice = sorted(run.trace())
    assert len([p for p in set(twice) if p and twice.count(p) > 1]) == 0, "pieces that were committed were read again"


@scenario
def requeued_by_hand(cluster: Cluster, digest: str) -> None:
    run = cluster.submit("requeued", "--checkpoint-every", "1s", pause=0.7)
    run.until_pieces(8)
    cluster.run("scontrol", "requeue", run.job)
    run.until_done()
    assert run.starts() == 2, run.report()
    assert run.digest() == digest


@scenario
def node_lost(cluster: Cluster, digest: str) -> None:
    """Without recovery: Slurm puts the job back into the queue, and it goes on from the checkpoint. Then with it: the other node goes on alone."""
    with cluster.apart:
        _node_lost(cluster, digest)


def _node_lost(cluster: Cluster, digest: str) -> None:
    for recover in (False, True)[:1 + bound_mpi().ft]:
        run = cluster.submit("survives" if recover else "lost", "--recover" if recover else "--no-recover", "--checkpoint-every", "1s", pause=0.7,
                             where="node3,node4")
        run.until_pieces(8)
        cluster.run(*cluster.box, "kill", "node4")
        try:
            if recover:
                run.until_done()
        finally:
            run.until("down", lambda: "down" in cluster.run("sinfo", "--noheader", "--nodes=node4", "--format=%T"), 60)
            cluster.run(*cluster.box, "start", "node4")
        run.until_done()
        assert run.starts() == (1 if recover else 2), run.report()
        assert run.told()["ranks"] == (1 if recover else 2)
        assert run.digest() == digest
        if recover:
            assert "degraded: node4 of this job's nodes" in cluster.hpcmr("logs", str(run.run_dir))


@scenario
def array(cluster: Cluster, digest: str) -> None:
    run = cluster.submit("array", "--array", "0-2", "--set", "factor={array}", nodes=1, pause=0.02)
    tasks = [run.run_dir / str(i) for i in range(3)]
    run.until("done", lambda: json.loads(cluster.hpcmr("status", "array", "--json"))["state"] == "done")
    digests = [cluster.digest(t / "output" / "stats") for t in tasks]
    assert digests[1] == digest
    assert len(set(digests)) == 3, "each task has its own factor"
    assert len(cluster.hpcmr("status", "array").splitlines()) == 4


@scenario
def cancelled(cluster: Cluster, digest: str) -> None:
    run = cluster.submit("cancelled", pause=0.7)
    run.until_pieces(4)
    cluster.hpcmr("cancel", "cancelled")
    run.until_left()
    assert run.status()["state"] == "cancelled"
    cluster.hpcmr("cancel", "cancelled", code=2)
    resumed = cluster.hpcmr("resume", "cancelled", "--nodes", "1", "--wait", limit_s=200)
    assert resumed.split()[0] != run.job
    assert run.told()["ranks"] == 1
    assert run.digest() == digest


@scenario
def requeues_that_race(cluster: Cluster, digest: str) -> None:
    """Notice, whose end is a requeue by the script, and two requeues by hand at the same moment."""
    run = cluster.submit("race", pause=0.7)
    run.until_pieces(6)
    cluster.run("scancel", "--signal=USR1", "--batch", run.job)
    hands = [subprocess.Popen(["scontrol", "requeue", run.job], env=cluster.env, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) for _ in range(2)]
    for hand in hands:
        hand.wait(60)
    time.sleep(6)           # the first attempt's last word has been said
    run.until_done()
    assert run.digest() == digest
    assert run.jobs() == [run.job], "one job, however often it was put back"


@scenario
def no_progress(cluster: Cluster, digest: str) -> None:
    """Pieces that no attempt gets through: the third one does not begin."""
    run = cluster.submit("stuck", "--stall-timeout", "0", pause=600, nodes=1)
    for attempt in (1, 2):
        run.until("running", lambda attempt=attempt: run.told()["attempt"] >= attempt)
        cluster.run("scontrol", "requeue", run.job)
    run.until("stopped", lambda: run.told()["state"] == "failed")
    run.until_left()
    found = run.status()
    assert (found["state"], found["attempt"]) == ("failed", 2)
    assert "without a newer checkpoint" in found["reason"]


@scenario
def no_requeue(cluster: Cluster, digest: str) -> None:
    run = cluster.submit("anew", "--partition", "norequeue", pause=0.7)
    run.until_pieces(6)
    cluster.run("scancel", "--signal=USR1", "--batch", run.job)
    run.until_done()
    assert len(run.jobs()) == 2
    assert run.digest() == digest


@scenario
def fails_for_good(cluster: Cluster, digest: str) -> None:
    run = cluster.submit("fails", "--set", "fail=3", nodes=1, pause=0.02)
    run.until("failed", lambda: run.told()["state"] == "failed")
    run.until_left()
    found = run.status()
    assert found["state"] == "failed"
    assert "piece 3 is bad" in found["reason"]
    assert "piece 3 is bad" in cluster.hpcmr("logs", "fails")
    assert run.jobs() == [run.job]


@scenario
def preempted(cluster: Cluster, digest: str) -> None:
    """A job of a better partition takes the node: the run commits within the grace time, and goes on afterwards."""
    with cluster.apart:         # whoever runs on that node is preempted
        run = cluster.submit("preempted", pause=0.7, nodes=1, where="node3")
        run.until_pieces(5)
        cluster.run("sbatch", "--partition=urgent", "--nodelist=node3", "--exclusive", "--time=2", "--output=/dev/null", "--wrap", "sleep 3")
        run.until_done()
    assert run.starts() == 2, run.report()
    assert run.digest() == digest
    again = [p for p in set(run.trace()) if p and run.trace().count(p) > 1]
    assert not again, f"pieces that were committed were read again: {again}"


# -- tests -----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def outcomes(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """All scenarios that are asked for, under way."""
    out = cluster.folder / "calm"
    cluster.hpcmr("job", str(SLOW), "--set", f"input='{cluster.folder}/in/*.h5'", "--set", "pause=0", "--set", f"output.stats='{out}'",
                  "--run-dir", str(cluster.folder / "calm-run"))
    digest = cluster.digest(out)
    mine = [i.callspec.params for i in request.session.items if i.path == Path(__file__) and hasattr(i, "callspec")]
    wanted = [params["name"] for params in mine if "name" in params]
    with ThreadPoolExecutor(max_workers=len(SCENARIOS)) as pool:
        found: dict[str, Future[None]] = {}
        for name in dict.fromkeys(wanted):
            found[name] = pool.submit(SCENARIOS[name], cluster, digest)
            time.sleep(1)           # starts that do not crowd the two cores
        yield found


@pytest.mark.parametrize("name", ["walltime", *(n for n in SCENARIOS if n != "walltime")])
def test_scenario(name: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[name].result(500)


def test_python_is_the_one_that_submitted(cluster: Cluster) -> None:
    said = cluster.hpcmr("submit", str(SLOW), "--nodes", "2", "--print", "--set", "input=x", "--set", "pause=0")
    assert f"python={sys.executable}" in said
    assert not (cluster.folder / "work" / "hpcmr-runs").exists(), "--print leaves nothing behind"
