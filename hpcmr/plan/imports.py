"""Which files of the user's code a file imports, from its text alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

FILES_MAX = 4096


def imports_of(files: Iterable[Path]) -> set[Path]:
    """Files that `files` import from the folders that they lie in, and what these import, whether it was run or not.

    Notes
    -----
    Imports inside of functions count; names that are put together at run time are not seen. At most `FILES_MAX` files.
    """
    waiting = [path.resolve() for path in files]
    homes = list(dict.fromkeys(path.parent for path in waiting))
    found: set[Path] = set()
    while waiting and len(found) < FILES_MAX:
        for target in _imported(waiting.pop(), homes):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def _imported(path: Path, homes: Sequence[Path]) -> list[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []        # told when the file is loaded
    names: list[tuple[Sequence[Path], str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(homes, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            where = homes if not node.level else [path.parents[node.level - 1]] if node.level <= len(path.parents) else []
            base = node.module or ""
            names += [(where, base), *((where, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)]
    return [file for where, name in names for home in where for file in _files_of(home, name)]


def _files_of(home: Path, name: str) -> list[Path]:
    """Files that importing `name` from `home` runs: those of the packages on the way, and its own."""
    parts = name.split(".") if name else []
    packages = [home.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    own = [home.joinpath(*parts[:-1], f"{parts[-1]}.py")] if parts else [home / "__init__.py"]
    return [p.resolve() for p in (*packages, *own) if p.is_file()]
