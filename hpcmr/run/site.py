"""The site file: what batch jobs of a cluster need, said once. ``$HPCMR_SITE``, else ``~/.config/hpcmr/site.toml``. Standard library only."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hpcmr.errors import JobSpecError

LAUNCHERS = ("auto", "mpirun", "srun")
NBYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Site:
    """What a site file holds. An option of ``hpcmr submit`` comes before it.

    Attributes
    ----------
    partition, account, qos : str
        Empty: Slurm's own default.
    modules : tuple of str
        Loaded in this order before Python starts.
    launcher : str
        ``auto``, ``mpirun`` or ``srun``.
    scratch : str
        Node-local folder; ``$NAME/...`` is looked up on the node.
    requeue : bool
        False: the site forbids that jobs are put back into the queue; a job then submits itself anew.
    ntasks_per_node : int
        Ranks on a node where neither ``--ntasks`` nor ``--ntasks-per-node`` is given; 0: Slurm's own default, one.
    max_restarts : int
    sbatch : tuple of str
        More ``KEY=VALUE`` for sbatch.
    path : str
        The file; empty where there is none.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    modules: tuple[str, ...] = ()
    launcher: str = "auto"
    scratch: str = ""
    requeue: bool = True
    ntasks_per_node: int = 0
    max_restarts: int = 50
    sbatch: tuple[str, ...] = ()
    path: str = ""


KEYS = tuple(f.name for f in fields(Site) if f.name != "path")
_KINDS: dict[str, tuple[type, str]] = {
    "partition": (str, "a string"), "account": (str, "a string"), "qos": (str, "a string"), "modules": (list, "a list of strings"),
    "launcher": (str, f"one of {', '.join(LAUNCHERS)}"), "scratch": (str, "a folder"), "requeue": (bool, "true or false"),
    "ntasks_per_node": (int, "a number of ranks"), "max_restarts": (int, "a number of restarts"),
    "sbatch": (list, "a list of 'KEY=VALUE'")}


def site_path(env: Mapping[str, str] | None = None) -> Path:
    """Where the site file lies: ``$HPCMR_SITE``, ``$XDG_CONFIG_HOME/hpcmr/site.toml``, ``~/.config/hpcmr/site.toml``."""
    env = os.environ if env is None else env
    if env.get("HPCMR_SITE"):
        return Path(env["HPCMR_SITE"]).expanduser()
    return Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or "~").expanduser() / ".config") / "hpcmr" / "site.toml"


def read_site(path: Path | None = None) -> Site:
    """The site file, or what holds without one.

    Raises
    ------
    JobSpecError
        It cannot be read, is no TOML, or has a key or a value that is wrong; or ``$HPCMR_SITE`` names a file that is not there.
    """
    asked = path is not None or bool(os.environ.get("HPCMR_SITE"))
    path = site_path() if path is None else path
    try:
        with open(path, "rb") as file:
            content = file.read(NBYTES_MAX + 1)
        if len(content) > NBYTES_MAX:
            raise JobSpecError(f"{path}: a site file has at most {NBYTES_MAX:,} bytes")
        values = tomllib.loads(content.decode())
    except FileNotFoundError:
        if asked:
            raise JobSpecError(f"{path}: there is no such site file; `hpcmr site init` writes one, or unset HPCMR_SITE") from None
        return Site()
    except OSError as error:
        raise JobSpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JobSpecError(f"{path}: {error}") from None
    return Site(**{key: _checked(path, key, value) for key, value in values.items()}, path=str(path))


def _checked(path: Path, key: str, value: Any) -> Any:
    if key not in _KINDS:
        raise JobSpecError(f"{path}: there is no key {key!r} in a site file; there are {', '.join(KEYS)}")
    kind, wanted = _KINDS[key]
    fine = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if fine and isinstance(value, list):
        fine = all(isinstance(v, str) for v in value)
    if fine and key == "launcher":
        fine = value in LAUNCHERS
    if fine and kind is int:
        fine = isinstance(value, int) and 0 <= value <= 10_000
    if not fine:
        raise JobSpecError(f"{path}: {key} = {str(value)[:60]!r} is not {wanted}")
    return tuple(value) if isinstance(value, list) else value


def site_text(site: Site, notes: Sequence[str] = ()) -> str:
    """A site file with the values of `site`; what is not set stands there as a comment."""
    lines = ["# Batch jobs of hpcmr on this cluster; an option of `hpcmr submit` comes before what stands here.", *(f"# {n}" for n in notes), ""]
    examples = {"partition": '"batch"', "account": '"abc123"', "qos": '"normal"', "modules": '["gcc/13", "openmpi/5"]',
                "scratch": '"/local/scratch"', "ntasks_per_node": "32",
                "sbatch": '["constraint=cpu"]'}
    for key in KEYS:
        value = getattr(site, key)
        told = value not in ("", ()) and (key, value) != ("ntasks_per_node", 0)
        lines.append(f"{'' if told else '# '}{key} = {_toml(value) if told else examples[key]}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value) if isinstance(value, int) else toml_string(str(value))


def toml_string(text: str) -> str:
    """A basic string of TOML, on one line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m.group()):04x}", escaped) + '"'
