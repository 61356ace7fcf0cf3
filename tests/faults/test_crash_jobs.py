"""A power cut, or storage that fails, under real jobs on one rank: each is started again on what is left, and its output is right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpcmr
from hpcmr.cli.main import main
from hpcmr.run import attempt
from hpcmr.run.owner import Life
from hpcmr.store import files
from hpcmr.store.journal import Journal
from tests.support.crashes import Recorder, states
from tests.support.data import write_events, write_texts
from tests.support.io_errors import ERRORS, PASSING, SHORT, WRITING, Failing, Fault, sites_of
from tests.support.launch import ROOT

LONG = bool(os.environ.get("HPCMR_TEST_LONG"))
SEED = int(os.environ.get("HPCMR_TEST_SEED", "1"))
VERBS = ("agg", "sort", "several", "join", "iterate", "words", "only", "fold") if LONG else ("agg", "several")
STATES, ERRORS_EACH = (150, 150) if LONG else (12, 14)
JOB = ROOT / "tests" / "faults" / "verbs.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_events(folder / "events.h5", n=6000, keys=100)
    write_texts(folder / "texts", files=2, lines=200)
    return folder


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is not waited for, and each start takes the one before, which was in this very process, for dead."""
    monkeypatch.setattr(attempt, "life_of", lambda owner, run_dir, say=None: Life(False, "it is dead"))
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(files, "PAUSES_S", (0.0,) * len(files.PAUSES_S))


def start(place: Path, data: Path, verb: str) -> int:
    return main(["job", str(JOB), "--set", f"verb={verb}", "--set", f"input='{data}'", "--set", f"output.out='{place}/out'",
                 "--run-dir", str(place / "run"), "--checkpoint-every", "0.001s", "-q"])


def digest(place: Path) -> str:
    with hpcmr.open(place / "out") as found:
        return str(found.digest())


def recorded(place: Path, data: Path, verb: str) -> tuple[Recorder, str]:
    """A run without faults, and the digest of its output."""
    place.mkdir()
    with Recorder(place) as record:
        assert start(place, data, verb) == 0
    record.check(but="run/logs/")
    return record, digest(place)


@pytest.mark.parametrize("verb", VERBS)
def test_power_cut_of_a_job(verb: str, data: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    record, wanted = recorded(place, data, verb)
    continued = 0
    for state, tree in states(record.ops, SEED, STATES):
        shutil.rmtree(place)
        place.mkdir()
        state.write(place, tree)
        assert start(place, data, verb) == 0, str(state)
        assert digest(place) == wanted, str(state)
        assert sorted(os.listdir(place)) == ["out", "run"], str(state)
        continued += any(e.kind == "claim" and e.body["continues"] for e in Journal(place / "run").entries)
    assert continued, "no state had a checkpoint"


def chosen(sites: dict[Any, int], rng: np.random.Generator) -> Iterator[Fault]:
    """Faults drawn from all sites, errors and ways."""
    found = [Fault(site, 1 + int(rng.integers(count)), error, lasting) for site, count in sites.items() for error in ERRORS
             for lasting in (False, True) if (error != SHORT or site[0] in WRITING) and site[0] not in ("utime",)]
    yield from (found[i] for i in rng.choice(len(found), ERRORS_EACH, replace=False))


@pytest.mark.parametrize("verb", VERBS)
def test_storage_fails_under_a_job(verb: str, data: Path, tmp_path: Path, capfd: Any) -> None:
    """An error that passes is not seen; any other ends the job with a report, and the next start ends it well."""
    place = tmp_path / "disk"
    _, wanted = recorded(place, data, verb)
    shutil.rmtree(place)
    place.mkdir()
    sites = sites_of(place, lambda: start(place, data, verb))
    for fault in chosen(sites, np.random.default_rng(SEED)):
        shutil.rmtree(place)
        place.mkdir()
        with Failing(place, fault) as watch:
            code = start(place, data, verb)
        said = capfd.readouterr().err
        if code:
            assert watch.happened and code in (1, 2), f"{fault}: {code}\n{said}"
            assert fault.lasting or fault.error not in PASSING, f"{fault}: not tried again\n{said}"
            assert str(place) in said and fault.error in said, f"{fault}\n{said}"
        assert start(place, data, verb) == 0, f"{fault}\n{said}\n{capfd.readouterr().err}"
        assert digest(place) == wanted, str(fault)
