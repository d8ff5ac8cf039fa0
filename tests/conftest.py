"""What all tests share: a generator, the array backends of this machine, and no leftovers between tests."""

from __future__ import annotations

import ast
import errno
import gc
import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "standin"))
from cupy_on_host import DEVICE, Module

with suppress(ImportError):
    from hypothesis import settings

    # The same examples every time, and no deadline: a busy machine may be slow.
    settings.register_profile("ddl", max_examples=40, deadline=None, derandomize=True)
    settings.load_profile("ddl")


gc.disable()  # until all is collected


def pytest_collection_finish() -> None:
    """What collection made lives to the end: the garbage collector need not look through it again and again."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture(scope="session")
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each file of the package, by its path in it, parsed once for all tests that read code."""
    root = Path(__file__).parent.parent / "ddl"
    paths = sorted(root.rglob("*.py"))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


class Disk:
    """Stands before os.write: takes ``room`` bytes, the last of a line in part, and then refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.room, self.code = 1 << 30, errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, bytes_: bytes) -> int:
        if not self.room:
            raise OSError(self.code, os.strerror(self.code))
        written = self._write(file, bytes_[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch):
    """The stand-in, under cupy's name; skips where the real one has a GPU."""
    from ddl.kernels.cupy_kernels import _made

    if DEVICE != "stand-in":
        pytest.skip("there is a GPU")
    module = Module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    _made.cache_clear()
    yield module
    module.cuda.Device(0).use()
    _made.cache_clear()


@pytest.fixture(params=["numpy", DEVICE])
def xp(request: pytest.FixtureRequest):
    """numpy; beside it cupy where a GPU can be used, and its stand-in where there is none."""
    return request.getfixturevalue("cupy") if request.param == "stand-in" else importlib.import_module(request.param)


@pytest.fixture(params=["plain", "compiled", DEVICE])
def spelling(request: pytest.FixtureRequest):
    """The namespace for each way in which kernels are spelled: numpy with the plain twins and with the compiled ones
    (where Numba is installed), cupy or its stand-in."""
    from ddl.kernels.backend import use_compiled

    if request.param == "stand-in":
        yield request.getfixturevalue("cupy")
        return
    use_compiled("off" if request.param == "plain" else "auto")
    yield importlib.import_module("cupy" if request.param == "cupy" else "numpy")
    use_compiled("auto")
