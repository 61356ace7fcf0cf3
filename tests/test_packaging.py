"""The ways a user gets the package: a wheel, an editable install, a bare clone; through the links to kernels/ and slurm/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import ROOT
from tests.support.mpirun import clean_env

MODULES = sorted(p.name for p in (ROOT / "kernels").glob("*.py"))
NO_HEAVY_IMPORT = "import sys; heavy = {'numpy', 'h5py', 'numba', 'mpi4py'} & set(sys.modules); sys.exit(f'loaded {heavy}' if heavy else 0)"


def python(*args: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = clean_env()
    env.pop("PYTHONPATH", None)
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's own files, links as links: what `git clone` gives, made without git."""
    folder = tmp_path_factory.mktemp("clone") / "hpcmr"
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    for name in ("hpcmr", "kernels", "slurm"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built with the setuptools that is installed if it can, so that nothing is downloaded."""
    out = tmp_path_factory.mktemp("wheel")
    import setuptools

    isolation = ["--no-build-isolation"] if int(setuptools.__version__.split(".")[0]) >= 77 else []
    done = python("-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(out), str(clone), cwd=out)
    assert done.returncode == 0, done.stderr
    return next(out.glob("hpcmr-*.whl"))


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel as pip would lay it out in site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_links_are_links() -> None:
    assert os.readlink(ROOT / "hpcmr" / "kernels") == "../kernels"
    assert os.readlink(ROOT / "hpcmr" / "slurm") == "../slurm"


def test_wheel_holds_kernels_templates_and_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"hpcmr/kernels/{m}" for m in MODULES} <= names
    assert {"hpcmr/py.typed", "hpcmr/slurm/__init__.py", "hpcmr/slurm/README.md"} <= names
    assert {n.split("/")[0] for n in names} == {"hpcmr", next(n for n in names if ".dist-info" in n).split("/")[0]}
    assert any(n.endswith("LICENSE") for n in names)


def test_wheel_runs_from_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    done = python("-c", "import hpcmr, hpcmr.kernels.jit; print(hpcmr.__file__)", cwd=tmp_path, path=unpacked)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(unpacked)


def test_templates_are_found_when_installed(unpacked: Path, tmp_path: Path) -> None:
    code = "from importlib.resources import files; print(files('hpcmr.slurm').joinpath('README.md').is_file())"
    assert python("-c", code, cwd=tmp_path, path=unpacked).stdout.strip() == "True"


def test_version_is_the_same_everywhere(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    from hpcmr._version import __version__

    assert wheel.name.split("-")[1] == __version__
    assert python("-m", "hpcmr", "--version", cwd=tmp_path, path=unpacked).stdout.strip() == f"hpcmr {__version__}"


def test_bare_clone_runs(clone: Path) -> None:
    done = python("-m", "hpcmr", "--help", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert "job" in done.stdout


def test_console_script_is_the_module(unpacked: Path, tmp_path: Path) -> None:
    entry = next(unpacked.glob("*.dist-info")).joinpath("entry_points.txt").read_text()
    assert "hpcmr = hpcmr.cli.main:main" in entry
    script = "import sys; sys.argv[0] = 'hpcmr'; from hpcmr.cli.main import main; sys.exit(main())"
    by_name = python("-c", script, "--help", cwd=tmp_path, path=unpacked)
    by_module = python("-m", "hpcmr", "--help", cwd=tmp_path, path=unpacked)
    assert by_name.stdout == by_module.stdout != ""


def test_editable_install(clone: Path, tmp_path: Path) -> None:
    """Into a folder of its own, so that the environment stays what it is."""
    import setuptools

    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, to build without a download")
    made = python("-m", "venv", "--without-pip", str(tmp_path / "env"), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    fresh, packages = str(tmp_path / "env" / "bin" / "python"), Path(setuptools.__file__).parents[1]
    # Dependencies are borrowed through a path entry, which runs no .pth file of its own: an editable install of the outer environment stays out.
    next((tmp_path / "env" / "lib").glob("python*/site-packages")).joinpath("borrowed.pth").write_text(f"{packages}\n")
    flags = ["--quiet", "--ignore-installed", "--no-deps", "--no-build-isolation"]
    done = python("-m", "pip", "--python", fresh, "install", *flags, "-e", str(clone), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    env = {k: v for k, v in clean_env().items() if k != "PYTHONPATH"}
    code = "import hpcmr.kernels.jit, hpcmr; print(hpcmr.__file__)"
    done = subprocess.run([fresh, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == clone / "hpcmr" / "__init__.py"
    assert (tmp_path / "env" / "bin" / "hpcmr").exists()


def test_kernels_refuse_their_bare_name() -> None:
    done = python("-c", "import kernels", cwd=ROOT)
    assert done.returncode == 1
    assert "import hpcmr.kernels" in done.stderr


HELP = "from hpcmr.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"


@pytest.mark.parametrize("code", ["import hpcmr", "import hpcmr.errors", HELP], ids=["import", "errors", "help"])
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    done = python("-c", f"{code}\n{NO_HEAVY_IMPORT}", cwd=ROOT)
    assert done.returncode == 0, done.stderr
