"""The wheel and the sdist: what is in them, and that the wheel runs away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = ("ddl", "launch", "slurm", "tests")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('made'); build_meta.build_sdist('made')"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with both, built from a copy: building writes beside the sources."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("package")
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "made"


def sources(made: Path, folder: str) -> set[str]:
    return {str(path.relative_to(made.parent)) for path in (made.parent / folder).rglob("*") if path.is_file()}


def test_the_wheel_has_the_whole_package_and_nothing_else(made):
    (wheel,) = made.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources(made, "ddl")
    assert {"ddl/py.typed", "ddl/data/digits.npz", "ddl/data/digits.md"} <= names


def test_the_sdist_contains_every_file_of_the_checkout(made):
    (sdist,) = made.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in FOLDERS:
        assert sources(made, folder) <= names
    assert set(FILES) <= names


def test_the_wheel_runs_away_from_the_checkout(made, tmp_path):
    (wheel,) = made.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    words = ["--train.steps=2", "--model.name=mlp", "--train.compiled=off", "--run.dir=run", "--fault.tolerance=off"]
    code = "import ddl, runpy; print(ddl.__file__); runpy.run_module('ddl', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed")) and (tmp_path / "run" / "summary.json").exists()
