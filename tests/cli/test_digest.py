"""``hpcmr digest``: one line, the same for equal content."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hpcmr.cli.main import main
from hpcmr.data.batch import Batch
from tests.store.support import store


def test_one_line(tmp_path: Path, capfd: Any) -> None:
    batch = Batch.of({"n": np.arange(1000), "s": ["x", "yy"] * 500})
    store(tmp_path / "a", [batch])
    store(tmp_path / "b", [batch.slice(i, i + 100) for i in range(0, 1000, 100)], ranks=4, shard_nbytes=1000)
    lines = []
    for name in ("a", "b"):
        assert main(["digest", str(tmp_path / name)]) == 0
        out, err = capfd.readouterr()
        lines.append(out)
        assert err == ""
    assert lines[0] == lines[1] and re.fullmatch(r"xxh3-128:[0-9a-f]{32}\n", lines[0])


def test_a_known_value(tmp_path: Path, capfd: Any) -> None:
    """The definition does not change from one version to the next."""
    store(tmp_path / "a", [Batch.of({"n": np.arange(5), "s": ["a", None, "", "ü", "b"], "l": [[1.5], [], None, [2.0, 3.0], []]})])
    assert main(["digest", str(tmp_path / "a")]) == 0
    assert capfd.readouterr().out == "xxh3-128:ecb8f323ac5c76b1c7dd913a0cf34021\n"


def test_help_is_light() -> None:
    """Neither NumPy nor HDF5 nor MPI is loaded for help."""
    code = ("import sys; from hpcmr.cli.main import main\nfor c in ('cat', 'export', 'inspect', 'digest'):\n"
            "    try: main([c, '--help'])\n    except SystemExit as e: assert e.code in (0, None)\n"
            "bad = {'numpy', 'h5py', 'mpi4py', 'numba'} & set(sys.modules); assert not bad, bad")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") + done.stdout.count("example:") >= 3
