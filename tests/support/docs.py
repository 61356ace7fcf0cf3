"""Run the code blocks of a Markdown page, from top to bottom, in one empty folder.

A fence says what is done with its block::

    ```python file=stats.py    written to that file
    ```toml file=job.toml      written to that file
    ```python run              run by a Python of its own
    ```console run             lines after `$ ` are run by bash; what follows must be what they print, `...` standing for anything

Other blocks of Python and TOML must be well-formed; other fences are not looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support import mpirun
from tests.support.launch import ROOT

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```\s*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    language: str
    file: str | None
    run: bool
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    source = page.read_text()
    found = []
    for match in FENCE.finditer(source):
        words = match["info"].split()
        files = [w.removeprefix("file=") for w in words[1:] if w.startswith("file=")]
        text = "".join(line.removeprefix(match["indent"]) for line in match["body"].splitlines(keepends=True))
        found.append(Block(words[0] if words else "", files[0] if files else None, "run" in words[1:], text, source[:match.start()].count("\n") + 1))
    return found


def needs_ranks(page: Path) -> bool:
    return any(b.run and "mpirun" in b.text for b in blocks(page))


def environment(folder: Path) -> dict[str, str]:
    """PATH on which `python` is the one that runs the tests, and `mpirun` its launcher with the flags that this machine needs."""
    tools = folder.parent / f"{folder.name}-bin"
    tools.mkdir(exist_ok=True)
    extra: dict[str, str] = {}
    try:
        line, extra = mpirun.command(sys.executable, os.cpu_count() or 1, [])
        flags = [f for f in line[3:] if f.startswith("--") or f == "none"]
        if mpirun.find_mpirun(sys.executable)[1] == "openmpi" and "--oversubscribe" not in flags:
            flags.append("--oversubscribe")
        script = tools / "mpirun"
        script.write_text(f'#!/bin/sh\nexec "{line[0]}" {" ".join(flags)} "$@"\n')
        script.chmod(0o755)
    except FileNotFoundError:
        pass
    env = mpirun.clean_env(extra)
    env["PATH"] = os.pathsep.join([str(tools), env.get("PATH", "")])
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT)])
    # A script, not a link: a Python reached through a link does not find its environment.
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tools / "python").chmod(0o755)
    return env


def run_page(page: Path, folder: Path, timeout_s: float = 120) -> None:
    """Run a page in `folder`; an AssertionError names page, line, and what was printed instead."""
    env = environment(folder)
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "python" and not block.run:
            compile(block.text, where, "exec")
        elif block.language == "python":
            _run([sys.executable, "-c", block.text], folder, env, where, timeout_s)
        elif block.language == "console" and block.run:
            _console(block, folder, env, where, timeout_s)


def _console(block: Block, folder: Path, env: dict[str, str], where: str, timeout_s: float) -> None:
    steps: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.startswith("> "):
            steps[-1] = (steps[-1][0] + "\n" + line[2:], [])
        else:
            steps[-1][1].append(line)
    for command, expected in steps:
        printed = _run(["bash", "-c", command], folder, env, f"{where}: $ {command}", timeout_s)
        pattern = re.escape("\n".join(expected).strip()).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, printed.strip(), re.S), f"{where}: $ {command}\nprinted\n{printed}\nand not\n" + "\n".join(expected)


def _run(line: list[str], folder: Path, env: dict[str, str], where: str, timeout_s: float) -> str:
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{where}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
