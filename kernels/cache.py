"""Where compiled kernels lie. Knows no compiler, so that looking there costs a rank next to nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _processor() -> str:
    """What tells processors apart for a compiler."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "|".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags", "Features"))


def _version(package: str) -> str:
    """Name and version of a package that is installed and not imported; ``importlib.metadata`` takes a rank 10 ms to import."""
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return package
    home = Path(spec.origin).parent
    return "|".join(sorted(p.name for p in home.parent.glob(f"{package}-*.dist-info"))) or spec.origin


def source_digest() -> str:
    """Digest of all that decides what the compiler makes of this package; 16 hex digits."""
    h = hashlib.sha256(f"{_version('numba')}|{_version('numpy')}|{platform.python_version()}|{_processor()}".encode())
    for path in sorted(HERE.glob("*.py")):
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def cache_root() -> Path:
    """Folder of caches: ``$HPCMR_KERNEL_CACHE``, else ``$XDG_CACHE_HOME/hpcmr``, else ``~/.cache/hpcmr``, else a temporary one of the user's."""
    chosen = os.environ.get("HPCMR_KERNEL_CACHE")
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if os.access(base if base.exists() else base.parent, os.W_OK):
        return base / "hpcmr"
    return _ours(Path(tempfile.gettempdir()) / f"hpcmr-{os.getuid()}")


def _ours(folder: Path) -> Path:
    """A folder in a place where everybody may make one: code is loaded from it, so it must be this user's and closed to others."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"hpcmr-{os.getuid()}-"))


CACHE = cache_root() / f"kernels-{source_digest()}"
