"""Limits of memory and kinds of file systems, read from made-up system files."""

from pathlib import Path

from hpcmr.comm.limits import file_system, is_shared, memory_limits, memory_per_rank


def system(tmp_path, cgroup, files):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    return proc, groups


def test_the_least_limit_of_version_2_counts(tmp_path):
    proc, groups = system(
        tmp_path,
        "0::/slurm/job/step\n",
        {"slurm/memory.max": f"{4 << 30}\n", "slurm/job/memory.max": "max\n", "slurm/job/step/memory.max": f"{6 << 30}\n"},
    )
    assert memory_limits({}, proc, groups) == {"node": 16 << 30, "cgroup": 4 << 30}
    assert memory_per_rank(4, {}, proc, groups) == (1 << 30, "cgroup")


def test_a_limit_that_slows_down_counts(tmp_path):
    files = {"job/memory.max": f"{4 << 30}\n", "job/memory.high": f"{3 << 30}\n", "unified/job/memory.max": f"{5 << 30}\n"}
    proc, groups = system(tmp_path, "0::/job\n", files)
    assert memory_limits({}, proc, groups)["cgroup"] == 3 << 30


def test_version_2_beside_version_1(tmp_path):
    proc, groups = system(tmp_path, "4:cpu:/\n0::/a/b\n", {"unified/a/memory.max": f"{2 << 30}\n", "unified/a/b/memory.max": "max\n"})
    assert memory_limits({}, proc, groups)["cgroup"] == 2 << 30


def test_a_container_that_sees_a_path_of_its_host(tmp_path):
    proc, groups = system(tmp_path, "0::/../pod/c\n", {"memory.max": f"{2 << 30}\n"})
    assert memory_limits({}, proc, groups)["cgroup"] == 2 << 30


def test_version_1(tmp_path):
    proc, groups = system(
        tmp_path,
        "5:cpu:/x\n4:memory:/docker/a\n",
        {"memory/docker/a/memory.limit_in_bytes": f"{2 << 30}\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
    )
    assert memory_limits({}, proc, groups)["cgroup"] == 2 << 30


def test_slurm_counts_mebibytes(tmp_path):
    proc, groups = system(tmp_path, "0::/\n", {})
    assert memory_limits({"SLURM_MEM_PER_NODE": "1024"}, proc, groups) == {"node": 16 << 30, "slurm": 1 << 30}
    assert memory_limits({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}, proc, groups)["slurm"] == 2 << 30
    assert "slurm" not in memory_limits({"SLURM_MEM_PER_NODE": "0"}, proc, groups)
    assert memory_per_rank(2, {"SLURM_MEM_PER_NODE": "1024"}, proc, groups) == (512 << 20, "slurm")


def test_file_system_of_the_longest_mount(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /home rw shared:1 - nfs4 server:/home rw\n")
    assert file_system(Path("/home/nobody/.cache"), tmp_path) == "nfs4"
    assert file_system(Path("/homeless"), tmp_path) == "ext4"
    assert is_shared("nfs4") and is_shared("lustre") and is_shared("fuse.glusterfs") and not is_shared("ext4") and not is_shared("tmpfs")
