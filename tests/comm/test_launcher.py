"""Launchers: what started us, what to start with, and that exit codes and signals come through."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmr.comm import launcher
from hpcmr.comm.launcher import Bound, Found, command, mismatch, started
from hpcmr.errors import Refused
from tests.support.launch import needs_launcher

OPENMPI = Bound("Open MPI v5.0.11, package: x", "Open MPI", "5.0.11", "4.1.2", "/opt/ompi/lib/libmpi.so.40")
MPICH = Bound("MPICH Version:      5.0.2", "MPICH", "5.0.2", "4.1.2", "/opt/mpich/lib/libmpi.so.12")
MPIRUNS = [Found("/opt/ompi/bin/mpirun", "openmpi", ""), Found("/opt/mpich/bin/mpirun", "mpich", "")]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("env", "family", "size", "rank"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}, "openmpi", 4, 3),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "HYDI_CONTROL_FD": "7"}, "mpich", 4, 1),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "4", "I_MPI_HYDRA_BOOTSTRAP": "ssh"}, "intel", 4, 1),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "SLURM_STEP_NUM_TASKS": "4"}, "slurm", 4, 1),
        ({"PMIX_RANK": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "2"}, "slurm", 8, 2),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, "slurm", 8, 5),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, "mvapich", 2, 1),
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, "openmpi", 1, 0),
    ],
)
def test_started_by(env, family, size, rank):
    found = started(env)
    assert (found.family, found.size, found.rank) == (family, size, rank)
    assert launcher.env_rank(env) == rank


@pytest.mark.parametrize(
    "env", [{}, {"SLURM_NTASKS": "64", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}]
)
def test_a_batch_script_is_no_launcher(env):
    assert started(env) is None


@pytest.mark.parametrize(
    ("library", "size", "env", "says"),
    [
        ("MPICH Version: 5", None, {"OMPI_COMM_WORLD_SIZE": "4"}, "the mpirun of Open MPI started 4 processes, but mpi4py is bound to MPICH"),
        ("Open MPI v5", None, {"PMI_SIZE": "2", "HYDI_CONTROL_FD": "3"}, "the mpirun of MPICH started 2 processes, but mpi4py is bound to Open MPI"),
        ("Open MPI v5", 1, {"SLURM_STEP_NUM_TASKS": "8"}, "srun --mpi=pmix"),
        ("MPICH Version: 5", 1, {"SLURM_STEP_NUM_TASKS": "8"}, "srun --mpi=pmi2"),
        ("Some MPI", 1, {"OMPI_COMM_WORLD_SIZE": "3"}, "started 3 processes"),
    ],
)
def test_copies_of_rank_0_are_noticed(library, size, env, says):
    assert says in mismatch(library, size, env)
    assert "launch -n" in mismatch(library, size, env)


@pytest.mark.parametrize(
    ("library", "size", "env"),
    [
        ("Open MPI v5", 4, {"OMPI_COMM_WORLD_SIZE": "4"}),
        ("Open MPI v5", 1, {"OMPI_COMM_WORLD_SIZE": "1"}),
        ("MPICH Version: 5", 2, {"PMI_SIZE": "2", "HYDI_CONTROL_FD": "3"}),
        ("Open MPI v5", 1, {}),
        ("MPICH Version: 5", 8, {"PMI_SIZE": "8", "SLURM_STEP_NUM_TASKS": "8"}),
        ("Open MPI v4", None, {"PMI_SIZE": "8", "SLURM_STEP_NUM_TASKS": "8"}),
    ],
)
def test_launchers_that_fit(library, size, env):
    assert mismatch(library, size, env) is None


@pytest.mark.parametrize(
    ("n", "bound", "kinds", "env", "root", "words"),
    [
        (1, OPENMPI, [], {}, False, "/opt/ompi/bin/mpirun -n 1 --bind-to none"),
        (4, OPENMPI, [], {}, True, "/opt/ompi/bin/mpirun -n 4 --allow-run-as-root --bind-to none --oversubscribe"),
        (4, OPENMPI, ["pmix", "pmi2"], SLURM, False, "/opt/ompi/bin/mpirun -n 4 --bind-to none"),
        (8, OPENMPI, ["pmix"], SLURM, False, "/opt/ompi/bin/mpirun -n 8 --bind-to none --oversubscribe"),
        (4, MPICH, [], {}, True, "/opt/mpich/bin/mpirun -n 4"),
        (4, MPICH, ["pmi2"], SLURM, False, "srun --mpi=pmi2 -n 4"),
        (4, MPICH, [], SLURM, False, "/opt/mpich/bin/mpirun -n 4"),
    ],
)
def test_flags(n, bound, kinds, env, root, words):
    assert " ".join(command(n, bound, MPIRUNS, kinds, env, cores=2, root=root).words) == words


def test_flags_of_recovery():
    able = replace(OPENMPI, ft=True)
    found = command(4, able, MPIRUNS, [], {}, cores=8, root=False, recover=True)
    assert found.recovers
    assert " ".join(found.words) == "/opt/ompi/bin/mpirun -n 4 --bind-to none --with-ft ulfm --mca coll ^han,cuda,hcoll,portals4"
    for bound, kinds, env in ((OPENMPI, [], {}), (MPICH, [], {}), (MPICH, ["pmi2"], SLURM)):
        assert not command(4, bound, MPIRUNS, kinds, env, cores=8, root=False, recover=True).recovers
    assert not command(4, able, MPIRUNS[1:], ["pmix"], SLURM, root=False, recover=True).recovers


def test_srun_where_no_mpirun_fits():
    assert command(4, OPENMPI, MPIRUNS[1:], ["pmix"], SLURM, root=False).words == ["srun", "--mpi=pmix", "-n", "4"]


def test_no_launcher_of_this_mpi():
    with pytest.raises(Refused, match=r"bound to MPICH 5.0.2 .* /opt/ompi/bin/mpirun is Open MPI"):
        command(2, MPICH, MPIRUNS[:1], [], {}, root=False)


def test_library_families():
    for text, family in (
        ("Open MPI v5", "openmpi"),
        ("mpirun (Open MPI) 5.0.11", "openmpi"),
        ("HYDRA build details:", "mpich"),
        ("Intel(R) MPI Library 2021", "intel"),
        ("MVAPICH2 Version: 2.3", "mvapich"),
        ("MPICH Version: 4", "mpich"),
        ("", "unknown"),
    ):
        assert launcher.library_family(text) == family


def start_two(code):
    bound = launcher.bound_mpi()
    return launcher.command(2, bound, launcher.find_launchers(bound), []), ["-c", code]


@needs_launcher
@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_exit_codes_come_through(code):
    start, args = start_two(f"import sys; from mpi4py import MPI; assert MPI.COMM_WORLD.size == 2; MPI.COMM_WORLD.Barrier(); sys.exit({code})")
    assert launcher.run_ranks(start, args) == code


@needs_launcher
@pytest.mark.parametrize("code", [1, 75])
def test_abort_comes_through(code):
    start, args = start_two(f"from hpcmr.comm.world import World; w = World.of(); w.rank or w.abort({code}); w.barrier()")
    assert launcher.run_ranks(start, args) == code


def launch(*words, **options):
    env = {**launcher.clean_env(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "hpcmr", "launch", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@needs_launcher
def test_print_says_the_command_and_starts_nothing():
    child = launch("-n", "2", "--print", "job", "does-not-exist.toml", "--no-recover", "--set", "a=b c")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert " -n 2 " in out
    assert out.endswith("-m hpcmr job does-not-exist.toml --no-recover --set 'a=b c'\n")
    assert "the MPI of mpi4py" in err


@needs_launcher
@pytest.mark.parametrize(
    ("words", "recovers"),
    [
        (["-n", "2", "job", "a.toml"], True),
        (["-n", "1", "job", "a.toml"], False),
        (["-n", "2", "cat", "out"], False),
        (["-n", "2", "--no-recover", "job", "a.toml"], False),
        (["-n", "2", "job", "a.toml", "--no-recover"], False),
    ],
)
def test_jobs_on_several_ranks_recover_where_the_mpi_can(words, recovers):
    out, _ = launch("--print", *words).communicate(timeout=60)
    able = recovers and launcher.bound_mpi().ft
    assert ("--with-ft ulfm --mca coll" in out) == able
    assert (" --recover" in out) == able


@needs_launcher
def test_usage_errors_exit_2():
    for words in (["-n", "0", "job"], ["-n", "2"], ["-n", "2", "no-such-command"]):
        child = launch(*words)
        assert (child.communicate(timeout=60), child.returncode)[1] == 2


@needs_launcher
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_ranks(number, code, tmp_path):
    script = f"""
