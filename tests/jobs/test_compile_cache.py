"""Compiled kernels in hostile environments: a read-only package without HOME, and Numba switched off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOB = ["-m", "ddl.train", "--train.steps=3", "--model.name=mlp", "--run.dir=run"]
pytest.importorskip("numba")


def train(folder: Path, package: Path, user: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    names = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "XDG_"))}
    return subprocess.run(
        [sys.executable, *JOB],
        cwd=folder,
        env={**names, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
        user=user,
    )


@pytest.fixture
def open_folder():
    """A folder that other users may enter: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_read_only_package_without_home_compiles_into_tmpdir(open_folder):
    package, folder = open_folder / "package", open_folder / "work"
    shutil.copytree(ROOT / "ddl", package / "ddl", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir()
    folder.chmod(0o777)
    try:
        subprocess.run([sys.executable, "-c", "import numba"], user=54321, check=True, timeout=60)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("not run: another user cannot start this Python")
    done = train(folder, package, user=54321, HOME="/nonexistent", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())  # lines are wrapped
    assert said.count(f"compiled kernels are kept in {folder / 'ddl-numba-54321'}:") == 1
    assert list((folder / "ddl-numba-54321").rglob("*.nbi"))


def test_with_numba_switched_off_kernels_run_in_numpy(tmp_path):
    done = train(tmp_path, ROOT, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    from ddl.kernels import compile_cache

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(compile_cache, "_is_writable", lambda folder: tmp_path in folder.parents)
    monkeypatch.setattr(compile_cache, "notes", [])
    planted = tmp_path / f"ddl-numba-{os.getuid()}"
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)

    class Numba:
        class config:
            CACHE_DIR = ""

    assert compile_cache.prepare(Numba)
    assert str(planted) != Numba.config.CACHE_DIR and Path(Numba.config.CACHE_DIR).stat().st_mode & 0o077 == 0


def test_a_user_without_home_gets_a_folder_in_tmpdir_and_one_line(tmp_path, monkeypatch):
    from ddl.kernels import compile_cache

    class Numba:
        class config:
            CACHE_DIR = ""

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(compile_cache, "__file__", "/proc/kernels.py")  # a package that is read-only
    monkeypatch.setattr(compile_cache, "notes", [])
    assert compile_cache.prepare(Numba) and Path(Numba.config.CACHE_DIR).parent == tmp_path
    assert len(compile_cache.notes) == 1 and not (tmp_path / "~").exists()
