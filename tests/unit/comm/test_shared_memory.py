"""Unnamed shared memory: mapped through /proc, reserved, and freed with its last view."""

import errno
import os

import numpy as np
import pytest

from ddl.comm import shared_memory
from ddl.comm.topology import node_identity, start_time, this_process


def test_two_mappings_of_one_descriptor_see_each_other_and_slots_begin_on_pages():
    descriptor = shared_memory.create(3, 100, 10)
    other = shared_memory.open_of(os.getpid(), descriptor)
    one, two = (shared_memory.MappedMemory(d, 3, 100, 10) for d in (descriptor, other))
    os.close(descriptor)
    os.close(other)
    one.slots[1, :100] = 7
    one.common[:10] = 9
    assert two.slots[1, :100].tolist() == [7] * 100 and two.common[:10].tolist() == [9] * 10
    assert not two.slots[0].any() and two.slots[2].ctypes.data % shared_memory.PAGE_BYTES == 0


def test_views_outlive_close():
    descriptor = shared_memory.create(1, 8, 8)
    memory = shared_memory.MappedMemory(descriptor, 1, 8, 8)
    os.close(descriptor)
    view = memory.slots[0, :8].view(np.float64)
    memory.close()
    view[0] = 1.5
    assert view[0] == 1.5


def test_memory_that_cannot_be_reserved_is_an_error_and_leaves_no_descriptor(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError):
        shared_memory.create(2, 8, 8)
    assert len(os.listdir("/proc/self/fd")) == before


def test_this_process_identifies_itself():
    me = this_process(3)
    assert me.pid == os.getpid() and me.identity == 3 and me.node.endswith(node_identity())
    assert me.started == start_time(os.getpid()) > 0
    assert start_time(2**22 + 1) == 0
    assert this_process(0, node="elsewhere").node == "elsewhere"