import os, time
from hpcmr.comm.world import World
w = World.of()
w.barrier()
open({str(tmp_path)!r} + f"/{{w.rank}}", "w").write(str(os.getpid()))
time.sleep(60)
"""
    runner = f"""
import sys
from hpcmr.comm import launcher as l
bound = l.bound_mpi()
sys.exit(l.run_ranks(l.command(2, bound, l.find_launchers(bound), []), ["-c", {script!r}]))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", runner], env={**launcher.clean_env(), "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 30
    while len([p for p in tmp_path.iterdir() if p.read_text()]) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(timeout=30) == code
    end = time.monotonic() + 10
    for p in tmp_path.iterdir():
        while os.path.exists(f"/proc/{p.read_text()}") and "zombie" not in Path(f"/proc/{p.read_text()}/status").read_text():
            assert time.monotonic() < end, "a rank outlived its launcher"
            time.sleep(0.05)


@needs_launcher
def test_a_foreign_launcher_is_refused():
    other = (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
        if launcher.bound_mpi().family == "mpich"
        else {"PMI_SIZE": "2", "PMI_RANK": "0", "HYDI_CONTROL_FD": "9"}
    )
    code = "from hpcmr.comm.world import World\nfrom hpcmr.errors import Refused\ntry: World.of()\nexcept Refused as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**launcher.clean_env(), **other, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert "started 2 processes, but mpi4py is bound to" in done.stdout and "each would be rank 0 of 1" in done.stdout
