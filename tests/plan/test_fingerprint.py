"""Fingerprints tell apart what differs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmr.plan.fingerprint import code_fingerprint, digest_of, own_modules, plan_fingerprint
from tests.plan.support import apply, keyed, read

LIMIT = 5


@pytest.mark.parametrize(("a", "b"), [
    (1, 1.0), (1, True), (0, None), ("1", 1), ("a", b"a"), ((1, 2), (2, 1)), (("a", "b"), ("ab",)),
    ((1, (2, 3)), ((1, 2), 3)),
    ({"a": 1}, {"a": 2}), ({"a": 1}, {"b": 1}), (0.0, -0.0), ((), ((),)), ("", None),
    (np.zeros(2), np.zeros((2, 1))), (np.zeros(1), np.zeros(1, np.float32)),
])
def test_different_values(a: Any, b: Any) -> None:
    assert digest_of(a) != digest_of(b)


def test_equal_values() -> None:
    assert digest_of({"a": 1, "b": {2, 3, 4}}) == digest_of({"b": {4, 3, 2}, "a": 1})
    assert digest_of(float("nan")) == digest_of(float("nan"))
    assert len(digest_of()) == 32


def test_a_value_that_holds_itself() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest_of(loop) == digest_of(loop)


def test_it_is_the_same_in_every_process() -> None:
    program = "from hpcmr.plan.fingerprint import digest_of; print(digest_of({'b', 'a', 'c'}, {'x': 1.5, 'y': (b'z',)}, len))"
    path = {"PYTHONPATH": "."}
    told = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, **path}).stdout
            for seed in ("1", "2")}
    assert told == {digest_of({"a", "b", "c"}, {"y": (b"z",), "x": 1.5}, len) + "\n"}


def above(limit: int) -> Any:
    return lambda row: row > limit


def uses_global(row: int) -> bool:
    return row > LIMIT


def calls(row: int) -> bool:
    return uses_global(row)


def test_functions_by_code_and_captured_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest_of(above(3)) == digest_of(above(3))
    assert digest_of(above(3)) != digest_of(above(4))
    assert digest_of(lambda x: x + 1) != digest_of(lambda x: x + 2)
    assert digest_of(lambda x, n=1: x + n) != digest_of(lambda x, n=2: x + n)
    before = digest_of(uses_global), digest_of(calls)
    monkeypatch.setitem(globals(), "LIMIT", 6)
    assert digest_of(uses_global) != before[0]
    assert digest_of(calls) != before[1]


class Cut:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def keep(self, row: int) -> bool:
        return row > self.limit


def test_methods_and_objects_of_the_users() -> None:
    assert digest_of(Cut(1).keep) == digest_of(Cut(1).keep)
    assert digest_of(Cut(1).keep) != digest_of(Cut(2).keep)


def test_recursion() -> None:
    def down(n: int) -> int:
        return 0 if n == 0 else down(n - 1)

    assert digest_of(down) == digest_of(down)


def test_plans() -> None:
    plan = keyed(apply(read("a"), 1), 2)
    assert plan_fingerprint(plan) == plan_fingerprint(keyed(apply(read("a", label="other"), 1, label="words"), 2))
    assert plan_fingerprint(plan) != plan_fingerprint(keyed(apply(read("b"), 1), 2))
    assert plan_fingerprint(plan) != plan_fingerprint(keyed(apply(read("a"), 3), 2))
    assert plan_fingerprint(plan) != plan_fingerprint(apply(apply(read("a"), 1), 2))
    assert plan_fingerprint(plan) != plan_fingerprint(plan, ("write", "out"))


def test_code_of_a_job_and_of_the_modules_beside_it(tmp_path: Path) -> None:
    spec = tmp_path / "job.py"
    spec.write_text("import beside_the_job\n")
    beside = tmp_path / "beside_the_job.py"
    (tmp_path / "unused.py").write_text("")
    program = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from pathlib import Path
        from hpcmr.plan.fingerprint import code_fingerprint, own_modules
        import beside_the_job
        print(*own_modules(Path({str(tmp_path)!r})), code_fingerprint(Path({str(spec)!r})))
    """)

    def fingerprint() -> list[str]:
        return subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, check=True).stdout.split()

    beside.write_text("A = 1\n")
    one = fingerprint()
    assert one == fingerprint()
    assert one[:-1] == [str(beside)]
    beside.write_text("A = 2\n")
    two = fingerprint()
    assert one != two
    spec.write_text("import beside_the_job  # edited\n")
    assert fingerprint() not in (one, two)


def test_installed_modules_do_not_count() -> None:
    assert not any("site-packages" in str(p) for p in own_modules(Path("/")))
    assert code_fingerprint(Path(__file__)) == code_fingerprint(Path(__file__))
