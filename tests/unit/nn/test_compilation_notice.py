"""The compilation of a kernel is announced when it begins, once, and never for a kernel that is compiled already."""

import pytest

from ddl.kernels.backend import on_compilation, on_compilation_progress, use_compiled


@pytest.fixture
def numba():
    module = pytest.importorskip("numba")
    if module.config.DISABLE_JIT:
        pytest.skip("NUMBA_DISABLE_JIT is set")
    yield module
    use_compiled("auto")


def test_a_compilation_is_announced_once(numba):
    told = []
    first, second = numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)
    on_compilation(lambda: told.append("earlier run"))
    on_compilation(lambda: told.append("compiles"))
    assert told == []
    assert (first(1), first(2), second(1)) == (2, 3, 3)
    assert told == ["compiles"]


def test_each_kernel_that_is_compiled_shows_progress(numba):
    seen = []
    on_compilation_progress(lambda: seen.append("beat"))
    inner = numba.njit(lambda x: x + 4)
    outer = numba.njit(lambda x: inner(x) * 2)
    outer(1)
    on_compilation_progress(lambda: None)
    assert len(seen) == 4  # the beginning and the end of both
    outer(2)
    assert len(seen) == 4


def test_nothing_is_announced_for_a_compiled_kernel_or_without_numba(numba):
    told = []
    kernel = numba.njit(lambda x: x + 3)
    kernel(1)
    on_compilation(lambda: told.append("compiles"))
    kernel(2)
    assert told == []
    use_compiled("off")
    on_compilation(lambda: told.append("off"))
    assert told == []
