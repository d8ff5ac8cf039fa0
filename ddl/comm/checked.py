"""MPI collectives whose results are verified before use.

After a death Open MPI's allgather sometimes returned garbage without an error (5.0.11, one node, about one in five
runs in which two of six ranks died). Sums were never seen to, so values travel in sums, with a checksum. mpi_group.py
translates the errors."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddl.arrays import Array

CHECKSUM_BYTES = 4


def gather(mpi: Any, comm: Any, value: Any, limit: int) -> list[Any]:
    """Every rank's picklable value, by rank, on every rank of ``comm``. limit: elements of one message.

    Raises mpi.Exception if MPI does, or if a received value fails its checksum."""
    rank, size = comm.Get_rank(), comm.Get_size()
    packed = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    data = zlib.crc32(packed).to_bytes(CHECKSUM_BYTES, "little") + packed
    sizes = np.zeros(size, np.int64)
    sizes[rank] = len(data)
    comm.Allreduce(mpi.IN_PLACE, sizes)
    if sizes[rank] != len(data) or sizes.min() <= CHECKSUM_BYTES:
        raise mpi.Exception(mpi.ERR_OTHER)
    ends = np.cumsum(sizes).tolist()
    # Each rank fills its own range and leaves the rest 0, so the sum is the concatenation.
    whole = np.zeros(ends[-1], np.uint8)
    whole[ends[rank] - len(data) : ends[rank]] = np.frombuffer(data, np.uint8)
    for start in range(0, len(whole), limit):
        comm.Allreduce(mpi.IN_PLACE, whole[start : start + limit])
    parts = [whole[end - length : end].tobytes() for end, length in zip(ends, sizes.tolist(), strict=True)]
    for part in parts:
        if zlib.crc32(part[CHECKSUM_BYTES:]) != int.from_bytes(part[:CHECKSUM_BYTES], "little"):
            raise mpi.Exception(mpi.ERR_OTHER)
    return [pickle.loads(part[CHECKSUM_BYTES:]) for part in parts]


def broadcast(mpi: Any, comm: Any, chunks: Sequence[Array], root: int) -> None:
    """The arrays of rank ``root`` on all ranks of ``comm``, in place. Raises mpi.Exception, as ``gather`` does."""
    checksum = 0
    for chunk in chunks:
        comm.Bcast(chunk, root)
        checksum = zlib.crc32(chunk.reshape(-1).view(np.uint8), checksum)
    # One reduction gives the maximum and the (negated) minimum: equal if all ranks have the same checksum.
    seen = np.array([checksum, -checksum], np.int64)
    comm.Allreduce(mpi.IN_PLACE, seen, mpi.MAX)
    if seen[0] != -seen[1]:
        raise mpi.Exception(mpi.ERR_OTHER)
