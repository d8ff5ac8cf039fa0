"""Requests that an error has left on their way: nobody may free what MPI could still write to."""

import gc
import weakref

import numpy as np
import pytest

from ddl.comm import mpi_group
from ddl.comm.group import Member, no_probe
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
    """Its messages up to number ``good`` arrive; then the peer is dead."""

    def __init__(self, good):
        self.good, self.begun = good, 0

    def Irecv(self, array, *_):
        self.begun += 1
        return Request(array, self.begun > self.good)

    Isend = Irecv

    def Free(self):
        raise Lost

    def Get_failed(self):
        raise Lost


class Library:
    Exception = Lost
    ANY_SOURCE = -1


@pytest.fixture
def group_of():
    def make(good):
        group = mpi_group.MpiGroup.__new__(mpi_group.MpiGroup)
        group._mpi, group._everyone, group.tolerant, group.probe = Library, Comm(good), True, no_probe
        group._workers = group._node = group._everyone
        group.rank, group.size, group.generation, group._memory, group._on_their_way = 0, 2, 0, [], ()
        group.members = [Member(rank, "h", 1, "n") for rank in range(2)]
        return group

    return make


def test_what_a_broken_stream_writes_to_lives_on(group_of):
    group, incoming = group_of(2), [np.zeros(4) for _ in range(3)]
    seen = [weakref.ref(x) for x in incoming]
    with pytest.raises(PeerLost):
        group.stream([np.zeros(4) for _ in range(3)], 1, incoming, 1, lambda number: None, 2)
    group.close()
    del group, incoming
    gc.collect()
    assert all(ref() is not None for ref in seen)
    mpi_group._abandoned.clear()  # nothing else holds them
    gc.collect()
    assert all(ref() is None for ref in seen)


def test_what_a_waiting_spare_left_behind_lives_on(group_of):
    group = group_of(0)
    with pytest.raises(PeerLost):
        group.wait_as_spare()
    (request,), (word,) = group._on_their_way
    seen = weakref.ref(word)
    group.close()
    del group, request, word
    gc.collect()
    assert seen() is not None


def test_what_has_arrived_is_free_to_go(group_of):
    group, incoming = group_of(100), [np.zeros(4) for _ in range(3)]
    seen = [weakref.ref(x) for x in incoming]
    group.stream([np.zeros(4) for _ in range(3)], 1, incoming, 1, lambda number: None, 2)
    del incoming
    assert group.wait_as_spare() == 0
    group.close()
    gc.collect()
    assert all(ref() is None for ref in seen) and group._on_their_way == ()
