"""Job files that were made to do harm: each is refused with a reason, in a second or two and some hundred megabytes."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from hpcmr.api.jobfile import JOB_FILE_NBYTES_MAX, parse_settings, read_job_file
from hpcmr.api.jobplan import table_of
from hpcmr.errors import JobSpecError

GOOD = '[input]\npaths="a.txt"\n[map]\nfunction="words"\n[reduce]\nfunction="sum"\n'
ROOM = JOB_FILE_NBYTES_MAX - 300

MADE = {
    "lists in lists": (GOOD + "x=" + "[" * (ROOM // 2) + "]" * (ROOM // 2), "nested too deeply"),
    "tables in tables": (GOOD + "x=" + "{a=" * (ROOM // 8) + "1" + "}" * (ROOM // 8), "nested too deeply"),
    "a dotted key": (GOOD + ".".join("a" * (ROOM // 2)) + "=1", "nested too deeply"),
    "a dotted key, quoted": (GOOD + "a" + ' . "a"' * (ROOM // 6) + "=1", "nested too deeply"),
    "a dotted table": (GOOD + "[" + ".".join("a" * (ROOM // 2)) + "]", "nested too deeply"),
    "a number": (GOOD + "x=" + "9" * ROOM, "out of range"),
    "a hexadecimal number": (GOOD + "[shuffle]\npartitions=0x" + "f" * (ROOM - 99), "does not fit in 64 bits"),
    "a number beyond 64 bits": (GOOD + "[shuffle]\npartitions=9223372036854775808", r":8: .*does not fit in 64 bits"),
    "a negative number": (GOOD + "[shuffle]\npartitions=-1", "a power of two from 1 to 65536"),
    "a date that is none": (GOOD + "x=2024-02-30", "out of range|no TOML"),
    "keys": (GOOD + "".join(f"k{i}=1\n" for i in range(ROOM // 12)), "no key 'k0'"),
    "a long key": (GOOD + "k" * ROOM + "=1", "no key 'kkk"),
    "a long table": (GOOD + "[" + "t" * ROOM + "]", "no table \\[ttt"),
    "blanks for regular expressions": (GOOD + "x='''\n" + ("[" + " " * 990 + "\n") * (ROOM // 1000) + "'''", "no key 'x'"),
    "a long name": (GOOD + f'[job]\nname="{"n" * 101}"', "it may have 100 bytes"),
    "a name with a line end": (GOOD + '[job]\nname="a\\nb"', "control character"),
    "a path with NUL": (GOOD.replace("a.txt", "a\\u0000"), "control character"),
    "an output with NUL": (GOOD + '[output]\npath="a\\u0000b"', "control character"),
    "a function with NUL": (GOOD.replace('"words"', '"a\\u0000.py:f"'), "control character"),
    "a name that leads elsewhere": (GOOD + '[job]\nname="../x"', "cannot be empty or hold '/'"),
    "a list of lists for a path": (GOOD.replace('"a.txt"', '[["a"]]'), "'paths' must be a file"),
    "a table for a path": (GOOD.replace('"a.txt"', "{a=1}"), "'paths' must be a file"),
    "follow without HDF5": (GOOD.replace('"a.txt"', '"a.txt"\nfollow="/scratch"'), "'follow' is for format = 'hdf5'"),
}


@pytest.mark.parametrize("case", MADE)
def test_made_to_do_harm(tmp_path: Path, case: str) -> None:
    text, why = MADE[case]
    (tmp_path / "j.toml").write_text(text)
    start = time.process_time()
    with pytest.raises(JobSpecError, match=why) as caught:
        read_job_file(tmp_path / "j.toml", [])
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 1000 and "j.toml" in str(caught.value)


def test_a_job_file_of_a_gigabyte(tmp_path: Path) -> None:
    with (tmp_path / "j.toml").open("wb") as file:
        file.write(GOOD.encode())
        file.truncate(1 << 30)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(JobSpecError, match=r"j.toml: the job file has 1,073,741,824 bytes, more than 1,048,576"):
        read_job_file(tmp_path / "j.toml", [])
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, ".".join("1" * 1000)])
def test_settings_made_to_do_harm(text: str) -> None:
    with pytest.raises(JobSpecError, match=r"nested too deeply|out of range"):
        parse_settings([f"output.path={text}"])


def test_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[input]\npaths="m.h5"\nfollow=["parts", "/scratch/run7"]\n[map]\nfunction="columns"\nkey="x"\n[reduce]\nfunction="count"\n'
    (tmp_path / "j.toml").write_text(text)
    job = read_job_file(tmp_path / "j.toml", [])
    assert job["input.follow"] == [str(tmp_path / "parts"), "/scratch/run7"]
    node: Any = table_of(job)._node
    while not hasattr(node, "source"):
        node = node.parent
    assert node.source.follow == job["input.follow"]
    monkeypatch.chdir(tmp_path)
    assert read_job_file(tmp_path / "j.toml", parse_settings(["input.follow='here'"]))["input.follow"] == [str(tmp_path / "here")]
