"""What glibc keeps of freed memory, where the user has not decided it."""

import ctypes
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from ddl.torch.allocator import KEPT_BYTES, keep_freed_memory


@pytest.fixture
def thresholds(monkeypatch):
    """The values that were set meanwhile."""
    values = []
    library = SimpleNamespace(mallopt=lambda option, value: values.append(value))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return values


def test_freed_memory_is_kept(thresholds):
    keep_freed_memory({"GLIBC_TUNABLES": "glibc.rtld.nns=4"})
    assert KEPT_BYTES in thresholds


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_a_user_who_sets_the_thresholds_is_not_overruled(thresholds, setting):
    keep_freed_memory(setting)
    assert thresholds == []
