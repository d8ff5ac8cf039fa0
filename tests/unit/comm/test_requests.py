"""Requests that an error left in flight: their arrays stay allocated, since MPI may still write to them."""

import gc
import weakref

import numpy as np
import pytest

from ddl.comm.group import Member, no_probe
from ddl.comm.mpi_group import MpiGroup
from ddl.errors import PeerLost


class Lost(Exception):
    """MPI's error for a dead peer."""


class Request:
    def __init__(self, array, fails):
        self.array, self.fails = array, fails

    def Wait(self):
        if self.fails:
            raise Lost

    def Test(self):
        self.Wait()
        return True


class Comm:
    """A fake communicator of two ranks, as rank 0 sees it. Requests up to number ``good`` complete; then the peer is
    dead. received: weak references to the arrays of all receives."""

    def __init__(self, good):
        self.good, self.begun, self.received = good, 0, []

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 2

    def Set_errhandler(self, handler):
        pass

    def Allreduce(self, send, total):
        """The peer contributes what rank 0 does: half of ``total`` is its own part, and the other half is empty."""
        half = len(total) // 2
        total[half:] = total[:half]

    def Isend(self, array, *_):
        self.begun += 1
        return Request(array, self.begun > self.good)

    def Irecv(self, array, *_):
        self.received.append(weakref.ref(array))
        return self.Isend(array)

    def Free(self):
        raise Lost

    def Get_failed(self):
        raise Lost


class Library:
    Exception = Lost
    ANY_SOURCE, IN_PLACE, ERRORS_RETURN, ERR_OTHER = -1, None, None, 16


def group_over(comm):
    return MpiGroup(Library, comm, Member(0, "h", 1, "n"), 2, 0, True, no_probe)


def is_alive(reference):
    gc.collect()
    return reference() is not None


def stream(group):
    outgoing, incoming = ([np.zeros(4) for _ in range(3)] for _ in range(2))
    group.stream(outgoing, 1, incoming, 1, lambda number: None, 2)


def test_arrays_of_a_broken_stream_outlive_the_group():
    comm = Comm(2)
    group = group_over(comm)
    with pytest.raises(PeerLost):
        stream(group)
    group.close()
    del group
    assert comm.received and all(map(is_alive, comm.received))


def test_the_array_of_an_interrupted_spare_outlives_the_group():
    comm = Comm(0)
    group = group_over(comm)
    with pytest.raises(PeerLost):
        group.wait_as_spare()
    group.close()
    del group
    assert len(comm.received) == 1 and is_alive(comm.received[0])


def test_arrays_of_completed_requests_are_freed():
    comm = Comm(100)
    group = group_over(comm)
    stream(group)
    assert group.wait_as_spare() == 0
    assert len(comm.received) == 4 and not any(map(is_alive, comm.received))
    group.close()
