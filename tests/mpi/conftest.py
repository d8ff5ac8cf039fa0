"""One group over MPI for all tests: run them by mpirun -n N python -m pytest --with-mpi tests/mpi."""

import pytest

from ddl.comm import ending, mpi


@pytest.fixture(scope="session")
def group():
    joined = mpi.start(tolerant="off")
    yield joined
    joined.barrier()
    ending.agreed()  # pytest-mpi still needs MPI, so mpi4py finalizes it at the interpreter's end


@pytest.fixture
def small_messages(group):
    """Messages of at most 7 elements, as if 7 were the most that MPI can count."""
    group.element_limit = 7
    yield
    del group.element_limit
