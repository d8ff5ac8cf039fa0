"""Values gathered and arrays broadcast over MPI arrive whole; what is altered on the way is not believed."""

import numpy as np
import pytest

MPI = pytest.importorskip("mpi4py.MPI")

from ddl.comm import checked  # noqa: E402


class Altering:
    """A communicator whose sums, or broadcasts, come back with one bit turned."""

    def __init__(self, comm, call, which):
        self.comm, self.call, self.which, self.calls = comm, call, which, 0

    def __getattr__(self, name):
        method = getattr(self.comm, name)
        if name != self.call:
            return method

        def altering(*args):
            method(*args)
            self.calls += 1
            if self.calls == self.which:
                x = args[1] if name == "Allreduce" else args[0]
                x.reshape(-1).view(np.uint8)[-1] ^= 4

        return altering


@pytest.mark.mpi
def test_every_rank_gets_every_value():
    comm = MPI.COMM_WORLD
    value = {"rank": comm.Get_rank(), "text": "x" * (10 * comm.Get_rank()), "array": np.arange(5)}
    for limit in (1 << 20, 7):
        found = checked.gather(MPI, comm, value, limit)
        assert [v["rank"] for v in found] == list(range(comm.Get_size()))
        assert [len(v["text"]) for v in found] == [10 * rank for rank in range(comm.Get_size())]


@pytest.mark.mpi
def test_an_altered_gather_is_refused():
    with pytest.raises(MPI.Exception):
        checked.gather(MPI, Altering(MPI.COMM_WORLD, "Allreduce", 2), "something", 1 << 20)


@pytest.mark.mpi(min_size=2)
def test_an_altered_broadcast_is_refused():
    comm = MPI.COMM_WORLD
    x = np.arange(6.0) * (comm.Get_rank() == 0)
    checked.broadcast(MPI, comm, [x], 0)
    assert (x == np.arange(6.0)).all()
    wrong = Altering(comm, "Bcast", 1) if comm.Get_rank() == 1 else comm
    with pytest.raises(MPI.Exception):
        checked.broadcast(MPI, wrong, [x], 0)
