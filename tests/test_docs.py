"""The pages of the documentation: their code runs, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docs import blocks, needs_ranks, run_page
from tests.support.launch import ROOT, has_launcher

PAGES = sorted([*ROOT.glob("*.md"), *(p for folder in ("docs", "examples", "slurm") for p in (ROOT / folder).rglob("*.md"))])
RUNNABLE = [p for p in PAGES if p.exists() and any(b.run or b.file or b.language in ("python", "toml") for b in blocks(p))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.launcher
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_code_of_page_runs(page: Path, tmp_path: Path) -> None:
    if needs_ranks(page) and not has_launcher():
        pytest.skip("no mpirun for this interpreter")
    folder = tmp_path / "page"
    folder.mkdir()
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}, which is not there"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_files_that_are_named_are_there(page: Path) -> None:
    for target in re.findall(r"`((?:tests|hpcmr|kernels|docs|examples)/[\w/.-]*)`", page.read_text()):
        assert (ROOT / target).exists(), f"{name(page)} names {target}, which is not there"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
