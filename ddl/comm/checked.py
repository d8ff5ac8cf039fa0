"""Collectives of MPI whose results are checked before anybody believes them.

After a death Open MPI's allgather was seen to return garbage as if all were well (5.0.11, one node, about one in
five runs with two deaths of six), so values travel in sums, which were never seen to, and carry a checksum.
What an error means is mpi_group.py's business."""

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

    Raises mpi.Exception where MPI does, and where what arrived is not what was sent."""
    rank, size = comm.Get_rank(), comm.Get_size()
    packed = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    data = zlib.crc32(packed).to_bytes(CHECKSUM_BYTES, "little") + packed
    sizes = np.zeros(size, np.int64)
    sizes[rank] = len(data)
    comm.Allreduce(mpi.IN_PLACE, sizes)
    if sizes[rank] != len(data) or sizes.min() <= CHECKSUM_BYTES:
        raise mpi.Exception(mpi.ERR_OTHER)
    ends = np.cumsum(sizes).tolist()
    # Each rank fills in its own place, all others are 0: the sum is all of them.
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
    # The largest and, negated, the smallest: equal where all ranks have the same.
    seen = np.array([checksum, -checksum], np.int64)
    comm.Allreduce(mpi.IN_PLACE, seen, mpi.MAX)
    if seen[0] != -seen[1]:
        raise mpi.Exception(mpi.ERR_OTHER)
