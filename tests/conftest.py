"""What all tests share: a generator, the array backends of this machine, and no leftovers between tests."""

from __future__ import annotations

import gc
import importlib
from contextlib import suppress

import numpy as np
import pytest

from ddl.arrays.namespace import gpu_count

BACKENDS = ["numpy"] + [pytest.param("cupy", marks=pytest.mark.gpu)] * (gpu_count() > 0)

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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture(params=BACKENDS)
def xp(request: pytest.FixtureRequest):
    """numpy, and cupy where a GPU can be used."""
    return importlib.import_module(request.param)
