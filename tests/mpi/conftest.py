"""One group over MPI for all tests: run them by mpirun -n N python -m pytest --with-mpi tests/mpi."""

import pytest

from ddl.comm import mpi


@pytest.fixture(scope="session")
def group():
    return mpi.start(tolerant="off")


@pytest.fixture
def small_messages(group):
    """Messages of at most 7 elements, as if 7 were the most that MPI can count."""
    group.element_limit = 7
    yield
    del group.element_limit
