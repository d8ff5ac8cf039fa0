"""Unnamed memory that all workers of a node map.

The node's first worker creates it (memfd_create) and the others open it through /proc, so nothing is left behind
when a rank dies, and the size of /dev/shm does not matter. mpi_group.py handles a rank that cannot map it."""

from __future__ import annotations

import mmap
import os

import numpy as np

from ddl.comm.group import NodeMemory

PAGE_BYTES = mmap.PAGESIZE


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


class MappedMemory(NodeMemory):
    """``workers`` slots and a common part in one mapping, each beginning on a page."""

    def __init__(self, descriptor: int, workers: int, slot_bytes: int, common_bytes: int):
        slot_bytes, common_bytes = _pages(slot_bytes), _pages(common_bytes)
        memory = mmap.mmap(descriptor, workers * slot_bytes + common_bytes)
        whole = np.frombuffer(memory, np.uint8)
        self.slots = whole[: workers * slot_bytes].reshape(workers, slot_bytes)
        self.common = whole[workers * slot_bytes :]

    def close(self) -> None:
        """Let go of the mapping; it is unmapped when the last array that views it is gone."""
        self.slots = self.common = np.empty(0, np.uint8)


def create(workers: int, slot_bytes: int, common_bytes: int) -> int:
    """A descriptor of memory for that many slots, reserved, so that writing to it cannot fail later.

    Raises OSError if the machine does not have enough."""
    descriptor = os.memfd_create("ddl", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, max(1, workers * _pages(slot_bytes) + _pages(common_bytes)))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_of(pid: int, descriptor: int) -> int:
    """This process's own descriptor of memory that process ``pid`` has made. Raises OSError."""
    return os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
