"""``hpcmr verify``: what is whole, what is damaged, and from where a start would go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcmr.cli.main import main
from hpcmr.store.journal import Journal
from hpcmr.store.pieces import infos_in
from tests.faults.jobs import publish_next, run_steps, write


def verify(path: Path, capfd: Any, code: int) -> dict[str, Any]:
    assert main(["verify", str(path), "--json"]) == code
    facts: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert facts["whole"] is (code == 0)
    return facts


def damage(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def test_an_output(tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    write(out, 3)
    facts = verify(out, capfd, 0)
    assert (facts["kind"], facts["rows"], facts["shards"], facts["files"]) == ("output", 900, 3, 4)
    assert main(["verify", str(out)]) == 0
    assert "the output is whole: 4 files" in capfd.readouterr().out
    for n in (0, 2):
        damage(out / f"part-{n:05d}.h5")
    facts = verify(out, capfd, 1)
    assert {Path(d["path"]).name for d in facts["damaged"]} == {"part-00000.h5", "part-00002.h5"}
    os.unlink(out / "part-00001.h5")
    (out / "part-00007.h5").write_bytes(b"old")
    assert main(["verify", str(out)]) == 1
    said = capfd.readouterr().out
    assert "part-00001.h5' is missing" in said and "part-00007.h5' is no part of this output" in said and "is damaged in 4 places" in said
    damage(out / "manifest.json")
    assert "digest" in verify(out, capfd, 1)["damaged"][0]["what"]
    os.unlink(out / "manifest.json")
    assert "no manifest.json" in verify(out, capfd, 1)["damaged"][0]["what"]


def test_a_run_whose_newest_checkpoint_is_damaged(tmp_path: Path, capfd: Any) -> None:
    run_dir = tmp_path / "run"
    run_steps(run_dir, until=3)
    publish_next(run_dir, tmp_path / "out", 1)
    facts = verify(run_dir, capfd, 0)
    slots = [g["slot"] for g in facts["generations"]]
    assert len(slots) == 2 and facts["good"] == slots[0] and facts["outputs"][0]["state"] == "whole"
    newest, older = Journal(run_dir).generations()
    only = {i["file"] for i in infos_in(newest.body)} - {i["file"] for i in infos_in(older.body)}
    damage(run_dir / sorted(only)[0])
    facts = verify(run_dir, capfd, 1)
    assert facts["good"] == slots[1] and [g["whole"] for g in facts["generations"]] == [False, True]
    assert main(["verify", str(run_dir)]) == 1
    assert f"a start goes on from the checkpoint of entry {slots[1]}" in capfd.readouterr().out
    assert verify(run_dir / "journal" / f"{slots[1]:06d}.json", capfd, 0)["kind"] == "checkpoint"
    assert verify(run_dir / "journal" / f"{slots[0]:06d}.json", capfd, 1)["good"] is None


@pytest.mark.parametrize("what", ["entry", "missing entry", "output", "status"])
def test_other_damage_of_a_run(what: str, tmp_path: Path, capfd: Any) -> None:
    run_dir = tmp_path / "run"
    run_steps(run_dir, until=2)
    publish_next(run_dir, tmp_path / "out", 1)
    path = {"entry": run_dir / "journal/000002.json", "missing entry": run_dir / "journal/000002.json", "output": tmp_path / "out/part-00001.h5",
            "status": run_dir / "status.json"}[what]
    if what == "missing entry":
        os.unlink(path)
    elif what == "status":
        path.write_text("{")
    else:
        damage(path)
    facts = verify(run_dir, capfd, 1)
    assert [d["path"] for d in facts["damaged"]] == [str(path)]


def test_no_such_thing(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    run_steps(tmp_path / "run", until=1)
    for name in ("nothing", "file", "folder", "run/journal/000001.json", "run/journal/000099.json"):
        path = tmp_path / name
        assert main(["verify", str(path)]) == 2, path
        assert str(path) in capfd.readouterr().err


def test_help_is_light() -> None:
    code = ("import sys; from hpcmr.cli.main import main\nfor c in ('verify', 'clean'):\n"
            "    try: main([c, '--help'])\n    except SystemExit as e: assert e.code in (0, None)\n"
            "bad = {'numpy', 'h5py', 'mpi4py', 'numba'} & set(sys.modules); assert not bad, bad")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
